//! Our own LSAs (RFC 2328 section 12.4, RFC 5340 section 4.4). What they should say follows from the state alone, and
//! is compared
//! with what the database holds after every input; so nothing has to remember to update them.
//!
//! Pace: the first change of an LSA leaves at once, the next instance no sooner than [`MIN_INTERVAL`] after
//! it. Receivers drop an instance that comes within a second of the last and hear of it only by a
//! retransmission seconds later, so one that waits is faster than one that hurries.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::BytesMut;

use super::{
    Event, Interface, InterfaceId, InterfaceState, LsaAction, Machine, Neighbor, NeighborState, Protocol,
    Scope, Time, Trigger, earlier, stop::Phase,
};
use crate::packet::{
    INITIAL_SEQUENCE, MAX_AGE, MAX_SEQUENCE,
    wire::{Lsa, LsaHeader, LsaKey, Version},
};

/// What each of our LSAs should say: options and body.
pub(super) type Wanted<V> = BTreeMap<(Scope, LsaKey<V>), (<V as Version>::LsaOptions, BytesMut)>;

/// Least distance of two instances of one LSA: MinLSArrival of the receivers and some more.
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(1100);
/// An LSA that does not change is sent anew after this time (LSRefreshTime).
const REFRESH: Duration = Duration::from_secs(1800);
/// How long the first Router-LSA waits, after the first adjacency is full, for others that are on the way.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// This many newer copies of one of our LSAs within [`CONTEST_WINDOW`] mean that somebody else has our id.
const CONTEST_COUNT: u32 = 3;
const CONTEST_WINDOW: Duration = Duration::from_secs(60);

/// An LSA of ours, or one of an earlier life that has to be flushed.
#[derive(Debug, Default)]
struct Own {
    /// When and as which instance it was last sent in this life.
    last: Option<(Time, i32)>,
    /// Newer copies seen since `contested_since`.
    contested: u32,
    contested_since: Time,
}

/// What was originated, and when the next thing is due.
#[derive(Debug, Default)]
pub(super) struct Originator<V: Version> {
    own: BTreeMap<(Scope, LsaKey<V>), Own>,
    due: Option<Time>,
    first_full: Option<Time>,
    /// The first adjacency was full: from now on the Router-LSA says what is.
    started: bool,
}

impl<V: Version> Originator<V> {
    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }

    /// An adjacency became full, or ceased to be.
    pub(super) fn note_adjacency(&mut self, now: Time) {
        self.first_full.get_or_insert(now);
    }

    /// Whether each of our LSAs may be sent in a new instance now.
    pub(super) fn may_send(&self, now: Time) -> bool {
        let open = |own: &Own| own.last.is_none_or(|(at, _)| now.since(at) >= MIN_INTERVAL);
        self.own.values().all(open)
    }

    pub(super) fn own_keys(&self) -> impl Iterator<Item = &(Scope, LsaKey<V>)> {
        self.own.keys()
    }
}

impl<V: Protocol> Machine<V> {
    /// Brings the database in line with what we have to say.
    pub(super) fn originate(&mut self) {
        self.originator.due = None;
        if !self.enabled || !self.may_originate() {
            return;
        }
        let wanted = self.wanted_lsas();
        for ((scope, key), (options, body)) in &wanted {
            self.maintain(*scope, *key, *options, body);
        }
        let own: BTreeSet<_> = self.originator.own.keys().copied().collect();
        for (scope, key) in own.into_iter().filter(|own| !wanted.contains_key(own)) {
            self.flush(scope, key);
        }
    }

    /// The first Router-LSA waits for the first full adjacency, and a moment for others under way: after a
    /// crash the neighbours still hold our old one, and it shall be replaced once, by a complete one.
    fn may_originate(&mut self) -> bool {
        if self.originator.started {
            return true;
        }
        let Some(first_full) = self.originator.first_full else { return false };
        let coming = |state| state >= NeighborState::ExStart && state < NeighborState::Full;
        let mut neighbors = self.interfaces.values().flat_map(|interface| interface.neighbors.values());
        let limit = first_full + FIRST_WAIT;
        if neighbors.any(|neighbor| coming(neighbor.state)) && self.now < limit {
            self.originator.due = Some(limit);
            return false;
        }
        self.originator.started = true;
        true
    }

    fn maintain(&mut self, scope: Scope, key: LsaKey<V>, options: V::LsaOptions, body: &[u8]) {
        let now = self.now;
        let last = self.originator.own.entry((scope, key)).or_default().last;
        let held = self.database(scope).and_then(|db| db.get(&key));
        let current = |last: &(Time, i32)| {
            held.is_some_and(|entry| {
                let header = &entry.lsa.header;
                header.sequence == last.1
                    && header.options == options
                    && entry.lsa.body() == body
                    && entry.age(now) < MAX_AGE
                    && now.since(last.0) < REFRESH
            })
        };
        if let Some((at, _)) = last.filter(current) {
            self.originate_by(at + REFRESH);
            return;
        }
        if let Some((at, _)) = last.filter(|(at, _)| now.since(*at) < MIN_INTERVAL) {
            self.originate_by(at + MIN_INTERVAL);
            return;
        }
        let held_sequence = held.map(|entry| entry.lsa.header.sequence);
        let sequence = match held_sequence.max(last.map(|(_, sequence)| sequence)) {
            None => INITIAL_SEQUENCE,
            Some(MAX_SEQUENCE) if held.is_some() => return self.flush(scope, key), // section 12.1.6
            Some(MAX_SEQUENCE) => INITIAL_SEQUENCE,
            Some(sequence) => sequence + 1,
        };
        let Ok(lsa) = Lsa::build(key, options, sequence, body) else { return };
        let changed =
            held.is_none_or(|entry| entry.lsa.body() != body || entry.lsa.header.options != options);
        self.record_lsa(LsaAction::Originated, scope, &lsa.header, None, changed);
        self.install_and_flood(scope, lsa, None);
        self.originator.own.entry((scope, key)).or_default().last = Some((now, sequence));
        self.originate_by(now + REFRESH);
        if changed && V::extent(key.kind, false).is_some() {
            self.end_help_by_change(scope, None);
        }
        if let Some(extent) = V::extent(key.kind, true).filter(|_| changed) {
            self.request_spf(extent, Trigger::lsa(&key));
        }
        self.event(Event::Originated { lsa: key.to_string(), sequence, flushed: false });
    }

    /// Takes an own LSA out of the domain (section 14.1), at the same pace as any instance.
    fn flush(&mut self, scope: Scope, key: LsaKey<V>) {
        let now = self.now;
        let last = self.originator.own.get(&(scope, key)).and_then(|own| own.last);
        let soon = last.filter(|(at, _)| now.since(*at) < MIN_INTERVAL);
        let held = self.database(scope).and_then(|db| db.get(&key));
        let Some(entry) = held else {
            match soon {
                Some((at, _)) => self.originate_by(at + MIN_INTERVAL),
                None if last.is_none_or(|(_, sequence)| sequence != MAX_SEQUENCE) => {
                    self.originator.own.remove(&(scope, key));
                }
                None => {}
            }
            return;
        };
        if entry.age(now) == MAX_AGE {
            self.originate_by(now + MIN_INTERVAL);
            return; // under way, until everybody has acknowledged it
        }
        if let Some((at, _)) = soon {
            return self.originate_by(at + MIN_INTERVAL);
        }
        let lsa = entry.lsa.with_age(MAX_AGE);
        let sequence = lsa.header.sequence;
        self.record_lsa(LsaAction::Flushed, scope, &lsa.header, None, true);
        self.install_and_flood(scope, lsa, None);
        if V::extent(key.kind, false).is_some() {
            self.end_help_by_change(scope, None);
        }
        if let Some(extent) = V::extent(key.kind, true) {
            self.request_spf(extent, Trigger::lsa(&key));
        }
        self.originator.own.entry((scope, key)).or_default().last = Some((now, sequence));
        self.originate_by(now + MIN_INTERVAL);
        self.event(Event::Originated { lsa: key.to_string(), sequence, flushed: true });
    }

    fn originate_by(&mut self, at: Time) {
        self.originator.due = earlier(self.originator.due, Some(at));
    }

    /// A newer copy of one of our LSAs came in (section 13.4); the next [`Self::originate`] supersedes or
    /// flushes it. Once is a restart, often is another router with our id.
    pub(super) fn note_own_lsa_received(&mut self, scope: Scope, header: &LsaHeader<V>) {
        let (now, started) = (self.now, self.originator.started);
        let own = self.originator.own.entry((scope, header.key)).or_default();
        if !started || header.age_seconds() == MAX_AGE {
            return;
        }
        if now.since(own.contested_since) > CONTEST_WINDOW {
            (own.contested, own.contested_since) = (0, now);
        }
        own.contested += 1;
        if own.contested == CONTEST_COUNT {
            self.event(Event::RouterIdContested { lsa: header.key.to_string() });
        }
    }

    /// Whether our LSAs say what they should, and all neighbours have acknowledged that. With nobody to tell, they do.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let mut neighbors = self.interfaces.values().flat_map(|interface| interface.neighbors.values());
        if neighbors.all(|neighbor| neighbor.state < NeighborState::Exchange) {
            return true;
        }
        let wanted = self.wanted_lsas();
        let said = wanted.iter().all(|((scope, key), (options, body))| {
            let held = self.database(*scope).and_then(|db| db.get(key)).filter(|e| e.age(self.now) < MAX_AGE);
            held.is_some_and(|e| e.lsa.body() == &body[..] && e.lsa.header.options == *options)
        });
        said && self.originator.own.keys().all(|(scope, key)| {
            let gone = || {
                let held = self.database(*scope).and_then(|db| db.get(key));
                held.is_none_or(|entry| entry.age(self.now) == MAX_AGE)
            };
            !self.is_awaited(*scope, key) && (wanted.contains_key(&(*scope, *key)) || gone())
        })
    }

    fn wanted_lsas(&self) -> Wanted<V> {
        let phase = self.stopping.as_ref().map(|stopping| stopping.phase);
        if matches!(phase, Some(Phase::Flush | Phase::Done)) {
            return Wanted::new();
        }
        V::wanted(self, phase.is_none())
    }

    /// Interfaces that are up, passive ones included.
    pub(super) fn interfaces_up(&self) -> impl Iterator<Item = (InterfaceId, &Interface<V>)> {
        let up = |(_, interface): &(&InterfaceId, &Interface<V>)| interface.state != InterfaceState::Down;
        self.interfaces.iter().filter(up).map(|(id, interface)| (*id, interface))
    }
}

impl<V: Protocol> Interface<V> {
    /// Whether the network is a transit network for us: a full adjacency with the designated router, or as
    /// the designated router with anybody.
    pub(super) fn is_on_transit(&self) -> bool {
        let mut full = self.full();
        match self.state {
            InterfaceState::Dr => full.next().is_some(),
            InterfaceState::DrOther | InterfaceState::Backup => full.any(|n| n.identity() == self.dr),
            _ => false,
        }
    }

    /// Neighbours with equal databases, and those that restart gracefully.
    pub(super) fn full(&self) -> impl Iterator<Item = &Neighbor<V>> {
        self.neighbors.values().filter(|neighbor| neighbor.is_adjacent())
    }
}
