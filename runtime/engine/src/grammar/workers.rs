//! Threads that compute masks: beside the forward, or before it where that takes all threads anyway.
//!
//! Invariants: work whose sequence is gone is not done; idle threads sleep; the last owner ends them.

use super::matcher::Job;
use crate::team::Team;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Most threads: masks of a step are many, but short.
const MOST_THREADS: usize = 4;
/// Stack of a thread: lexers of nested expressions recurse.
const STACK: usize = 64 << 20;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Arc<Job>>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    news: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` when all is over.
    fn next(&self) -> Option<Arc<Job>> {
        let mut queue = self.lock();
        loop {
            match queue.jobs.pop_front() {
                Some(job) => return Some(job),
                None if queue.ended => return None,
                None => queue = self.news.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// Threads that compute masks. They start with the first job.
#[derive(Default)]
pub struct MaskWorkers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl MaskWorkers {
    /// Has jobs done, in order.
    pub fn submit(&mut self, jobs: &mut Vec<Arc<Job>>) {
        if jobs.is_empty() {
            return;
        }
        if self.threads.is_empty() {
            self.start();
        }
        // Without threads, whoever needs a mask computes it.
        if !self.threads.is_empty() {
            self.shared.lock().jobs.extend(jobs.drain(..));
            self.shared.news.notify_all();
        }
        jobs.clear();
    }

    fn start(&mut self) {
        let count = thread::available_parallelism().map_or(1, usize::from).div_ceil(2).min(MOST_THREADS);
        let spawn = |_| {
            let shared = self.shared.clone();
            let named = thread::Builder::new().name("rvllm-mask".into()).stack_size(STACK);
            named
                .spawn(move || {
                    while let Some(job) = shared.next() {
                        work(&job)
                    }
                })
                .ok()
        };
        self.threads = (0..count).filter_map(spawn).collect();
    }
}

/// Has a team do jobs, each member the next that nobody has begun.
pub fn share_out(team: &mut Team, jobs: &mut Vec<Arc<Job>>) {
    if let [job] = &jobs[..] {
        job.run();
    } else if !jobs.is_empty() {
        let (all, next) = (std::mem::take(jobs), AtomicUsize::new(0));
        team.run(Arc::new(move |_| {
            while let Some(job) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                work(job);
            }
        }));
    }
    jobs.clear();
}

fn work(job: &Arc<Job>) {
    if Arc::strong_count(job) > 1 {
        job.run();
    }
}

impl Drop for MaskWorkers {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        (queue.ended, queue.jobs) = (true, VecDeque::new());
        drop(queue);
        self.shared.news.notify_all();
        for thread in self.threads.drain(..) {
            // A mask that panicked has told its sequence.
            let _ = thread.join();
        }
    }
}
