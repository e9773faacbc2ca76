//! Our own graceful restart, planned (RFC 3623 section 2, RFC 5187): the neighbours are told by Grace-LSAs, the process
//! ends without a word more, and its successor says nothing of its own until the adjacencies are again what the
//! neighbours still tell of. Whoever asks for it answers for the data plane, which works on meanwhile.
//!
//! The first life prepares ([`Input::PrepareRestart`](super::Input::PrepareRestart)): Grace-LSAs go out over every
//! interface, and when every adjacent neighbour has acknowledged them and all else that we said, what the successor needs
//! comes out as a [`Grace`]. The second life resumes from that ([`Input::Resume`](super::Input::Resume)): it holds the
//! same Grace-LSAs from the start, so that it can flush them in the end; it originates nothing and hands out no routes
//! until [`RestartEnd`] says why that is over.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Event, Extent, InterfaceId, InterfaceState, Machine, NeighborState, Output, Protocol, Scope, Time,
    Trigger, spf::Vertex,
};
use crate::packet::{INITIAL_SEQUENCE, OPTION_O, wire::Lsa};

/// How long neighbours may take to acknowledge that we restart.
const PREPARATION: Duration = Duration::from_secs(3);

/// What the successor of a speaker that restarts gracefully has to know; to be kept over the restart. It holds no secret,
/// and cryptographic sequence numbers need no place in it: they follow from the time of day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grace {
    /// Version of OSPF, 2 or 3.
    pub version: u8,
    /// The grace period in seconds, as the neighbours were told.
    pub period: u32,
    /// The time of day when it is over, as a span since 1970 (UTC).
    pub until: Duration,
    /// The interfaces that were spoken on.
    pub links: Vec<GraceLink>,
}

/// An interface of a speaker that restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraceLink {
    /// Its name.
    pub interface: String,
    /// Sequence number of the Grace-LSA.
    pub sequence: i32,
    /// Whether there was an adjacency on it.
    pub adjacent: bool,
}

/// Why a speaker does not restart gracefully. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RestartRefused {
    /// It is silent yet, stops, or has not finished an earlier restart.
    #[error("OSPFv{version} is starting or stopping; try again when it is not")]
    Unsettled {
        /// Version of OSPF.
        version: u8,
    },
    /// A neighbour whose adjacency is not Full has nothing to keep.
    #[error(
        "{router} on {interface} cannot help: its adjacency is in state {state:?}; wait until it is Full"
    )]
    NotFull {
        /// Name of the interface.
        interface: String,
        /// Router id of the neighbour.
        router: Ipv4Addr,
        /// Its state.
        state: NeighborState,
    },
    /// A neighbour that cannot be told (version 2).
    #[error(
        "{router} on {interface} cannot help: it takes no opaque LSAs (RFC 5250); switch them on there, or \
         restart without grace"
    )]
    NotOpaque {
        /// Name of the interface.
        interface: String,
        /// Router id of the neighbour.
        router: Ipv4Addr,
    },
    /// A neighbour that said nothing.
    #[error(
        "{router} on {interface} does not help: it has not acknowledged {lsa} within 3 s; look at its log, or \
         restart without grace"
    )]
    NotAcknowledged {
        /// Name of the interface.
        interface: String,
        /// Router id of the neighbour.
        router: Ipv4Addr,
        /// What it has not acknowledged.
        lsa: String,
    },
    /// Something of our own is still on its way out.
    #[error("an LSA of our own has not settled within 3 s; try again")]
    Busy,
}

/// Why a graceful restart is over (RFC 3623 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartEnd {
    /// Every adjacency of before is back.
    Completed,
    /// A neighbour tells of no adjacency with us any more: it did not help.
    Inconsistent,
    /// The neighbours hold no Router-LSA of ours any more.
    Forgotten,
    /// The grace period is over.
    Expired,
    /// We stop.
    Stopped,
}

impl fmt::Display for RestartEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completed => "all adjacencies are back",
            Self::Inconsistent => "a neighbour did not help",
            Self::Forgotten => "the neighbours hold no Router-LSA of ours",
            Self::Expired => "grace period expired",
            Self::Stopped => "stopped",
        })
    }
}

/// A restart that is being prepared.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Leaving {
    period: u32,
    limit: Time,
    /// The outcome was told: only the end of the process is missing, or a change of mind.
    told: bool,
}

/// A restart under way, in the second life.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Resuming {
    period: u32,
    until: Time,
    /// By name.
    links: BTreeMap<String, GraceLink>,
}

impl<V: Protocol> Machine<V> {
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    pub(super) fn is_resuming(&self) -> bool {
        self.resuming.is_some()
    }

    /// How long the neighbours wait yet for a restart that is under way; none if none is.
    #[must_use]
    pub fn grace_left(&self) -> Option<Duration> {
        self.resuming.as_ref().map(|resuming| resuming.until.since(self.now))
    }

    /// When a preparation or a grace period is over.
    pub(super) fn restart_deadline(&self) -> Option<Time> {
        let preparing = self.leaving.filter(|leaving| !leaving.told).map(|leaving| leaving.limit);
        preparing.into_iter().chain(self.resuming.as_ref().map(|resuming| resuming.until)).min()
    }

    /// The grace period that is being told, while it is.
    pub(super) fn told_grace(&self) -> Option<u32> {
        self.leaving.map(|leaving| leaving.period)
    }

    pub(super) fn prepare_restart(&mut self, period: u32) {
        let version = V::NUMBER;
        let unsettled = !self.enabled || self.stopping.is_some() || self.is_resuming();
        let refused = if unsettled { Some(RestartRefused::Unsettled { version }) } else { self.unable() };
        match refused {
            Some(refused) => self.outputs.push_back(Output::RestartPrepared(Err(refused))),
            None => {
                let limit = self.now + PREPARATION;
                self.leaving = Some(Leaving { period, limit, told: false });
            }
        }
    }

    /// All is as before; the Grace-LSAs are flushed.
    pub(super) fn cancel_restart(&mut self) {
        self.leaving = None;
    }

    /// The first neighbour that cannot help: "a full adjacency with X over the associated network segment" is asked of it
    /// (RFC 3623 section 3.1).
    fn unable(&self) -> Option<RestartRefused> {
        self.neighbor_ids().into_iter().find_map(|(id, key)| {
            let neighbor = self.neighbor(id, key)?;
            let (interface, router, state) = (self.interface_name(id), neighbor.router, neighbor.state);
            if !self.adjacency_wanted(id, key) {
                return None;
            }
            if state != NeighborState::Full {
                return Some(RestartRefused::NotFull { interface, router, state });
            }
            let is_deaf = V::NUMBER == 2 && neighbor.options & u32::from(OPTION_O) == 0;
            is_deaf.then_some(RestartRefused::NotOpaque { interface, router })
        })
    }

    /// Looks whether everybody knows that we restart.
    pub(super) fn advance_preparation(&mut self) {
        let Some(leaving) = self.leaving.filter(|leaving| !leaving.told) else { return };
        let outcome = if let Some(refused) = self.unable() {
            Err(refused)
        } else if self.is_settled() {
            Ok(self.grace(leaving.period))
        } else if self.now >= leaving.limit {
            Err(self.unheard())
        } else {
            return;
        };
        self.leaving = outcome.is_ok().then_some(Leaving { told: true, ..leaving });
        self.outputs.push_back(Output::RestartPrepared(outcome));
        if !self.is_leaving() {
            self.originate();
            self.send_floods();
        }
    }

    /// Who has not acknowledged what.
    fn unheard(&self) -> RestartRefused {
        let late = self.neighbor_ids().into_iter().find_map(|(id, key)| {
            let neighbor = self.neighbor(id, key)?;
            let lsa = neighbor.unacknowledged.keys().next()?.to_string();
            let (interface, router) = (self.interface_name(id), neighbor.router);
            Some(RestartRefused::NotAcknowledged { interface, router, lsa })
        });
        late.unwrap_or(RestartRefused::Busy)
    }

    /// What the successor has to know.
    fn grace(&self, period: u32) -> Grace {
        let links = V::grace_lsas(self, period).into_keys().filter_map(|(scope, key)| {
            let Scope::Link(id) = scope else { return None };
            let held = self.database(scope)?.get(&key)?;
            let (sequence, left) =
                (held.lsa.header.sequence, u64::from(period).saturating_sub(held.age(self.now).into()));
            let adjacent = self.interfaces.get(&id)?.full().next().is_some();
            Some((left, GraceLink { interface: self.interface_name(id), sequence, adjacent }))
        });
        let (left, links): (Vec<_>, Vec<_>) = links.unzip();
        let left = left.into_iter().min().unwrap_or(period.into());
        let until = self.time_of_day() + Duration::from_secs(left);
        Grace { version: V::NUMBER, period, until, links }
    }

    /// The second life begins, before anything is said. A grace that is over, or of the other version, is none.
    pub(super) fn resume(&mut self, grace: Grace) {
        let Grace { version, period, until, links } = grace;
        let left = until.saturating_sub(self.time_of_day()).min(Duration::from_secs(period.into()));
        if self.enabled || version != V::NUMBER || left.is_zero() {
            return;
        }
        let links = links.into_iter().map(|link| (link.interface.clone(), link)).collect();
        self.resuming = Some(Resuming { period, until: self.now + left, links });
        self.event(Event::Resuming { seconds: left.as_secs() });
    }

    /// Holds the Grace-LSA of an interface that comes up as if it had been ours all along: the neighbours do, and in the
    /// end it is to be flushed.
    pub(super) fn recall_grace(&mut self, id: InterfaceId) {
        let Some(resuming) = &self.resuming else { return };
        let link = resuming.links.get(&self.interface_name(id));
        let sequence = link.map_or(INITIAL_SEQUENCE, |link| link.sequence);
        let left = u32::try_from(resuming.until.since(self.now).as_secs()).unwrap_or(u32::MAX);
        let age = u16::try_from(resuming.period.saturating_sub(left)).unwrap_or(u16::MAX);
        for ((scope, key), (options, body)) in V::grace_lsas(self, resuming.period) {
            if scope != Scope::Link(id) {
                continue;
            }
            let Ok(lsa) = Lsa::build(key, options, sequence, &body) else { continue };
            let now = self.now;
            self.database_mut(scope).install(lsa.with_age(age), now, false);
            self.originator.adopt(scope, key);
        }
    }

    /// "X … elects itself as the Designated Router again" if a neighbour says in its Hello that X is (RFC 3623 section 2):
    /// its network keeps its name.
    pub(super) fn recall_role(&mut self, id: InterfaceId, dr: Ipv4Addr, bdr: Ipv4Addr) {
        let router = self.config.router_id;
        if !self.is_resuming() {
            return;
        }
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        let Some(us) = interface.address().map(|address| V::identity(router, address)) else { return };
        if interface.state != InterfaceState::Waiting || (dr != us && bdr != us) {
            return;
        }
        (interface.dr, interface.bdr) = (dr, bdr);
        self.end_waiting(id);
    }

    /// Ends the restart when it is time to.
    pub(super) fn advance_restart(&mut self) {
        let Some(resuming) = &self.resuming else { return };
        let reason = if self.now >= resuming.until { Some(RestartEnd::Expired) } else { self.restart_end() };
        if let Some(reason) = reason {
            self.end_restart(reason);
        }
    }

    /// "Reoriginate … LSAs … flush Grace-LSAs" (RFC 3623 section 2.3): all that follows from originating again.
    pub(super) fn end_restart(&mut self, reason: RestartEnd) {
        if self.resuming.take().is_some() {
            self.event(Event::Resumed { reason });
            self.request_spf(Extent::Full, Trigger::Restart);
        }
    }

    /// Whether what the neighbours tell of us holds again, or never will (RFC 3623 section 2.2). Nothing while neither is
    /// known.
    fn restart_end(&self) -> Option<RestartEnd> {
        let resuming = self.resuming.as_ref()?;
        let was_adjacent = |name: &str| resuming.links.get(name).is_some_and(|link| link.adjacent);
        let mut areas: BTreeMap<Ipv4Addr, bool> = BTreeMap::new();
        for interface in self.interfaces.values().filter(|i| was_adjacent(&i.config.name)) {
            *areas.entry(interface.config.area).or_default() |= interface.full().next().is_some();
        }
        let mut complete = true;
        for (area, has_adjacency) in areas {
            match self.area_end(area) {
                Some(RestartEnd::Completed) => {}
                // As long as nobody is Full, nobody can have told us.
                Some(RestartEnd::Forgotten) if !has_adjacency => complete = false,
                Some(reason) => return Some(reason),
                None => complete = false,
            }
        }
        complete.then_some(RestartEnd::Completed)
    }

    fn area_end(&self, area: Ipv4Addr) -> Option<RestartEnd> {
        let us = self.config.router_id;
        let graph = V::graph(self, area);
        let Some(before) = graph.routers.get(&us) else { return Some(RestartEnd::Forgotten) };
        let mut now = self.ties(area);
        let mut complete = true;
        for (end, _) in &before.edges {
            let denied = match end {
                Vertex::Router(other) => graph
                    .routers
                    .get(other)
                    .is_some_and(|them| them.edges.iter().all(|(end, _)| *end != Vertex::Router(us))),
                Vertex::Network(id) => graph.networks.get(id).is_some_and(|attached| !attached.contains(&us)),
            };
            if denied {
                return Some(RestartEnd::Inconsistent);
            }
            match now.iter().position(|tie| tie == end) {
                Some(at) => drop(now.swap_remove(at)),
                None => complete = false,
            }
        }
        // Where we are the designated router: everybody whom our Network-LSA names.
        let mut designated = self
            .interfaces
            .values()
            .filter(|interface| interface.config.area == area && interface.state == InterfaceState::Dr);
        let everybody = designated.all(|interface| {
            let attached = graph.networks.get(&V::network_id(interface)).into_iter().flatten();
            attached.into_iter().all(|router| *router == us || interface.full().any(|n| n.router == *router))
        });
        (complete && everybody).then_some(RestartEnd::Completed)
    }

    /// The links that our Router-LSA would tell of now.
    fn ties(&self, area: Ipv4Addr) -> Vec<Vertex> {
        let mut ties = Vec::new();
        for (_, interface) in self.interfaces_up().filter(|(_, interface)| interface.config.area == area) {
            if interface.state == InterfaceState::PointToPoint {
                ties.extend(interface.full().map(|neighbor| Vertex::Router(neighbor.router)));
            } else if interface.is_on_transit() {
                ties.push(Vertex::Network(V::network_id(interface)));
            }
        }
        ties
    }
}
