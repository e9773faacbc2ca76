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
use serde::{Deserialize, Serialize};

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
/// How long the first Router-LSA waits, after the first adjacency is full, for those of the other interfaces.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// This many newer copies of one of our LSAs within [`CONTEST_WINDOW`] mean that somebody else has our id.
const CONTEST_COUNT: u32 = 3;
const CONTEST_WINDOW: Duration = Duration::from_secs(60);

/// An LSA of ours, or one of an earlier life that has to be flushed.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Own {
    /// When and as which instance it was last sent in this life.
    last: Option<(Time, i32)>,
    /// Sequence number of the newest copy received since: the database forgets a flushed one before its successor is due.
    received: Option<i32>,
    /// Newer copies seen since `contested_since`.
    contested: u32,
    contested_since: Time,
}

/// What was originated, and when the next thing is due.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(bound = "")]
pub(super) struct Originator<V: Version> {
    #[serde(with = "crate::serial::pairs")]
    own: BTreeMap<(Scope, LsaKey<V>), Own>,
    due: Option<Time>,
    first_full: Option<Time>,
    /// The first adjacency was full: from now on the Router-LSA says what is.
    started: bool,
    /// The links of the Router-LSA are in reverse order.
    #[serde(default)]
    turned: bool,
    /// An LSA was replaced or flushed of which [`Protocol::is_kept`] is true.
    #[serde(default)]
    replaced: bool,
}

impl<V: Version> Originator<V> {
    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }

    /// An adjacency became full, or ceased to be.
    pub(super) fn note_adjacency(&mut self, now: Time) {
        self.first_full.get_or_insert(now);
    }

    /// Whether the first Router-LSA is out, or nothing holds it up any more.
    pub(super) fn has_started(&self) -> bool {
        self.started
    }

    /// Turns the order of the Router-LSA's links.
    pub(super) fn turn(&mut self) {
        self.turned = !self.turned;
    }

    /// Brings the Router-LSA's links into their order.
    pub(super) fn order<L>(&self, links: &mut [L]) {
        if self.turned {
            links.reverse();
        }
    }

    /// Whether each of our LSAs may be sent in a new instance now.
    pub(super) fn may_send(&self, now: Time) -> bool {
        let open = |own: &Own| own.last.is_none_or(|(at, _)| now.since(at) >= MIN_INTERVAL);
        self.own.values().all(open)
    }

    /// Takes an LSA of an earlier life for one of ours.
    pub(super) fn adopt(&mut self, scope: Scope, key: LsaKey<V>) {
        self.own.entry((scope, key)).or_default();
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
        self.bring_out();
        if std::mem::take(&mut self.originator.replaced) {
            // Behind it, so that it is known when the tree is calculated.
            self.originator.turn();
            self.bring_out();
        }
    }

    fn bring_out(&mut self) {
        let wanted = self.wanted_lsas();
        for ((scope, key), (options, body)) in &wanted {
            self.maintain(*scope, *key, *options, body);
        }
        let own: BTreeSet<_> = self.originator.own.keys().copied().collect();
        for (scope, key) in own.into_iter().filter(|own| !wanted.contains_key(own)) {
            self.flush(scope, key);
        }
    }

    /// The first Router-LSA waits for the first full adjacency, and a moment for those of the other interfaces: after a
    /// crash the neighbours still hold our old one, and it shall be replaced once, by a complete one. One that names a
    /// single switch reaches the others by way of it; they would lose us, or not find us, until [`MIN_INTERVAL`] is over.
    ///
    /// A stop waits for nothing: what an earlier life or the last moments left with a neighbour is flushed while there is
    /// somebody to tell, and neighbours that help stop helping.
    fn may_originate(&mut self) -> bool {
        self.originator.started |= self.stopping.is_some();
        if self.is_resuming() {
            return false; // "Do not originate LSAs with LS types 1-5, 7" (RFC 3623 section 2)
        }
        if self.originator.started {
            return true;
        }
        let Some(first_full) = self.originator.first_full else { return false };
        let coming = |state| state >= NeighborState::ExStart && state < NeighborState::Full;
        let incomplete = |interface: &Interface<V>| {
            let mut states = interface.neighbors.values().map(|neighbor| neighbor.state);
            let silent = matches!(interface.state, InterfaceState::Down | InterfaceState::Passive);
            states.clone().any(coming) || (!silent && !states.any(|state| state == NeighborState::Full))
        };
        let limit = first_full + FIRST_WAIT;
        if self.interfaces.values().any(incomplete) && self.now < limit {
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
        let known = held.map(|entry| entry.lsa.header.sequence).max(last.map(|(_, sequence)| sequence));
        let received = self.originator.own.get(&(scope, key)).and_then(|own| own.received);
        let sequence = match known.max(received) {
            None => INITIAL_SEQUENCE,
            Some(MAX_SEQUENCE) if held.is_some() => return self.flush(scope, key), // section 12.1.6
            Some(MAX_SEQUENCE) => INITIAL_SEQUENCE,
            Some(sequence) => sequence + 1,
        };
        let Ok(lsa) = Lsa::build(key, options, sequence, body) else { return };
        let changed =
            held.is_none_or(|entry| entry.lsa.body() != body || entry.lsa.header.options != options);
        let replaced = changed && held.is_some() && V::is_kept(key.kind);
        self.originator.replaced |= replaced;
        self.record_lsa(LsaAction::Originated, scope, &lsa.header, None, changed);
        self.install_and_flood(scope, lsa, None);
        let own = self.originator.own.entry((scope, key)).or_default();
        (own.last, own.received) = (Some((now, sequence)), None);
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
        self.originator.replaced |= V::is_kept(key.kind);
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
    ///
    /// A flush of an earlier life that a neighbour has not forgotten is in no database description, so our first instance
    /// was made without knowing of it. Who sends it has not taken that one: its successor need not wait for
    /// [`MIN_INTERVAL`].
    pub(super) fn note_own_lsa_received(&mut self, scope: Scope, header: &LsaHeader<V>) {
        let (now, started) = (self.now, self.originator.started);
        let own = self.originator.own.entry((scope, header.key)).or_default();
        own.received = own.received.max(Some(header.sequence));
        let flushed = header.age_seconds() == MAX_AGE;
        if flushed && own.last.is_some_and(|(_, sequence)| sequence == INITIAL_SEQUENCE) {
            own.last = None;
        }
        if !started || flushed {
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
        let mut wanted = V::wanted(self, phase.is_none());
        if let Some(period) = self.told_grace() {
            wanted.extend(V::grace_lsas(self, period));
        }
        wanted
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
