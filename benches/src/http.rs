//! A client that costs little, so that what is measured is the server: raw requests over kept connections.
//!
//! Invariants: it reads exactly one answer for each request; a server that says something else than HTTP is an error.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Time that a server has for any part of an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The end of a body that came in chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A request as it goes over the wire.
pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\n");
    format!("{head}content-length: {length}\r\n\r\n{body}").into_bytes()
}

/// A kept connection.
pub struct Connection {
    stream: TcpStream,
    bytes: Vec<u8>,
}

/// An answer's head, and the bytes behind it that have come.
struct Head {
    status: u16,
    /// `None` for a body in chunks.
    length: Option<usize>,
    end: usize,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection { stream, bytes: Vec::with_capacity(4096) })
    }

    /// Sends a request.
    ///
    /// # Errors
    /// The server is gone.
    pub fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.bytes.clear();
        self.stream.write_all(request)
    }

    /// The status and the body of an answer.
    ///
    /// # Errors
    /// The server is gone, or does not speak HTTP.
    pub fn receive(&mut self) -> io::Result<(u16, &[u8])> {
        let head = self.head()?;
        match head.length {
            Some(length) => {
                while self.bytes.len() < head.end + length {
                    self.read()?;
                }
            }
            None => {
                while !self.bytes[head.end..].ends_with(LAST_CHUNK) {
                    self.read()?;
                }
            }
        }
        Ok((head.status, &self.bytes[head.end..]))
    }

    /// The status of an answer that comes in pieces; when its first piece came; how many reads it took. Gives up after
    /// `most` reads.
    ///
    /// # Errors
    /// The server is gone, or does not speak HTTP.
    pub fn stream(&mut self, most: usize) -> io::Result<Streamed> {
        let head = self.head()?;
        if head.length.is_some() {
            let status = self.receive_rest(&head)?;
            return Ok(Streamed { status, first: Instant::now(), done: true });
        }
        while self.bytes.len() == head.end {
            self.read()?;
        }
        let first = Instant::now();
        for _ in 0..most {
            if self.bytes.ends_with(LAST_CHUNK) {
                return Ok(Streamed { status: head.status, first, done: true });
            }
            let keep = self.bytes.len().saturating_sub(LAST_CHUNK.len());
            self.bytes.drain(..keep);
            self.read()?;
        }
        Ok(Streamed { status: head.status, first, done: self.bytes.ends_with(LAST_CHUNK) })
    }

    fn receive_rest(&mut self, head: &Head) -> io::Result<u16> {
        while self.bytes.len() < head.end + head.length.unwrap_or(0) {
            self.read()?;
        }
        Ok(head.status)
    }

    fn head(&mut self) -> io::Result<Head> {
        loop {
            if let Some(at) = self.bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                return head_of(&self.bytes[..at], at + 4);
            }
            self.read()?;
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let mut part = [0; 16 << 10];
        match self.stream.read(&mut part)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.bytes.extend_from_slice(&part[..n]);
                Ok(())
            }
        }
    }
}

/// What became of an answer in pieces.
pub struct Streamed {
    /// Its status.
    pub status: u16,
    /// When its first piece came.
    pub first: Instant,
    /// Whether all of it came.
    pub done: bool,
}

fn head_of(head: &[u8], end: usize) -> io::Result<Head> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the server does not speak HTTP");
    let text = str::from_utf8(head).map_err(|_| wrong())?;
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(wrong)?;
    let of = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    };
    Ok(Head { status, length: text.lines().find_map(of), end })
}
