//! API keys: what a client must know to be served.
//!
//! A key is a secret: it is compared in constant time, printed nowhere (not even by `Debug`), and never part of a
//! command line that we make (`ps` shows those to everyone).

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use axum::http::{HeaderMap, header};
use subtle::{Choice, ConstantTimeEq};

use crate::limits::{MAX_API_KEY_BYTES, MAX_API_KEYS};

/// One key as the operator gave it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// The key itself, for the one place that hands it to a child process.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl FromStr for ApiKey {
    type Err = Infallible;

    /// Takes any text; [`check`] refuses bad ones without printing them, which a parser's error would.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ApiKey(..)")
    }
}

/// Keys that no client could ever send, or too many of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeyError {
    /// An empty variable in a deployment's template would otherwise open the server, or close it for everyone.
    #[error("`api_key` number {number} is empty; remove it, or give a key")]
    Empty {
        /// Counted from 1.
        number: usize,
    },
    /// A header cannot hold it, or the comma would divide it.
    #[error("`api_key` number {number} has characters other than printable ASCII without blanks and commas")]
    Characters {
        /// Counted from 1.
        number: usize,
    },
    /// Longer than any key in use.
    #[error("`api_key` number {number} must have at most {MAX_API_KEY_BYTES} bytes. Given: {given}")]
    Length {
        /// Counted from 1.
        number: usize,
        /// Its bytes.
        given: usize,
    },
    /// More than are compared on every request.
    #[error("`api_key` supports up to {MAX_API_KEYS} keys. Given: {given}")]
    Count {
        /// How many there are.
        given: usize,
    },
}

/// Whether every one of `keys` can be used.
///
/// # Errors
/// [`ApiKeyError`] with the number of the key, never with the key.
pub fn check(keys: &[ApiKey]) -> Result<(), ApiKeyError> {
    if keys.len() > MAX_API_KEYS {
        return Err(ApiKeyError::Count { given: keys.len() });
    }
    for (number, ApiKey(key)) in (1..).zip(keys) {
        if key.is_empty() {
            return Err(ApiKeyError::Empty { number });
        }
        if key.len() > MAX_API_KEY_BYTES {
            return Err(ApiKeyError::Length { number, given: key.len() });
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',') {
            return Err(ApiKeyError::Characters { number });
        }
    }
    Ok(())
}

/// The keys in the form in which requests are held against them: keyed hashes of one length, so that a comparison takes
/// as long for a good key as for a bad one, and says nothing about how much of it was right.
pub(crate) struct KeyRing {
    hash_key: [u8; 32],
    hashes: Vec<[u8; 32]>,
}

impl KeyRing {
    pub(crate) fn new(keys: &[ApiKey]) -> Self {
        let hash_key = rand::random();
        let hash = |key: &ApiKey| *blake3::keyed_hash(&hash_key, key.0.as_bytes()).as_bytes();
        Self { hash_key, hashes: keys.iter().map(hash).collect() }
    }

    /// Whether the server is open to everyone.
    pub(crate) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether a request with these headers has a key: `Authorization: Bearer KEY` (the scheme in any case, RFC 9110
    /// §11.1), or `x-api-key: KEY` as Anthropic's clients send it.
    pub(crate) fn opens(&self, headers: &HeaderMap) -> bool {
        let bearer = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).and_then(bearer);
        let named = headers.get("x-api-key").map(|value| value.as_bytes());
        [bearer, named].into_iter().flatten().any(|key| self.has(key))
    }

    fn has(&self, key: &[u8]) -> bool {
        let given = *blake3::keyed_hash(&self.hash_key, key).as_bytes();
        // All keys are looked at whichever matches.
        let found = self.hashes.iter().fold(Choice::from(0), |found, hash| found | hash.ct_eq(&given));
        found.into()
    }
}

/// The credentials of the scheme `Bearer`.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = authorization.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn keys(texts: &[&str]) -> Vec<ApiKey> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn keys_that_no_client_can_send_are_refused_without_being_printed() {
        let long = "k".repeat(MAX_API_KEY_BYTES + 1);
        for (texts, expected) in [
            (vec!["a", ""], "`api_key` number 2 is empty; remove it, or give a key".to_owned()),
            (
                vec!["se cret"],
                "`api_key` number 1 has characters other than printable ASCII without blanks and commas".to_owned(),
            ),
            (
                vec![&long],
                format!("`api_key` number 1 must have at most {MAX_API_KEY_BYTES} bytes. Given: {}", long.len()),
            ),
            (
                vec!["k"; MAX_API_KEYS + 1],
                format!("`api_key` supports up to {MAX_API_KEYS} keys. Given: {}", MAX_API_KEYS + 1),
            ),
        ] {
            assert_eq!(check(&keys(&texts)).unwrap_err().to_string(), expected);
        }
        assert_eq!(check(&keys(&["sk-1", "sk-2"])), Ok(()));
        assert_eq!(format!("{:?}", keys(&["secret"])), "[ApiKey(..)]");
    }

    #[test]
    fn either_header_opens_with_any_key_and_nothing_else_does() {
        let ring = KeyRing::new(&keys(&["sk-One", "sk-Two"]));
        let opens = |headers: &[(&'static str, &'static str)]| {
            let pairs =
                headers.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            ring.opens(&pairs.collect())
        };
        assert!(opens(&[("authorization", "Bearer sk-One")]));
        assert!(opens(&[("authorization", "bearer  sk-Two ")]), "the scheme has no case, blanks do not count");
        assert!(opens(&[("x-api-key", "sk-Two")]));
        assert!(opens(&[("authorization", "Basic abc"), ("x-api-key", "sk-One")]));
        for bad in
            ["Bearer sk-one", "Bearer sk-On", "Bearer sk-OneX", "Bearer ", "Bearer", "sk-One", "Basic sk-One", ""]
        {
            assert!(!opens(&[("authorization", bad)]), "{bad:?}");
        }
        assert!(!opens(&[("x-api-key", "Bearer sk-One")]));
        assert!(!opens(&[]));
    }
}
