//! The tables of a specification in user space, as the oracle for those in the kernel.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use director::dataplane::{Datagrams, Forwarding, HashInput, Method, NextHop, Ports, ServiceSpec, WhenFull};
use director_common::decide::rewrite;
use director_common::hash::FlowHash;
use director_common::lease::{self, Leases, Schedules};
use director_common::packet::{Buffer, Frame};
use director_common::pin::table::{PinHash, Trace};
use director_common::pin::{Pin, PinCell, QuicEntry, QuicKey};
use director_common::schedulers::{Scan, Thresholds, Wheel, choose};
use director_common::shortcut::{self, Forwarded};
use director_common::siphash::HashKey;
use director_common::tables::{
    Address, CONFIG_MAGIC, Config, Endpoint, FlowKey, FlowRecord, FragmentEntry, Interface, LAYOUT_VERSION,
    Lease, LeaseRecord, LoadEntry, Locals, RangeKey, RealEntry, ReplyEntry, ReplyKey, Return, Roster,
    RouteEntry, RouteQuery, Routes, SMALL_TABLE, ServiceEntry, ServiceKey, Tables, TokenBucket,
};
use director_common::{Decision, SMALL_SLOTS, Slot, decide};

use super::matching::Matching;
use super::shadow::{self, Shadow};

/// A frame that can grow in front, as one in the kernel.
pub struct Growing<'a>(pub &'a mut Vec<u8>);

impl Frame for Growing<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk::<N>().copied()
    }
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        Buffer(self.0).write(offset, bytes)
    }
    fn grow<const N: usize>(&mut self) -> Option<()> {
        self.0.splice(0..0, [0; N]);
        Some(())
    }
    fn truncate(&mut self, len: usize) -> Option<()> {
        (len <= self.0.len()).then(|| self.0.truncate(len))
    }
}

/// Tables in ordinary memory.
#[derive(Debug)]
pub struct Memory {
    pub config: Config,
    /// Of exact ports; everything else is in `matching`.
    pub services: HashMap<ServiceKey, ServiceEntry>,
    pub matching: Matching,
    pub slots: Vec<Vec<Slot>>,
    pub reals: Vec<RealEntry>,
    pub interfaces: HashMap<u32, Interface>,
    pub fragments: RefCell<HashMap<FlowKey, FragmentEntry>>,
    pub now: Cell<u32>,
    pub bucket: Cell<TokenBucket>,
    /// Each leaked when it is made: a few bytes for every connection of a test.
    pub pins: RefCell<HashMap<FlowKey, &'static PinCell>>,
    /// The same, of those that are half-open.
    pub half_open: RefCell<HashMap<FlowKey, &'static PinCell>>,
    /// Most of them at one time.
    pub half_open_capacity: usize,
    /// Of each real server.
    pub loads: RefCell<Vec<LoadEntry>>,
    /// Of tracked services, each with its cursor.
    pub rosters: RefCell<HashMap<u32, (Roster, Cell<u64>)>>,
    /// Most pins at one time.
    pub pin_capacity: usize,
    /// Where the kernel's pins and half-open connections are, if it is to be said who finds room there.
    pub shadows: Option<[Shadow; 2]>,
    pub quic: HashMap<QuicKey, QuicEntry>,
    pub replies: HashMap<ReplyKey, ReplyEntry>,
    /// Addresses that stand for clients, by their numbers less one.
    pub locals: Vec<Address>,
    /// Leases by the trace of what comes back to them, each with its connection's.
    pub leases: RefCell<HashMap<(u64, u64), (Pin, LeaseRecord)>>,
    /// Connections that have one, half-open or not.
    pub leased: RefCell<HashMap<FlowKey, Lease>>,
    /// Each leaked, as a pin.
    pub routes: fn(&RouteQuery) -> RouteEntry,
}

pub fn mapped(address: std::net::IpAddr) -> Address {
    match address {
        std::net::IpAddr::V4(address) => Address(address.to_ipv6_mapped().octets()),
        std::net::IpAddr::V6(address) => Address(address.octets()),
    }
}

impl Memory {
    pub fn new(key: [u8; 16]) -> Self {
        let config = Config {
            magic: CONFIG_MAGIC,
            layout: LAYOUT_VERSION,
            hash_key: HashKey::from_bytes(key),
            hash: FlowHash::new(HashKey::from_bytes(key)),
            pins: PinHash::new(HashKey::from_bytes(key)),
            pin_buckets: 0,
            half_open_buckets: 0,
            lease_buckets: 0,
            reserved: 0,
            locals: Locals::default(),
            flags: Config::FLAG_CLASSES | Config::FLAG_NAT | Config::FLAG_FULL_NAT | Config::FLAG_ANY_PORT,
            icmp_rate: super::cases::ICMP_RATE,
            tunnel_v4: mapped(super::cases::TUNNEL_V4),
            tunnel_v6: mapped(super::cases::TUNNEL_V6),
        };
        Self {
            config,
            services: HashMap::new(),
            matching: Matching::default(),
            slots: vec![],
            reals: vec![],
            interfaces: HashMap::new(),
            fragments: RefCell::default(),
            now: Cell::new(1_000),
            bucket: Cell::default(),
            pins: RefCell::default(),
            half_open: RefCell::default(),
            half_open_capacity: usize::MAX,
            loads: RefCell::default(),
            rosters: RefCell::default(),
            pin_capacity: usize::MAX,
            shadows: None,
            quic: HashMap::new(),
            replies: HashMap::new(),
            locals: vec![],
            leases: RefCell::default(),
            leased: RefCell::default(),
            routes: super::routes::answer,
        }
    }

    pub fn add(&mut self, spec: &ServiceSpec<'_>, next_hop: impl Fn(std::net::IpAddr) -> Option<NextHop>) {
        let flags = if spec.hash == HashInput::SourcePort { ServiceEntry::FLAG_HASH_PORT } else { 0 };
        let entry = ServiceEntry {
            service: self.slots.len() as u32,
            table: self.slots.len() as u32 | if spec.slots.len() == SMALL_SLOTS { SMALL_TABLE } else { 0 },
            real_base: self.reals.len() as u32,
            real_count: spec.reals.len() as u32,
            flags: flags
                | spec.tracking.map_or(0, |tracking| ServiceEntry::tracking_flags(tracking.method))
                | spec.tracking.map_or(0, |tracking| match tracking.when_full {
                    WhenFull::Forward => 0,
                    WhenFull::Refuse => ServiceEntry::FLAG_REFUSE,
                })
                | spec.tracking.and_then(|tracking| tracking.persistence).map_or(0, |persistence| {
                    ServiceEntry::persistence_flags(persistence.prefix_v4, persistence.prefix_v6)
                })
                | match spec.datagrams {
                    Datagrams::Tracked => 0,
                    Datagrams::OnePacket => ServiceEntry::FLAG_ONE_PACKET,
                    Datagrams::Quic { offset, length } => ServiceEntry::quic_flags(offset, length),
                },
            forwarding: match spec.forwarding {
                Forwarding::DirectReturn => ServiceEntry::FORWARD_DIRECT,
                Forwarding::Ipip => ServiceEntry::FORWARD_IPIP,
                Forwarding::Gre => ServiceEntry::FORWARD_GRE,
                Forwarding::Gue { .. } => ServiceEntry::FORWARD_GUE,
                Forwarding::Nat => ServiceEntry::FORWARD_NAT,
                Forwarding::FullNat => ServiceEntry::FORWARD_FULL_NAT,
            },
            tunnel_port: if let Forwarding::Gue { port } = spec.forwarding { port } else { 0 },
        };
        self.slots.push(
            spec.slots
                .iter()
                .map(|slot| if *slot == u16::MAX { Slot::EMPTY } else { Slot::settled(*slot) })
                .collect(),
        );
        for (position, real) in (0..).zip(&spec.reals) {
            if let Some(id) = real.quic_id {
                let server = QuicEntry { position, generation: self.reals.len() as u32 + 1 };
                self.quic.insert(QuicKey { service: entry.service, id }, server);
            }
            let mut entry =
                RealEntry { port: real.port, address: mapped(real.address), ..Default::default() };
            entry.generation = self.reals.len() as u32 + 1;
            if let Some(hop) = next_hop(real.address) {
                entry.ifindex = hop.ifindex;
                entry.mtu = hop.mtu as u16;
                entry.source_mac = hop.source_mac;
                entry.destination_mac = hop.destination_mac;
            }
            self.reals.push(entry);
            let (weight, upper, lower) = (real.weight, real.thresholds.upper, real.thresholds.lower);
            self.loads.borrow_mut().push(LoadEntry { weight, upper, lower, ..LoadEntry::default() });
        }
        if let Some(tracking) = spec.tracking {
            let turns = tracking.method == Method::RoundRobin;
            let weights: Vec<u32> =
                spec.reals.iter().map(|real| if turns { real.weight.min(1) } else { real.weight }).collect();
            let mut roster = Roster { count: spec.reals.len() as u32, ..Roster::EMPTY };
            roster.length = Wheel::new(&weights).fill(&mut roster.wheel);
            (0..).zip(&mut roster.candidates).for_each(|(at, entry)| *entry = at);
            self.rosters.borrow_mut().insert(entry.service, (roster, Cell::new(0)));
        }
        self.add_replies(spec, entry);
        let served = spec.slots.iter().any(|slot| *slot != u16::MAX);
        for address in &spec.addresses {
            self.matching.add(*address, entry, served);
            if let (Some(port), true) =
                (address.ports.single(), address.prefix.prefix_len() == address.prefix.max_prefix_len())
            {
                let vip = mapped(address.prefix.addr());
                self.services.insert(ServiceKey::service(vip, address.protocol.number(), port), entry);
            }
        }
    }

    /// A key for every port of every real server, or one for all.
    fn add_replies(&mut self, spec: &ServiceSpec<'_>, service: ServiceEntry) {
        if spec.forwarding != Forwarding::Nat {
            return;
        }
        for (address, (position, real)) in
            spec.addresses.iter().flat_map(|address| (0..).zip(&spec.reals).map(move |real| (address, real)))
        {
            let vip = mapped(address.prefix.addr());
            let mut add = |from: u16, port| {
                let key = ReplyKey::of(mapped(real.address), address.protocol.number(), from);
                let (service, real) = (service.service, service.real_base + position);
                self.replies.insert(key, ReplyEntry { vip, port, reserved: 0, service, real });
            };
            match (address.ports, real.port) {
                (Ports::ALL, _) => add(0, 0),
                (ports, 0) => (ports.first..=ports.last).for_each(|port| add(port, 0)),
                (ports, port) => add(port, ports.first),
            }
            self.replies.insert(ReplyKey::marker(mapped(real.address)), ReplyEntry::default());
        }
    }

    /// Full NAT by these addresses and ports.
    pub fn set_locals(&mut self, addresses: &[std::net::IpAddr], (first_port, last_port): (u16, u16)) {
        let mut locals = Locals { first_port, last_port, ..Locals::default() };
        for (number, address) in (1..).zip(addresses) {
            let (list, count) = match address {
                std::net::IpAddr::V4(_) => (&mut locals.v4, &mut locals.v4_count),
                std::net::IpAddr::V6(_) => (&mut locals.v6, &mut locals.v6_count),
            };
            list[usize::from(*count)] = number;
            *count += 1;
            self.locals.push(mapped(*address));
        }
        self.config.locals = locals;
    }

    /// Has room for connections where the data plane that is pinned in `folder` has, which has none yet.
    pub fn follow(&mut self, folder: &std::path::Path) {
        let config = shadow::config(folder);
        let shadow = |buckets| Shadow::new(buckets, config.pins);
        self.shadows = Some([shadow(config.pin_buckets), shadow(config.half_open_buckets)]);
    }

    fn has_room(&self, table: usize, key: &FlowKey, pin: &Pin) -> bool {
        self.shadows.as_ref().is_none_or(|shadows| shadows[table].add(key, pin))
    }

    fn gives_back(&self, table: usize, key: &FlowKey) {
        if let Some(shadows) = &self.shadows {
            shadows[table].remove(key);
        }
    }

    /// Forwards what takes the shortcut, as the program does first.
    pub fn hasten(&self, ifindex: u32, frame: &mut Vec<u8>) -> Option<Forwarded> {
        shortcut::forward(&mut Growing(frame), ifindex, self)
    }

    /// Decides and rewrites as the program does where there is no shortcut.
    pub fn run(&self, ifindex: u32, frame: &mut Vec<u8>) -> Decision<'_> {
        let mut buffer = Growing(frame);
        let decision = decide(&buffer, ifindex, self, &mut FlowKey::default());
        if decision.verdict.rewrites() {
            rewrite(&mut buffer, &decision).expect("same frame");
        }
        decision
    }
}

impl Tables for Memory {
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }
    fn service(&self, key: &ServiceKey) -> Option<&ServiceEntry> {
        self.services.get(key)
    }
    fn class(&self, address: &Address) -> Option<&u32> {
        self.matching.class(address)
    }
    fn range(&self, key: &RangeKey) -> Option<&ServiceEntry> {
        self.matching.range(key)
    }
    fn slot(&self, table: u32, slot: u32) -> Option<Slot> {
        self.slots.get((table & !SMALL_TABLE) as usize)?.get(slot as usize).copied()
    }
    fn real(&self, index: u32) -> Option<&RealEntry> {
        self.reals.get(index as usize)
    }
    fn now(&self) -> u32 {
        self.now.get()
    }
    fn take_token(&self, rate: u32) -> bool {
        let mut bucket = self.bucket.get();
        let taken = bucket.take(self.now(), rate);
        self.bucket.set(bucket);
        taken
    }
    fn fragment(&self, key: &FlowKey, entry: &mut FragmentEntry) -> bool {
        match self.fragments.borrow().get(key) {
            Some(found) => {
                *entry = *found;
                true
            }
            None => false,
        }
    }
    fn note_fragment(&self, key: &FlowKey, entry: &FragmentEntry) {
        self.fragments.borrow_mut().insert(*key, *entry);
    }
    fn pin(&self, key: &FlowKey) -> Option<&PinCell> {
        self.pins.borrow().get(key).copied()
    }
    fn add_pin(&self, key: &FlowKey, pin: &Pin) -> bool {
        let mut pins = self.pins.borrow_mut();
        if pins.len() >= self.pin_capacity || pins.contains_key(key) || !self.has_room(0, key, pin) {
            return false;
        }
        pins.insert(*key, Box::leak(Box::new(PinCell::new(*pin))));
        true
    }
    fn remove_pin(&self, key: &FlowKey) -> bool {
        self.gives_back(0, key);
        if !self.half_open.borrow().contains_key(key) {
            self.leased.borrow_mut().remove(key);
        }
        self.pins.borrow_mut().remove(key).is_some()
    }
    fn half_open(&self, key: &FlowKey) -> Option<&PinCell> {
        self.half_open.borrow().get(key).copied()
    }
    fn add_half_open(&self, key: &FlowKey, pin: &Pin) -> bool {
        let mut pins = self.half_open.borrow_mut();
        if pins.len() >= self.half_open_capacity || pins.contains_key(key) || !self.has_room(1, key, pin) {
            return false;
        }
        pins.insert(*key, Box::leak(Box::new(PinCell::new(*pin))));
        true
    }
    fn remove_half_open(&self, key: &FlowKey) -> bool {
        self.gives_back(1, key);
        if !self.pins.borrow().contains_key(key) {
            self.leased.borrow_mut().remove(key);
        }
        self.half_open.borrow_mut().remove(key).is_some()
    }
    fn promote(&self, key: &FlowKey, pin: &Pin) -> bool {
        self.add_pin(key, pin)
    }
    fn open(&self, service: &ServiceEntry, key: &FlowKey, wanted: u32) -> u32 {
        lease::open(self, service, key, wanted)
    }
    fn sorry(&self, service: &ServiceEntry) -> u32 {
        self.rosters.borrow().get(&service.service).map_or(Roster::NOBODY, |(roster, _)| roster.sorry)
    }
    fn local(&self, key: &FlowKey) -> Option<&Endpoint> {
        Some(Box::leak(Box::new(lease::local(self, key, &mut FlowRecord::default())?)))
    }
    fn returned(&self, key: &FlowKey) -> Option<&Return> {
        let mut found = Return::default();
        lease::returned(self, key, &mut FlowRecord::default(), &mut found)
            .then(|| &*Box::leak(Box::new(found)))
    }
    fn exchange(&self, cell: &PinCell, old: &Pin, next: &Pin) -> bool {
        cell.exchange(old, next)
    }
    fn count(&self, index: u32, active: i64, inactive: i64) {
        let mut loads = self.loads.borrow_mut();
        let load = &mut loads[index as usize];
        load.active = load.active.wrapping_add_signed(active);
        load.inactive = load.inactive.wrapping_add_signed(inactive);
        let thresholds = Thresholds { upper: load.upper, lower: load.lower };
        if active + inactive > 0 && thresholds.after_arrival(false, load.total()) {
            load.overloaded = 1;
        }
    }
    fn quic(&self, key: &QuicKey) -> Option<&QuicEntry> {
        self.quic.get(key)
    }
    fn reply(&self, key: &ReplyKey) -> Option<&ReplyEntry> {
        self.replies.get(key)
    }
    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        self.interfaces.get(&ifindex)
    }
}

impl Leases for Memory {
    fn local_address(&self, number: u8) -> Option<&Address> {
        self.locals.get(usize::from(number).checked_sub(1)?)
    }
    fn take(&self, trace: &Trace, pin: &Pin, owner: &LeaseRecord) -> bool {
        let mut leases = self.leases.borrow_mut();
        let is_free = !leases.contains_key(&(trace.first, trace.second));
        if is_free {
            leases.insert((trace.first, trace.second), (*pin, *owner));
        }
        is_free
    }
    fn give_back(&self, trace: &Trace, _pin: &Pin) {
        self.leases.borrow_mut().remove(&(trace.first, trace.second));
    }
    fn lease(&self, trace: &Trace, owner: &mut LeaseRecord) -> Option<Pin> {
        let leases = self.leases.borrow();
        let (pin, found) = leases.get(&(trace.first, trace.second))?;
        *owner = *found;
        Some(*pin)
    }
    fn connection(&self, trace: &Trace, record: &mut FlowRecord) -> Option<Pin> {
        let (pins, half_open) = (self.pins.borrow(), self.half_open.borrow());
        let mut known = pins.iter().chain(half_open.iter());
        let (flow, cell) = known.find(|(flow, _)| self.config.pins.of(flow) == *trace)?;
        *record = FlowRecord::new(flow, self.leased.borrow().get(flow).copied().unwrap_or_default());
        Some(cell.load())
    }
    fn begin(&self, flow: &FlowKey, pin: &Pin, lease: Lease) -> bool {
        let added = self.add_half_open(flow, pin);
        if added {
            self.leased.borrow_mut().insert(*flow, lease);
        }
        added
    }
}

impl Schedules for Memory {
    fn schedule(&self, service: &ServiceEntry) -> u32 {
        let rosters = self.rosters.borrow();
        let Some((roster, cursor)) = rosters.get(&service.service) else { return Roster::NOBODY };
        let load = |position: u32| {
            let loads = self.loads.borrow();
            loads.get((service.real_base + position) as usize).map(|load| load.server())
        };
        let draws = [0, 1];
        let (position, moves) = choose(service.method(), roster, cursor.get(), draws, &Scan::default(), load);
        cursor.set(cursor.get() + u64::from(moves));
        position
    }
}

impl Routes for Memory {
    fn route(&self, query: &RouteQuery) -> Option<&RouteEntry> {
        Some(Box::leak(Box::new((self.routes)(query))))
    }
}
