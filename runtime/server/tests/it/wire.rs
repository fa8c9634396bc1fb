//! A server on real sockets, and clients that do not behave: each is answered or given up, and holds up nobody else.

use crate::client::{Server, limits};
use rvllm_server::{
    Config,
    config::Patience,
    listen::{Address, Stream},
    mock::MockForward,
    serve,
};
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UnixStream},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(20);

/// A server that listens, until the test ends.
pub(crate) struct Wire {
    pub(crate) server: Server,
    pub(crate) address: Address,
}

impl Wire {
    pub(crate) fn start(config: Config) -> Wire {
        Wire::with_steps(config, Duration::ZERO)
    }

    pub(crate) fn with_steps(config: Config, step: Duration) -> Wire {
        let config = Config { port: 0, ..config };
        let (server, engine) = Server::with_engine(config, Box::new(MockForward::new(limits(), step)));
        let ((tell, told), app) = (mpsc::channel(), server.0.clone());
        thread::spawn(move || serve::run(app, engine, |address| tell.send(address.clone()).unwrap()));
        Wire { server, address: told.recv_timeout(SOON).unwrap() }
    }

    pub(crate) fn tcp(&self) -> SocketAddr {
        match &self.address {
            Address::Tcp { address, .. } => *address,
            Address::Unix(path) => panic!("{}", path.display()),
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.tcp()).await.unwrap()
    }

    /// Sends bytes and reads until the server closes.
    async fn say(&self, bytes: impl AsRef<[u8]>) -> String {
        exchange(&mut self.connect().await, bytes).await
    }

    /// That others are served as if nothing happened.
    async fn serves(&self) {
        let answer = timeout(SOON, self.say(post("{\"prompt\": \"abc\", \"max_tokens\": 3}"))).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"length\""), "{answer}");
    }
}

pub(crate) async fn exchange(stream: &mut (impl Stream + ?Sized), bytes: impl AsRef<[u8]>) -> String {
    // A server that has answered may close before it has read all.
    let _ = stream.write_all(bytes.as_ref()).await;
    let mut text = vec![];
    let _ = timeout(SOON, stream.read_to_end(&mut text)).await.expect("the server closes");
    String::from_utf8_lossy(&text).into_owned()
}

pub(crate) fn post(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("no status: {answer:?}"))
}

/// Little patience, so that tests are short.
fn hasty() -> Config {
    let patience = Patience {
        head: Duration::from_millis(300),
        body: Duration::from_millis(400),
        write: Duration::from_millis(300),
    };
    Config { patience, ..Config::default() }
}

#[tokio::test]
async fn heads_that_do_not_come_are_given_up() {
    let wire = Wire::start(hasty());
    for sent in ["", "GET /health HTTP/1.1\r\nho"] {
        let start = Instant::now();
        let answer = wire.say(sent).await;
        assert!(answer.is_empty() || status(&answer) == 408, "{answer}");
        assert!(start.elapsed() < SOON / 4, "{sent:?}");
    }
    // The time is that of the whole head: a byte now and then does not extend it.
    let (mut stream, start) = (wire.connect().await, Instant::now());
    while start.elapsed() < SOON && stream.write_all(b"x").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(start.elapsed() < SOON / 4);
    wire.serves().await;
}

#[tokio::test]
async fn connections_at_rest_are_closed() {
    let wire = Wire::start(hasty());
    let mut stream = wire.connect().await;
    let answer = exchange(&mut stream, "GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(status(&answer), 200);
}

#[tokio::test]
async fn bodies_that_do_not_come_are_given_up() {
    let wire = Wire::start(hasty());
    let head = post("").replace("content-length: 0", "content-length: 100");
    assert_eq!(status(&wire.say(format!("{head}{{\"pro")).await), 408);
    let (mut stream, start) = (wire.connect().await, Instant::now());
    stream.write_all(head.as_bytes()).await.unwrap();
    while start.elapsed() < SOON && stream.write_all(b" ").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(start.elapsed() < SOON / 4, "a byte now and then does not help");
    wire.serves().await;
}

#[tokio::test]
async fn clients_that_do_not_read_are_given_up() {
    let wire = Wire::start(hasty());
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut slow = socket.connect(wire.tcp()).await.unwrap();
    // More log-probabilities than the buffers of both sides hold.
    let body = "{\"prompt\": \"a\", \"max_tokens\": 200, \"n\": 128, \"temperature\": 1, \"ignore_eos\": true, \
        \"stream\": true, \"logprobs\": 20}";
    slow.write_all(post(body).as_bytes()).await.unwrap();
    wire.serves().await;
    timeout(SOON, wire.server.idle()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut rest = vec![];
    let ended = timeout(SOON, slow.read_to_end(&mut rest)).await.unwrap();
    assert!(ended.is_err() || !String::from_utf8_lossy(&rest).contains("[DONE]"), "{} bytes", rest.len());
    wire.serves().await;
}

#[tokio::test]
async fn clients_that_read_slowly_get_all() {
    let wire = Wire::start(hasty());
    let mut slow = wire.connect().await;
    let body = "{\"prompt\": \"a\", \"max_tokens\": 200, \"ignore_eos\": true, \"stream\": true, \"logprobs\": 5}";
    slow.write_all(post(body).as_bytes()).await.unwrap();
    let (mut text, mut part) = (vec![], vec![0; 8192]);
    loop {
        match slow.read(&mut part).await.unwrap() {
            0 => break,
            n => text.extend_from_slice(&part[..n]),
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert!(String::from_utf8(text).unwrap().contains("[DONE]"));
}

#[tokio::test]
async fn large_bodies_are_answered_and_not_kept() {
    let wire = Wire::start(Config::default());
    let mut stream = wire.connect().await;
    let size = 100 << 20;
    let head = post("").replace("content-length: 0", &format!("content-length: {size}"));
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let send = async {
        let part = vec![b' '; 1 << 20];
        for _ in 0..100 {
            writer.write_all(&part).await.unwrap();
        }
    };
    let mut answer = String::new();
    let (_, read) = tokio::join!(send, timeout(SOON, reader.read_to_string(&mut answer)));
    read.unwrap().unwrap();
    assert_eq!(status(&answer), 413, "{answer}");
    wire.serves().await;
}

#[tokio::test]
async fn hostile_bodies_are_refused() {
    let wire = Wire::start(Config::default());
    let many = |what: &str, n: usize| vec![what; n].join(",");
    let deep = format!("{{\"prompt\": {}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let stops = format!("{{\"prompt\": \"a\", \"stop\": [{}]}}", many("\"stop\"", 100_000));
    let unknown = format!(
        "{{\"prompt\": \"a\", {}}}",
        (0..100_000).map(|i| format!("\"f{i}\": 1")).collect::<Vec<_>>().join(",")
    );
    for (body, param) in [(deep, ""), (stops, "stop")] {
        let answer = wire.say(post(&body)).await;
        assert!(
            status(&answer) == 400 && answer.contains(&format!("\"param\":\"{param}\"").replace("\"\"", "null")),
            "{answer}"
        );
    }
    assert_eq!(status(&wire.say(post(&unknown)).await), 200);
    let messages = format!("{{\"messages\": [{}]}}", many("{\"role\": \"user\", \"content\": \"a\"}", 100_000));
    let answer = wire.say(post(&messages).replace("/v1/completions", "/v1/chat/completions")).await;
    assert!(status(&answer) == 400 && answer.contains("maximum context length"), "{answer}");
    let mut invalid = post("{\"prompt\": \"__\"}").into_bytes();
    invalid.iter_mut().filter(|b| **b == b'_').for_each(|b| *b = 0xff);
    assert_eq!(status(&wire.say(invalid).await), 400);
    wire.serves().await;
}

#[tokio::test]
async fn hostile_heads_are_refused() {
    let wire = Wire::start(Config::default());
    let huge = format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let many = format!("GET /health HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(10_000));
    for (head, expected) in [(huge, 431), (many, 431), ("\0\u{1}\u{2}\r\n\r\n".to_string(), 400)] {
        let answer = wire.say(head).await;
        assert!(answer.is_empty() || status(&answer) == expected, "{answer}");
    }
    // Requests in one packet are answered in order, and what cannot be read ends the connection.
    let garbage = "GET /version HTTP/1.1\r\nhost: x\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n!!! garbage\r\n\r\n";
    let answer = wire.say(garbage).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 400").count(), 1, "{answer}");
    let smuggled = post("{}").replace("content-length: 2", "content-length: 2\r\ntransfer-encoding: chunked");
    let answer = wire.say(smuggled).await;
    assert!(answer.is_empty() || status(&answer) >= 400, "{answer}");
    wire.serves().await;
}

#[tokio::test]
async fn there_are_never_more_connections_than_the_limit() {
    let wire = Wire::start(Config { max_connections: 2, ..hasty() });
    let held = [wire.connect().await, wire.connect().await];
    // The third waits until one of those who say nothing is given up.
    let start = Instant::now();
    wire.serves().await;
    assert!(start.elapsed() > Duration::from_millis(100));
    drop(held);
}

#[tokio::test]
async fn a_unix_socket_is_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rvllm.sock");
    // One that a server left behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let config = |path: &PathBuf| Config { uds: Some(path.clone()), ..Config::default() };
    let wire = Wire::start(config(&path));
    assert_eq!(wire.address.to_string(), format!("unix:{}", path.display()));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    assert_eq!(status(&exchange(&mut stream, post("{\"prompt\": \"a\"}")).await), 200);
    let refused = move |path: &PathBuf| {
        let (server, engine) = Server::with_engine(config(path), Box::new(MockForward::new(limits(), Duration::ZERO)));
        serve::run(Arc::clone(&server.0), engine, |_| ()).unwrap_err().to_string()
    };
    let (taken, file) = (path.clone(), dir.path().join("file"));
    std::fs::write(&file, "precious").unwrap();
    let said = thread::spawn(move || [refused(&taken), refused(&file)]).join().unwrap();
    assert!(said.iter().all(|s| s.contains("cannot listen on the socket")), "{said:?}");
    assert_eq!(std::fs::read_to_string(dir.path().join("file")).unwrap(), "precious");
}
