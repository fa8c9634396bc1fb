//! What happens to a server from outside: its files, its descriptors, its log.

use super::{Server, run};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(30);

fn get(path: &str, key: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\r\n")
}

fn status(server: &Server, request: &str) -> String {
    let mut text = String::new();
    server.send(request).read_to_string(&mut text).unwrap();
    text.split(' ').nth(1).unwrap_or_default().to_string()
}

fn until(mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "it does not come to pass");
        thread::sleep(Duration::from_millis(20));
    }
}

fn open_files(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.process.id())).unwrap().count()
}

fn limit_files(server: &Server, soft: usize) {
    let mut command = Command::new("prlimit");
    command.args(["--pid", &server.process.id().to_string()]).arg(format!("--nofile={soft}:"));
    assert!(command.status().unwrap().success());
}

#[test]
fn a_server_without_file_descriptors_serves_again_when_it_has_some() {
    let server = Server::start(&["serve"]);
    let most = open_files(&server) + 4;
    limit_files(&server, most);
    let mut held: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    until(|| open_files(&server) >= most);
    let mut late = held.pop().unwrap();
    late.write_all(get("/health", "").as_bytes()).unwrap();
    late.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(late.read(&mut [0]).is_err(), "there is no descriptor for it");
    drop(held);
    late.set_read_timeout(Some(SOON)).unwrap();
    let mut text = String::new();
    late.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    server.signal();
    let (code, _, said) = server.end();
    assert_eq!((code, said.matches("cannot accept connections for now").count()), (Some(0), 1), "{said}");
}

#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    let server = Server::start(&["serve"]);
    let mut stream = server.send("");
    stream.set_read_timeout(Some(SOON)).unwrap();
    // A pipe holds 64 KiB, which is about 500 lines.
    for _ in 0..2000 {
        stream.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = vec![];
        while !answer.ends_with(b"}") {
            let mut byte = [0; 512];
            let n = stream.read(&mut byte).unwrap();
            assert!(n > 0, "the server closes");
            answer.extend_from_slice(&byte[..n]);
        }
    }
    drop(stream);
    server.signal();
    let (code, _, said) = server.end();
    assert_eq!(code, Some(0));
    assert_eq!(said.matches("path=\"/version\"").count(), 2000, "what waits is written when it is read");
}

#[test]
fn keys_change_without_a_restart() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "old\n").unwrap();
    let path = file.path().to_str().unwrap();
    let server = Server::start(&["serve", "--api-key-file", path, "--api-key", "fixed"]);
    let with = |key: &str| status(&server, &get("/version", key));
    assert_eq!(["old", "fixed", "new", ""].map(with), ["200", "200", "401", "401"]);
    fs::write(file.path(), "new\n").unwrap();
    let told = Command::new("kill").args(["-HUP", &server.process.id().to_string()]).status().unwrap();
    assert!(told.success());
    until(|| with("new") == "200");
    assert_eq!(["old", "fixed", ""].map(with), ["401", "200", "401"]);
    fs::write(file.path(), "third\n").unwrap();
    until(|| with("third") == "200");
    assert_eq!(status(&server, &get("/health", "")), "200");
}

#[test]
fn metrics_are_open_unless_told() {
    let open = Server::start(&["serve", "--api-key", "k"]);
    assert_eq!(status(&open, &get("/metrics", "")), "200");
    let guarded = Server::start(&["serve", "--api-key", "k", "--guard-metrics"]);
    assert_eq!(["", "k"].map(|key| status(&guarded, &get("/metrics", key))), ["401", "200"]);
}

#[test]
fn flags_of_encryption_and_traces_say_what_they_need() {
    for (args, code, part) in [
        (vec!["--ssl-certfile", "/nowhere/cert.pem"], 1, "cannot read /nowhere/cert.pem"),
        (vec!["--ssl-keyfile", "key.pem"], 2, "--ssl-certfile"),
        (vec!["--ssl-certfile", "c", "--ssl-ca-certs", "a"], 2, "--ssl-cert-reqs"),
        (vec!["--ssl-certfile", "c", "--ssl-cert-reqs", "3"], 2, "2 (required)"),
        (vec!["--api-key-file", "/nowhere/keys"], 1, "cannot read the keys in /nowhere/keys"),
        (vec!["--otlp-traces-endpoint", "grpc://localhost:4317"], 2, "OTLP over HTTP"),
        (vec!["--collect-detailed-traces", "all"], 2, "--otlp-traces-endpoint"),
    ] {
        let (found, said) = run(&[&["serve", "--mock"], &args[..]].concat());
        assert!(found == Some(code) && said.contains(part), "{args:?}: {found:?} {said}");
    }
}
