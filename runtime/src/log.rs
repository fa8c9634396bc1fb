//! The server's log, on stderr.
//!
//! Invariants: serving never waits for whoever reads the log: lines wait in a bounded queue, and what does not fit is
//! dropped and counted in the log itself.

use crate::cli::{LogFormat, LogLevel};
use std::{
    io::{self, IsTerminal, Write},
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};

/// Lines that wait for the thread that writes.
const QUEUE: usize = 8192;
/// Time in which the last lines must be out.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Bytes that are written at once, about.
const AT_ONCE: usize = 64 << 10;

/// A log that is being written. What waits is written when this is dropped.
pub struct Log {
    queue: SyncSender<Message>,
}

enum Message {
    Line(Vec<u8>),
    /// Answered when all that came before is written.
    End(SyncSender<()>),
}

/// Starts the log. A second one is refused: the first goes on.
///
/// # Errors
/// The system refuses a thread.
pub fn start(format: LogFormat, level: LogLevel) -> io::Result<Log> {
    let (queue, received) = sync_channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let lines = Lines { queue: queue.clone(), dropped: dropped.clone() };
    thread::Builder::new().name("rvllm-log".to_string()).spawn(move || write(&received, &dropped))?;
    let level = match level {
        LogLevel::Critical | LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let subscriber = tracing_subscriber::fmt().with_max_level(level).with_writer(lines).with_target(false);
    let _ = match format {
        LogFormat::Text => subscriber.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    Ok(Log { queue })
}

impl Drop for Log {
    fn drop(&mut self) {
        let (done, is_done) = sync_channel(1);
        if self.queue.try_send(Message::End(done)).is_ok() {
            // Nobody waits for long for a reader who does not read.
            let _ = is_done.recv_timeout(LAST_WORDS);
        }
    }
}

/// Makes lines of log.
struct Lines {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { text: vec![], lines: self }
    }
}

/// One line, handed over when it is dropped.
struct Line<'a> {
    text: Vec<u8>,
    lines: &'a Lines,
}

impl Write for Line<'_> {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = Message::Line(mem::take(&mut self.text));
        if let Err(TrySendError::Full(_)) = self.lines.queue.try_send(line) {
            self.lines.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write(received: &Receiver<Message>, dropped: &AtomicU64) {
    let mut text = vec![];
    while let Ok(message) = received.recv() {
        let mut next = Some(message);
        while let Some(Message::Line(line)) = next {
            text.extend(line);
            next = if text.len() < AT_ONCE { received.try_recv().ok() } else { None };
        }
        match dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            lines => text.extend(format!("{lines} lines of log were dropped: they were not read\n").into_bytes()),
        }
        // A closed stderr is nobody's problem.
        let _ = io::stderr().write_all(&text);
        text.clear();
        if let Some(Message::End(done)) = next {
            // Whoever asked may have gone.
            let _ = done.send(());
            return;
        }
    }
}
