//! What operators see of a speaker, ready to be serialised.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    Interface, InterfaceId, InterfaceState, LsaEvent, Machine, Neighbor, NeighborState, Protocol, Refusal,
    Route, Scope, SpfEvent, StateEvent, Time, lsdb::Entry,
};
use crate::{
    announce::Announcement,
    bfd,
    config::{AreaKind, BfdConfig, Network},
    packet::wire::LsaKey,
};

/// One interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Version of OSPF, 2 or 3.
    pub version: u8,
    /// Device name.
    pub name: String,
    /// Device index, 0 while it does not exist.
    pub index: u32,
    /// Carrier and administratively up.
    pub up: bool,
    /// Address that packets are sent from, with its prefix.
    pub address: Option<IpNet>,
    /// MTU in bytes.
    pub mtu: u16,
    /// Area.
    pub area: Ipv4Addr,
    /// How the area treats external routes.
    pub area_kind: AreaKind,
    /// Kind of network.
    pub network: Network,
    /// State.
    pub state: InterfaceState,
    /// Cost.
    pub cost: u16,
    /// `none`, `simple`, or the key that is sent with and its algorithm.
    pub authentication: String,
    /// Designated router, zero for none: by interface address in version 2, by router id in version 3.
    pub dr: Ipv4Addr,
    /// Backup, likewise.
    pub bdr: Ipv4Addr,
    /// Our priority to become designated router.
    pub priority: u8,
    /// Seconds between Hellos.
    pub hello_interval: u16,
    /// Seconds of silence after which a neighbour is dead.
    pub dead_interval: u32,
    /// Seconds between retransmissions.
    pub retransmit_interval: u16,
    /// Milliseconds until the next Hello; none where none is sent.
    pub hello_in_ms: Option<u64>,
    /// Milliseconds until the first election of a designated router; none unless waiting for it.
    pub wait_in_ms: Option<u64>,
    /// Instance id of version 3; 0 in version 2.
    pub instance: u8,
    /// Whether a neighbour with a larger MTU is taken.
    pub mtu_ignore: bool,
    /// Whether packets have a TTL of 255, and others are refused (RFC 5082).
    pub ttl_security: bool,
    /// How BFD watches the neighbours, if it does.
    pub bfd: Option<BfdConfig>,
    /// Neighbours that are heard.
    pub neighbors: usize,
    /// Those whose databases are equal to ours.
    pub adjacencies: usize,
    /// What was refused of what came in here, by reason.
    pub refused: BTreeMap<Refusal, u64>,
}

/// One neighbour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NeighborStatus {
    /// Version of OSPF, 2 or 3.
    pub version: u8,
    /// Its router id.
    pub router_id: Ipv4Addr,
    /// Its address.
    pub address: IpAddr,
    /// How designated routers name it: its address in version 2, its router id in version 3.
    pub identity: Ipv4Addr,
    /// Device it is heard on.
    pub interface: String,
    /// State.
    pub state: NeighborState,
    /// Its priority to become designated router.
    pub priority: u8,
    /// Whom it holds for the designated router, zero for nobody.
    pub dr: Ipv4Addr,
    /// Whom it holds for the backup, zero for nobody.
    pub bdr: Ipv4Addr,
    /// Milliseconds until it is declared dead.
    pub dead_in_ms: u64,
    /// Milliseconds in this state.
    pub in_state_ms: u64,
    /// Milliseconds until its grace period is over; none unless it restarts gracefully. Until then its adjacency is kept,
    /// whatever its state.
    pub helped_for_ms: Option<u64>,
    /// LSAs it has not acknowledged.
    pub unacknowledged: usize,
    /// LSAs we still ask it for.
    pub requested: usize,
    /// Why it is not getting further, if that is known.
    pub reason: Option<String>,
    /// BFD's view; none where it is not asked for, or below 2-Way. The pure machine knows of no session, it is the
    /// driver's [`crate::Handle::status`] that fills this in.
    pub bfd: Option<BfdStatus>,
}

/// What BFD says of the path to a neighbour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BfdStatus {
    /// State of this end.
    pub state: bfd::State,
    /// What the neighbour last said of its own.
    pub remote_state: bfd::State,
    /// Milliseconds in this state.
    pub in_state_ms: u64,
    /// Milliseconds of silence after which the path counts as broken, as negotiated; 0 before that.
    pub detection_ms: u64,
    /// Times the session left Up since the neighbour was last found.
    pub downs: u64,
    /// Why there is no session, with what the kernel said; it is tried again.
    pub error: Option<String>,
}

/// One LSA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LsaStatus {
    /// Version of OSPF, 2 or 3.
    pub version: u8,
    /// `link NAME`, `area ID` or `domain`.
    pub scope: String,
    /// LS type.
    pub kind: u16,
    /// Link state id.
    pub id: Ipv4Addr,
    /// Originator.
    pub router: Ipv4Addr,
    /// Sequence number, as printed by routers.
    pub sequence: u32,
    /// Checksum.
    pub checksum: u16,
    /// Age in seconds.
    pub age: u16,
    /// Length in bytes.
    pub length: u16,
    /// Whether we originate it.
    pub own: bool,
}

/// Everything, of one version or of all that are spoken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Our router id.
    pub router_id: Ipv4Addr,
    /// Whether we speak.
    pub enabled: bool,
    /// Interfaces in the order of the configuration.
    pub interfaces: Vec<InterfaceStatus>,
    /// Neighbours by interface.
    pub neighbors: Vec<NeighborStatus>,
    /// Prefixes we announce; an aggregate in place of those inside it.
    pub announced: BTreeMap<IpNet, Announcement>,
    /// Link state databases.
    pub lsdb: Vec<LsaStatus>,
    /// Learned routes that are meant for the kernel.
    pub routes: Vec<Route>,
    /// Why something was refused, and how often.
    pub counters: BTreeMap<Refusal, u64>,
    /// Recent changes of the databases, the oldest first.
    pub lsa_events: Vec<LsaEvent>,
    /// Recent calculations of routes with what set them off, the oldest first.
    pub spf_events: Vec<SpfEvent>,
    /// Recent changes of state of neighbours and interfaces, the oldest first.
    pub state_events: Vec<StateEvent>,
}

impl Status {
    /// Both versions in one view; `other` comes behind.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.enabled |= other.enabled;
        self.interfaces.extend(other.interfaces);
        self.neighbors.extend(other.neighbors);
        self.announced.extend(other.announced);
        self.lsdb.extend(other.lsdb);
        self.routes.extend(other.routes);
        self.lsa_events.extend(other.lsa_events);
        self.spf_events.extend(other.spf_events);
        self.state_events.extend(other.state_events);
        for (reason, count) in other.counters {
            *self.counters.entry(reason).or_default() += count;
        }
        self
    }
}

impl<V: Protocol> Machine<V> {
    /// The state of everything at the time of the last input.
    #[must_use]
    pub fn status(&self) -> Status {
        let neighbors = self.interfaces.values().flat_map(|interface| {
            interface.neighbors.values().map(|neighbor| self.neighbor_status(interface, neighbor))
        });
        Status {
            router_id: self.config.router_id,
            enabled: self.enabled,
            interfaces: self
                .interfaces
                .iter()
                .map(|(id, interface)| self.interface_status(*id, interface))
                .collect(),
            neighbors: neighbors.collect(),
            announced: self.announced.clone(),
            lsdb: self.lsdb_status(),
            routes: self.routes.clone(),
            counters: self.refusals.counts(),
            lsa_events: self.lsa_events(),
            spf_events: self.spf_events(),
            state_events: self.state_events(),
        }
    }

    fn neighbor_status(&self, interface: &Interface<V>, neighbor: &Neighbor<V>) -> NeighborStatus {
        NeighborStatus {
            version: V::NUMBER,
            router_id: neighbor.router,
            address: neighbor.address.into(),
            identity: neighbor.identity(),
            interface: interface.config.name.clone(),
            state: neighbor.state,
            priority: neighbor.priority,
            dr: neighbor.dr,
            bdr: neighbor.bdr,
            dead_in_ms: millis_between(self.now, neighbor.dead_at),
            in_state_ms: millis_between(neighbor.since, self.now),
            helped_for_ms: neighbor.help.map(|help| millis_between(self.now, help.until)),
            unacknowledged: neighbor.unacknowledged.len(),
            requested: neighbor.requests.len(),
            reason: reason(interface, neighbor),
            bfd: None,
        }
    }

    /// A scope as it is shown.
    pub(super) fn scope_name(&self, scope: Scope) -> String {
        match scope {
            Scope::Link(id) => {
                format!("link {}", self.interfaces.get(&id).map_or("?", |i| &i.config.name))
            }
            Scope::Area(area) => format!("area {area}"),
            Scope::Domain => "domain".into(),
        }
    }

    fn lsdb_status(&self) -> Vec<LsaStatus> {
        let mut all = Vec::new();
        for (scope, database) in &self.databases {
            let scope = self.scope_name(*scope);
            all.extend(database.iter().map(|(key, entry)| self.lsa_status(&scope, key, entry)));
        }
        all
    }

    /// An LSA held in the scope of this name.
    pub(super) fn lsa_status(&self, scope: &str, key: &LsaKey<V>, entry: &Entry<V>) -> LsaStatus {
        LsaStatus {
            version: V::NUMBER,
            scope: scope.to_owned(),
            kind: key.kind.into(),
            id: key.id,
            router: key.router,
            sequence: entry.lsa.header.sequence.cast_unsigned(),
            checksum: entry.lsa.header.checksum,
            age: entry.age(self.now),
            length: entry.lsa.header.length,
            own: V::is_own(self, key),
        }
    }

    fn interface_status(&self, id: InterfaceId, interface: &Interface<V>) -> InterfaceStatus {
        let config = &interface.config;
        let left = |at: Option<Time>| at.map(|at| millis_between(self.now, at));
        InterfaceStatus {
            version: V::NUMBER,
            name: config.name.clone(),
            index: interface.link.index,
            up: interface.link.up,
            address: interface.link.address.as_ref().map(V::shown),
            mtu: interface.link.mtu,
            area: config.area,
            area_kind: config.area_kind,
            network: config.network,
            state: interface.state,
            cost: config.cost,
            authentication: interface.guard.describe(),
            dr: interface.dr,
            bdr: interface.bdr,
            priority: config.priority,
            hello_interval: config.hello_interval,
            dead_interval: config.dead_interval,
            retransmit_interval: config.retransmit_interval,
            hello_in_ms: left(interface.hello_at),
            wait_in_ms: left(interface.wait_until),
            instance: config.instance,
            mtu_ignore: config.mtu_ignore,
            ttl_security: config.ttl_security,
            bfd: config.bfd,
            neighbors: interface.neighbors.len(),
            adjacencies: interface.full().count(),
            refused: self.refusals.counts_on(id),
        }
    }
}

/// Milliseconds from one moment to a later one; 0 if it has passed.
fn millis_between(from: Time, to: Time) -> u64 {
    u64::try_from(to.since(from).as_millis()).unwrap_or(u64::MAX)
}

/// Why a neighbour may be stuck where it is.
fn reason<V: Protocol>(interface: &Interface<V>, neighbor: &Neighbor<V>) -> Option<String> {
    if neighbor.help.is_some() {
        return Some("it restarts gracefully: its adjacency is kept".into());
    }
    match neighbor.state {
        NeighborState::Init => Some("it does not list us in its Hellos".into()),
        NeighborState::ExStart | NeighborState::Exchange => {
            let (theirs, ours) = (neighbor.mtu?, interface.link.mtu);
            (theirs != ours && theirs != 0).then(|| format!("MTU: peer {theirs}, ours {ours}"))
        }
        NeighborState::TwoWay if interface.is_broadcast() => {
            Some("neither side is designated router or backup".into())
        }
        NeighborState::Loading => Some(format!("{} LSAs outstanding", neighbor.requests.len())),
        NeighborState::Down | NeighborState::TwoWay | NeighborState::Full => None,
    }
}
