//! This director's own pins, as the node last saw them in its data plane.
//!
//! The node walks through its pins again and again and reports what it meets; a pin that two walks have not met is
//! gone (one may miss it, while the kernel changes the map under the walk). From this follows what the others must be
//! told: new pins, changed ones, those whose end has moved by a tenth of their life, and those that went before their
//! time.

use std::sync::Arc;

use director_common::pin::PinState;
use director_common::tables::{Endpoint, FlowKey};
use director_proto::pins::{MAX_AGE, Server};

use super::FlowMap;

/// A pin of this director, as the node meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPin {
    /// The connection.
    pub flow: FlowKey,
    /// Where it is. Cheapest if pins of one server share it.
    pub server: Arc<Server>,
    /// What it was last seen to do.
    pub state: PinState,
    /// Seconds until the pin expires, if no packet comes.
    pub remaining: u32,
    /// What stands for the client, by full NAT.
    pub local: Option<Endpoint>,
    /// Seconds since that was taken; 0 where there is none.
    pub age: u32,
}

/// A pin in the journal.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) server: Arc<Server>,
    pub(super) local: Option<Endpoint>,
    /// Second at which that was taken; before 0 if it was before this process.
    taken: i64,
    pub(super) state: PinState,
    /// Second at which it expires.
    pub(super) until: u32,
    /// The same, as the others were told last.
    told: u32,
    /// Walk that met it last.
    walk: u32,
}

/// A life is told anew when its end has moved by this part of it.
const REFRESH: u32 = 10;
/// Or by this many seconds, if that is more: two clocks of whole seconds differ by as much.
const SMALLEST_REFRESH: u32 = 4;

impl Entry {
    /// Seconds since its local address and port were taken, at second `now`.
    pub(super) fn age(&self, now: u32) -> u32 {
        u32::try_from((i64::from(now) - self.taken).clamp(0, MAX_AGE.into())).unwrap_or(MAX_AGE)
    }
}

/// Seconds by which a connection that may be idle for `life` may end later at its director than that has told.
pub const fn staleness(life: u32) -> u32 {
    let part = life / REFRESH;
    if part > SMALLEST_REFRESH { part } else { SMALLEST_REFRESH }
}

#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: FlowMap<Entry>,
    walk: u32,
}

impl Journal {
    /// Whether every pin has been met once.
    pub(super) fn is_whole(&self) -> bool {
        self.walk > 0
    }

    /// How many walks have ended.
    pub(super) fn walks(&self) -> u32 {
        self.walk
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, flow: &FlowKey) -> Option<&Entry> {
        self.entries.get(flow)
    }

    /// Connections, in no order.
    pub(super) fn flows(&self) -> Vec<FlowKey> {
        self.entries.keys().copied().collect()
    }

    /// Notes a pin at second `now`; whether the others must be told.
    pub(super) fn note(&mut self, now: u32, pin: LocalPin) -> bool {
        let LocalPin { flow, server, state, remaining, local, age } = pin;
        let (until, walk) = (now.saturating_add(remaining), self.walk);
        let taken = i64::from(now) - i64::from(age);
        let Some(entry) = self.entries.get_mut(&flow) else {
            self.entries.insert(flow, Entry { server, local, taken, state, until, told: until, walk });
            return true;
        };
        let moved_on = until.abs_diff(entry.told) >= staleness(remaining);
        let moved = !Arc::ptr_eq(&entry.server, &server) && entry.server != server;
        // The same address and port may be taken anew.
        let is_other = local.is_some() && entry.taken.abs_diff(taken) > u64::from(SMALLEST_REFRESH);
        let retaken = entry.local != local || is_other;
        let tells = moved_on || moved || entry.state != state || retaken;
        if tells {
            entry.told = until;
        }
        (entry.server, entry.local) = (server, local);
        if retaken {
            entry.taken = taken;
        }
        (entry.state, entry.until, entry.walk) = (state, until, walk);
        tells
    }

    /// A walk has ended: the connections whose pins are gone, and of which the others must be told.
    pub(super) fn end_walk(&mut self, now: u32) -> Vec<FlowKey> {
        let last = self.walk;
        self.walk = self.walk.wrapping_add(1);
        let mut gone = Vec::new();
        self.entries.retain(|flow, entry| {
            let stays = entry.walk == last || entry.walk == last.wrapping_sub(1);
            // What has had its time ends everywhere by itself.
            if !stays && entry.told > now {
                gone.push(*flow);
            }
            stays
        });
        gone
    }
}
