//! Clients that come, go and misbehave: `rvllm serve` under load, and whether it comes to rest as it was.
//!
//! `load [--seconds 300] [--clients 256] [--rvllm target/release/rvllm] [--artifact target/demo.rvllm] [-- FLAG…]`
//!
//! A fifth of the clients leave in the middle of their answers, one body in a hundred is malformed. Fails unless every
//! other request is answered in full, what is refused deserves it, no block stays in use, memory stays flat, the idle
//! server rests, a SIGTERM loses no accepted request, and a killed server serves again within a second.

use rvllm_benches::{
    http::{Connection, request},
    server::Server,
};
use std::{
    env, io,
    net::SocketAddr,
    process::{Command, ExitCode},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Part of the run after which memory must stay flat.
const WARM: f64 = 0.3;
/// What it may differ by.
const FLAT: f64 = 0.05;
/// The KV cache is small, so that all of it has been used when memory must stay flat.
const KV: &str = "32MiB";
/// Requests that run when the server is told to end.
const LAST: u64 = 64;
/// What is no request, and what each is answered with.
const MALFORMED: [(&str, u16); 6] = [
    ("{\"prompt\": \"unfinished", 400),
    ("{\"prompt\": 3}", 400),
    ("{\"prompt\": \"a\", \"temperature\": \"hot\"}", 400),
    ("{\"prompt\": \"a\", \"model\": \"another\"}", 404),
    ("[]", 400),
    ("{\"prompt\": \"a\", \"max_tokens\": -1}", 400),
];

struct Options {
    seconds: u64,
    clients: u64,
    rvllm: String,
    artifact: String,
    flags: Vec<String>,
}

/// What all clients saw.
#[derive(Default)]
struct Seen {
    over: AtomicBool,
    whole: AtomicU64,
    left: AtomicU64,
    malformed: AtomicU64,
    busy: AtomicU64,
    wrong: Mutex<Vec<String>>,
    ttfts: Mutex<Vec<f64>>,
}

/// SplitMix64: the same clients in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }
}

fn options() -> Result<Options, String> {
    let [rvllm, artifact] = ["target/release/rvllm", "target/demo.rvllm"].map(String::from);
    let mut options = Options { seconds: 300, clients: 256, rvllm, artifact, flags: vec![] };
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--" {
            options.flags = args.by_ref().collect();
            break;
        }
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        let number = || value.parse().map_err(|_| format!("{arg} is {value:?}, but must be a number"));
        match arg.as_str() {
            "--seconds" => options.seconds = number()?,
            "--clients" => options.clients = number()?,
            "--rvllm" => options.rvllm = value,
            "--artifact" => options.artifact = value,
            _ => return Err(format!("there is no flag {arg}")),
        }
    }
    Ok(options)
}

fn start(options: &Options) -> io::Result<Server> {
    let mut command = Command::new(&options.rvllm);
    command.args(["serve", &options.artifact, "--port", "0", "--kv-cache-memory-bytes", KV]).args(&options.flags);
    Server::start(command.env_remove("VLLM_API_KEY").env_remove("RVLLM_API_KEY"))
}

/// One client, until time is over.
fn client(address: SocketAddr, seed: u64, seen: &Seen) {
    let (mut random, mut kept) = (Random(seed), None);
    while !seen.over.load(Relaxed) {
        let asked = match kept.take() {
            Some(connection) => Ok(connection),
            None => Connection::open(address),
        };
        match asked.and_then(|connection| ask(connection, &mut random, seen)) {
            Ok(connection) => kept = connection,
            Err(error) => note(seen, format!("a request was lost: {error}")),
        }
    }
}

fn note(seen: &Seen, wrong: String) {
    if let Ok(mut all) = seen.wrong.lock() {
        all.push(wrong);
    }
}

/// One request; the connection where it can be used again.
fn ask(mut connection: Connection, random: &mut Random, seen: &Seen) -> io::Result<Option<Connection>> {
    if random.below(100) == 0 {
        let (body, expected) = MALFORMED[random.below(MALFORMED.len() as u64) as usize];
        connection.send(&request("POST", "/v1/completions", body))?;
        let (status, answer) = connection.receive()?;
        if status != expected || !answer.starts_with(b"{\"error\"") {
            note(seen, format!("{body} was answered {status}"));
        }
        seen.malformed.fetch_add(1, Relaxed);
        return Ok(Some(connection));
    }
    let leaves = random.below(5) == 0;
    let reads = if leaves { random.below(20) as usize } else { usize::MAX };
    let start = Instant::now();
    connection.send(&request("POST", "/v1/completions", &body(random)))?;
    if leaves && reads == 0 {
        seen.left.fetch_add(1, Relaxed);
        return Ok(None);
    }
    let answer = connection.stream(reads)?;
    match (answer.status, answer.done) {
        (200, done) => {
            seen.ttfts.lock().map(|mut all| all.push((answer.first - start).as_secs_f64())).unwrap_or_default();
            if done { &seen.whole } else { &seen.left }.fetch_add(1, Relaxed);
            Ok(done.then_some(connection))
        }
        (429, _) => {
            seen.busy.fetch_add(1, Relaxed);
            thread::sleep(Duration::from_millis(200));
            Ok(Some(connection))
        }
        (status, _) => {
            note(seen, format!("a request was answered {status}"));
            Ok(None)
        }
    }
}

fn body(random: &mut Random) -> String {
    let words = ["once", "upon", "a", "time", "the", "little", "cat", "saw", "blue", "bird"];
    let prompt: Vec<&str> = (0..random.below(40) + 1).map(|_| words[random.below(10) as usize]).collect();
    let (tokens, seed) = (random.below(64) + 1, random.below(1 << 30));
    format!(
        "{{\"prompt\": \"{}\", \"max_tokens\": {tokens}, \"seed\": {seed}, \"ignore_eos\": true, \"stream\": true}}",
        prompt.join(" ")
    )
}

fn clients(server: &Server, count: u64, seen: &Arc<Seen>) -> io::Result<Vec<JoinHandle<()>>> {
    let one = |seed| {
        let (address, seen) = (server.address, seen.clone());
        thread::Builder::new().stack_size(256 << 10).spawn(move || client(address, seed, &seen))
    };
    (0..count).map(one).collect()
}

/// Resident memory at moments of the run after which it must be flat.
fn watch(server: &Server, seconds: u64) -> io::Result<Vec<u64>> {
    let (start, length) = (Instant::now(), Duration::from_secs(seconds));
    let mut seen = vec![];
    while start.elapsed() < length {
        thread::sleep(Duration::from_millis(500));
        if start.elapsed().as_secs_f64() > WARM * length.as_secs_f64() {
            seen.push(server.resident()?);
        }
    }
    Ok(seen)
}

fn percentile(sorted: &[f64], p: f64) -> f64 {
    sorted.get(((sorted.len() as f64 * p) as usize).min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// Waits for the server to come to rest; the blocks in use then.
fn rest(server: &Server) -> io::Result<f64> {
    let start = Instant::now();
    loop {
        let used = server.metric("rvllm:kv_blocks{", "state=\"used\"")?;
        if used == 0.0 || start.elapsed() > Duration::from_secs(10) {
            return Ok(used);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Part of a processor that the server takes with nothing to do.
fn idle(server: &Server) -> io::Result<f64> {
    let total = || Ok::<f64, io::Error>(server.processor()?.values().sum());
    thread::sleep(Duration::from_secs(1));
    let (before, start) = (total()?, Instant::now());
    thread::sleep(Duration::from_secs(5));
    Ok((total()? - before) / start.elapsed().as_secs_f64())
}

/// Tells the server to end while requests run; how many of them were not answered in full.
fn end_under_load(server: Server) -> io::Result<(u64, bool)> {
    let (address, lost) = (server.address, Arc::new(AtomicU64::new(0)));
    let one = |seed| {
        let lost = lost.clone();
        thread::spawn(move || {
            if !complete(address, seed).unwrap_or(false) {
                lost.fetch_add(1, Relaxed);
            }
        })
    };
    let clients: Vec<JoinHandle<()>> = (0..LAST).map(one).collect();
    let accepted = |server: &Server| {
        let [running, waiting] =
            ["vllm:num_requests_running{", "vllm:num_requests_waiting{"].map(|m| server.metric(m, ""));
        Ok::<bool, io::Error>(running? + waiting? >= LAST as f64)
    };
    while !accepted(&server)? {
        if clients.iter().all(JoinHandle::is_finished) {
            return Err(io::Error::other("the last requests were answered before the server was told to end"));
        }
    }
    let status = server.end()?;
    clients.into_iter().for_each(|c| drop(c.join()));
    Ok((lost.load(Relaxed), status.success()))
}

/// Whether a long request is answered in full.
fn complete(address: SocketAddr, seed: u64) -> io::Result<bool> {
    let body = format!(
        "{{\"prompt\": \"once\", \"max_tokens\": 200, \"seed\": {seed}, \"ignore_eos\": true, \"stream\": true}}"
    );
    let mut connection = Connection::open(address)?;
    connection.send(&request("POST", "/v1/completions", &body))?;
    let answer = connection.stream(usize::MAX)?;
    Ok(answer.status == 200 && answer.done)
}

/// Kills a server and starts another: seconds until that one has answered.
fn start_after_kill(options: &Options) -> io::Result<f64> {
    start(options)?.kill()?;
    let (start, server) = (Instant::now(), start(options)?);
    let mut connection = Connection::open(server.address)?;
    connection.send(&request("POST", "/v1/completions", "{\"prompt\": \"once\", \"max_tokens\": 1}"))?;
    match connection.receive()?.0 {
        200 => Ok(start.elapsed().as_secs_f64()),
        status => Err(io::Error::other(format!("after a new start a request is answered {status}"))),
    }
}

/// What was found beside what the clients saw.
struct Found {
    memory: Vec<u64>,
    tokens: f64,
    used: f64,
    idle: f64,
    lost: u64,
    ended: bool,
    back: f64,
}

fn measure(options: &Options, seen: &Arc<Seen>) -> io::Result<Found> {
    let server = start(options)?;
    let clients = clients(&server, options.clients, seen)?;
    let memory = watch(&server, options.seconds)?;
    let tokens = server.metric("vllm:generation_tokens_total{", "")?;
    seen.over.store(true, Relaxed);
    clients.into_iter().for_each(|c| drop(c.join()));
    let (used, idle) = (rest(&server)?, idle(&server)?);
    let (lost, ended) = end_under_load(server)?;
    Ok(Found { memory, tokens, used, idle, lost, ended, back: start_after_kill(options)? })
}

fn say(name: &str, value: String, right: bool) -> bool {
    println!("{name:<44}{value:>20}{}", if right { "" } else { "   WRONG" });
    right
}

/// A figure with a goal: it tells of the machine, too, so missing it is no failure.
fn goal(name: &str, value: String, met: bool) -> bool {
    println!("{name:<44}{value:>20}{}", if met { "" } else { "   goal missed" });
    true
}

fn report_clients(seen: &Seen) -> bool {
    let mut ttfts = seen.ttfts.lock().map(|mut all| std::mem::take(&mut *all)).unwrap_or_default();
    ttfts.sort_by(f64::total_cmp);
    let ttft = format!("{:.3} / {:.3} s", percentile(&ttfts, 0.5), percentile(&ttfts, 0.99));
    let wrong = seen.wrong.lock().map(|all| all.clone()).unwrap_or_default();
    let count = |n: &AtomicU64| n.load(Relaxed).to_string();
    let right = [
        say("answered in full", count(&seen.whole), seen.whole.load(Relaxed) > 0),
        say("left by their clients", count(&seen.left), true),
        say("malformed, and refused as they deserve", count(&seen.malformed), true),
        say("told to come again (429)", count(&seen.busy), true),
        say("anything else", wrong.len().to_string(), wrong.is_empty()),
        say("TTFT, median and p99", ttft, true),
    ];
    wrong.iter().take(5).for_each(|w| println!("{w}"));
    right.iter().all(|r| *r)
}

fn report(found: &Found, seconds: u64) -> bool {
    let (least, most) = (found.memory.iter().min().unwrap_or(&0), found.memory.iter().max().unwrap_or(&0));
    let flat = (most - least) as f64 <= FLAT * (most + least) as f64;
    let mib = |bytes: &u64| *bytes as f64 / f64::from(1 << 20);
    let right = [
        say("tokens a second", format!("{:.0}", found.tokens / seconds as f64), true),
        say("resident after warm-up, least and most", format!("{:.1} / {:.1} MiB", mib(least), mib(most)), flat),
        say("blocks in use afterwards", format!("{:.0}", found.used), found.used == 0.0),
        goal("processor when idle, below 1 %", format!("{:.2} %", found.idle * 100.0), found.idle < 0.01),
        say("accepted requests lost by SIGTERM", found.lost.to_string(), found.lost == 0 && found.ended),
        goal("SIGKILL, start, answer: below 1 s", format!("{:.3} s", found.back), found.back < 1.0),
    ];
    right.iter().all(|r| *r)
}

fn run(options: &Options) -> io::Result<bool> {
    let seen = Arc::new(Seen::default());
    let found = measure(options, &seen)?;
    let clients = report_clients(&seen);
    Ok(report(&found, options.seconds) && clients)
}

fn main() -> ExitCode {
    match options().map_err(io::Error::other).and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
