//! TLS: certificates that a server shows, and those that it asks its clients for. Flags have vLLM's names and meaning.
//!
//! Invariants:
//! - files are read and matched before anything is served: a wrong one is one message that names it;
//! - files that change into wrong ones leave the certificates in place that were there before.

use crate::reload::Stamps;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
    },
};

/// What the header of an encrypted key says, in both of its forms.
const ENCRYPTED: [&str; 2] = ["ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"];

/// Where certificates are.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, and those that lead to a root.
    pub certfile: PathBuf,
    /// Its key; in the certificate's file where absent.
    pub keyfile: Option<PathBuf>,
    /// Roots of clients' certificates.
    pub ca_certs: Option<PathBuf>,
    /// Whether clients must have certificates.
    pub cert_reqs: CertReqs,
    /// Whether files are read again when they change; a SIGHUP has them read in any case.
    pub refresh: bool,
}

/// Whether clients must have certificates: Python's `ssl.CERT_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CertReqs {
    /// They are not asked.
    #[default]
    None,
    /// They may have one; a wrong one is refused.
    Optional,
    /// They must.
    Required,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has no certificate.
    #[error("{0} holds no certificate in PEM form")]
    NoCertificate(PathBuf),
    /// A file has no key.
    #[error("{0} holds no private key in PEM form · help: name the key's file with --ssl-keyfile")]
    NoKey(PathBuf),
    /// A key is encrypted.
    #[error("the key in {0} is encrypted · help: decrypt it with `openssl pkey -in KEY -out PLAIN`")]
    EncryptedKey(PathBuf),
    /// A file is damaged.
    #[error("{path} cannot be read as PEM: {problem}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Clients are to be verified without roots.
    #[error("clients' certificates need roots to be verified against · help: add --ssl-ca-certs FILE")]
    NoRoots,
    /// Certificate and key do not fit each other, or cannot be used.
    #[error("{certfile} and {keyfile} cannot be used: {source}")]
    Unfit {
        /// The certificate's file.
        certfile: PathBuf,
        /// The key's file.
        keyfile: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// Roots cannot be used.
    #[error("the roots in {path} cannot be used: {problem}")]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Takes TLS connections with the newest certificates.
pub struct Acceptor {
    files: TlsFiles,
    stamps: Stamps,
    current: RwLock<TlsAcceptor>,
}

impl Acceptor {
    /// Reads all files.
    ///
    /// # Errors
    /// One is missing or wrong, or they do not fit each other.
    pub fn open(files: &TlsFiles) -> Result<Acceptor, TlsError> {
        let stamps = Stamps::of(files.paths());
        let current = RwLock::new(files.acceptor()?);
        Ok(Acceptor { files: files.clone(), stamps, current })
    }

    /// Takes connections with the certificates of now.
    pub fn current(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads files again that have changed, where configured, or all where `all`.
    pub fn refresh(&self, all: bool) {
        if !(all || self.files.refresh && self.stamps.changed()) {
            return;
        }
        match self.files.acceptor() {
            Ok(acceptor) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
                tracing::info!(certfile = %self.files.certfile.display(), "certificates are read again");
            }
            Err(error) => tracing::warn!(%error, "certificates stay as they were"),
        }
    }
}

impl TlsFiles {
    fn keyfile(&self) -> &Path {
        self.keyfile.as_ref().unwrap_or(&self.certfile)
    }

    fn paths(&self) -> Vec<PathBuf> {
        let others = self.keyfile.iter().chain(&self.ca_certs);
        others.chain([&self.certfile]).cloned().collect()
    }

    fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let (chain, key) = (certificates(&self.certfile)?, private_key(self.keyfile())?);
        let unfit =
            |source| TlsError::Unfit { certfile: self.certfile.clone(), keyfile: self.keyfile().to_path_buf(), source };
        let versions = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let versions = versions.map_err(unfit)?;
        let clients = match self.verifier(provider)? {
            Some(verifier) => versions.with_client_cert_verifier(verifier),
            None => versions.with_no_client_auth(),
        };
        let mut config = clients.with_single_cert(chain, key).map_err(unfit)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    fn verifier(&self, provider: Arc<CryptoProvider>) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        if self.cert_reqs == CertReqs::None {
            return Ok(None);
        }
        let path = self.ca_certs.as_ref().ok_or(TlsError::NoRoots)?;
        let wrong = |problem: String| TlsError::Roots { path: path.clone(), problem };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|e| wrong(e.to_string()))?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = match self.cert_reqs {
            CertReqs::Optional => builder.allow_unauthenticated(),
            CertReqs::Required | CertReqs::None => builder,
        };
        let verifier = builder.build().map_err(|e: VerifierBuilderError| wrong(e.to_string()))?;
        Ok(Some(verifier))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_path_buf(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let all = all.map_err(|e| TlsError::Pem { path: path.to_path_buf(), problem: e.to_string() })?;
    if all.is_empty() { Err(TlsError::NoCertificate(path.to_path_buf())) } else { Ok(all) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    if ENCRYPTED.iter().any(|mark| text.contains(mark)) {
        return Err(TlsError::EncryptedKey(path.to_path_buf()));
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| TlsError::NoKey(path.to_path_buf()))
}
