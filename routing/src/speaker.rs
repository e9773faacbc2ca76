//! The protocol itself (RFC 2328, and RFC 5340 for IPv6), without clock, sockets or threads: packets, link events and
//! wishes go in
//! through [`Machine::handle`], what is to be done comes out of [`Machine::poll_output`], and
//! [`Machine::next_deadline`] says when to come back with [`Input::Timer`]. Equal inputs give equal outputs,
//! so a recording of inputs is a test.
//!
//! One file per concept of the RFC: `interface` and `election` (section 9), `hello` and `neighbor` (10),
//! `exchange` (10.6 to 10.9), `flooding` (13), `lsdb` and `ageing` (14), `origination` and `external` (12.4), `reconfiguration`,
//! `spf`, `calculation` and `route` (16), `spf_delay` (RFC 8405), `graceful` and `restart` (RFC 3623); `liveness` joins BFD to the neighbours
//! (RFC 5882), `history` is for whoever looks back, `inspection` and `status` for whoever looks. All of it is one machine for both versions; [`Protocol`] is
//! the seam, `v2` and `v3` what is on either side of it.

mod ageing;
mod calculation;
mod election;
mod event;
mod exchange;
mod external;
mod flooding;
mod graceful;
mod hello;
mod history;
mod inspection;
mod interface;
mod io;
mod liveness;
mod lsdb;
mod neighbor;
mod origination;
mod reconfiguration;
pub mod recording;
mod refusal;
mod reminder;
mod restart;
mod route;
mod spf;
mod spf_delay;
mod status;
mod stop;
#[cfg(test)]
mod tests;
mod v2;
mod v3;
mod version;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use bytes::Bytes;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::{
    calculation::Calculation,
    history::{History, Trigger},
    interface::Interface,
    lsdb::{Entry, Lsdb, Scope},
    neighbor::Neighbor,
    origination::Originator,
    refusal::Refusals,
    restart::{Leaving, Resuming},
    spf_delay::SpfTimer,
    stop::Stopping,
};
pub use self::{
    event::Event,
    graceful::HelpEnd,
    history::{Extent, LsaAction, LsaEvent, SpfEvent, StateEvent},
    inspection::{LsaDetail, RouteHop, RouteStatus, Selection},
    interface::InterfaceState,
    liveness::Watched,
    neighbor::{NeighborEvent, NeighborState},
    refusal::Refusal,
    restart::{Grace, GraceLink, RestartEnd, RestartRefused},
    route::{NextHop, PathKind, Route},
    spf_delay::{SpfDelays, SpfState},
    status::{BfdStatus, InterfaceStatus, LsaStatus, NeighborStatus, Status},
    stop::Stop,
    v3::Attached6,
    version::Protocol,
};
use crate::{
    announce::Announcement,
    auth::Numbers,
    config::{AreaKind, Config, ConfigError, Places},
    packet::{
        MAX_AGE, V2,
        v3::V3,
        wire::{Lsa, LsaKey},
    },
    time::Time,
};

/// Multicast address of all OSPF routers.
pub const ALL_SPF_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 5);
/// Multicast address of the designated router and its backup.
pub const ALL_D_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 6);
/// Prefixes announced at most in one version: what fits one Router-LSA of 64 KiB beside its own links.
pub const MAX_ANNOUNCED: usize = 5000;

/// An interface, by its place in the first [`Config::interfaces`] that it was in, behind all that were known before; it
/// keeps it for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InterfaceId(pub usize);

/// What a link looks like at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Link<V: Protocol> {
    /// Administratively up and with carrier.
    pub up: bool,
    /// Index of the device, 0 while it does not exist.
    pub index: u32,
    /// MTU in bytes.
    pub mtu: u16,
    /// In version 2 the primary address with its prefix, in version 3 the link-local address and the other
    /// prefixes; without it the interface stays down.
    pub address: Option<V::Attached>,
}

impl<V: Protocol> Default for Link<V> {
    fn default() -> Self {
        Self { up: false, index: 0, mtu: 0, address: None }
    }
}

impl<V: Protocol> Link<V> {
    /// Whether OSPF can be spoken on it.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.up && self.address.is_some()
    }

    /// Whether neighbours on it are still the same when it becomes `next`.
    #[must_use]
    pub fn is_continued_by(&self, next: &Self) -> bool {
        let same_address = match (&self.address, &next.address) {
            (Some(before), Some(after)) => V::is_same_link(before, after),
            (before, after) => before.is_none() && after.is_none(),
        };
        same_address && self.is_usable() == next.is_usable() && self.index == next.index
    }
}

/// Everything that can happen to a speaker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub enum Input<V: Protocol> {
    /// Time has gone by.
    Timer,
    /// The time of day as a span since 1970 (UTC). Keys go by it, and cryptographic sequence numbers; until
    /// the first of these inputs it is 1970.
    TimeOfDay(Duration),
    /// Cryptographic sequence numbers are kept for the next life ([`Output::Reserve`]), and an earlier one may have used
    /// all up to this; none if nothing is known of it. Before [`Input::Enable`], or the first packets go by the clock.
    Numbers(Option<u64>),
    /// Start to speak. Before this nothing is sent.
    Enable,
    /// A link came, went, or changed.
    Link {
        /// Which.
        interface: InterfaceId,
        /// What it is now.
        link: Link<V>,
    },
    /// A packet came in: the IP payload, whose IP header was checked.
    Packet {
        /// Where.
        interface: InterfaceId,
        /// IP source.
        source: V::Address,
        /// IP destination.
        destination: V::Address,
        /// OSPF packet.
        #[serde(with = "crate::serial::hex")]
        payload: Vec<u8>,
    },
    /// BFD says that the path to a neighbour of [`Output::Watch`] was up and failed.
    PathDown {
        /// Where.
        interface: InterfaceId,
        /// Its address.
        peer: IpAddr,
    },
    /// Something came in that was refused before it could be handled.
    Refused {
        /// Where.
        interface: InterfaceId,
        /// IP source.
        source: V::Address,
        /// Why.
        reason: Refusal,
        /// What each side says.
        detail: String,
    },
    /// Follow another configuration, as far as [`Config::changes_to`] says that it can be followed; otherwise nothing
    /// changes. A recording has substitutes for the secrets.
    Reconfigure(Box<Config>),
    /// Announce exactly these prefixes from now on, or the aggregates that they lie in; those of the other family
    /// are none of ours.
    Announce(BTreeMap<IpNet, Announcement>),
    /// Never install routes to these prefixes, whoever announces them; replaces the previous list.
    Protect(BTreeSet<IpNet>),
    /// Tell the neighbours that we restart within so many seconds (RFC 3623); what comes of it is
    /// [`Output::RestartPrepared`], and then [`Stop::Keep`] is the way to go.
    PrepareRestart {
        /// The grace period, 1 to 1800 seconds.
        period: u32,
    },
    /// Go on as if no restart had been prepared.
    CancelRestart,
    /// This speaker is the successor of one that restarts; before [`Input::Enable`].
    Resume(Grace),
    /// Say farewell.
    Stop(Stop),
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<V: Protocol> {
    /// Send an OSPF packet.
    Send {
        /// Where.
        interface: InterfaceId,
        /// IP destination.
        destination: V::Address,
        /// IP payload.
        payload: Bytes,
    },
    /// Join or leave [`Protocol::ALL_D_ROUTERS`].
    DesignatedGroup {
        /// Where.
        interface: InterfaceId,
        /// Join.
        join: bool,
    },
    /// The routes that should be in the kernel; replaces the previous list.
    Routes(Vec<Route>),
    /// The neighbours to watch by BFD; replaces the previous list.
    Watch(BTreeSet<Watched>),
    /// Keep it for the next life that numbers up to this one may have been used. Comes ahead of need: nothing waits for
    /// it.
    Reserve {
        /// The highest of them.
        highest: u64,
    },
    /// Something to tell the operator.
    Event(Event),
    /// Every neighbour knows that we restart, or why it is better not to. Comes once for each
    /// [`Input::PrepareRestart`].
    RestartPrepared(Result<Grace, RestartRefused>),
    /// The stop is complete; nothing will be sent any more.
    Stopped,
}

/// One OSPFv2 router.
pub type Speaker = Machine<V2>;
/// One OSPFv3 router.
pub type Speaker6 = Machine<V3>;

/// One OSPF router of either version.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Machine<V: Protocol> {
    config: Config,
    places: Places,
    now: Time,
    /// A time of day and when it was that.
    time_of_day: (Time, Duration),
    enabled: bool,
    numbers: Numbers,
    /// Seed of the next database exchange.
    seed: u32,
    interfaces: BTreeMap<InterfaceId, Interface<V>>,
    #[serde(with = "crate::serial::pairs")]
    databases: BTreeMap<Scope, Lsdb<V>>,
    originator: Originator<V>,
    /// What is to be announced, as it was said.
    wishes: BTreeMap<IpNet, Announcement>,
    /// What others are told: aggregates in place of what lies in them.
    announced: BTreeMap<IpNet, Announcement>,
    /// Something was announced as external since the start.
    boundary: bool,
    /// Link state ids of announced prefixes that have LSAs of their own (version 3).
    prefix_ids: BTreeMap<IpNet, u32>,
    protected: BTreeSet<IpNet>,
    refusals: Refusals,
    /// When checksums were last verified.
    checked: Time,
    spf: SpfTimer,
    #[serde(skip)]
    calculation: Calculation,
    routes: Vec<Route>,
    /// The last [`Output::Watch`].
    watched: BTreeSet<Watched>,
    history: History<V>,
    stopping: Option<Stopping>,
    /// Our own graceful restart, before and after.
    leaving: Option<Leaving>,
    resuming: Option<Resuming>,
    #[serde(skip)]
    outputs: VecDeque<Output<V>>,
}

impl<V: Protocol> Machine<V> {
    /// A speaker that is silent until [`Input::Enable`]. `seed` should differ between runs: database
    /// exchanges number their packets from it.
    ///
    /// # Errors
    /// The configuration cannot work.
    pub fn new(config: Config, seed: u32) -> Result<Self, ConfigError> {
        config.validate()?;
        let interfaces = config.interfaces.iter().cloned().enumerate();
        let interfaces = interfaces.map(|(at, config)| (InterfaceId(at), Interface::new(config))).collect();
        Ok(Self {
            spf: SpfTimer::new(config.spf),
            places: Places::new(&config.interfaces),
            config,
            now: Time::ZERO,
            time_of_day: (Time::ZERO, Duration::ZERO),
            enabled: false,
            numbers: Numbers::default(),
            seed,
            interfaces,
            databases: BTreeMap::new(),
            originator: Originator::default(),
            wishes: BTreeMap::new(),
            announced: BTreeMap::new(),
            boundary: false,
            prefix_ids: BTreeMap::new(),
            protected: BTreeSet::new(),
            refusals: Refusals::default(),
            checked: Time::ZERO,
            calculation: Calculation::default(),
            routes: Vec::new(),
            watched: BTreeSet::new(),
            history: History::default(),
            stopping: None,
            leaving: None,
            resuming: None,
            outputs: VecDeque::new(),
        })
    }

    /// Takes one input at `now`, which never goes back, and does whatever is due.
    pub fn handle(&mut self, now: Time, input: Input<V>) {
        self.now = self.now.max(now);
        if self.has_stopped() {
            return;
        }
        match input {
            Input::Timer => {}
            Input::TimeOfDay(time_of_day) => self.time_of_day = (self.now, time_of_day),
            Input::Numbers(earlier) => self.numbers.keep(earlier),
            Input::Enable => self.enable(),
            Input::Link { interface, link } => self.handle_link(interface, link),
            Input::Packet { interface, source, destination, payload } if self.enabled => {
                self.handle_packet(interface, source, destination, payload.into());
            }
            Input::Packet { .. } => {} // not listening yet
            Input::PathDown { interface, peer } => self.handle_path_down(interface, peer),
            Input::Refused { interface, source, reason, detail } => {
                self.refuse(interface, source, reason, || detail);
            }
            Input::Announce(prefixes) => {
                self.wishes = prefixes;
                self.tell_announced();
                self.request_spf(Extent::Selection, Trigger::Announcements);
            }
            Input::Reconfigure(config) => self.reconfigure(*config),
            Input::Protect(prefixes) => {
                self.protected = prefixes.into_iter().map(|net| net.trunc()).collect();
                self.request_spf(Extent::Selection, Trigger::Protection);
            }
            Input::PrepareRestart { period } => self.prepare_restart(period),
            Input::CancelRestart => self.cancel_restart(),
            Input::Resume(grace) => self.resume(grace),
            Input::Stop(stop) => self.handle_stop(stop),
        }
        if !self.has_stopped() {
            self.settle(); // who stops to leave everything as it is has nothing to bring out
        }
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output<V>> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timer`] is due at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        if self.has_stopped() {
            return None;
        }
        let interfaces = self.interfaces.values().flat_map(Interface::deadlines);
        let databases = self.databases.values().filter_map(Lsdb::next_expiry);
        let own = [self.originator.due(), self.spf.due(), self.stop_deadline(), self.restart_deadline()];
        let own = own.into_iter().flatten();
        interfaces.chain(databases).chain(self.check_deadline()).chain(own).min()
    }

    /// Runs the timers that are due, then brings out what follows from the new state.
    fn settle(&mut self) {
        self.run_interface_timers();
        self.run_help_timers();
        self.run_neighbor_timers();
        self.tell_watched();
        self.expire_lsas();
        self.check_lsas();
        self.advance_restart();
        self.originate();
        self.send_floods();
        self.send_requests();
        self.send_delayed_acks();
        self.run_spf();
        self.sweep_max_age();
        self.advance_preparation();
        self.advance_stop();
        self.reserve_numbers();
    }

    fn enable(&mut self) {
        if !self.enabled {
            self.enabled = true;
            for id in self.interface_ids() {
                self.interface_up(id);
            }
        }
    }

    /// The time of day as a span since 1970 (UTC).
    fn time_of_day(&self) -> Duration {
        let (at, time_of_day) = self.time_of_day;
        time_of_day.saturating_add(self.now.since(at))
    }

    fn interface_ids(&self) -> Vec<InterfaceId> {
        self.interfaces.keys().copied().collect()
    }

    fn neighbor_ids(&self) -> Vec<(InterfaceId, Ipv4Addr)> {
        let on = |(id, interface): (&InterfaceId, &Interface<V>)| {
            let id = *id;
            interface.neighbors.keys().map(move |key| (id, *key)).collect::<Vec<_>>()
        };
        self.interfaces.iter().flat_map(on).collect()
    }

    fn neighbor(&self, id: InterfaceId, key: Ipv4Addr) -> Option<&Neighbor<V>> {
        self.interfaces.get(&id)?.neighbors.get(&key)
    }

    fn neighbor_mut(&mut self, id: InterfaceId, key: Ipv4Addr) -> Option<&mut Neighbor<V>> {
        self.interfaces.get_mut(&id)?.neighbors.get_mut(&key)
    }

    /// The scope of an LSA type that is seen on an interface, or none for an unknown type.
    fn scope_of(&self, id: InterfaceId, kind: V::Kind) -> Option<Scope> {
        V::scope(kind, id, self.interfaces.get(&id)?.config.area)
    }

    /// Whether LSAs of `scope` are flooded over the interface.
    fn floods_over(&self, id: InterfaceId, scope: Scope) -> bool {
        self.interfaces.get(&id).is_some_and(|interface| match scope {
            Scope::Link(link) => link == id,
            Scope::Area(area) => interface.config.area == area,
            Scope::Domain => interface.config.area_kind == AreaKind::Normal,
        })
    }

    fn database(&self, scope: Scope) -> Option<&Lsdb<V>> {
        self.databases.get(&scope)
    }

    fn database_mut(&mut self, scope: Scope) -> &mut Lsdb<V> {
        self.databases.entry(scope).or_default()
    }

    /// Whether LSAs of a type can be in the area of an interface.
    fn belongs_on(&self, id: InterfaceId, kind: V::Kind) -> bool {
        self.interfaces.get(&id).is_some_and(|interface| V::belongs(kind, interface.config.area_kind))
    }

    /// The LSAs of a scope that are not being flushed.
    fn living(&self, scope: Scope) -> impl Iterator<Item = (&LsaKey<V>, &Lsa<V>)> {
        let all = self.database(scope).into_iter().flat_map(Lsdb::iter);
        let alive = |(_, entry): &(&LsaKey<V>, &Entry<V>)| entry.age(self.now) < MAX_AGE;
        all.filter(alive).map(|(key, entry)| (key, &entry.lsa))
    }

    fn event(&mut self, event: Event) {
        self.record_state(&event);
        self.outputs.push_back(Output::Event(event));
    }

    /// Counts a refusal and, from time to time, says so.
    fn refuse(
        &mut self,
        id: InterfaceId,
        source: V::Address,
        reason: Refusal,
        detail: impl FnOnce() -> String,
    ) {
        if self.refusals.count(self.now, id, reason) {
            let name = self.interfaces.get(&id).map(|interface| interface.config.name.clone());
            let interface = name.unwrap_or_default();
            let source = source.into();
            self.event(Event::Refused { interface, source, reason, detail: detail() });
        }
    }
}

/// The earlier of two moments of which each may be none.
fn earlier(one: Option<Time>, other: Option<Time>) -> Option<Time> {
    one.into_iter().chain(other).min()
}

/// Whether a moment has come.
fn is_due(at: Option<Time>, now: Time) -> bool {
    at.is_some_and(|at| at <= now)
}

/// Delay of collected acknowledgements; well below any retransmission interval (section 13.5).
const ACK_DELAY: Duration = Duration::from_millis(100);
