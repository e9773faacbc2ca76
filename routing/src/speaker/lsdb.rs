//! A link state database: LSAs by key, their age, and when the next one is over (RFC 2328 sections 12.2
//! and 14).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    ops::Bound,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{InterfaceId, Time};
use crate::packet::{
    MAX_AGE,
    wire::{Lsa, LsaKey, Version},
};

/// Where a database belongs (flooding scope, RFC 5250 section 3, RFC 5340 section 4.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// A link.
    Link(InterfaceId),
    /// An area.
    Area(Ipv4Addr),
    /// The whole domain.
    Domain,
}

/// An LSA and how it came here.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(super) struct Entry<V: Version> {
    pub(super) lsa: Lsa<V>,
    pub(super) installed: Time,
    /// Received by flooding, so MinLSArrival applies to the next instance.
    pub(super) flooded: bool,
    /// When this copy was last sent back to a neighbour that sent an older one (section 13 step 8).
    pub(super) sent_back: Option<Time>,
}

impl<V: Version> Entry<V> {
    /// Age in seconds.
    pub(super) fn age(&self, now: Time) -> u16 {
        self.lsa.age_after(now.since(self.installed))
    }

    /// The LSA with its age of now, for comparing and sending.
    pub(super) fn aged(&self, now: Time) -> Lsa<V> {
        self.lsa.with_age(self.age(now))
    }

    fn expires(&self) -> Time {
        let left = MAX_AGE.saturating_sub(self.lsa.header.age_seconds());
        self.installed + Duration::from_secs(u64::from(left))
    }
}

/// The LSAs of one scope: a link, an area, or the domain.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(bound = "")]
pub(super) struct Lsdb<V: Version> {
    #[serde(with = "crate::serial::pairs")]
    entries: BTreeMap<LsaKey<V>, Entry<V>>,
    expiry: BTreeSet<(Time, LsaKey<V>)>,
    /// LSAs of MaxAge, waiting to be acknowledged by all and then forgotten.
    dying: BTreeSet<LsaKey<V>>,
    /// The LSA whose checksum was verified last.
    verified: Option<LsaKey<V>>,
}

impl<V: Version> Lsdb<V> {
    pub(super) fn get(&self, key: &LsaKey<V>) -> Option<&Entry<V>> {
        self.entries.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &LsaKey<V>) -> Option<&mut Entry<V>> {
        self.entries.get_mut(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&LsaKey<V>, &Entry<V>)> {
        self.entries.iter()
    }

    /// Puts an instance in place of any older one.
    pub(super) fn install(&mut self, lsa: Lsa<V>, now: Time, flooded: bool) {
        let key = lsa.header.key;
        self.remove(&key);
        let entry = Entry { lsa, installed: now, flooded, sent_back: None };
        if entry.lsa.header.age_seconds() < MAX_AGE {
            self.expiry.insert((entry.expires(), key));
        } else {
            self.dying.insert(key);
        }
        self.entries.insert(key, entry);
    }

    pub(super) fn remove(&mut self, key: &LsaKey<V>) {
        if let Some(entry) = self.entries.remove(key) {
            self.expiry.remove(&(entry.expires(), *key));
            self.dying.remove(key);
        }
    }

    /// Verifies the checksums of the next `1/parts` of the LSAs, round and round, and returns those where it does not
    /// hold.
    pub(super) fn verify_next(&mut self, parts: usize) -> Vec<LsaKey<V>> {
        let count = self.entries.len().div_ceil(parts.max(1));
        let behind = match self.verified {
            Some(key) => self.entries.range((Bound::Excluded(key), Bound::Unbounded)),
            None => self.entries.range(..),
        };
        let next: Vec<_> = behind.chain(self.entries.iter()).take(count).collect();
        let damaged = next.iter().filter(|(_, entry)| !entry.lsa.verify()).map(|(key, _)| **key).collect();
        self.verified = next.last().map(|(key, _)| **key);
        damaged
    }

    /// LSAs of MaxAge.
    pub(super) fn dying(&self) -> impl Iterator<Item = &LsaKey<V>> {
        self.dying.iter()
    }

    /// When the next LSA reaches MaxAge.
    pub(super) fn next_expiry(&self) -> Option<Time> {
        self.expiry.first().map(|(at, _)| *at)
    }

    /// Takes an LSA that has just reached MaxAge; it stays in the database, as a MaxAge LSA.
    pub(super) fn pop_expired(&mut self, now: Time) -> Option<LsaKey<V>> {
        let (at, key) = *self.expiry.first()?;
        if at > now {
            return None;
        }
        self.expiry.pop_first();
        let entry = self.entries.get_mut(&key)?;
        entry.lsa = entry.lsa.with_age(MAX_AGE);
        entry.installed = now;
        self.dying.insert(key);
        Some(key)
    }
}
