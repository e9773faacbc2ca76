//! What operators see of a speaker, ready to be serialised.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    Interface, InterfaceState, LsaEvent, Machine, Neighbor, NeighborState, Protocol, Refusal, Route, Scope,
    SpfEvent,
};
use crate::{
    announce::Announcement,
    bfd,
    config::{AreaKind, Network},
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
            interfaces: self.interfaces.values().map(interface_status).collect(),
            neighbors: neighbors.collect(),
            announced: self.announced.clone(),
            lsdb: self.lsdb_status(),
            routes: self.routes.clone(),
            counters: self.refusals.counts().clone(),
            lsa_events: self.lsa_events(),
            spf_events: self.spf_events(),
        }
    }

    fn neighbor_status(&self, interface: &Interface<V>, neighbor: &Neighbor<V>) -> NeighborStatus {
        let millis = |span: std::time::Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
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
            dead_in_ms: millis(neighbor.dead_at.since(self.now)),
            in_state_ms: millis(self.now.since(neighbor.since)),
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
            all.extend(database.iter().map(|(key, entry)| LsaStatus {
                version: V::NUMBER,
                scope: scope.clone(),
                kind: key.kind.into(),
                id: key.id,
                router: key.router,
                sequence: entry.lsa.header.sequence.cast_unsigned(),
                checksum: entry.lsa.header.checksum,
                age: entry.age(self.now),
                length: entry.lsa.header.length,
            }));
        }
        all
    }
}

fn interface_status<V: Protocol>(interface: &Interface<V>) -> InterfaceStatus {
    InterfaceStatus {
        version: V::NUMBER,
        name: interface.config.name.clone(),
        index: interface.link.index,
        up: interface.link.up,
        address: interface.link.address.as_ref().map(V::shown),
        mtu: interface.link.mtu,
        area: interface.config.area,
        area_kind: interface.config.area_kind,
        network: interface.config.network,
        state: interface.state,
        cost: interface.config.cost,
        authentication: interface.guard.describe(),
        dr: interface.dr,
        bdr: interface.bdr,
    }
}

/// Why a neighbour may be stuck where it is.
fn reason<V: Protocol>(interface: &Interface<V>, neighbor: &Neighbor<V>) -> Option<String> {
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
