//! The end: withdraw what is announced, flush our LSAs until everybody has acknowledged it, say farewell by
//! a Hello that lists nobody. All of it within [`LIMIT`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Machine, NeighborState, Output, Protocol, RestartEnd, Time, earlier, origination::MIN_INTERVAL};
use crate::packet::MAX_AGE;

/// Longest duration of a stop.
const LIMIT: Duration = Duration::from_millis(1900);
/// Flushes that are not acknowledged are repeated this often.
pub(super) const RESEND: Duration = Duration::from_millis(250);

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stop {
    /// For good: withdraw, flush, say farewell, remove routes.
    Flush,
    /// For a successor that takes over at once: just fall silent; LSAs and routes stay.
    Keep,
}

/// Steps of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// The Router-LSA without announced prefixes is out.
    Withdraw,
    /// All our LSAs are being flushed.
    Flush,
    /// Nothing more will be sent.
    Done,
}

/// A stop under way.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stopping {
    pub(super) phase: Phase,
    /// End of [`Phase::Withdraw`].
    flush_at: Time,
    limit: Time,
}

impl<V: Protocol> Machine<V> {
    pub(super) fn has_stopped(&self) -> bool {
        self.stopping.as_ref().is_some_and(|stopping| stopping.phase == Phase::Done)
    }

    pub(super) fn stop_deadline(&self) -> Option<Time> {
        let stopping = self.stopping.as_ref()?;
        match stopping.phase {
            Phase::Withdraw => earlier(Some(stopping.flush_at), Some(stopping.limit)),
            Phase::Flush => Some(stopping.limit),
            Phase::Done => None,
        }
    }

    pub(super) fn handle_stop(&mut self, stop: Stop) {
        let now = self.now;
        if self.stopping.is_some() {
            return;
        }
        self.cancel_restart();
        self.end_restart(RestartEnd::Stopped);
        let limit = now + LIMIT;
        let stopping = |phase| Some(Stopping { phase, flush_at: now + MIN_INTERVAL, limit });
        if stop == Stop::Keep {
            self.stopping = stopping(Phase::Done);
            self.outputs.push_back(Output::Stopped);
            return;
        }
        // Where an instance is just out, there is no room for two more: the flush withdraws as well. Nor is there one for
        // a first instance, which may have to supersede that of an earlier life.
        let withdraws =
            !self.announced.is_empty() && self.originator.has_started() && self.originator.may_send(now);
        self.stopping = stopping(if withdraws { Phase::Withdraw } else { Phase::Flush });
    }

    pub(super) fn advance_stop(&mut self) {
        let now = self.now;
        let Some(stopping) = &mut self.stopping else { return };
        if stopping.phase == Phase::Withdraw && now >= stopping.flush_at {
            stopping.phase = Phase::Flush;
            self.originate();
            self.send_floods();
            self.sweep_max_age();
        }
        let Some(stopping) = &self.stopping else { return };
        let flushed = stopping.phase == Phase::Flush && self.is_flushed() && !self.is_exchanging();
        let over = now >= stopping.limit || flushed;
        if stopping.phase != Phase::Done && (over || !self.has_adjacency()) {
            self.farewell();
        }
    }

    fn has_adjacency(&self) -> bool {
        let mut neighbors = self.interfaces.values().flat_map(|interface| interface.neighbors.values());
        neighbors.any(|neighbor| neighbor.state >= NeighborState::Exchange)
    }

    /// Whether a neighbour may yet show us LSAs of an earlier life, which are to be flushed as well.
    fn is_exchanging(&self) -> bool {
        let mut neighbors = self.interfaces.values().flat_map(|interface| interface.neighbors.values());
        neighbors.any(|neighbor| matches!(neighbor.state, NeighborState::Exchange | NeighborState::Loading))
    }

    /// Whether all our LSAs are gone from here and acknowledged as flushed by all neighbours.
    fn is_flushed(&self) -> bool {
        self.originator.own_keys().all(|(scope, key)| {
            let entry = self.database(*scope).and_then(|db| db.get(key));
            entry.is_none_or(|entry| entry.age(self.now) == MAX_AGE && !self.is_awaited(*scope, key))
        })
    }

    fn farewell(&mut self) {
        for id in self.interface_ids() {
            self.send_hello_listing(id, Vec::new());
        }
        if let Some(stopping) = &mut self.stopping {
            stopping.phase = Phase::Done;
        }
        self.routes.clear();
        self.outputs.push_back(Output::Routes(Vec::new()));
        self.outputs.push_back(Output::Stopped);
    }
}
