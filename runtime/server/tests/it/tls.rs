//! TLS on the wire: what clients are shown, what they must show, and certificates that change.

use crate::wire::{Wire, exchange, post};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rvllm_server::{
    Config,
    config::Patience,
    tls::{Acceptor, CertReqs, TlsFiles},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

type Root = CertifiedIssuer<'static, KeyPair>;

/// A root, and the files of those whom it vouches for.
struct Authority {
    dir: tempfile::TempDir,
    root: Root,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = Root::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), root.as_ref().pem()).unwrap();
        Authority { dir, root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `NAME.pem` and `NAME.key`.
    fn issue(&self, name: &str) {
        let (key, params) = (KeyPair::generate().unwrap(), CertificateParams::new(vec!["localhost".into()]).unwrap());
        let certificate = params.signed_by(&key, &self.root).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
    }

    fn files(&self, name: &str, cert_reqs: CertReqs) -> TlsFiles {
        TlsFiles {
            certfile: self.path(&format!("{name}.pem")),
            keyfile: Some(self.path(&format!("{name}.key"))),
            ca_certs: Some(self.path("ca.pem")),
            cert_reqs,
            refresh: true,
        }
    }

    fn config(&self, cert_reqs: CertReqs) -> Config {
        Config { tls: Some(self.files("server", cert_reqs)), ..Config::default() }
    }

    /// A client that trusts the root, with a certificate or without.
    fn client(&self, own: Option<&str>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let certificate = CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap();
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }
}

async fn connect(wire: &Wire, client: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(wire.tcp()).await?;
    client.connect("localhost".try_into().unwrap(), tcp).await
}

/// The answer to a request; empty where the server refuses the client.
async fn ask(wire: &Wire, client: &TlsConnector) -> String {
    match connect(wire, client).await {
        Ok(mut stream) => exchange(&mut stream, post("{\"prompt\": \"a\", \"stream\": true}")).await,
        Err(_) => String::new(),
    }
}

async fn shown(wire: &Wire, client: &TlsConnector) -> Vec<u8> {
    let stream = connect(wire, client).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn https_is_spoken_and_http_is_not() {
    let ca = Authority::new();
    ca.issue("server");
    let wire = Wire::start(ca.config(CertReqs::None));
    assert!(wire.address.to_string().starts_with("https://"), "{}", wire.address);
    let answer = ask(&wire, &ca.client(None)).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("[DONE]"), "{answer}");
    let mut plain = TcpStream::connect(wire.tcp()).await.unwrap();
    let answer = exchange(&mut plain, post("{\"prompt\": \"a\"}")).await;
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
    let stranger = Authority::new();
    assert!(connect(&wire, &stranger.client(None)).await.is_err(), "clients verify the server");
}

#[tokio::test]
async fn clients_show_certificates_where_asked() {
    let (ca, other) = (Authority::new(), Authority::new());
    ca.issue("server");
    ca.issue("friend");
    other.issue("stranger");
    for name in ["stranger.pem", "stranger.key"] {
        fs::copy(other.path(name), ca.path(name)).unwrap();
    }
    let [none, friend, stranger] = [None, Some("friend"), Some("stranger")].map(|own| ca.client(own));
    for (reqs, expected) in [
        (CertReqs::None, [true; 3]),
        (CertReqs::Optional, [true, true, false]),
        (CertReqs::Required, [false, true, false]),
    ] {
        let wire = Wire::start(ca.config(reqs));
        let mut admitted = [false; 3];
        for (client, admitted) in [&none, &friend, &stranger].into_iter().zip(&mut admitted) {
            *admitted = ask(&wire, client).await.starts_with("HTTP/1.1 200");
        }
        assert_eq!(admitted, expected, "{reqs:?}");
    }
}

#[tokio::test]
async fn new_certificates_are_shown_and_wrong_ones_are_not() {
    let ca = Authority::new();
    ca.issue("server");
    let (wire, client) = (Wire::start(ca.config(CertReqs::None)), ca.client(None));
    let first = shown(&wire, &client).await;
    fs::write(ca.path("server.key"), "no key").unwrap();
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert_eq!(shown(&wire, &client).await, first, "a wrong file changes nothing");
    ca.issue("server");
    for _ in 0..100 {
        if shown(&wire, &client).await != first {
            return assert!(ask(&wire, &client).await.starts_with("HTTP/1.1 200"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the new certificate is not shown");
}

#[tokio::test]
async fn a_client_that_does_not_agree_is_given_up() {
    let ca = Authority::new();
    ca.issue("server");
    let patience = Patience { head: Duration::from_millis(200), ..Patience::default() };
    let wire = Wire::start(Config { patience, ..ca.config(CertReqs::None) });
    let mut silent = TcpStream::connect(wire.tcp()).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(10), silent.read_u8()).await;
    assert!(read.expect("the server closes").is_err());
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let ca = Authority::new();
    ca.issue("server");
    ca.issue("other");
    fs::write(ca.path("empty.pem"), "").unwrap();
    fs::write(
        ca.path("encrypted.key"),
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    fs::write(ca.path("broken.pem"), "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n").unwrap();
    let said = |certfile: &str, keyfile: Option<&str>, ca_certs: Option<&str>| {
        let path = |name: &str| ca.path(name);
        let reqs = if ca_certs.is_some() { CertReqs::Required } else { CertReqs::None };
        let files = TlsFiles {
            certfile: path(certfile),
            keyfile: keyfile.map(path),
            ca_certs: ca_certs.map(path),
            cert_reqs: reqs,
            refresh: false,
        };
        Acceptor::open(&files).err().expect("refused").to_string()
    };
    let in_dir = |name: &str| ca.path(name).display().to_string();
    for (message, parts) in [
        (said("missing.pem", None, None), ["missing.pem", "No such file"]),
        (said("empty.pem", Some("server.key"), None), ["empty.pem", "no certificate"]),
        (said("server.pem", None, None), ["server.pem", "no private key"]),
        (said("server.pem", Some("encrypted.key"), None), ["encrypted.key", "openssl pkey"]),
        (said("broken.pem", Some("server.key"), None), ["broken.pem", "PEM"]),
        (said("server.pem", Some("other.key"), None), ["other.key", "cannot be used"]),
        (said("server.pem", Some("server.key"), Some("empty.pem")), ["empty.pem", "no certificate"]),
    ] {
        assert!(message.contains(&in_dir(parts[0])) && message.contains(parts[1]), "{message}");
    }
    let files = TlsFiles { ca_certs: None, ..ca.files("server", CertReqs::Required) };
    assert!(Acceptor::open(&files).err().expect("refused").to_string().contains("--ssl-ca-certs"));
    assert!(Path::new(&in_dir("server.pem")).exists());
}
