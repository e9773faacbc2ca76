//! What every packet of an interface passes, on its way out and on its way in.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    Algorithm, Authenticated, Authentication, Claim, Key, Numbers, Proof, Secret, digest,
    selection::{Acceptance, to_accept, to_send},
};
use crate::{
    packet::{
        ParseError,
        wire::{Body, Envelope},
    },
    speaker::Refusal,
};

/// Why a packet does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: Refusal,
    /// What each side says; never a secret.
    pub(crate) detail: String,
}

impl From<ParseError> for Refused {
    fn from(error: ParseError) -> Self {
        Self { reason: Refusal::from(&error), detail: error.to_string() }
    }
}

fn refused<T>(reason: Refusal, detail: String) -> Result<T, Refused> {
    Err(Refused { reason, detail })
}

/// A packet that passed: who sends it, what it carries, and its number if there was a digest.
pub(crate) type Opened<V> = (Envelope, Body<V>, Option<Proof>);

/// The key that an interface sends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendingKey {
    /// Its id.
    pub id: u8,
    /// How digests are computed.
    pub algorithm: Algorithm,
    /// It is not valid now, but neither is any other.
    pub expired: bool,
}

/// The authentication of one interface. Times of day are spans since 1970 (UTC).
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Guard {
    authentication: Authentication,
    sending: Option<SendingKey>,
    /// The sending key is another one since the last look.
    is_news: bool,
}

impl Guard {
    pub(crate) fn new(authentication: Authentication) -> Self {
        Self { authentication, ..Self::default() }
    }

    /// Authenticates differently from now on.
    pub(crate) fn replace(&mut self, authentication: Authentication) {
        self.authentication = authentication;
    }

    /// Whether packets that are sent have numbers.
    pub(crate) fn is_numbered(&self) -> bool {
        matches!(self.authentication, Authentication::Keys(_))
    }

    /// How the interface authenticates, in words without secrets.
    pub(crate) fn describe(&self) -> String {
        match (&self.authentication, self.sending) {
            (Authentication::None, _) => "none".into(),
            (Authentication::Simple(_), _) => "simple".into(),
            (Authentication::Keys(_), None) => "keys".into(),
            (Authentication::Keys(_), Some(SendingKey { id, algorithm, expired })) => {
                format!("key {id}, {algorithm}{}", if expired { ", expired" } else { "" })
            }
        }
    }

    /// The packet as a recording holds it: what only who knows the secret could have put there is made anew with its
    /// substitute ([`super::Secret`]), so that whatever was accepted is accepted in a replay, and what was not is not.
    pub(crate) fn disguise<V: Authenticated>(&self, payload: &Bytes, source: V::Address) -> Bytes {
        let mut out = payload.to_vec();
        let is_keyed = matches!(self.authentication, Authentication::Keys(_));
        match V::claim(payload, is_keyed) {
            Ok(Claim::Keyed { id, digest, .. }) => {
                let (covered, received) = (&payload[..digest.start], &payload[digest.clone()]);
                let keys =
                    if let Authentication::Keys(keys) = &self.authentication { &keys[..] } else { &[] };
                let key = keys.iter().find(|key| u16::from(key.id) == id);
                let right = key.filter(|key| verify::<V>(key, covered, received, source).is_ok());
                match right.map(|key| Key { secret: key.secret.substitute(), ..key.clone() }) {
                    Some(key) => out[digest.clone()].copy_from_slice(&digest_of::<V>(&key, covered, source)),
                    None => out[digest.clone()].fill(0),
                }
                out[digest.end..].fill(0); // an LLS block may have a digest of its own (RFC 5613 section 2.5)
            }
            Ok(Claim::Simple(theirs)) => {
                let substitute = match &self.authentication {
                    Authentication::Simple(ours) if digest::is_equal(&padded(ours), &theirs) => {
                        padded(&ours.substitute())
                    }
                    _ => [0xff; 8],
                };
                if let Some(password) = V::PASSWORD.and_then(|place| out.get_mut(place)) {
                    password.copy_from_slice(&substitute);
                }
            }
            // Too short for a header: whatever is there of a password goes.
            Err(_) if payload.len() < V::HEADER_LEN => {
                if let Some(rest) = V::PASSWORD.and_then(|place| out.get_mut(place.start..)) {
                    rest.fill(0);
                }
            }
            // Digests and passwords of others, for whom a setting is wrong on one side. Nobody reads them.
            claim @ (Ok(Claim::None | Claim::Unknown { .. }) | Err(_)) => {
                let read = V::read_by_claim(payload, is_keyed).min(out.len());
                out[read..].fill(0);
                // Of a digest that is cut short, number and length are there.
                if let Some(password) = V::PASSWORD.filter(|_| claim.is_ok()).and_then(|at| out.get_mut(at)) {
                    password.fill(0);
                }
            }
        }
        out.into()
    }

    /// Bytes at most that authentication adds to a packet.
    pub(crate) fn overhead<V: Authenticated>(&self) -> usize {
        match &self.authentication {
            Authentication::Keys(keys) => {
                keys.iter().map(|key| V::overhead(key.algorithm)).max().unwrap_or(0)
            }
            Authentication::None | Authentication::Simple(_) => 0,
        }
    }

    /// The sending key, if it changed since the last call.
    pub(crate) fn take_news(&mut self) -> Option<SendingKey> {
        std::mem::take(&mut self.is_news).then_some(self.sending).flatten()
    }

    /// Authenticates a packet on its way out with the next of the speaker's numbers; it must be sent before the next
    /// one. None where that cannot be done; nothing is sent without authentication then.
    pub(crate) fn seal<V: Authenticated>(
        &mut self,
        numbers: &mut Numbers,
        now: Duration,
        packet: Bytes,
        source: V::Address,
    ) -> Option<Bytes> {
        let keys = match &self.authentication {
            Authentication::None => return Some(packet),
            Authentication::Simple(password) => return V::with_password(&packet, password.bytes()),
            Authentication::Keys(keys) => keys,
        };
        let choice = to_send(keys, now.as_secs())?;
        let Key { id, algorithm, .. } = *choice.key;
        let sending = Some(SendingKey { id, algorithm, expired: choice.stretched });
        self.is_news |= self.sending != sending;
        self.sending = sending;
        let mut out = V::with_claim(&packet, id, algorithm, numbers.next(now));
        let digest = digest_of::<V>(choice.key, &out, source);
        out.extend_from_slice(&digest);
        Some(out.freeze())
    }

    /// Verifies and parses a packet that came in. Its number is for the caller to judge, who knows the
    /// neighbour.
    ///
    /// # Errors
    /// Why the packet does not pass.
    pub(crate) fn open<V: Authenticated>(
        &self,
        now: Duration,
        payload: &Bytes,
        source: V::Address,
        destination: V::Address,
    ) -> Result<Opened<V>, Refused> {
        let is_keyed = matches!(self.authentication, Authentication::Keys(_));
        let proof = match (&self.authentication, V::claim(payload, is_keyed)?) {
            (Authentication::None, Claim::None) => {
                let (envelope, body) = V::open(payload, source, destination)?;
                return Ok((envelope, body, None));
            }
            (Authentication::Simple(password), Claim::Simple(theirs)) => {
                let ours = Zeroizing::new(padded(password));
                if !digest::is_equal(&*ours, &theirs) {
                    return refused(Refusal::AuthenticationDigest, "the passwords differ".into());
                }
                None
            }
            (Authentication::Keys(keys), Claim::Keyed { id, sequence, digest, kind }) => {
                let key = acceptable(keys, id, now.as_secs())?;
                let (covered, received) = (&payload[..digest.start], &payload[digest]);
                verify::<V>(key, covered, received, source)?;
                Some(Proof { sequence, lane: V::lane(kind), strict: V::STRICT })
            }
            (ours, theirs) => {
                let detail = format!("they say {}, we say {}", theirs.says(), ours.says());
                return refused(Refusal::Authentication, detail);
            }
        };
        let (envelope, body) = V::open_authentic(payload, source, destination)?;
        Ok((envelope, body, proof))
    }
}

/// A password as packets have it.
fn padded(password: &Secret) -> [u8; 8] {
    let mut padded = [0; 8];
    for (to, from) in padded.iter_mut().zip(password.bytes()) {
        *to = *from;
    }
    padded
}

/// The key that a packet names, if it counts now.
fn acceptable(keys: &[Key], id: u16, now: u64) -> Result<&Key, Refused> {
    match to_accept(keys, id, now) {
        Acceptance::Key(key) => Ok(key),
        Acceptance::Unknown => {
            let ours = keys.iter().map(|key| key.id.to_string()).collect::<Vec<_>>().join(", ");
            refused(Refusal::AuthenticationKey, format!("they use key {id}, we know {ours}"))
        }
        Acceptance::Outside(key) => {
            let (window, now) = (key.accept, super::rfc_3339(now));
            let detail = format!("they use key {id}, which we accept {window}; it is {now} here");
            refused(Refusal::AuthenticationExpired, detail)
        }
    }
}

fn verify<V: Authenticated>(
    key: &Key,
    covered: &[u8],
    received: &[u8],
    source: V::Address,
) -> Result<(), Refused> {
    let (id, algorithm, length) = (key.id, key.algorithm, key.algorithm.digest_len());
    if received.len() != length {
        let detail = format!(
            "key {id}: their digest has {} bytes, ours ({algorithm}) {length}; make the algorithms equal",
            received.len()
        );
        return refused(Refusal::AuthenticationDigest, detail);
    }
    if digest::is_equal(&digest_of::<V>(key, covered, source), received) {
        return Ok(());
    }
    let detail = format!("key {id} ({algorithm}): the digest is wrong; make the secrets equal");
    refused(Refusal::AuthenticationDigest, detail)
}

/// The digest of `covered`, by the key as the version uses it.
fn digest_of<V: Authenticated>(key: &Key, covered: &[u8], source: V::Address) -> Vec<u8> {
    let mut secret = Zeroizing::new(Vec::with_capacity(key.secret.bytes().len() + 2));
    secret.extend_from_slice(key.secret.bytes());
    if let Some([high, low]) = V::PROTOCOL_ID {
        secret.extend(if key.swapped_protocol_id { [low, high] } else { [high, low] });
    }
    digest::compute(key.algorithm, &secret, covered, &V::pad(key.algorithm, source))
}
