//! A team of threads that live as long as the engine and do one job after another, together.
//!
//! A waiting member spins for some microseconds, as launches follow each other closely, then sleeps: an idle engine
//! costs nothing.
//!
//! Invariants:
//! - the caller of [`Team::run`] is member 0; no thread is made for a job;
//! - all members have left a job when [`Team::run`] returns;
//! - which member does what is the job's own rule: the team has no queue, so nothing depends on timing.

use std::{
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
};

/// Stack of a member: lexers of nested expressions recurse.
const STACK: usize = 64 << 20;
/// Turns of a spin before sleeping: some 50 µs.
const SPINS: u32 = 2000;

/// What every member does: called with the member and the barrier between parts.
pub type Job = Arc<dyn Fn(Member<'_>) + Send + Sync>;

/// A counter that members wait for.
#[derive(Debug, Default)]
struct Epoch {
    value: AtomicU32,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Epoch {
    fn get(&self) -> u32 {
        self.value.load(Ordering::Acquire)
    }

    fn advance(&self) {
        self.value.fetch_add(1, Ordering::Release);
        // A sleeper checks the value under the lock: past this line it has seen the new one, or will be woken.
        drop(locked(&self.lock));
        self.changed.notify_all();
    }

    fn wait_while(&self, seen: u32) {
        for _ in 0..SPINS {
            if self.get() != seen {
                return;
            }
            std::hint::spin_loop();
        }
        let mut guard = locked(&self.lock);
        while self.get() == seen {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where all members meet.
#[derive(Debug, Default)]
struct Barrier {
    arrived: AtomicU32,
    epoch: Epoch,
}

impl Barrier {
    fn wait(&self, members: u32) {
        if members == 1 {
            return;
        }
        let seen = self.epoch.get();
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == members {
            self.arrived.store(0, Ordering::Relaxed);
            self.epoch.advance();
        } else {
            self.epoch.wait_while(seen);
        }
    }
}

/// One thread's part in a job.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    index: usize,
    count: usize,
    barrier: &'a Barrier,
}

impl Member<'_> {
    /// Which member, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// This member's contiguous part of `0..n`; parts differ by one at most.
    pub fn part(&self, n: u64) -> Range<u64> {
        let at = |i: usize| (u128::from(n) * i as u128 / self.count as u128) as u64;
        at(self.index)..at(self.index + 1)
    }

    /// Waits until all members are here. What they wrote before is seen after.
    pub fn barrier(&self) {
        self.barrier.wait(self.count as u32);
    }
}

struct Shared {
    count: usize,
    barrier: Barrier,
    job: Mutex<Option<Job>>,
    jobs: Epoch,
    stop: AtomicBool,
}

/// The threads.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Team {
    /// A team of `count` members, the caller included. Worker `i` calls `place(i)` first, to choose where it runs.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(count: usize, place: impl Fn(usize) + Send + Sync + 'static) -> std::io::Result<Team> {
        let count = count.max(1);
        let shared = Arc::new(Shared {
            count,
            barrier: Barrier::default(),
            job: Mutex::new(None),
            jobs: Epoch::default(),
            stop: AtomicBool::new(false),
        });
        let mut team = Team { shared, workers: vec![] };
        let place = Arc::new(place);
        for index in 1..count {
            let (shared, place) = (team.shared.clone(), place.clone());
            let worker = move || {
                place(index);
                work(&shared, index);
            };
            team.workers
                .push(std::thread::Builder::new().name(format!("rvllm-{index}")).stack_size(STACK).spawn(worker)?);
        }
        Ok(team)
    }

    /// Members, the caller included.
    pub fn len(&self) -> usize {
        self.shared.count
    }

    /// Never: there is always the caller.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Has every member do the job, and returns when all have.
    pub fn run(&mut self, job: Job) {
        let shared = &*self.shared;
        *locked(&shared.job) = Some(job.clone());
        if shared.count > 1 {
            shared.jobs.advance();
        }
        take_part(shared, 0, &job);
        *locked(&shared.job) = None;
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.jobs.advance();
        for worker in self.workers.drain(..) {
            // A worker that panicked has nothing left to clean up.
            let _ = worker.join();
        }
    }
}

fn take_part(shared: &Shared, index: usize, job: &Job) {
    let member = Member { index, count: shared.count, barrier: &shared.barrier };
    job(member);
    member.barrier();
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        shared.jobs.wait_while(seen);
        seen = seen.wrapping_add(1);
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        let job = locked(&shared.job).clone();
        if let Some(job) = job {
            take_part(shared, index, &job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::atomic::AtomicU64, time::Duration};

    #[test]
    fn every_part_is_done_once_and_before_the_next_launch() {
        for count in [1, 2, 3, 5] {
            let mut team = Team::new(count, |_| {}).unwrap();
            let counts: Arc<Vec<AtomicU64>> = Arc::new((0..101).map(|_| AtomicU64::new(0)).collect());
            for _ in 0..50 {
                let counts = counts.clone();
                team.run(Arc::new(move |member| {
                    for launch in 1..=4 {
                        let before = counts[0].load(Ordering::Relaxed).max(counts[100].load(Ordering::Relaxed));
                        member.part(101).for_each(|i| {
                            counts[i as usize].fetch_add(1, Ordering::Relaxed);
                        });
                        member.barrier();
                        let all: Vec<u64> = counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
                        assert!(all.iter().all(|c| *c == all[0] && *c >= before && c % 4 == launch % 4), "{all:?}");
                        member.barrier();
                    }
                }));
            }
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 200));
        }
    }

    #[test]
    fn sleeping_members_are_woken() {
        let mut team = Team::new(3, |_| {}).unwrap();
        let done = Arc::new(AtomicU64::new(0));
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(20));
            let done = done.clone();
            team.run(Arc::new(move |member| {
                std::thread::sleep(Duration::from_millis(member.index() as u64 * 5));
                member.barrier();
                done.fetch_add(1, Ordering::Relaxed);
            }));
        }
        assert_eq!(done.load(Ordering::Relaxed), 9);
    }

    #[test]
    fn parts_are_balanced_and_contiguous() {
        let barrier = Barrier::default();
        for (n, count) in [(0, 3), (1, 3), (10, 3), (u64::MAX, 7)] {
            let parts: Vec<Range<u64>> =
                (0..count).map(|index| Member { index, count, barrier: &barrier }.part(n)).collect();
            assert_eq!((parts[0].start, parts[count - 1].end), (0, n));
            assert!(parts.windows(2).all(|w| w[0].end == w[1].start));
            let sizes: Vec<u64> = parts.iter().map(|p| p.end - p.start).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }
    }
}
