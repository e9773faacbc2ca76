//! Helping a neighbour that restarts gracefully (RFC 3623 section 3, RFC 5187 section 3): while it is silent, and while
//! it brings its database up to date, we go on to say that the adjacency is there, and to send packets its way. Its data
//! plane works on; ours shall not look for another way.
//!
//! The neighbour machine runs as ever: the neighbour falls back to Init when it comes back and climbs to Full again.
//! What is kept is the adjacency as it is told to others, see [`Interface::full`].

use std::{fmt, net::Ipv4Addr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Event, Extent, InterfaceId, Machine, Neighbor, NeighborEvent, NeighborState, Protocol, Refusal, Scope,
    Time, Trigger,
};
use crate::packet::{MAX_AGE, ParseError, grace::GraceBody, wire::Lsa};

/// The longest grace period ("the grace period … should not be … over … LSRefreshTime", RFC 3623 section 2.1).
const LONGEST: Duration = Duration::from_secs(1800);
/// A neighbour that has finished before we have: how much longer its adjacency is kept, for the last LSAs to arrive.
const FINISHING: Duration = Duration::from_secs(2);

/// Why helping ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HelpEnd {
    /// The neighbour has withdrawn its Grace-LSA: it is itself again.
    Completed,
    /// The grace period is over.
    Expired,
    /// The network has changed in a way that the neighbour does not know of, and might forward wrongly.
    TopologyChanged,
    /// The link, or the neighbour on it, is gone.
    Gone,
}

impl fmt::Display for HelpEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completed => "restart completed",
            Self::Expired => "grace period expired",
            Self::TopologyChanged => "topology changed",
            Self::Gone => "link or neighbour gone",
        })
    }
}

/// A neighbour is helped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Help {
    pub(super) until: Time,
    /// What it means when that moment comes.
    end: HelpEnd,
}

impl<V: Protocol> Neighbor<V> {
    /// Whether others are told of an adjacency.
    pub(super) fn is_adjacent(&self) -> bool {
        self.state == NeighborState::Full || self.help.is_some()
    }
}

impl<V: Protocol> Machine<V> {
    /// A new LSA of a link came in: perhaps it says that a router there restarts, or that it has restarted.
    pub(super) fn consider_grace(&mut self, id: InterfaceId, source: V::Address, lsa: &Lsa<V>) {
        let Some(body) = V::grace(lsa) else { return };
        let router = lsa.header.key.router;
        let refuse = |machine: &mut Self, why: &str| {
            machine.refuse(id, source, Refusal::Grace, || format!("no help for {router}: {why}"));
        };
        let body = match body {
            Ok(body) => body,
            Err(error) => return refuse(self, &error.to_string()),
        };
        let Some(interface) = self.interfaces.get(&id) else { return };
        // In version 2 a router may be there twice, with two addresses on one network.
        let is_it = |neighbor: &Neighbor<V>| {
            let address: std::net::IpAddr = neighbor.address.into();
            neighbor.router == router
                && body.address.is_none_or(|told| address == std::net::IpAddr::from(told))
        };
        let found = interface.neighbors.iter().find(|(_, neighbor)| is_it(neighbor));
        let Some(key) = found.map(|(key, _)| *key) else {
            return refuse(self, "it is no neighbour");
        };
        let age = lsa.header.age_seconds();
        if age == MAX_AGE {
            return self.finish_help(id, key);
        }
        let left = u64::from(body.period).checked_sub(age.into()).filter(|left| *left > 0);
        let Some(left) = left.map(Duration::from_secs) else {
            return refuse(self, "its grace period is over");
        };
        let (now, left) = (self.now, left.min(LONGEST));
        let Some(neighbor) = self.neighbor_mut(id, key) else { return };
        if !neighbor.is_adjacent() {
            let why = format!("its adjacency is in state {:?}, not Full", neighbor.state);
            return refuse(self, &why);
        }
        // "There have been no changes to the link-state database since router X restarted": what X has not
        // acknowledged, it may not know.
        let unknown = neighbor.unacknowledged.keys().find(|lsa| V::extent(lsa.kind, false).is_some());
        if let Some(unknown) = unknown.filter(|_| neighbor.help.is_none()) {
            let why = format!("it has not acknowledged {unknown}");
            return refuse(self, &why);
        }
        let is_news = neighbor.help.is_none();
        neighbor.help = Some(Help { until: now + left, end: HelpEnd::Expired });
        if is_news {
            let interface = self.interface_name(id);
            self.event(Event::Helping { interface, router, seconds: left.as_secs() });
        }
    }

    /// The neighbour has finished its restart; where we are still loading from it, it is given a moment.
    fn finish_help(&mut self, id: InterfaceId, key: Ipv4Addr) {
        let now = self.now;
        let Some(neighbor) = self.neighbor_mut(id, key) else { return };
        let loading = matches!(neighbor.state, NeighborState::Exchange | NeighborState::Loading);
        match &mut neighbor.help {
            Some(help) if loading => {
                help.until = help.until.min(now + FINISHING);
                help.end = HelpEnd::Completed;
            }
            Some(_) => self.end_help(id, key, HelpEnd::Completed),
            None => {}
        }
    }

    /// From now on the adjacency is what the neighbour machine says (section 3.2).
    pub(super) fn end_help(&mut self, id: InterfaceId, key: Ipv4Addr, reason: HelpEnd) {
        let now = self.now;
        let Some(neighbor) = self.neighbor_mut(id, key) else { return };
        if neighbor.help.take().is_none() {
            return;
        }
        let (router, state, silent) = (neighbor.router, neighbor.state, neighbor.dead_at <= now);
        let interface = self.interface_name(id);
        self.event(Event::HelpEnded { interface, router, reason });
        if state != NeighborState::Full {
            self.originator.note_adjacency(now);
            self.request_spf(Extent::Full, Trigger::Neighbor(router));
        }
        if silent {
            self.neighbor_event(id, key, NeighborEvent::InactivityTimer);
        }
        self.neighbor_change(id);
    }

    /// What routes depend on has changed: whoever restarts and would have been told of it is not helped any more
    /// ("a change in link-state database contents indicates a network topology change, which forces termination",
    /// section 3.2). `from` is the neighbour that told us.
    pub(super) fn end_help_by_change(&mut self, scope: Scope, from: Option<(InterfaceId, Ipv4Addr)>) {
        for (id, key) in self.neighbor_ids() {
            let helped = self.neighbor(id, key).is_some_and(|neighbor| neighbor.help.is_some());
            if helped && from != Some((id, key)) && self.floods_over(id, scope) {
                self.end_help(id, key, HelpEnd::TopologyChanged);
            }
        }
    }

    /// Whether somebody on the network restarts: it stays what it is in the election (section 3).
    pub(super) fn is_helping_on(&self, id: InterfaceId) -> bool {
        let mut neighbors = self.interfaces.get(&id).into_iter().flat_map(|i| i.neighbors.values());
        neighbors.any(|neighbor| neighbor.help.is_some())
    }

    /// Grace periods that are over.
    pub(super) fn run_help_timers(&mut self) {
        for (id, key) in self.neighbor_ids() {
            let help = self.neighbor(id, key).and_then(|neighbor| neighbor.help);
            if let Some(Help { end, .. }) = help.filter(|help| help.until <= self.now) {
                self.end_help(id, key, end);
            }
        }
    }

    fn interface_name(&self, id: InterfaceId) -> String {
        self.interfaces.get(&id).map(|interface| interface.config.name.clone()).unwrap_or_default()
    }
}

/// What a Grace-LSA says, for people.
pub(super) fn describe_grace(body: Result<GraceBody, ParseError>) -> String {
    let GraceBody { period, reason, address } = match body {
        Ok(body) => body,
        Err(error) => return error.to_string(),
    };
    let why = match reason {
        1 => "software restart",
        2 => "software reload or upgrade",
        3 => "switch to a redundant control processor",
        _ => "unknown",
    };
    let address = address.map(|address| format!(", address {address}")).unwrap_or_default();
    format!("restarts gracefully within {period} s ({why}){address}")
}
