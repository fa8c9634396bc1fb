//! A server process under measurement: its address, its memory, the time that each of its threads took.
//!
//! Invariants: a server that was started is ended.

use crate::http::{self, Connection};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Clock ticks a second in `/proc`: 100 on every Linux.
const TICKS: f64 = 100.0;

/// A server that runs.
pub struct Server {
    process: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// From its start until it listened.
    pub took: Duration,
}

impl Server {
    /// Starts a command that says `http://ADDRESS` on stderr once it listens. What it says later is read and forgotten.
    ///
    /// # Errors
    /// It does not start, or ends before it listens.
    pub fn start(command: &mut Command) -> io::Result<Server> {
        let start = Instant::now();
        let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let stderr = process.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut lines = BufReader::new(stderr).lines();
        let mut said = String::new();
        let address = loop {
            let Some(line) = lines.next() else {
                let _ = process.wait();
                return Err(io::Error::other(format!("the server has ended: {said}")));
            };
            said = line?;
            if let Some((_, address)) = said.split_once("http://") {
                break address.trim().parse().map_err(io::Error::other)?;
            }
        };
        let took = start.elapsed();
        thread::spawn(move || lines.for_each(drop));
        Ok(Server { process, address, took })
    }

    /// The process's number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Bytes that are resident.
    ///
    /// # Errors
    /// The process is gone.
    pub fn resident(&self) -> io::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let kib = text.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
        kib.map(|k: u64| k << 10).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Seconds of processor that its threads took, by their names.
    ///
    /// # Errors
    /// The process is gone.
    pub fn processor(&self) -> io::Result<BTreeMap<String, f64>> {
        let mut all = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            // A thread may end while it is looked at.
            let Ok(text) = fs::read_to_string(thread?.path().join("stat")) else { continue };
            if let Some((name, seconds)) = thread_time(&text) {
                *all.entry(name).or_default() += seconds;
            }
        }
        Ok(all)
    }

    /// The sum of a metric over its labels that contain `label`.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn metric(&self, name: &str, label: &str) -> io::Result<f64> {
        let mut connection = Connection::open(self.address)?;
        connection.send(&http::request("GET", "/metrics", ""))?;
        let (_, body) = connection.receive()?;
        let text = String::from_utf8_lossy(body);
        let of = |line: &str| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            labels.contains(label).then(|| value.parse::<f64>().ok())?
        };
        Ok(text.lines().filter_map(of).sum())
    }

    /// Tells it to end, and waits.
    ///
    /// # Errors
    /// The system refuses.
    pub fn end(mut self) -> io::Result<ExitStatus> {
        Command::new("kill").args(["-TERM", &self.id().to_string()]).status()?;
        self.process.wait()
    }

    /// Ends it without a word.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(mut self) -> io::Result<ExitStatus> {
        self.process.kill()?;
        self.process.wait()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Name and seconds of a line of `/proc/PID/task/TID/stat`.
pub fn thread_time(stat: &str) -> Option<(String, f64)> {
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_string();
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some((name, ticks / TICKS))
}
