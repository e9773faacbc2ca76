//! One view of the real servers' health from what every director's checks say.
//!
//! A director's observations are a log: each change of one real server gets the next edition, and whoever lacks some
//! gets what has changed since, be that one change or everything. A change is sent at once; heartbeats carry the
//! edition, so that what was lost is asked for.
//!
//! The cluster takes a real server for dead when, of the live directors that have an opinion, more say so than not.
//! A tie counts as up: to lose a real server that works costs more than to keep one that does not for a moment.
//! A director that has no opinion yet does not vote, so that one that joins revives nobody.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use director_proto::health::{Health, MAX_OBSERVED, Observations, RealId};
use director_proto::sync::Message;

use super::{Event, Output, Replica};

/// Most real servers that are remembered of one director.
const MAX_REMEMBERED: usize = 262_144;

/// What the live directors say of a real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Votes {
    /// Directors whose checks find it live.
    pub up: u16,
    /// Directors whose checks do not.
    pub down: u16,
}

impl Votes {
    /// What the cluster makes of it; [`Health::Unknown`] while nobody has an opinion.
    pub fn verdict(self) -> Health {
        match self {
            Self { up: 0, down: 0 } => Health::Unknown,
            Self { up, down } if down > up => Health::Down,
            _ => Health::Up,
        }
    }

    fn count(&mut self, health: Health) {
        match health {
            Health::Up => self.up = self.up.saturating_add(1),
            Health::Down => self.down = self.down.saturating_add(1),
            Health::Unknown => {}
        }
    }
}

/// What the live directors say, by real server. One that nobody has an opinion of is not in it.
pub type HealthView = BTreeMap<RealId, Votes>;

/// What this director's own checks say.
#[derive(Debug, Default)]
pub(super) struct Own {
    edition: u64,
    /// State, and the edition that made it so. What is no longer checked stays as unknown, for those who still have to
    /// hear of it.
    states: BTreeMap<RealId, (Health, u64)>,
    /// The same by edition.
    log: BTreeMap<u64, RealId>,
}

impl Own {
    pub(super) fn edition(&self) -> u64 {
        self.edition
    }

    /// Makes `observed` the whole of it; false if that changes nothing.
    fn replace(&mut self, observed: &BTreeMap<RealId, Health>) -> bool {
        let before = self.edition;
        let gone: Vec<RealId> =
            self.states.keys().filter(|real| !observed.contains_key(*real)).cloned().collect();
        for real in gone {
            self.set(real, Health::Unknown);
        }
        for (real, health) in observed {
            self.set(real.clone(), *health);
        }
        self.edition != before
    }

    fn set(&mut self, real: RealId, health: Health) {
        let known = self.states.get(&real).copied();
        if known.map_or(Health::Unknown, |(health, _)| health) == health {
            return;
        }
        if let Some((_, edition)) = known {
            self.log.remove(&edition);
        }
        self.edition = self.edition.saturating_add(1);
        self.log.insert(self.edition, real.clone());
        self.states.insert(real, (health, self.edition));
    }

    /// What changed after edition `since`, in pieces of one message each.
    fn since(&self, since: u64) -> Vec<Arc<Observations>> {
        let later: Vec<(&u64, &RealId)> = self.log.range(since.saturating_add(1)..).collect();
        let mut from = since;
        let piece = |entries: &[(&u64, &RealId)]| {
            let to = entries.last().map_or(from, |(edition, _)| **edition);
            let state = |real: &RealId| self.states.get(real).map_or(Health::Unknown, |(health, _)| *health);
            let observed = entries.iter().map(|(_, real)| ((*real).clone(), state(real))).collect();
            Arc::new(Observations { from: std::mem::replace(&mut from, to), to, observed })
        };
        later.chunks(MAX_OBSERVED).map(piece).collect()
    }
}

/// What another director's checks say.
#[derive(Debug, Default)]
pub(super) struct Theirs {
    edition: u64,
    states: BTreeMap<RealId, Health>,
}

impl Theirs {
    pub(super) fn edition(&self) -> u64 {
        self.edition
    }

    /// Takes a piece that builds on what is known; false if it does not, or is too much to remember.
    fn take(&mut self, piece: &Observations) -> bool {
        if !(piece.from..piece.to).contains(&self.edition) {
            return false;
        }
        for (real, health) in &piece.observed {
            match health {
                Health::Unknown => _ = self.states.remove(real),
                _ if self.states.len() >= MAX_REMEMBERED && !self.states.contains_key(real) => return false,
                _ => _ = self.states.insert(real.clone(), *health),
            }
        }
        self.edition = piece.to;
        true
    }
}

impl Replica {
    /// Takes the whole of what this director's checks say; what is not in it has no opinion.
    pub(super) fn observe(&mut self, observed: &BTreeMap<RealId, Health>) {
        let before = self.observations.edition();
        if !self.observations.replace(observed) {
            return;
        }
        self.health_changed = true;
        let pieces = self.observations.since(before);
        let live: Vec<Ipv4Addr> = self.live().map(|(router_id, _)| router_id).collect();
        for to in live {
            self.send_observations(to, &pieces);
        }
    }

    pub(super) fn handle_observations_since(&mut self, from: Ipv4Addr, edition: u64) {
        // An edition never reached here belongs to an earlier run: everything is news then.
        let since = if edition > self.observations.edition() { 0 } else { edition };
        let pieces = self.observations.since(since);
        self.send_observations(from, &pieces);
    }

    pub(super) fn handle_observations(&mut self, from: Ipv4Addr, piece: &Observations) {
        if let Some(member) = self.members.get_mut(&from) {
            self.health_changed |= member.observations.take(piece);
        }
    }

    /// Asks a member whose heartbeat tells of an edition that is not known here.
    pub(super) fn catch_up_observations(&mut self, from: Ipv4Addr, edition: u64) {
        let Some(member) = self.members.get(&from) else { return };
        if edition > member.observations.edition() {
            let message = Message::ObservationsSince(member.observations.edition());
            self.outputs.push_back(Output::Send { to: from, message });
        }
    }

    fn send_observations(&mut self, to: Ipv4Addr, pieces: &[Arc<Observations>]) {
        let message = |piece: &Arc<Observations>| Message::Observations(Arc::clone(piece));
        self.outputs.extend(pieces.iter().map(|piece| Output::Send { to, message: message(piece) }));
    }

    /// Tells the node what the live directors say, if that has changed.
    pub(super) fn merge_health(&mut self) {
        if !std::mem::take(&mut self.health_changed) {
            return;
        }
        let mut view = HealthView::new();
        for (real, (health, _)) in &self.observations.states {
            if *health != Health::Unknown {
                view.entry(real.clone()).or_default().count(*health);
            }
        }
        for (_, member) in self.members.iter().filter(|(_, member)| member.is_live()) {
            for (real, health) in &member.observations.states {
                view.entry(real.clone()).or_default().count(*health);
            }
        }
        if *self.health != view {
            self.health = Arc::new(view);
            self.outputs.push_back(Output::Event(Event::Health(Arc::clone(&self.health))));
        }
    }
}
