//! A link state database: LSAs by key, their age, and when the next one is over (RFC 2328 sections 12.2
//! and 14).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::Time;
use crate::packet::{Lsa, LsaKey, MAX_AGE};

/// An LSA and how it came here.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) lsa: Lsa,
    pub(super) installed: Time,
    /// Received by flooding, so MinLSArrival applies to the next instance.
    pub(super) flooded: bool,
    /// When this copy was last sent back to a neighbour that sent an older one (section 13 step 8).
    pub(super) sent_back: Option<Time>,
}

impl Entry {
    /// Age in seconds.
    pub(super) fn age(&self, now: Time) -> u16 {
        self.lsa.age_after(now.since(self.installed))
    }

    /// The LSA with its age of now, for comparing and sending.
    pub(super) fn aged(&self, now: Time) -> Lsa {
        self.lsa.with_age(self.age(now))
    }

    fn expires(&self) -> Time {
        let left = MAX_AGE.saturating_sub(self.lsa.header.age_seconds());
        self.installed + Duration::from_secs(u64::from(left))
    }
}

/// The LSAs of one scope: a link, an area, or the domain.
#[derive(Debug, Default)]
pub(super) struct Lsdb {
    entries: BTreeMap<LsaKey, Entry>,
    expiry: BTreeSet<(Time, LsaKey)>,
    /// LSAs of MaxAge, waiting to be acknowledged by all and then forgotten.
    dying: BTreeSet<LsaKey>,
}

impl Lsdb {
    pub(super) fn get(&self, key: &LsaKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &LsaKey) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&LsaKey, &Entry)> {
        self.entries.iter()
    }

    /// Puts an instance in place of any older one.
    pub(super) fn install(&mut self, lsa: Lsa, now: Time, flooded: bool) {
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

    pub(super) fn remove(&mut self, key: &LsaKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.expiry.remove(&(entry.expires(), *key));
            self.dying.remove(key);
        }
    }

    /// LSAs of MaxAge.
    pub(super) fn dying(&self) -> impl Iterator<Item = &LsaKey> {
        self.dying.iter()
    }

    /// When the next LSA reaches MaxAge.
    pub(super) fn next_expiry(&self) -> Option<Time> {
        self.expiry.first().map(|(at, _)| *at)
    }

    /// Takes an LSA that has just reached MaxAge; it stays in the database, as a MaxAge LSA.
    pub(super) fn pop_expired(&mut self, now: Time) -> Option<LsaKey> {
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
