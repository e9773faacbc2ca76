//! What an operator configures: how an interface authenticates, and the life of its keys.

use std::{fmt, str::FromStr};

use zeroize::Zeroizing;

/// A shared secret. It is never shown, and overwritten when it is no longer needed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Keeps `bytes`.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// How the digest of a packet is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Keyed MD5 (RFC 2328 section D.4.3); OSPFv2 alone.
    Md5,
    /// HMAC-SHA-1 (RFC 5709, RFC 7166).
    HmacSha1,
    /// HMAC-SHA-256 (RFC 5709, RFC 7166).
    HmacSha256,
    /// HMAC-SHA-384 (RFC 5709, RFC 7166).
    HmacSha384,
    /// HMAC-SHA-512 (RFC 5709, RFC 7166).
    HmacSha512,
}

impl Algorithm {
    /// Every algorithm with its name in configurations and logs.
    const NAMES: [(Self, &'static str); 5] = [
        (Self::Md5, "md5"),
        (Self::HmacSha1, "hmac-sha-1"),
        (Self::HmacSha256, "hmac-sha-256"),
        (Self::HmacSha384, "hmac-sha-384"),
        (Self::HmacSha512, "hmac-sha-512"),
    ];

    /// Length of the digest in bytes.
    #[must_use]
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::HmacSha1 => 20,
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMES.iter().find(|(algorithm, _)| algorithm == self);
        f.write_str(named.map_or("?", |(_, name)| name))
    }
}

impl FromStr for Algorithm {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let named = Self::NAMES.iter().find(|(_, name)| *name == text);
        named.map(|(algorithm, _)| *algorithm).ok_or_else(|| KeyError::Algorithm { name: text.to_owned() })
    }
}

/// A span of time of day in seconds since 1970 (UTC): `from` is inside, `until` is not. An end that is absent
/// is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// When it opens.
    pub from: Option<u64>,
    /// When it has closed.
    pub until: Option<u64>,
}

impl Window {
    /// Whether `now` is inside.
    #[must_use]
    pub fn contains(&self, now: u64) -> bool {
        self.from.is_none_or(|from| from <= now) && !self.is_over(now)
    }

    /// Whether it has closed.
    #[must_use]
    pub fn is_over(&self, now: u64) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from, self.until) {
            (None, None) => f.write_str("always"),
            (Some(from), None) => write!(f, "from {}", super::rfc_3339(from)),
            (None, Some(until)) => write!(f, "until {}", super::rfc_3339(until)),
            (Some(from), Some(until)) => {
                write!(f, "from {} until {}", super::rfc_3339(from), super::rfc_3339(until))
            }
        }
    }
}

/// One key of an interface (RFC 2328 section D.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Key id in version 2, SA id in version 3: 1 to 255, once per interface.
    pub id: u8,
    /// How digests are computed.
    pub algorithm: Algorithm,
    /// The shared secret: 1 to 16 bytes for MD5, any number above 0 for HMAC. One that is longer than the
    /// digest is hashed first (RFC 5709 section 3.3); some implementations hash it only when it is longer
    /// than the hash's block, so both sides agree for sure up to the length of the digest (in version 3 two
    /// bytes less).
    pub secret: Secret,
    /// When packets are sent with it. Of several keys the one whose window opened last is used.
    pub send: Window,
    /// When packets with it are accepted.
    pub accept: Window,
    /// In version 3, append the protocol's id to the secret with its two bytes swapped. FRR 8.4 does so on
    /// little-endian machines, and no one else understands it then.
    pub swapped_protocol_id: bool,
}

impl Key {
    /// A key that is always valid.
    #[must_use]
    pub fn new(id: u8, algorithm: Algorithm, secret: Secret) -> Self {
        Self {
            id,
            algorithm,
            secret,
            send: Window::default(),
            accept: Window::default(),
            swapped_protocol_id: false,
        }
    }
}

/// How packets on an interface are authenticated. Both sides must agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// Not at all (RFC 2328 section D.4.1).
    #[default]
    None,
    /// A password that everyone on the link can read (RFC 2328 section D.4.2), 1 to 8 bytes; version 2 alone.
    Simple(Secret),
    /// A digest by one of several keys (RFC 2328 section D.4.3, RFC 5709, RFC 7166).
    Keys(Vec<Key>),
}

/// Why an authentication cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No such algorithm.
    #[error(
        "unknown algorithm {name:?}; use hmac-sha-256, hmac-sha-384, hmac-sha-512, hmac-sha-1, or md5 where \
         the neighbour knows nothing better"
    )]
    Algorithm {
        /// What was asked for.
        name: String,
    },
    /// A list without keys.
    #[error("no key is listed; add one, or leave authentication out")]
    NoKey,
    /// A key id of zero, which RFC 7166 reserves.
    #[error("key id 0 is reserved; use 1 to 255")]
    IdZero,
    /// Two keys of one id.
    #[error("key id {id} is used twice; number the keys of an interface apart")]
    IdTwice {
        /// The id.
        id: u8,
    },
    /// A secret of a length that cannot be.
    #[error("the secret of {what} has {length} bytes; it must have {expected}")]
    SecretLength {
        /// `key ID (ALGORITHM)` or `simple authentication`.
        what: String,
        /// Its length in bytes.
        length: usize,
        /// What it may be.
        expected: &'static str,
    },
    /// A window that closes before it opens.
    #[error("key {id} would be {verb} {window}; the end must come after the start")]
    Window {
        /// The key.
        id: u8,
        /// `sent` or `accepted`.
        verb: &'static str,
        /// The window.
        window: Window,
    },
    /// What OSPFv3 does not know.
    #[error(
        "{what} is not known to OSPFv3 (RFC 7166 has HMAC-SHA alone); use an hmac-sha key, or do not speak IPv6"
    )]
    Version3 {
        /// The authentication.
        what: String,
    },
}

impl Authentication {
    /// Whether it can work, in version 3 too if `ipv6`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self, ipv6: bool) -> Result<(), KeyError> {
        match self {
            Self::None => Ok(()),
            Self::Simple(_) if ipv6 => Err(KeyError::Version3 { what: "a simple password".into() }),
            Self::Simple(secret) => {
                let what = || "simple authentication".to_owned();
                length(secret, 8, what, "1 to 8 (RFC 2328 section D.4.2)")
            }
            Self::Keys(keys) => {
                if keys.is_empty() {
                    return Err(KeyError::NoKey);
                }
                keys.iter().enumerate().try_for_each(|(at, key)| key.validate(&keys[..at], ipv6))
            }
        }
    }

    /// The name of the type, with its number in OSPFv2 packets (RFC 2328 section D).
    pub(super) fn says(&self) -> &'static str {
        match self {
            Self::None => "none (0)",
            Self::Simple(_) => "simple password (1)",
            Self::Keys(_) => "keyed digest (2)",
        }
    }
}

impl Key {
    fn validate(&self, earlier: &[Self], ipv6: bool) -> Result<(), KeyError> {
        let id = self.id;
        if id == 0 {
            return Err(KeyError::IdZero);
        }
        if earlier.iter().any(|other| other.id == id) {
            return Err(KeyError::IdTwice { id });
        }
        let what = || format!("key {id} ({})", self.algorithm);
        let (most, expected) = match self.algorithm {
            Algorithm::Md5 => (16, "1 to 16 (RFC 2328 section D.4.3)"),
            _ => (usize::MAX, "at least 1"),
        };
        length(&self.secret, most, what, expected)?;
        for (verb, window) in [("sent", self.send), ("accepted", self.accept)] {
            let empty = |(from, until): (u64, u64)| until <= from;
            if window.from.zip(window.until).is_some_and(empty) {
                return Err(KeyError::Window { id, verb, window });
            }
        }
        if ipv6 && self.algorithm == Algorithm::Md5 {
            Err(KeyError::Version3 { what: what() })
        } else {
            Ok(())
        }
    }
}

fn length(
    secret: &Secret,
    most: usize,
    what: impl Fn() -> String,
    expected: &'static str,
) -> Result<(), KeyError> {
    match secret.bytes().len() {
        length if (1..=most).contains(&length) => Ok(()),
        length => Err(KeyError::SecretLength { what: what(), length, expected }),
    }
}
