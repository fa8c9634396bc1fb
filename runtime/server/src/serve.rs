//! Connections: how they are accepted, bounded and ended.
//!
//! Invariants:
//! - a connection that sends no request in time is closed, and there are never more than the limit;
//! - told to end, the server takes no new requests, lets accepted ones finish, and gives them up when time is over;
//!   told again, it ends at once.

use crate::{
    app::{self, App},
    config::Patience,
    listen::{Address, Listener, Stream},
    metrics::Metrics,
    reload,
    tls::{Acceptor, TlsError},
};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use std::{
    future, io,
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{interval, sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;

/// Bytes of a request's head.
const MAX_HEAD: usize = 64 << 10;
/// Time that answers have to leave the process after their requests were given up.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Pause after the system could not accept a connection, for example for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often a log says that connections cannot be accepted.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// File descriptors that are not for connections: logs, the artifact, the runtime's own.
const OTHER_FILES: u64 = 32;
/// Threads for connections; more only move work around.
const WORKERS: usize = 2;
/// Threads that turn long prompts into tokens.
const MAX_BLOCKING: usize = 4;

/// Why the server could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source} · help: choose another --host or --port")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The socket cannot be listened on.
    #[error("cannot listen on the socket {path}: {source} · help: choose another --uds", path = path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system refuses threads or signals.
    #[error("cannot start the server: {0}")]
    Start(#[from] std::io::Error),
    /// The engine failed.
    #[error("{0}")]
    Engine(String),
}

/// How the server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All accepted requests were answered.
    Drained,
    /// Time was over: requests were given up.
    TimedOut,
    /// It was told to end twice.
    Forced,
}

/// Serves until the process is told to end (SIGTERM, SIGINT). `listening` hears the address once requests are taken.
///
/// # Errors
/// The address cannot be listened on, certificates are wrong, or the engine failed.
pub fn run(app: Arc<App>, engine: JoinHandle<()>, listening: impl FnOnce(&Address)) -> Result<Ended, ServeError> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS);
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(MAX_BLOCKING)
        .thread_name("rvllm-http")
        .enable_all()
        .build()?;
    let ended = runtime.block_on(serve(app, listening));
    runtime.shutdown_background();
    if engine.is_finished() {
        // It has nothing to return: its failures are told through the app.
        let _ = engine.join();
    }
    ended
}

async fn serve(app: Arc<App>, listening: impl FnOnce(&Address)) -> Result<Ended, ServeError> {
    let connections = Connections::new(&app)?;
    let listener = Listener::open(app.config()).await?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    listening(&listener.address(connections.tls.is_some())?);
    let stopped = tokio::select! {
        () = connections.accept_all(&listener) => Ok(()),
        refused = refresh(&app, connections.tls.as_deref()) => refused.map_err(ServeError::Start),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        failure = failed(&app) => Err(failure),
    };
    drop(listener);
    app.engine().end();
    let drained = tokio::select! {
        drained = connections.drain(&app) => drained,
        _ = terminate.recv() => Ended::Forced,
        _ = interrupt.recv() => Ended::Forced,
    };
    if let Some(traces) = app.traces() {
        traces.flush(LAST_WORDS).await;
    }
    stopped.map(|()| drained)
}

/// Returns when the engine has failed.
async fn failed(app: &App) -> ServeError {
    while app.engine().is_alive() {
        sleep(Duration::from_millis(500)).await;
    }
    ServeError::Engine(app.engine().failure().to_string())
}

/// Reads keys and certificates again when their files change, or when a SIGHUP says so. Without such files a SIGHUP
/// ends the process, as terminals expect it.
async fn refresh(app: &App, tls: Option<&Acceptor>) -> io::Result<()> {
    if app.config().api_key_file.is_none() && tls.is_none() {
        return future::pending().await;
    }
    let (mut hangup, mut ticks) = (signal(SignalKind::hangup())?, interval(reload::EVERY));
    loop {
        let told = tokio::select! {
            _ = hangup.recv() => true,
            _ = ticks.tick() => false,
        };
        app.keys().refresh(told);
        tls.iter().for_each(|t| t.refresh(told));
    }
}

struct Connections {
    routes: Router,
    tls: Option<Arc<Acceptor>>,
    limit: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    patience: Patience,
    graceful: GracefulShutdown,
    /// Tells connections that have not agreed on TLS yet.
    ending: watch::Sender<bool>,
}

impl Connections {
    fn new(app: &Arc<App>) -> Result<Connections, TlsError> {
        let config = app.config();
        let limit = Arc::new(Semaphore::new(most_connections(config.max_connections)));
        let tls = config.acceptor()?.map(Arc::new);
        let (graceful, ending) = (GracefulShutdown::new(), watch::Sender::new(false));
        let (routes, metrics, patience) = (app::router(app), app.metrics().clone(), config.patience);
        Ok(Connections { routes, tls, limit, metrics, patience, graceful, ending })
    }

    async fn accept_all(&self, listener: &Listener) {
        let mut told: Option<Instant> = None;
        // The semaphore is never closed.
        while let Ok(permit) = self.limit.clone().acquire_owned().await {
            match listener.accept().await {
                Ok(stream) => self.serve(stream, permit),
                Err(error) => {
                    if told.is_none_or(|at| at.elapsed() > TELL_EVERY) {
                        tracing::warn!(%error, "cannot accept connections for now");
                        told = Some(Instant::now());
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn serve(&self, stream: Box<dyn Stream>, permit: OwnedSemaphorePermit) {
        let counted = self.metrics.open_connection();
        let (tls, watcher) = (self.tls.clone(), self.graceful.watcher());
        let (routes, patience, mut ending) = (self.routes.clone(), self.patience, self.ending.subscribe());
        tokio::spawn(async move {
            match tls {
                None => speak(stream, routes, patience, watcher).await,
                Some(tls) => tokio::select! {
                    // A client that does not agree in time is one that sends no head in time.
                    agreed = timeout(patience.head, tls.current().accept(stream)) => if let Ok(Ok(stream)) = agreed {
                        speak(stream, routes, patience, watcher).await;
                    },
                    _ = ending.changed() => {}
                },
            }
            drop((permit, counted));
        });
    }

    /// Lets accepted requests finish, for as long as the configuration allows.
    async fn drain(self, app: &App) -> Ended {
        self.ending.send_replace(true);
        let all = self.graceful.shutdown();
        tokio::pin!(all);
        if timeout(app.config().shutdown_timeout, &mut all).await.is_ok() {
            return Ended::Drained;
        }
        app.engine().give_up();
        // What is left is told that it was given up; those who do not listen are left behind.
        let _ = timeout(LAST_WORDS, all).await;
        Ended::TimedOut
    }
}

/// Answers a connection's requests until it ends.
async fn speak<S: Stream + 'static>(stream: S, routes: Router, patience: Patience, watcher: Watcher) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(patience.write));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience.head).max_buf_size(MAX_HEAD);
    let service = TowerToHyperService::new(routes);
    let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
    // A connection's failure is its client's: there is nobody to tell.
    let _ = watcher.watch(connection).await;
}

/// As many connections as were asked for and as the system gives file descriptors for.
fn most_connections(asked: usize) -> usize {
    let wanted = (asked as u64).saturating_add(OTHER_FILES);
    let given = rlimit::increase_nofile_limit(wanted).unwrap_or(wanted);
    let most = usize::try_from(given.saturating_sub(OTHER_FILES)).unwrap_or(asked).clamp(1, asked.max(1));
    if most < asked {
        tracing::warn!(most, asked, "the limit of open files allows fewer connections than --max-connections");
    }
    most.min(Semaphore::MAX_PERMITS)
}
