//! How the server behaves: all that flags say about it.

use crate::{
    auth::{Keyring, KeysError},
    tls::{Acceptor, TlsError, TlsFiles},
    traces::TraceConfig,
};
use serde_json::{Map, Value};
use std::{path::PathBuf, time::Duration};

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0 lets the system choose.
    pub port: u16,
    /// A Unix socket to listen on instead of address and port.
    pub uds: Option<PathBuf>,
    /// Certificates; without any, connections are in the clear.
    pub tls: Option<TlsFiles>,
    /// Keys that open the guarded routes; without any, all are open.
    pub api_keys: Vec<String>,
    /// A file with more of them, one a line, which is read again when it changes.
    pub api_key_file: Option<PathBuf>,
    /// Whether `/metrics` is guarded, too.
    pub guard_metrics: bool,
    /// Refuses fields that the API does not know, instead of naming them in a header.
    pub strict: bool,
    /// Prompts that may wait while the engine runs as many as it can.
    pub max_queue: usize,
    /// Most bytes of a request's body.
    pub max_body_bytes: usize,
    /// Most answers to one prompt, and most prompts of one request.
    pub max_n: u32,
    /// Most tokens of an answer that requests may ask for; as many as fit where absent.
    pub max_output_tokens: Option<u32>,
    /// Most alternatives to a token that `logprobs` and the like may ask for; -1 is the whole vocabulary.
    pub max_logprobs: i32,
    /// Most bytes of the schema, expression, list or grammar that answers follow.
    pub max_grammar_bytes: usize,
    /// Connections open at a time.
    pub max_connections: usize,
    /// What clients may take their time for.
    pub patience: Patience,
    /// Time after which an unfinished request is given up.
    pub request_timeout: Option<Duration>,
    /// Time that accepted requests have to finish when the server is told to end.
    pub shutdown_timeout: Duration,
    /// The collector of traces; none are kept without.
    pub traces: Option<TraceConfig>,
    /// Whether requests have lines of log.
    pub access_log: bool,
    /// Paths whose requests have none.
    pub unlogged: Vec<String>,
    /// Who else's pages may call this server; nobody's where absent.
    pub cors: Option<Cors>,
    /// Serves `/docs` and `/openapi.json`.
    pub docs: bool,
    /// Serves `/tokenizer_info`.
    pub tokenizer_info: bool,
    /// Where a proxy shows the routes, which are there, too; empty where it does not.
    pub root_path: String,
    /// Tokens of an answer between the pieces of a stream, where requests do not say.
    pub stream_interval: i32,
    /// Writes tokens as `token_id:N` wherever log-probabilities name them.
    pub return_tokens_as_token_ids: bool,
    /// Ends every stream with its usage.
    pub force_include_usage: bool,
    /// Leaves tools out of the prompts of requests that choose none.
    pub exclude_tools_when_none: bool,
    /// Variables of the chat template in requests that do not set them.
    pub chat_template_kwargs: Map<String, Value>,
    /// The role that chat answers have.
    pub response_role: String,
}

/// How long clients may take for what holds up nobody but themselves, and yet takes room.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To agree on TLS, and to send a request's head; the rest of a connection between two requests, too.
    pub head: Duration,
    /// To send a request's body.
    pub body: Duration,
    /// To take any part of an answer.
    pub write: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        let [head, body, write] = [30, 60, 60].map(Duration::from_secs);
        Patience { head, body, write }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Its keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Its certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Config {
    /// Whether requests need a key.
    pub fn has_keys(&self) -> bool {
        !self.api_keys.is_empty() || self.api_key_file.is_some()
    }

    /// Reads every file that the configuration names, to refuse a wrong one before a model is loaded.
    ///
    /// # Errors
    /// A file is missing or wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.keyring()?;
        self.acceptor()?;
        Ok(())
    }

    /// Reads the keys.
    ///
    /// # Errors
    /// Their file is missing or empty.
    pub fn keyring(&self) -> Result<Keyring, KeysError> {
        Keyring::open(&self.api_keys, self.api_key_file.as_deref())
    }

    /// Reads the certificates, where there are any.
    ///
    /// # Errors
    /// A file is missing or wrong.
    pub fn acceptor(&self) -> Result<Option<Acceptor>, TlsError> {
        self.tls.as_ref().map(Acceptor::open).transpose()
    }
}

/// Cross-origin requests that browsers may make. `*` stands for all.
#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    /// Origins.
    pub origins: Vec<String>,
    /// Methods.
    pub methods: Vec<String>,
    /// Headers.
    pub headers: Vec<String>,
    /// Whether cookies and credentials may come along.
    pub credentials: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            host: "127.0.0.1".to_string(),
            port: 8000,
            uds: None,
            tls: None,
            api_keys: vec![],
            api_key_file: None,
            guard_metrics: false,
            strict: false,
            max_queue: 1024,
            max_body_bytes: 16 << 20,
            max_n: 128,
            max_output_tokens: None,
            max_logprobs: 20,
            max_grammar_bytes: 1 << 20,
            max_connections: 4096,
            patience: Patience::default(),
            request_timeout: None,
            shutdown_timeout: Duration::from_secs(30),
            traces: None,
            access_log: true,
            unlogged: vec![],
            cors: None,
            docs: true,
            tokenizer_info: false,
            root_path: String::new(),
            stream_interval: 1,
            return_tokens_as_token_ids: false,
            force_include_usage: false,
            exclude_tools_when_none: false,
            chat_template_kwargs: Map::new(),
            response_role: "assistant".to_string(),
        }
    }
}
