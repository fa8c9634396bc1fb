//! `rvllm serve` as a process: what it says, how it ends.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "serve/faults.rs"]
mod faults;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStderr, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A server over the mock engine, ended when dropped.
struct Server {
    process: Child,
    log: BufReader<ChildStderr>,
    address: String,
}

impl Server {
    fn start(args: &[&str]) -> Server {
        Server::start_with(args, &[])
    }

    /// With these variables in its environment.
    fn start_with(args: &[&str], variables: &[(&str, &str)]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rvllm"));
        command.args(args).args(["--mock", "--port", "0"]).stderr(Stdio::piped()).stdin(Stdio::null());
        let mut process = command
            .env_remove("VLLM_API_KEY")
            .env_remove("RVLLM_API_KEY")
            .envs(variables.iter().copied())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "the server ends before it listens");
            if let Some((_, address)) = line.split_once("http://").or(line.split_once("https://")) {
                break address.trim().to_string();
            }
        };
        Server { process, log, address }
    }

    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn complete(&self, max_tokens: u32) -> TcpStream {
        let body =
            format!("{{\"prompt\": \"a\", \"max_tokens\": {max_tokens}, \"ignore_eos\": true, \"stream\": true}}");
        let length = body.len();
        self.send(&format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        ))
    }

    fn signal(&self) {
        let told = Command::new("kill").args(["-TERM", &self.process.id().to_string()]).status().unwrap();
        assert!(told.success());
    }

    /// Ends it without a word.
    fn end_now(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Waits for the end: exit code, time it took, what was said meanwhile.
    fn end(mut self) -> (Option<i32>, Duration, String) {
        let (start, mut said) = (Instant::now(), String::new());
        self.log.read_to_string(&mut said).unwrap();
        (self.process.wait().unwrap().code(), start.elapsed(), said)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Exit code and messages of a command that ends by itself.
fn run(args: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_rvllm")).args(args).stdin(Stdio::null()).output().unwrap();
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

fn first_byte(stream: &mut TcpStream) {
    stream.read_exact(&mut [0]).unwrap();
}

#[test]
fn accepted_requests_are_finished_after_sigterm() {
    let server = Server::start(&["run", "--serve", "--mock-step-us", "2000"]);
    let mut streams: Vec<TcpStream> = (0..8).map(|_| server.complete(200)).collect();
    streams.iter_mut().for_each(first_byte);
    server.signal();
    thread::sleep(Duration::from_millis(100));
    assert!(TcpStream::connect(&server.address).is_err(), "nothing new is taken");
    for mut stream in streams {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.contains("\"finish_reason\":\"length\"") && text.contains("data: [DONE]"), "{text}");
    }
    let (code, _, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("all requests are answered"), "{said}");
}

#[test]
fn time_to_finish_is_bounded_and_a_second_signal_ends_at_once() {
    let slow = ["serve", "--mock-step-us", "20000", "--shutdown-timeout", "0.2"];
    let server = Server::start(&slow);
    let mut stream = server.complete(8000);
    first_byte(&mut stream);
    server.signal();
    let (code, took, said) = server.end();
    assert!(code == Some(0) && took < Duration::from_secs(5) && said.contains("given up"), "{took:?} {said}");
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("\"error\"") && text.contains("[DONE]"), "{text}");

    let server = Server::start(&slow[..3]);
    let mut stream = server.complete(8000);
    first_byte(&mut stream);
    server.signal();
    thread::sleep(Duration::from_millis(100));
    server.signal();
    let (_, took, said) = server.end();
    assert!(took < Duration::from_secs(5) && said.contains("told to end twice"), "{took:?} {said}");
}

#[test]
fn what_is_wrong_is_said_before_anything_is_loaded() {
    let (code, said) = run(&["serve"]);
    assert!(code == Some(2) && said.contains("ARTIFACT|MODEL"), "{said}");
    let (code, said) = run(&["serve", "--mock", "--allowed-origins", "*"]);
    assert!(code == Some(2) && said.contains("--allowed-origins is \"*\", but must be a JSON list"), "{said}");
    let (code, said) = run(&["serve", "--mock", "--api-key", ""]);
    assert!(code == Some(2) && said.contains("an API key is empty"), "{said}");
    let (code, said) = run(&["serve", "--mock", "--host", "192.0.2.1"]);
    assert!(
        code == Some(1) && said.contains("warning: 192.0.2.1 is open") && said.contains("cannot listen on"),
        "{said}"
    );
}

fn bench(server: &Server, flags: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rvllm"));
    command.args(["bench", "serve", "--base-url", &format!("http://{}", server.address)]).args(flags);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_load_generator_counts_what_the_server_answers() {
    let server = Server::start(&["serve"]);
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.html");
    let lengths = ["--num-prompts", "20", "--input-len", "30", "--output-len", "7", "--max-concurrency", "4"];
    for backend in ["openai", "openai-chat"] {
        let flags = [&["--backend", backend, "--json", "--html", report.to_str().unwrap()], &lengths[..]].concat();
        let (code, out, said) = bench(&server, &flags);
        assert_eq!(code, Some(0), "{said}");
        let results: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&results["completed"], &results["failed"]), (&20.into(), &0.into()), "{out}");
        assert_eq!(results["total_output_tokens"], 140, "{out}");
        let most = results["max_concurrent_requests"].as_u64().unwrap();
        assert!((1..=4).contains(&most), "{out}");
        assert!(results["mean_ttft_ms"].as_f64().unwrap() > 0.0, "{out}");
    }
    assert!(std::fs::read_to_string(&report).unwrap().contains("<svg"));
}

#[test]
fn the_load_generator_says_what_is_wrong_at_once() {
    let server = Server::start(&["serve", "--api-key", "k"]);
    let (code, _, said) = bench(&server, &["--num-prompts", "1"]);
    assert!(code == Some(1) && said.contains("401") && said.contains("a key is needed"), "{said}");
    let (code, _, said) =
        bench(&server, &["--header", "authorization=Bearer k", "--num-prompts", "1", "--input-len", "99999"]);
    assert!(code == Some(1) && said.contains("the first request failed: 400"), "{said}");
    let address = server.address.clone();
    server.end_now();
    let output = Command::new(env!("CARGO_BIN_EXE_rvllm"))
        .args(["bench", "serve", "--base-url", &format!("http://{address}")])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("cannot reach") && said.contains("help:"), "{said}");
}

#[test]
fn keys_of_the_environment_open_beside_those_of_flags() {
    let variables = [("RVLLM_API_KEY", "one"), ("VLLM_API_KEY", "two")];
    let server = Server::start_with(&["serve", "--api-key", "three"], &variables);
    let status = |key: &str| {
        let request =
            format!("GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\r\n");
        let mut answer = String::new();
        server.send(&request).read_to_string(&mut answer).unwrap();
        answer[9..12].parse::<u16>().unwrap()
    };
    assert_eq!(["one", "two", "three", "four", ""].map(status), [200, 200, 200, 401, 401]);
}

#[test]
fn an_encrypted_server_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_string()]).unwrap();
    let path = folder.path().join("server.pem");
    std::fs::write(&path, made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
    let server = Server::start(&["serve", "--ssl-certfile", path.to_str().unwrap()]);
    let url = format!("https://{}", server.address);
    let measure = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rvllm"));
        command.args(["bench", "serve", "--base-url", &url, "--num-prompts", "4", "--input-len", "8"]);
        command.args(["--output-len", "4", "--json"]).args(more).output().unwrap()
    };
    let strict = measure(&[]);
    assert!(!strict.status.success(), "nobody vouches for its certificate");
    let trusting = measure(&["--insecure"]);
    let json = String::from_utf8(trusting.stdout).unwrap();
    assert!(json.contains("\"completed\":4"), "{json} {}", String::from_utf8_lossy(&trusting.stderr));
}
