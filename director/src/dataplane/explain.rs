//! What the program in the kernel would do with a packet, and why, without sending one.
//!
//! The decision is made by the program's own code ([`decide`]) over the live maps. [`Live`] reads those; it
//! changes nothing, where the program would take a token or note a fragment. [`Recorder`] stands between the two
//! and writes down each look-up with its answer: an explanation can leave something out, but not tell another
//! story than the one the packet would have.

mod leases;

use std::cell::{OnceCell, RefCell};
use std::net::{IpAddr, SocketAddr};

use aya::TestRunOptions;
use aya::maps::{HashMap, MapData, PerCpuArray};
use aya::programs::{TestRun as _, Xdp};
#[cfg(doc)]
use director_common::lease::opening;
use director_common::lease::{self, Schedules};
use director_common::packet::Buffer;
use director_common::pin::{Pin, PinCell, QuicEntry, QuicKey};
use director_common::schedulers::Method;
use director_common::slot::slot_of;
use director_common::tables::{
    Address, Config, Endpoint, FlowKey, FlowRecord, FragmentEntry, HashInput, Interface, RangeKey, RealEntry,
    ReplyEntry, ReplyKey, Return, Roster, RouteEntry, RouteQuery, Routes, ServiceEntry, ServiceKey, Tables,
    TokenBucket, table_slots,
};
use director_common::verdict::Outcome;
use director_common::{Decision, Slot, SlotState, decide};
use nix::time::{ClockId, clock_gettime};

use super::error::ReadError;
use super::maps::{Maps, Shared, ip_address};
use super::{Dataplane, NextHop};
use leases::Begun;

/// What an XDP program returns to leave a packet to the kernel (`linux/bpf.h`).
const XDP_PASS: u32 = 2;

/// A look-up that the decision made, in the order made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The settings.
    Config {
        /// They are written.
        found: bool,
    },
    /// The interface the packet came in by.
    Interface {
        /// Its index.
        ifindex: u32,
        /// What the program knows of it.
        found: Option<Interface>,
    },
    /// Who owns an address, protocol and port.
    Service {
        /// What was asked for.
        key: ServiceKey,
        /// What it leads to.
        found: Option<ServiceEntry>,
    },
    /// The class of the longest prefix that has an address.
    Class {
        /// The address.
        address: Address,
        /// The class.
        found: Option<u32>,
    },
    /// Who owns a port in a class.
    Range {
        /// What was asked for.
        key: RangeKey,
        /// What it leads to.
        found: Option<ServiceEntry>,
    },
    /// A connection's pin.
    Pin {
        /// The connection.
        key: FlowKey,
        /// What it is pinned to.
        found: Option<Pin>,
    },
    /// A pin that would be made.
    AddPin {
        /// The connection.
        key: FlowKey,
        /// What it would be pinned to.
        pin: Pin,
        /// There is room.
        granted: bool,
    },
    /// The choice of a server for a new connection.
    Schedule {
        /// By which scheduler.
        method: Method,
        /// Position of the server; [`Roster::NOBODY`] if there is none.
        position: u32,
    },
    /// The real server of a QUIC server id.
    Quic {
        /// Service and id.
        key: QuicKey,
        /// The real server.
        found: Option<QuicEntry>,
    },
    /// A slot of a slot table.
    Slot {
        /// Index of the table.
        table: u32,
        /// Number of the slot.
        slot: u32,
        /// The slot.
        found: Option<Slot>,
    },
    /// A real server.
    Real {
        /// Its index in the real-server map.
        index: u32,
        /// What is there.
        found: Option<RealEntry>,
    },
    /// The first fragment of the packet's datagram.
    Fragment {
        /// The key of the datagram.
        key: FlowKey,
        /// What it showed.
        found: Option<FragmentEntry>,
    },
    /// A first fragment that would be remembered.
    NoteFragment {
        /// The key of the datagram.
        key: FlowKey,
        /// What would be remembered.
        entry: FragmentEntry,
    },
    /// Whose answer what comes from a real server is.
    Reply {
        /// What was asked for.
        key: ReplyKey,
        /// As whose it leaves.
        found: Option<ReplyEntry>,
    },
    /// The kernel's route of a packet.
    Route {
        /// What was asked for.
        query: RouteQuery,
        /// What the kernel says.
        found: Option<RouteEntry>,
    },
    /// A connection with full NAT that would begin.
    Open {
        /// The connection.
        key: FlowKey,
        /// How: one of [`opening`].
        opening: u32,
    },
    /// As whom a client's packet leaves by full NAT.
    Local {
        /// The connection.
        key: FlowKey,
        /// The local address and port.
        found: Option<Endpoint>,
    },
    /// What a packet to a local address and port becomes.
    Returned {
        /// Its flow.
        key: FlowKey,
        /// From whom and to whom it is then.
        found: Option<Return>,
    },
    /// The right to send an ICMP error.
    Token {
        /// Errors allowed in each second.
        rate: u32,
        /// Some processor has one left.
        granted: bool,
    },
}

/// Writes down every look-up in the tables behind it.
struct Recorder<'a, T> {
    tables: &'a T,
    lookups: RefCell<Vec<Lookup>>,
}

impl<'a, T> Recorder<'a, T> {
    const fn new(tables: &'a T) -> Self {
        Self { tables, lookups: RefCell::new(Vec::new()) }
    }

    fn note(&self, lookup: Lookup) {
        self.lookups.borrow_mut().push(lookup);
    }
}

impl<T: Schedules> Tables for Recorder<'_, T> {
    fn config(&self) -> Option<&Config> {
        let found = self.tables.config();
        self.note(Lookup::Config { found: found.is_some() });
        found
    }
    fn service(&self, key: &ServiceKey) -> Option<&ServiceEntry> {
        let found = self.tables.service(key);
        self.note(Lookup::Service { key: *key, found: found.copied() });
        found
    }
    fn class(&self, address: &Address) -> Option<&u32> {
        let found = self.tables.class(address);
        self.note(Lookup::Class { address: *address, found: found.copied() });
        found
    }
    fn range(&self, key: &RangeKey) -> Option<&ServiceEntry> {
        let found = self.tables.range(key);
        self.note(Lookup::Range { key: *key, found: found.copied() });
        found
    }
    fn pin(&self, key: &FlowKey) -> Option<&PinCell> {
        let found = self.tables.pin(key);
        self.note(Lookup::Pin { key: *key, found: found.map(PinCell::load) });
        found
    }
    fn add_pin(&self, key: &FlowKey, pin: &Pin) -> bool {
        let granted = self.tables.add_pin(key, pin);
        self.note(Lookup::AddPin { key: *key, pin: *pin, granted });
        granted
    }
    fn remove_pin(&self, key: &FlowKey) -> bool {
        self.tables.remove_pin(key)
    }
    fn half_open(&self, key: &FlowKey) -> Option<&PinCell> {
        let found = self.tables.half_open(key);
        self.note(Lookup::Pin { key: *key, found: found.map(PinCell::load) });
        found
    }
    fn add_half_open(&self, key: &FlowKey, pin: &Pin) -> bool {
        let granted = self.tables.add_half_open(key, pin);
        self.note(Lookup::AddPin { key: *key, pin: *pin, granted });
        granted
    }
    fn remove_half_open(&self, key: &FlowKey) -> bool {
        self.tables.remove_half_open(key)
    }
    fn promote(&self, key: &FlowKey, pin: &Pin) -> bool {
        let granted = self.tables.promote(key, pin);
        self.note(Lookup::AddPin { key: *key, pin: *pin, granted });
        granted
    }
    fn open(&self, service: &ServiceEntry, key: &FlowKey, wanted: u32) -> u32 {
        let opening = lease::open(self, service, key, wanted);
        self.note(Lookup::Open { key: *key, opening });
        opening
    }
    fn sorry(&self, service: &ServiceEntry) -> u32 {
        self.tables.sorry(service)
    }
    fn local(&self, key: &FlowKey) -> Option<&Endpoint> {
        let found = self.tables.local(key);
        self.note(Lookup::Local { key: *key, found: found.copied() });
        found
    }
    fn returned(&self, key: &FlowKey) -> Option<&Return> {
        let found = self.tables.returned(key);
        self.note(Lookup::Returned { key: *key, found: found.copied() });
        found
    }
    fn exchange(&self, cell: &PinCell, old: &Pin, next: &Pin) -> bool {
        self.tables.exchange(cell, old, next)
    }
    fn count(&self, index: u32, active: i64, inactive: i64) {
        self.tables.count(index, active, inactive);
    }
    fn quic(&self, key: &QuicKey) -> Option<&QuicEntry> {
        let found = self.tables.quic(key);
        self.note(Lookup::Quic { key: *key, found: found.copied() });
        found
    }
    fn slot(&self, table: u32, slot: u32) -> Option<Slot> {
        let found = self.tables.slot(table, slot);
        self.note(Lookup::Slot { table, slot, found });
        found
    }
    fn real(&self, index: u32) -> Option<&RealEntry> {
        let found = self.tables.real(index);
        self.note(Lookup::Real { index, found: found.copied() });
        found
    }
    fn now(&self) -> u32 {
        self.tables.now()
    }
    fn take_token(&self, rate: u32) -> bool {
        let granted = self.tables.take_token(rate);
        self.note(Lookup::Token { rate, granted });
        granted
    }
    fn fragment(&self, key: &FlowKey, entry: &mut FragmentEntry) -> bool {
        let known = self.tables.fragment(key, entry);
        self.note(Lookup::Fragment { key: *key, found: known.then_some(*entry) });
        known
    }
    fn note_fragment(&self, key: &FlowKey, entry: &FragmentEntry) {
        self.tables.note_fragment(key, entry);
        self.note(Lookup::NoteFragment { key: *key, entry: *entry });
    }
    fn reply(&self, key: &ReplyKey) -> Option<&ReplyEntry> {
        let found = self.tables.reply(key);
        self.note(Lookup::Reply { key: *key, found: found.copied() });
        found
    }
    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        let found = self.tables.interface(ifindex);
        self.note(Lookup::Interface { ifindex, found: found.copied() });
        found
    }
}

impl<T: Routes> Routes for Recorder<'_, T> {
    fn route(&self, query: &RouteQuery) -> Option<&RouteEntry> {
        let found = self.tables.route(query);
        self.note(Lookup::Route { query: *query, found: found.copied() });
        found
    }
}

/// A list that only grows, so what is in it can be lent out while it does.
struct Kept<T>(OnceCell<Box<(T, Kept<T>)>>);

impl<T> Kept<T> {
    const fn new() -> Self {
        Self(OnceCell::new())
    }

    fn keep(&self, value: T) -> &T {
        let mut end = self;
        while let Some(link) = end.0.get() {
            end = &link.1;
        }
        &end.0.get_or_init(|| Box::new((value, Self::new()))).0
    }
}

/// The maps as they are at this moment, for reading. What the kernel refuses to show counts as not there, and
/// the first such refusal is kept: an explanation that met one is none.
struct Live<'a> {
    maps: &'a Maps,
    /// The program that asks the kernel's routes, as the one on the interfaces does.
    routes: &'a Xdp,
    configs: Kept<Config>,
    services: Kept<ServiceEntry>,
    reals: Kept<RealEntry>,
    interfaces: Kept<Interface>,
    classes: Kept<u32>,
    pins: Kept<PinCell>,
    quic_ids: Kept<QuicEntry>,
    replies: Kept<ReplyEntry>,
    ways: Kept<RouteEntry>,
    addresses: Kept<Address>,
    locals: Kept<Endpoint>,
    returns: Kept<Return>,
    begun: RefCell<Option<Begun>>,
    trouble: RefCell<Option<ReadError>>,
}

impl<'a> Live<'a> {
    const fn new(maps: &'a Maps, routes: &'a Xdp) -> Self {
        Self {
            maps,
            routes,
            configs: Kept::new(),
            services: Kept::new(),
            reals: Kept::new(),
            interfaces: Kept::new(),
            classes: Kept::new(),
            pins: Kept::new(),
            quic_ids: Kept::new(),
            replies: Kept::new(),
            ways: Kept::new(),
            addresses: Kept::new(),
            locals: Kept::new(),
            returns: Kept::new(),
            begun: RefCell::new(None),
            trouble: RefCell::new(None),
        }
    }

    /// What was read; `None` if it is not there.
    fn read<T>(&self, result: Result<T, aya::maps::MapError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(aya::maps::MapError::KeyNotFound | aya::maps::MapError::OutOfBounds { .. }) => None,
            Err(error) => {
                self.trouble.borrow_mut().get_or_insert(ReadError(error));
                None
            }
        }
    }
}

impl Tables for Live<'_> {
    fn config(&self) -> Option<&Config> {
        Some(self.configs.keep(self.read(self.maps.config())?))
    }
    fn service(&self, key: &ServiceKey) -> Option<&ServiceEntry> {
        Some(self.services.keep(self.read(self.maps.service(*key))?))
    }
    fn class(&self, address: &Address) -> Option<&u32> {
        Some(self.classes.keep(self.read(self.maps.class_of(*address))?))
    }
    fn range(&self, key: &RangeKey) -> Option<&ServiceEntry> {
        Some(self.services.keep(self.read(self.maps.range(*key))?))
    }
    /// A copy: what the decision notes in it is lost.
    fn pin(&self, key: &FlowKey) -> Option<&PinCell> {
        Some(self.pins.keep(PinCell::new(self.maps.pins.get(key)?)))
    }
    /// Adds none. There is room, or it would be told by the counter of those that found none.
    fn add_pin(&self, _key: &FlowKey, _pin: &Pin) -> bool {
        true
    }
    /// Removes none.
    fn remove_pin(&self, _key: &FlowKey) -> bool {
        false
    }
    fn half_open(&self, key: &FlowKey) -> Option<&PinCell> {
        let begun = || self.begun.borrow().filter(|begun| begun.flow == *key).map(|begun| begun.pin);
        Some(self.pins.keep(PinCell::new(self.maps.half_open.get(key).or_else(begun)?)))
    }
    /// Adds none, as [`Self::add_pin`].
    fn add_half_open(&self, _key: &FlowKey, _pin: &Pin) -> bool {
        true
    }
    fn remove_half_open(&self, _key: &FlowKey) -> bool {
        false
    }
    /// Adds none, as [`Self::add_pin`].
    fn promote(&self, _key: &FlowKey, _pin: &Pin) -> bool {
        true
    }
    fn open(&self, service: &ServiceEntry, key: &FlowKey, wanted: u32) -> u32 {
        lease::open(self, service, key, wanted)
    }
    fn sorry(&self, service: &ServiceEntry) -> u32 {
        let roster = self.read(self.maps.rosters.get(&service.service, 0));
        roster.map_or(Roster::NOBODY, |Shared(roster)| roster.sorry)
    }
    fn local(&self, key: &FlowKey) -> Option<&Endpoint> {
        Some(self.locals.keep(lease::local(self, key, &mut FlowRecord::default())?))
    }
    fn returned(&self, key: &FlowKey) -> Option<&Return> {
        let mut found = Return::default();
        let is_known = lease::returned(self, key, &mut FlowRecord::default(), &mut found);
        is_known.then(|| self.returns.keep(found))
    }
    fn exchange(&self, cell: &PinCell, old: &Pin, next: &Pin) -> bool {
        cell.exchange(old, next)
    }
    /// Counts nothing.
    fn count(&self, _index: u32, _active: i64, _inactive: i64) {}
    fn quic(&self, key: &QuicKey) -> Option<&QuicEntry> {
        let Shared(entry) = self.read(self.maps.quic_ids.get(&Shared(*key), 0))?;
        Some(self.quic_ids.keep(entry))
    }
    fn slot(&self, table: u32, slot: u32) -> Option<Slot> {
        let slots = self.read(self.maps.peek_table(table))??;
        slots.get(slot as usize).map(|bits| Slot::from_bits(*bits))
    }
    fn real(&self, index: u32) -> Option<&RealEntry> {
        Some(self.reals.keep(self.read(self.maps.real(index))?))
    }
    fn now(&self) -> u32 {
        // The clock of `bpf_ktime_get_coarse_ns`.
        clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |time| time.tv_sec() as u32)
    }
    /// Takes none. Every processor has tokens of its own, and nobody knows by which one a packet will come.
    fn take_token(&self, rate: u32) -> bool {
        let Some(buckets) = self.read(self.maps.buckets.get(&0, 0)) else { return false };
        buckets.iter().any(|Shared(bucket)| bucket.clone().take(self.now(), rate))
    }
    fn fragment(&self, key: &FlowKey, entry: &mut FragmentEntry) -> bool {
        match self.read(self.maps.fragments.get(&Shared(*key), 0)) {
            Some(Shared(found)) => {
                *entry = found;
                true
            }
            None => false,
        }
    }
    /// Notes nothing.
    fn note_fragment(&self, _key: &FlowKey, _entry: &FragmentEntry) {}
    fn reply(&self, key: &ReplyKey) -> Option<&ReplyEntry> {
        Some(self.replies.keep(self.read(self.maps.reply(*key))?))
    }
    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        Some(self.interfaces.keep(self.maps.interface(ifindex)?))
    }
}

impl Routes for Live<'_> {
    fn route(&self, query: &RouteQuery) -> Option<&RouteEntry> {
        let (question, mut answer) = (query.to_bytes(), [0; size_of::<RouteQuery>()]);
        let options =
            TestRunOptions { data_in: Some(&question), data_out: Some(&mut answer), ..TestRunOptions::new() };
        let result = self.routes.test_run(options).ok()?;
        let entry = RouteEntry::from_bytes(answer.first_chunk()?);
        (result.return_value == XDP_PASS).then(|| self.ways.keep(entry))
    }
}

/// First fragments that the program remembers.
pub(super) type Fragments = HashMap<MapData, Shared<FlowKey>, Shared<FragmentEntry>>;
/// What is left of the right to send ICMP errors, by processor.
pub(super) type Buckets = PerCpuArray<MapData, Shared<TokenBucket>>;

/// A real server as an explanation names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExplainedReal {
    /// Its position within the service.
    pub position: u16,
    /// Its address and port.
    pub address: SocketAddr,
}

/// The slot that the packet's flow falls into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExplainedSlot {
    /// Its number.
    pub number: u32,
    /// Its state; `None` for bits that mean nothing.
    pub state: Option<SlotState>,
    /// Who owns it.
    pub current: Option<ExplainedReal>,
    /// Who owned it before.
    pub previous: Option<ExplainedReal>,
}

/// By what a service was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchedKey {
    /// Address and port, or all ports of the address.
    Exact(ServiceKey),
    /// A range of ports, or a prefix that has the address.
    Range(RangeKey),
    /// The real server that it comes from.
    Reply(ReplyKey),
    /// The local address and port that it goes to.
    Returned(FlowKey),
}

/// The service that owns the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainedService {
    /// Its name; empty if the names' map does not have it.
    pub name: String,
    /// The key that matched.
    pub key: MatchedKey,
    /// What its slots depend on.
    pub hash: HashInput,
    /// The entry itself.
    pub entry: ServiceEntry,
}

/// A tunnel that the packet goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExplainedTunnel {
    /// Our end.
    pub source: IpAddr,
    /// The real server's end.
    pub destination: IpAddr,
}

/// The whole decision about one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The flow it belongs to, as far as it was parsed.
    pub flow: FlowKey,
    /// What becomes of it.
    pub outcome: Outcome,
    /// The service that owns it.
    pub service: Option<ExplainedService>,
    /// The hash of its flow. `None` where no slot was looked up.
    pub hash: Option<u64>,
    /// The slot that was looked up.
    pub slot: Option<ExplainedSlot>,
    /// The real server that was chosen, also if it cannot be reached.
    pub real: Option<ExplainedReal>,
    /// The way to it, if the packet is forwarded; the way to the client, if it is an answer of it.
    pub next_hop: Option<NextHop>,
    /// Source and destination as NAT makes them, if it does.
    pub translated: Option<(SocketAddr, SocketAddr)>,
    /// The tunnel to it, if the packet is forwarded by one.
    pub tunnel: Option<ExplainedTunnel>,
    /// It begins a connection.
    pub opens: bool,
    /// The largest packet that fits, in bytes, if it is too large.
    pub mtu: Option<u32>,
    /// Every look-up, in the order made.
    pub lookups: Vec<Lookup>,
}

impl Dataplane {
    /// Tells what the program would do with `frame`, came it in by the interface `ifindex` now. Reads the live maps
    /// and changes nothing: no counter, no memory of fragments, no token.
    ///
    /// # Errors
    /// [`ReadError`] if the kernel refuses to show a map.
    pub fn explain(&self, frame: &mut [u8], ifindex: u32) -> Result<Explanation, ReadError> {
        let live = Live::new(&self.maps, self.route_program());
        let recorder = Recorder::new(&live);
        let mut flow = FlowKey::default();
        let decision = decide(&Buffer(frame), ifindex, &recorder, &mut flow);
        let lookups = recorder.lookups.take();
        let explanation = self.account(&decision, flow, lookups)?;
        match live.trouble.take() {
            Some(trouble) => Err(trouble),
            None => Ok(explanation),
        }
    }

    fn account(
        &self,
        decision: &Decision<'_>,
        flow: FlowKey,
        lookups: Vec<Lookup>,
    ) -> Result<Explanation, ReadError> {
        let (_, number) = decision.verdict.disposition();
        let (_, outcome) = Outcome::all()
            .find(|(index, _)| *index == number)
            .expect("invariant: every verdict has a counter");
        let (service, answering) = match decision.reply {
            Some(reply) => self.answers(reply, &lookups)?,
            None => (self.owner(decision, &lookups)?, None),
        };
        let entry = service.as_ref().map(|service| service.entry);
        let slot = lookups.iter().rev().find_map(|lookup| match lookup {
            Lookup::Slot { slot, found: Some(found), .. } => Some((*slot, *found)),
            _ => None,
        });
        let slot = match slot.zip(entry) {
            Some(((number, slot), entry)) => Some(ExplainedSlot {
                number,
                state: slot.state(),
                current: self.at(&entry, slot.current())?,
                previous: self.at(&entry, slot.previous())?,
            }),
            None => None,
        };
        let real = lookups.iter().rev().find_map(|lookup| match lookup {
            Lookup::Real { index, found: Some(found) } => Some((*index, *found)),
            _ => None,
        });
        let real = real.zip(entry).map(|((index, real), entry)| named(&entry, index, &real)).or(answering);
        let hash = match &service {
            Some(service) => self.hash(&service.entry, &flow)?,
            None => None,
        };
        let table = entry.map_or(0, |entry| entry.table);
        let slots_of = |hash| slot_of(hash, table_slots(table));
        // Shown only if the slot that was looked up does follow from it.
        let hash = hash.filter(|hash| slot.is_some_and(|slot| slot.number == slots_of(*hash)));
        let forwarded = decision.verdict.is_forward();
        Ok(Explanation {
            flow,
            outcome,
            hash,
            slot,
            real,
            next_hop: match decision.route.filter(|_| decision.forward.ifindex != 0) {
                Some(route) => Some(way_out(route)),
                None => decision.way.filter(|_| forwarded).map(way),
            },
            translated: translated(decision, &flow),
            tunnel: decision.tunnel_source.zip(decision.way).filter(|_| forwarded).map(|(source, way)| {
                ExplainedTunnel { source: ip_address(*source), destination: ip_address(way.address) }
            }),
            opens: decision.forward.opens != 0,
            mtu: (decision.mtu != 0).then_some(decision.mtu),
            service,
            lookups,
        })
    }

    /// The service whose answer the packet is, and the real server that gives it.
    fn answers(
        &self,
        reply: &ReplyEntry,
        lookups: &[Lookup],
    ) -> Result<(Option<ExplainedService>, Option<ExplainedReal>), ReadError> {
        let key = lookups.iter().rev().find_map(|lookup| match lookup {
            Lookup::Reply { key, found: Some(_) } => {
                Some((MatchedKey::Reply(*key), ServiceEntry::FORWARD_NAT))
            }
            Lookup::Returned { key, found: Some(_) } => {
                Some((MatchedKey::Returned(*key), ServiceEntry::FORWARD_FULL_NAT))
            }
            _ => None,
        });
        let Some((key, forwarding)) = key else { return Ok((None, None)) };
        let placement = self.plan.services.values().find(|placement| placement.index == reply.service);
        let entry = ServiceEntry {
            service: reply.service,
            real_base: placement.map_or(reply.real, |placement| placement.block.base),
            forwarding,
            ..ServiceEntry::default()
        };
        let name = self.maps.name(reply.service)?.unwrap_or_default();
        let real = named(&entry, reply.real, &self.maps.real(reply.real)?);
        let hash = entry.hash_input();
        Ok((Some(ExplainedService { name, key, hash, entry }), Some(real)))
    }

    fn owner(
        &self,
        decision: &Decision<'_>,
        lookups: &[Lookup],
    ) -> Result<Option<ExplainedService>, ReadError> {
        if decision.service == Decision::NO_SERVICE {
            return Ok(None);
        }
        let found = lookups.iter().rev().find_map(|lookup| match lookup {
            Lookup::Service { key, found: Some(entry) }
                if key.kind != ServiceKey::KIND_VIP && entry.service == decision.service =>
            {
                Some((MatchedKey::Exact(*key), *entry))
            }
            Lookup::Range { key, found: Some(entry) }
                if key.kind != ServiceKey::KIND_VIP && entry.service == decision.service =>
            {
                Some((MatchedKey::Range(*key), *entry))
            }
            _ => None,
        });
        let Some((key, entry)) = found else { return Ok(None) };
        let name = self.maps.name(entry.service)?.unwrap_or_default();
        Ok(Some(ExplainedService { name, key, hash: entry.hash_input(), entry }))
    }

    fn hash(&self, entry: &ServiceEntry, flow: &FlowKey) -> Result<Option<u64>, ReadError> {
        let source = entry.client(&flow.source);
        Ok(Some(self.maps.flow_hash()?.of(source, flow.source_port, entry.hash_input())))
    }

    fn at(&self, entry: &ServiceEntry, position: Option<u16>) -> Result<Option<ExplainedReal>, ReadError> {
        let Some(position) = position.filter(|position| u32::from(*position) < entry.real_count) else {
            return Ok(None);
        };
        let index = entry.real_base + u32::from(position);
        Ok(Some(named(entry, index, &self.maps.real(index)?)))
    }
}

fn named(entry: &ServiceEntry, index: u32, real: &RealEntry) -> ExplainedReal {
    ExplainedReal {
        position: index.wrapping_sub(entry.real_base) as u16,
        address: SocketAddr::new(ip_address(real.address), real.port),
    }
}

/// Source and destination as NAT makes them, if it does.
fn translated(decision: &Decision<'_>, flow: &FlowKey) -> Option<(SocketAddr, SocketAddr)> {
    let end = |address, new_port, port| {
        SocketAddr::new(ip_address(address), if new_port == 0 { port } else { new_port })
    };
    let unchanged = |address, port| end(address, 0, port);
    let client = |address, port| match decision.client_end {
        Some(client) => end(client.address, client.port, port),
        None => unchanged(address, port),
    };
    if let Some(reply) = decision.reply.filter(|_| decision.verdict.is_reply()) {
        let source = end(reply.vip, reply.port, flow.source_port);
        return Some((source, client(flow.destination, flow.destination_port)));
    }
    let way = decision.way.filter(|_| decision.entry.is_some_and(ServiceEntry::translates))?;
    let destination = end(way.address, way.port, flow.destination_port);
    decision.verdict.is_forward().then_some((client(flow.source, flow.source_port), destination))
}

fn way_out(route: &RouteEntry) -> NextHop {
    NextHop {
        ifindex: route.ifindex,
        source_mac: route.source_mac,
        destination_mac: route.destination_mac,
        mtu: route.mtu,
    }
}

fn way(entry: &RealEntry) -> NextHop {
    NextHop {
        ifindex: entry.ifindex,
        source_mac: entry.source_mac,
        destination_mac: entry.destination_mac,
        mtu: u32::from(entry.mtu),
    }
}
