//! How many requests a second the HTTP layer answers, over the mock engine, and what an empty handler would.
//!
//! `speed [--seconds 10] [--connections 64] [--rvllm target/release/rvllm]`
//!
//! One thread asks over kept connections, each of which has one request on its way: it reads an answer, sends the next
//! request, and goes to the next connection. The denominator is a server of the same libraries, threads and settings
//! whose handler reads the body and answers a constant of the same length.

use anyhow::{Context, Result, bail, ensure};
use axum::{Router, body::Bytes, http::header, routing::post};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, rt::TokioTimer, service::TowerToHyperService};
use rvllm_benches::{
    http::{Connection, request},
    server::{Server, thread_time},
};
use std::{
    collections::BTreeMap,
    env, fs,
    process::Command,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, runtime};

/// Time before the first measurement.
const WARM: Duration = Duration::from_secs(1);

struct Options {
    seconds: u64,
    connections: usize,
    rvllm: String,
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options { seconds: 10, connections: 64, rvllm: "target/release/rvllm".to_string() };
    while let Some(arg) = args.next() {
        let value = args.next().with_context(|| format!("{arg} needs a value"))?;
        match arg.as_str() {
            "--seconds" => options.seconds = value.parse().context("--seconds")?,
            "--connections" => options.connections = value.parse().context("--connections")?,
            "--rvllm" => options.rvllm = value,
            _ => bail!("there is no flag {arg}"),
        }
    }
    Ok(options)
}

/// What was measured of one server.
struct Measured {
    rate: f64,
    /// Seconds of processor a request: the server's threads by name, and the client's.
    threads: BTreeMap<String, f64>,
    client: f64,
}

fn own_processor() -> Result<f64> {
    let stat = fs::read_to_string("/proc/thread-self/stat")?;
    Ok(thread_time(&stat).context("/proc/thread-self/stat")?.1)
}

/// Asks for as long as `length`; the number of answers.
fn ask(connections: &mut [Connection], request: &[u8], length: Duration) -> Result<u64> {
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < length {
        for connection in &mut *connections {
            let (status, body) = connection.receive()?;
            ensure!(status == 200, "answered {status}: {}", String::from_utf8_lossy(body));
            connection.send(request)?;
            count += 1;
        }
    }
    Ok(count)
}

fn measure(server: &Server, body: &str, options: &Options) -> Result<Measured> {
    let request = request("POST", "/v1/completions", body);
    let open = || Ok(Connection::open(server.address)?);
    let mut connections: Vec<Connection> = (0..options.connections).map(|_| open()).collect::<Result<_>>()?;
    connections.iter_mut().try_for_each(|c| c.send(&request))?;
    ask(&mut connections, &request, WARM)?;
    let (before, client_before, start) = (server.processor()?, own_processor()?, Instant::now());
    let count = ask(&mut connections, &request, Duration::from_secs(options.seconds))? as f64;
    let (rate, client) = (count / start.elapsed().as_secs_f64(), (own_processor()? - client_before) / count);
    let each = |(name, seconds): (String, f64)| {
        let took = (seconds - before.get(&name).unwrap_or(&0.0)) / count;
        (name, took)
    };
    let threads = server.processor()?.into_iter().map(each).filter(|(_, s)| *s > 1e-7).collect();
    Ok(Measured { rate, threads, client })
}

fn report(name: &str, m: &Measured) {
    let server: f64 = m.threads.values().sum();
    let threads: Vec<String> = m.threads.iter().map(|(name, s)| format!("{name} {:.1}", s * 1e6)).collect();
    // What this machine could answer if its processors did nothing else.
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    println!(
        "{name:<28}{:>10.0}{:>14.1}{:>10.1}{:>12.0}   {}",
        m.rate,
        server * 1e6,
        m.client * 1e6,
        cores / (server + m.client),
        threads.join(", ")
    );
}

/// A server whose handler does nothing but read.
fn empty(answer: &'static str) -> Result<()> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let handler = move |_: Bytes| async move { ([(header::CONTENT_TYPE, "application/json")], answer) };
        let routes = Router::new().route("/v1/completions", post(handler));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        eprintln!("http://{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
            let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes.clone()));
            tokio::spawn(async move {
                // A connection's failure is its client's.
                let _ = connection.await;
            });
        }
    })
}

fn mock(options: &Options, flags: &[&str]) -> Result<Server> {
    let mut command = Command::new(&options.rvllm);
    command.args(["serve", "--mock", "--port", "0"]).args(flags);
    Ok(Server::start(command.env_remove("VLLM_API_KEY").env_remove("RVLLM_API_KEY"))?)
}

fn main() -> Result<()> {
    let mut args = env::args().skip(1).peekable();
    if args.next_if(|a| a == "empty").is_some() {
        return empty(args.next().context("empty needs an answer")?.leak());
    }
    let options = options(args)?;
    let body = |tokens: u32| format!("{{\"model\": \"mock\", \"prompt\": \"Hello, world\", \"max_tokens\": {tokens}}}");
    println!("{:<28}{:>10}{:>14}{:>10}{:>12}   µs by thread", "", "requests/s", "server µs", "client µs", "limit/s");
    let server = mock(&options, &["--uvicorn-log-level", "warning"])?;
    let mut connection = Connection::open(server.address)?;
    connection.send(&request("POST", "/v1/completions", &body(1)))?;
    let answer = String::from_utf8(connection.receive()?.1.to_vec())?;
    for tokens in [1, 16] {
        report(&format!("mock, {tokens} tokens"), &measure(&server, &body(tokens), &options)?);
    }
    drop(server);
    let server = mock(&options, &[])?;
    report("mock, 1 token, logged", &measure(&server, &body(1), &options)?);
    drop(server);
    let own = env::current_exe()?;
    let server = Server::start(Command::new(own).args(["empty", &answer]))?;
    report("empty handler", &measure(&server, &body(1), &options)?);
    Ok(())
}
