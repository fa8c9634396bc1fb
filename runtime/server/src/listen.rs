//! Where connections come from: a TCP port, or a Unix socket.
//!
//! Invariants: a Unix socket that a server left behind does not keep the next one from listening, and one that is
//! listened on is never taken away.

use crate::{config::Config, serve::ServeError};
use socket2::{SockRef, TcpKeepalive};
use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::unix::{fs::FileTypeExt, net::UnixStream as Probe},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener},
};

/// Silence after which the system asks whether a client is still there, and how often it asks.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15));

/// A connection's bytes.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP port, with or without TLS.
    Tcp {
        /// Address and port.
        address: SocketAddr,
        /// Whether it speaks TLS.
        tls: bool,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { address, tls } => write!(f, "http{}://{address}", if *tls { "s" } else { "" }),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What listens. A Unix socket's file goes with it.
pub enum Listener {
    /// On a TCP port.
    Tcp(TcpListener),
    /// On a Unix socket.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens where the configuration says. A name with several addresses takes the first that works.
    ///
    /// # Errors
    /// The address is another's, or not this machine's.
    pub async fn open(config: &Config) -> Result<Listener, ServeError> {
        if let Some(path) = &config.uds {
            let refused = |source| ServeError::Socket { path: path.clone(), source };
            remove_left_behind(path).map_err(refused)?;
            return Ok(Listener::Unix(UnixListener::bind(path).map_err(refused)?, path.clone()));
        }
        let host = config.host.trim_start_matches('[').trim_end_matches(']');
        let refused = |source| ServeError::Listen { address: format!("{}:{}", config.host, config.port), source };
        Ok(Listener::Tcp(TcpListener::bind((host, config.port)).await.map_err(refused)?))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self, tls: bool) -> io::Result<Address> {
        match self {
            Listener::Tcp(tcp) => Ok(Address::Tcp { address: tcp.local_addr()?, tls }),
            Listener::Unix(_, path) => Ok(Address::Unix(path.clone())),
        }
    }

    /// The next connection.
    ///
    /// # Errors
    /// The system has none to give, for example for want of file descriptors.
    pub async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Listener::Tcp(tcp) => {
                let (stream, _) = tcp.accept().await?;
                prepare(&stream);
                Ok(Box::new(stream))
            }
            Listener::Unix(unix, _) => Ok(Box::new(unix.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            // It may have been removed by hand.
            let _ = fs::remove_file(path);
        }
    }
}

/// What cannot be set is no reason to refuse a connection.
fn prepare(stream: &TcpStream) {
    // Tokens are small and must not wait for one another.
    let _ = stream.set_nodelay(true);
    let (idle, interval) = KEEP_ALIVE;
    // A client that has vanished without a word is found out, and its blocks are free again.
    let _ = SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval));
}

/// Removes a socket on which nobody listens.
fn remove_left_behind(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => match Probe::connect(path) {
            Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
            Err(_) => fs::remove_file(path),
        },
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => Ok(()),
    }
}
