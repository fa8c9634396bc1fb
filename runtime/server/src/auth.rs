//! Keys: who may use the guarded routes.
//!
//! Invariants:
//! - comparing takes the same time whichever key is given, and however much of it is right;
//! - a file of keys that goes away or becomes empty opens nothing: the keys stay as they were.

use crate::reload::Stamps;
use axum::http::{HeaderMap, header};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};
use subtle::{Choice, ConstantTimeEq};

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Their file cannot be read.
    #[error("cannot read the keys in {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Their file has none.
    #[error("there is no key in {0} · help: write one a line")]
    Empty(PathBuf),
}

/// The keys of now: those that do not change, and those of a file that may.
pub struct Keyring {
    fixed: Vec<String>,
    file: Option<(PathBuf, Stamps)>,
    current: RwLock<Keys>,
}

impl Keyring {
    /// These keys, and those of the file, one a line; `#` begins a line that is none.
    ///
    /// # Errors
    /// The file cannot be read, or has no key.
    pub fn open(fixed: &[String], file: Option<&Path>) -> Result<Keyring, KeysError> {
        let file = file.map(|path| (path.to_path_buf(), Stamps::of(vec![path.to_path_buf()])));
        let current = RwLock::new(read(fixed, file.as_ref().map(|(path, _)| path.as_path()))?);
        Ok(Keyring { fixed: fixed.to_vec(), file, current })
    }

    /// Whether a request brings one of the keys.
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).admit(headers)
    }

    /// Reads the file again where it has changed, or in any case.
    pub fn refresh(&self, any_case: bool) {
        let Some((path, stamps)) = &self.file else { return };
        if !(stamps.changed() || any_case) {
            return;
        }
        match read(&self.fixed, Some(path)) {
            Ok(keys) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = keys;
                tracing::info!(file = %path.display(), "keys are read again");
            }
            Err(error) => tracing::warn!(%error, "keys stay as they were"),
        }
    }
}

fn read(fixed: &[String], file: Option<&Path>) -> Result<Keys, KeysError> {
    let more = file.map(lines).transpose()?.unwrap_or_default();
    Ok(Keys::new(&[fixed, &more].concat()))
}

fn lines(path: &Path) -> Result<Vec<String>, KeysError> {
    let text = fs::read_to_string(path).map_err(|source| KeysError::Read { path: path.to_path_buf(), source })?;
    let keys = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let keys: Vec<String> = keys.map(String::from).collect();
    if keys.is_empty() { Err(KeysError::Empty(path.to_path_buf())) } else { Ok(keys) }
}

/// The keys that open guarded routes, as hashes: all of one length.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// These keys; empty ones open nothing.
    pub fn new(keys: &[String]) -> Keys {
        Keys(keys.iter().filter(|k| !k.is_empty()).map(|k| hash(k.as_bytes())).collect())
    }

    /// Whether there is no key, so that everything is open.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request brings one of the keys: `Authorization: Bearer KEY`, or `Basic` with the key as the password,
    /// which is how browsers send it.
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        self.is_empty() || presented(headers).is_some_and(|key| self.contains(&key))
    }

    fn contains(&self, key: &[u8]) -> bool {
        let given = hash(key);
        let any = self.0.iter().fold(Choice::from(0), |any, known| any | known.ct_eq(&given));
        any.into()
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn presented(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let at = value.iter().position(|b| *b == b' ')?;
    let (scheme, rest) = (&value[..at], value[at + 1..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    let pair = STANDARD.decode(rest).ok().filter(|_| scheme.eq_ignore_ascii_case(b"basic"))?;
    let colon = pair.iter().position(|b| *b == b':')?;
    Some(pair[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(keys: &[&str], authorization: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        authorization.map(|a| headers.insert(header::AUTHORIZATION, a.parse().unwrap()));
        Keys::new(&keys.iter().map(|k| k.to_string()).collect::<Vec<_>>()).admit(&headers)
    }

    #[test]
    fn a_file_that_loses_its_keys_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        assert!(matches!(Keyring::open(&[], Some(&path)), Err(KeysError::Read { .. })));
        fs::write(&path, "# none\n\n").unwrap();
        assert!(matches!(Keyring::open(&[], Some(&path)), Err(KeysError::Empty(_))));
        fs::write(&path, "# of old\n one \n").unwrap();
        let ring = Keyring::open(&["fixed".to_string()], Some(&path)).unwrap();
        let admits = |key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
            ring.admit(&headers)
        };
        assert!(admits("one") && admits("fixed") && !admits("three"));
        fs::write(&path, "three\n").unwrap();
        assert!(!admits("three"), "nothing changes until it is looked at");
        ring.refresh(false);
        assert!(!admits("one") && admits("fixed") && admits("three"));
        for gone in [fs::write(&path, ""), fs::remove_file(&path)] {
            gone.unwrap();
            ring.refresh(true);
            assert!(admits("three") && !admits(""));
        }
    }

    #[test]
    fn keys_open_and_nothing_else_does() {
        assert!(admitted(&[], None) && admitted(&[""], None));
        assert!(admitted(&["a", "b"], Some("Bearer b")) && admitted(&["a", "b"], Some("bearer a")));
        let basic = format!("Basic {}", STANDARD.encode("anyone:b"));
        assert!(admitted(&["a", "b"], Some(&basic)));
        for wrong in
            [None, Some("Bearer c"), Some("Bearer"), Some("Bearer "), Some("b"), Some("Basic b"), Some("Bearer bb")]
        {
            assert!(!admitted(&["a", "b"], wrong), "{wrong:?}");
        }
    }
}
