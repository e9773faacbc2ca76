//! The tables of a specification in user space, as the oracle for those in the kernel.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use director::dataplane::{Datagrams, Forwarding, HashInput, Method, NextHop, Ports, ServiceSpec, WhenFull};
use director_common::decide::rewrite;
use director_common::hash::FlowHash;
use director_common::packet::{Buffer, Frame};
use director_common::pin::{Pin, PinCell, QuicEntry, QuicKey};
use director_common::schedulers::{Scan, Thresholds, Wheel, choose};
use director_common::shortcut::{self, Forwarded};
use director_common::siphash::HashKey;
use director_common::tables::{
    Address, CONFIG_MAGIC, Config, FlowKey, FragmentEntry, Interface, LAYOUT_VERSION, LoadEntry, RangeKey,
    RealEntry, ReplyEntry, ReplyKey, Roster, RouteEntry, RouteQuery, Routes, SMALL_TABLE, ServiceEntry,
    ServiceKey, Tables, TokenBucket,
};
use director_common::{Decision, SMALL_SLOTS, Slot, decide};

use super::matching::Matching;

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
    pub quic: HashMap<QuicKey, QuicEntry>,
    pub replies: HashMap<ReplyKey, ReplyEntry>,
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
            flags: Config::FLAG_CLASSES | Config::FLAG_NAT | Config::FLAG_ANY_PORT,
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
            quic: HashMap::new(),
            replies: HashMap::new(),
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
        if pins.len() >= self.pin_capacity || pins.contains_key(key) {
            return false;
        }
        pins.insert(*key, Box::leak(Box::new(PinCell::new(*pin))));
        true
    }
    fn remove_pin(&self, key: &FlowKey) -> bool {
        self.pins.borrow_mut().remove(key).is_some()
    }
    fn half_open(&self, key: &FlowKey) -> Option<&PinCell> {
        self.half_open.borrow().get(key).copied()
    }
    fn add_half_open(&self, key: &FlowKey, pin: &Pin) -> bool {
        let mut pins = self.half_open.borrow_mut();
        if pins.len() >= self.half_open_capacity || pins.contains_key(key) {
            return false;
        }
        pins.insert(*key, Box::leak(Box::new(PinCell::new(*pin))));
        true
    }
    fn remove_half_open(&self, key: &FlowKey) -> bool {
        self.half_open.borrow_mut().remove(key).is_some()
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

impl Routes for Memory {
    fn route(&self, query: &RouteQuery) -> Option<&RouteEntry> {
        Some(Box::leak(Box::new((self.routes)(query))))
    }
}
