//! The interface machine (RFC 2328 section 9, RFC 5340 section 4.2.1.1): up and down, waiting, and the designated
//! router.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    Event, Extent, InterfaceId, Link, Machine, Neighbor, NeighborEvent, NeighborState, Output, Protocol,
    Scope, Time, Trigger,
    election::{Candidate, elect},
    is_due,
};
use crate::{
    auth::Guard,
    config::{InterfaceConfig, Network},
    packet::wire::{LsaHeader, LsaKey},
};

/// States of an interface (section 9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InterfaceState {
    /// No link, no address, or not enabled.
    Down,
    /// Advertised, but nobody is spoken to.
    Passive,
    /// Listening who is designated router.
    Waiting,
    /// On a point-to-point network.
    PointToPoint,
    /// On a broadcast network where others are designated router and backup.
    DrOther,
    /// Backup designated router.
    Backup,
    /// Designated router.
    Dr,
}

/// Further Hellos sent quickly once an interface is up, and their distance.
const QUICK_HELLOS: u8 = 3;
const QUICK_HELLO_INTERVAL: Duration = Duration::from_millis(300);

/// An interface and everybody heard on it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Interface<V: Protocol> {
    pub(super) config: InterfaceConfig,
    pub(super) guard: Guard,
    pub(super) link: Link<V>,
    pub(super) state: InterfaceState,
    /// Designated router and backup as [`Protocol::identity`] names them, zero for none.
    pub(super) dr: Ipv4Addr,
    pub(super) bdr: Ipv4Addr,
    pub(super) hello_at: Option<Time>,
    pub(super) last_hello: Option<Time>,
    pub(super) quick_hellos: u8,
    pub(super) wait_until: Option<Time>,
    /// By [`Protocol::neighbor_key`].
    pub(super) neighbors: BTreeMap<Ipv4Addr, Neighbor<V>>,
    /// To be flooded over the interface at the end of this turn.
    pub(super) flood: BTreeSet<LsaKey<V>>,
    pub(super) acks: Vec<LsaHeader<V>>,
    pub(super) acks_at: Option<Time>,
}

impl<V: Protocol> Interface<V> {
    pub(super) fn new(config: InterfaceConfig) -> Self {
        Self {
            guard: Guard::new(config.authentication.clone()),
            config,
            link: Link::default(),
            state: InterfaceState::Down,
            dr: Ipv4Addr::UNSPECIFIED,
            bdr: Ipv4Addr::UNSPECIFIED,
            hello_at: None,
            last_hello: None,
            quick_hellos: 0,
            wait_until: None,
            neighbors: BTreeMap::new(),
            flood: BTreeSet::new(),
            acks: Vec::new(),
            acks_at: None,
        }
    }

    /// Own address on the interface.
    pub(super) fn address(&self) -> Option<V::Address> {
        self.link.address.as_ref().map(V::address)
    }

    pub(super) fn is_broadcast(&self) -> bool {
        self.config.network == Network::Broadcast
    }

    /// Whether packets are exchanged on it.
    pub(super) fn is_active(&self) -> bool {
        !matches!(self.state, InterfaceState::Down | InterfaceState::Passive)
    }

    /// Where the designated router or backup of this network is.
    pub(super) fn is_designated(&self) -> bool {
        matches!(self.state, InterfaceState::Dr | InterfaceState::Backup)
    }

    pub(super) fn deadlines(&self) -> Vec<Time> {
        let own = [self.hello_at, self.wait_until, self.acks_at].into_iter().flatten();
        own.chain(self.neighbors.values().flat_map(Neighbor::deadlines)).collect()
    }
}

impl<V: Protocol> Machine<V> {
    pub(super) fn handle_link(&mut self, id: InterfaceId, link: Link<V>) {
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        let before = std::mem::replace(&mut interface.link, link.clone());
        if !before.is_continued_by(&link) {
            self.interface_down(id);
        } else if before.mtu != link.mtu {
            self.restart_negotiations(id);
        }
        if before.address != link.address {
            self.request_spf_for(id);
        }
        self.interface_up(id);
    }

    /// InterfaceUp, where it can be (section 9.3).
    pub(super) fn interface_up(&mut self, id: InterfaceId) {
        let (now, ready) = (self.now, self.enabled && self.stopping.is_none());
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        if !ready || !interface.link.is_usable() || interface.state != InterfaceState::Down {
            return;
        }
        let state = match (interface.config.passive, interface.config.network) {
            (true, _) => InterfaceState::Passive,
            (false, Network::PointToPoint) => InterfaceState::PointToPoint,
            (false, Network::Broadcast) if interface.config.priority == 0 => InterfaceState::DrOther,
            (false, Network::Broadcast) => InterfaceState::Waiting,
        };
        if state == InterfaceState::Waiting {
            interface.wait_until = Some(now + interface.config.dead());
        }
        if state != InterfaceState::Passive {
            interface.hello_at = Some(now);
            interface.quick_hellos = QUICK_HELLOS;
        }
        self.set_interface_state(id, state);
        self.recall_grace(id);
    }

    /// InterfaceDown (section 9.3): every neighbour goes, and so does what was known of the link.
    pub(super) fn interface_down(&mut self, id: InterfaceId) {
        self.set_interface_state(id, InterfaceState::Down);
        let keys =
            self.interfaces.get(&id).map(|interface| interface.neighbors.keys().copied().collect::<Vec<_>>());
        for key in keys.unwrap_or_default() {
            self.neighbor_event(id, key, NeighborEvent::LinkDown);
        }
        self.databases.remove(&Scope::Link(id));
        if let Some(interface) = self.interfaces.get_mut(&id) {
            let (config, link) = (interface.config.clone(), interface.link.clone());
            let guard = std::mem::take(&mut interface.guard); // its key is no news
            *interface = Interface { link, guard, ..Interface::new(config) };
        }
    }

    fn set_interface_state(&mut self, id: InterfaceId, to: InterfaceState) {
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        let was_designated = interface.is_designated();
        let from = std::mem::replace(&mut interface.state, to);
        if from == to {
            return;
        }
        let (is_designated, name) = (interface.is_designated(), interface.config.name.clone());
        if was_designated != is_designated {
            self.outputs.push_back(Output::DesignatedGroup { interface: id, join: is_designated });
        }
        self.event(Event::Interface { interface: name, from, to });
        self.request_spf_for(id);
    }

    /// What our end of a link looks like has changed.
    pub(super) fn request_spf_for(&mut self, id: InterfaceId) {
        let name = self.interfaces.get(&id).map(|interface| interface.config.name.clone());
        self.request_spf(Extent::Full, Trigger::Interface(name.unwrap_or_default()));
    }

    /// WaitTimer and the Hello timer.
    pub(super) fn run_interface_timers(&mut self) {
        for id in self.interface_ids() {
            let Some(interface) = self.interfaces.get_mut(&id) else { continue };
            if is_due(interface.wait_until, self.now) {
                self.end_waiting(id);
            }
            let Some(interface) = self.interfaces.get_mut(&id) else { continue };
            if is_due(interface.hello_at, self.now) {
                let quick = interface.quick_hellos > 0;
                interface.quick_hellos = interface.quick_hellos.saturating_sub(1);
                let interval = interface.config.hello();
                let pause = if quick { interval.min(QUICK_HELLO_INTERVAL) } else { interval };
                interface.hello_at = Some(self.now + pause);
                self.send_hello(id);
            }
        }
    }

    /// WaitTimer or BackupSeen: the first election.
    pub(super) fn end_waiting(&mut self, id: InterfaceId) {
        if let Some(interface) = self.interfaces.get_mut(&id) {
            interface.wait_until = None;
            if interface.state == InterfaceState::Waiting {
                self.elect(id);
            }
        }
    }

    /// NeighborChange: elects again, unless still waiting.
    pub(super) fn neighbor_change(&mut self, id: InterfaceId) {
        use InterfaceState::{Backup, Dr, DrOther};
        let elects = |i: &Interface<V>| matches!(i.state, DrOther | Backup | Dr);
        if self.interfaces.get(&id).is_some_and(elects) && !self.is_helping_on(id) {
            self.elect(id);
        }
    }

    /// Section 9.4.
    fn elect(&mut self, id: InterfaceId) {
        let Some(interface) = self.interfaces.get(&id) else { return };
        let Some(address) = interface.address() else { return };
        let (priority, dr, bdr) = (interface.config.priority, interface.dr, interface.bdr);
        let router = self.config.router_id;
        let address = V::identity(router, address);
        let me = Candidate { address, router, priority, dr, bdr };
        let two_way = |neighbor: &&Neighbor<V>| neighbor.state >= NeighborState::TwoWay;
        let candidate = |n: &Neighbor<V>| Candidate {
            address: n.identity(),
            router: n.router,
            priority: n.priority,
            dr: n.dr,
            bdr: n.bdr,
        };
        let others: Vec<_> = interface.neighbors.values().filter(two_way).map(candidate).collect();
        let (dr, bdr) = elect(me, &others);
        let state = match address {
            _ if address == dr => InterfaceState::Dr,
            _ if address == bdr => InterfaceState::Backup,
            _ => InterfaceState::DrOther,
        };
        self.adopt_election(id, dr, bdr, state);
    }

    fn adopt_election(&mut self, id: InterfaceId, dr: Ipv4Addr, bdr: Ipv4Addr, state: InterfaceState) {
        let now = self.now;
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        if (interface.dr, interface.bdr, interface.state) == (dr, bdr, state) {
            return;
        }
        interface.dr = dr;
        interface.bdr = bdr;
        interface.hello_at = Some(now); // the others learn it at once
        let keys: Vec<_> = interface.neighbors.keys().copied().collect();
        self.set_interface_state(id, state);
        for key in keys {
            self.neighbor_event(id, key, NeighborEvent::AdjOk);
        }
        self.request_spf_for(id);
    }

    /// Whether there should be an adjacency with the neighbour (section 10.4).
    pub(super) fn adjacency_wanted(&self, id: InterfaceId, key: Ipv4Addr) -> bool {
        let Some(interface) = self.interfaces.get(&id) else { return false };
        let Some(neighbor) = interface.neighbors.get(&key) else { return false };
        !interface.is_broadcast()
            || interface.is_designated()
            || neighbor.identity() == interface.dr
            || neighbor.identity() == interface.bdr
    }
}
