//! The data plane in the kernel: loading, adopting, attaching, feeding and reading it.
//!
//! | file | owns |
//! |---|---|
//! | `spec` | what the caller asks for, checked |
//! | `keys` | which service has a packet where several could, as keys of the look-ups |
//! | `pins` | the folder of the maps' and programs' pins: its file system, the layout check, removal |
//! | `maps` | typed handles of the maps |
//! | `shelves` | slot tables in maps of maps |
//! | `plan` | which service has which index, table and block of real servers |
//! | `replies` | whose answers a real server's packets are, in services with NAT |
//! | `seats` | positions of a service's real servers |
//! | `free` | what of these is not taken |
//! | `apply` | the changes that make the kernel equal to a specification |
//! | `prepare` | what comes before a change that all directors make together |
//! | `rosters` | whom tracked services choose from |
//! | `loads` | real servers' connections, in memory shared with the kernel |
//! | [`window`] | states of a service's slots, pure |
//! | `sweep` | what time does: closing windows, expiry of pins |
//! | `connections` | the tables of connections' pins, shared with the program |
//! | `shared` | arrays that lie in our memory and the kernel's |
//! | `replicas` | pins that other directors have told of |
//! | `export` | our own pins, for the others |
//! | `templates` | persistence: when a client is free to go elsewhere, and what directors agree on |
//! | `attach` | interfaces, and the programs on them |
//! | `statistics` | counters, flows and slot states |
//! | `probe`, `explain` | what would become of a packet, and why |
//! | `capture` | packets for whoever watches |
//!
//! Programs, links and maps are pinned. Dropping a [`Dataplane`] therefore changes nothing in the kernel, as
//! does `kill -9`: packets go on being forwarded, and the next process finds everything and adopts it.
//! [`Dataplane::detach`] is the clean end.

mod apply;
mod attach;
mod capture;
mod connections;
mod counts;
mod error;
mod explain;
mod export;
mod follow;
mod free;
mod keys;
mod leases;
mod loads;
mod locals;
mod maps;
pub(crate) mod pins;
mod plan;
mod prepare;
mod probe;
mod replicas;
mod replies;
mod rosters;
mod seats;
mod shared;
mod shelves;
mod spec;
mod statistics;
mod sweep;
mod templates;
mod views;
pub mod window;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::programs::Xdp;
use aya::programs::links::PinnedLink;
use aya::{Ebpf, EbpfLoader};
use director_common::hash::FlowHash;
use director_common::pin::table::{PinHash, buckets_for, connections_in};
use director_common::siphash::HashKey;
use director_common::tables::{CONFIG_MAGIC, Config, LAYOUT_VERSION, RealEntry};
use nix::time::{ClockId, clock_gettime};

pub use apply::ApplyReport;
pub use attach::{AttachedInterface, AttachedMode};
pub use capture::{CaptureError, CaptureRequest, CapturedPacket, MAX_SNAPLEN};
pub use error::{ApplyError, AttachError, DetachError, OpenError, ReadError};
pub use explain::{
    ExplainedReal, ExplainedService, ExplainedSlot, ExplainedTunnel, Explanation, Lookup, MatchedKey,
};
pub use locals::LocalAddresses;
pub use probe::{Probe, ProbeError, TcpFlags};
pub use replicas::PinReport;
pub use replies::{ReplyClaim, conflict as reply_conflict};
pub use spec::{
    Datagrams, Forwarding, HashInput, Method, Persistence, Ports, Protocol, RealSpec, ServiceAddress,
    ServiceSpec, SpecError, Thresholds, Tracking, TunnelSources, WhenFull,
};
pub use statistics::{Counters, Flow, RealCounters, ServiceCounters, SlotStates};
pub use sweep::{PinRecord, TickReport, Window};
pub use templates::{TemplateRecord, identity as template_identity};
pub use window::Timeouts;

use capture::Buffers;
use export::Export;
use leases::LeaseWalk;
use locals::Numbering;
use maps::Maps;
pub(crate) use maps::ip_address;
use plan::Plan;
use replicas::Replicas;
use sweep::Sweep;

/// The XDP program, as `build.rs` made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/director.bpf.o"));
/// Name of the program in it.
const PROGRAM: &str = "director";
/// Name of the one that answers about routes: see `explain`.
const ROUTE_PROGRAM: &str = "route";

/// How the program is run on an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver where that can, else generic.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's network stack, on any interface; slower.
    Generic,
}

/// Who answers echo requests to a VIP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EchoPolicy {
    /// The data plane, while some service of the address has a real server; else nobody.
    #[default]
    WhileServed,
    /// The data plane, always.
    Always,
    /// The kernel, if it owns the address.
    Kernel,
}

/// What [`Dataplane::open`] needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the pins. A BPF file system is mounted there if it is not on one.
    pub pin_dir: PathBuf,
    /// Interfaces that [`Dataplane::attach`] puts the program on, by name.
    pub interfaces: Vec<String>,
    /// How the program is run on them.
    pub mode: XdpMode,
    /// Keep an account of every flow that passes: packets, bytes, last packet, real server.
    pub flow_accounting: bool,
    /// Flows accounted at one time; beyond, the least recently seen is forgotten.
    pub flow_capacity: u32,
    /// Connections that can be pinned at one time, while slots change: 90 bytes each, taken from the start.
    /// Three quarters of them may be connections of other directors.
    /// A data plane that is adopted keeps the number it was made with.
    pub pins: u32,
    /// Of the tables of connections about as many places are looked at in each tick, to remove what has had its time.
    pub swept_at_once: usize,
    /// How long two directors may be apart in the steps of an epoch, and by their clocks: slots go on pinning for that
    /// time after their windows.
    pub margin: Duration,
    /// Connections of tracked services that can be half-open at one time, apart from those: a flood of what begins and
    /// never goes on fills this and nothing else. A data plane that is adopted keeps the number it was made with.
    pub half_open: u32,
    /// What full NAT puts in the place of clients.
    pub locals: LocalAddresses,
    /// Take no leases of them before [`Dataplane::allow_leases`], unless an earlier process has taken any: others may know
    /// of connections that have some.
    pub holds_leases: bool,
    /// Remove what an earlier process left (and stop its forwarding) instead of adopting it.
    pub discard_pins: bool,
    /// Our addresses in tunnels to real servers.
    pub tunnel_sources: TunnelSources,
    /// Who answers echo requests to a VIP.
    pub echo: EchoPolicy,
    /// Most ICMP errors (packet too big) that each processor sends in a second.
    pub icmp_rate: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pin_dir: PathBuf::from("/run/director/bpf"),
            interfaces: Vec::new(),
            mode: XdpMode::Auto,
            flow_accounting: false,
            flow_capacity: 65_536,
            pins: 1 << 20,
            // Some 20 ms.
            swept_at_once: 131_072,
            margin: Duration::from_secs(6),
            half_open: 1 << 16,
            locals: LocalAddresses::default(),
            holds_leases: false,
            discard_pins: false,
            tunnel_sources: TunnelSources::default(),
            echo: EchoPolicy::default(),
            icmp_rate: 100,
        }
    }
}

/// What [`Dataplane::open`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// Nothing: everything is new and empty.
    Fresh,
    /// The data plane of an earlier process, forwarding all the while.
    Adopted {
        /// Names of its services.
        services: Vec<String>,
        /// Interfaces that still have the program on them.
        interfaces: Vec<String>,
    },
}

/// Way to a real server: what [`Dataplane::set_next_hop`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Interface to leave by.
    pub ifindex: u32,
    /// That interface's link address.
    pub source_mac: [u8; 6],
    /// Link address of the real server, or of the gateway towards it.
    pub destination_mac: [u8; 6],
    /// Largest IP packet the interface takes, in bytes.
    pub mtu: u32,
}

/// The data plane of this network namespace.
pub struct Dataplane {
    options: Options,
    ebpf: Ebpf,
    maps: Maps,
    plan: Plan,
    next_hops: BTreeMap<IpAddr, NextHop>,
    links: BTreeMap<String, (AttachedInterface, PinnedLink)>,
    sweep: Sweep,
    lease_walk: LeaseWalk,
    numbering: Numbering,
    replicas: Replicas,
    export: Export,
    capture: Option<Buffers>,
    /// Second at which the epoch under way was prepared.
    under_way: Option<u32>,
}

impl std::fmt::Debug for Dataplane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataplane").field("options", &self.options).field("links", &self.links).finish()
    }
}

impl Dataplane {
    /// Loads the program and creates the maps, or adopts those an earlier process pinned. No packet is touched
    /// by this: [`Self::attach`] does that, once the tables are in.
    ///
    /// # Errors
    /// [`OpenError`]; above all [`OpenError::Layout`] if what is pinned was made by another version.
    pub fn open(options: &Options) -> Result<(Self, Adoption), OpenError> {
        pins::prepare(&options.pin_dir)?;
        if options.discard_pins {
            pins::remove_all(&options.pin_dir)?;
        }
        let adopted = pins::check(&options.pin_dir)?;
        let flows = if options.flow_accounting { options.flow_capacity.max(1) } else { 1 };
        pins::drop_resized(&options.pin_dir, "FLOWS", flows)?;
        let pins = buckets_to_have(options, "PINS", options.pins)?;
        let half_open = buckets_to_have(options, "HALF_OPEN", options.half_open)?;
        let leases = leases_to_have(options)?;
        let sizes = [
            ("FLOWS", flows),
            ("PINS", pins),
            ("PIN_FLOWS", pins),
            ("HALF_OPEN", half_open),
            ("HALF_OPEN_FLOWS", half_open),
            ("LEASES", leases),
            ("LEASE_OWNERS", leases),
        ];
        let mut ebpf = load(&options.pin_dir, &sizes)?;
        let program: &mut Xdp = ebpf
            .program_mut(PROGRAM)
            .ok_or(OpenError::Object("it has no program 'director'"))?
            .try_into()
            .map_err(OpenError::Program)?;
        program.load().map_err(OpenError::Program)?;
        let routes: &mut Xdp = ebpf
            .program_mut(ROUTE_PROGRAM)
            .ok_or(OpenError::Object("it has no program 'route'"))?
            .try_into()
            .map_err(OpenError::Program)?;
        routes.load().map_err(OpenError::Program)?;
        let mut maps = Maps::take(&mut ebpf)?;
        let secret = draw_secret()?;
        let numbering = Numbering::open(&mut maps, options)?;
        let locals = numbering.locals();
        maps.write_config(|config| {
            let config = fresh_config(config, options, secret);
            let sizes = Config { pin_buckets: pins, half_open_buckets: half_open, ..config };
            Config { lease_buckets: leases, locals, ..sizes }
        })?;
        maps.adopt_pin_hash()?;
        let plan = Plan::read(&mut maps)?;
        maps.adopt_reals(plan.real_indices())?;
        let next_hops = plan.next_hops(&maps)?;
        let (options, links, sweep) = (options.clone(), BTreeMap::new(), Sweep::new());
        let (replicas, export) = (Replicas::new(connections_in(pins) as usize / 4 * 3), Export::default());
        let (capture, under_way, lease_walk) = (None, None, LeaseWalk::default());
        let mut dataplane = Self {
            options,
            ebpf,
            maps,
            plan,
            next_hops,
            links,
            sweep,
            lease_walk,
            numbering,
            replicas,
            export,
            capture,
            under_way,
        };
        if adopted {
            dataplane.maps.pins.free_claims();
            dataplane.maps.half_open.free_claims();
            dataplane.maps.leases.free_claims();
            dataplane.recount();
        }
        dataplane.adopt_links()?;
        let adoption = if adopted { dataplane.adoption() } else { Adoption::Fresh };
        Ok((dataplane, adoption))
    }

    /// Sets the cluster's secret, which decides every packet's slot. Equal on all directors; changing it moves
    /// connections, so it is set once, before the first table.
    ///
    /// # Errors
    /// [`ApplyError::Map`] if the kernel refuses.
    pub fn set_hash_key(&mut self, key: [u8; 16]) -> Result<(), ApplyError> {
        let key = HashKey::from_bytes(key);
        self.maps
            .write_config(|config| Config { hash_key: key, hash: FlowHash::new(key), ..config })
            .map_err(ApplyError::Map)
    }

    /// Sets or, by `None`, forgets the way to the real server with this address, for all services that have it,
    /// also those that will. Without a way its packets are dropped and counted as `no-next-hop`.
    ///
    /// # Errors
    /// [`ApplyError::Map`] if the kernel refuses.
    pub fn set_next_hop(&mut self, address: IpAddr, next_hop: Option<NextHop>) -> Result<(), ApplyError> {
        match next_hop {
            Some(next_hop) => self.next_hops.insert(address, next_hop),
            None => self.next_hops.remove(&address),
        };
        for index in self.maps.places_of(maps::address(address)) {
            let real = self.maps.real(index).map_err(ApplyError::Map)?;
            self.maps.set_way(index, real, next_hop).map_err(ApplyError::Map)?;
        }
        Ok(())
    }

    /// The way to the real server with this address, if one is known.
    pub fn next_hop(&self, address: IpAddr) -> Option<NextHop> {
        self.next_hops.get(&address).copied()
    }

    /// The ways in force, by real server; after an adoption those of the last run.
    pub fn next_hops(&self) -> impl Iterator<Item = (IpAddr, NextHop)> + '_ {
        self.next_hops.iter().map(|(address, hop)| (*address, *hop))
    }

    /// The clean end: takes the programs off the interfaces and removes every pin. Packets to VIPs are the
    /// kernel's again.
    ///
    /// # Errors
    /// [`DetachError`] if a pin cannot be removed.
    pub fn detach(mut self) -> Result<(), DetachError> {
        self.links.clear();
        pins::remove_all(&self.options.pin_dir).map_err(DetachError)
    }

    /// The loaded program, to run it on a single packet (`BPF_PROG_TEST_RUN`).
    ///
    /// # Errors
    /// Never in practice: the program was there when it was loaded.
    pub fn program(&self) -> Result<&Xdp, OpenError> {
        self.ebpf
            .program(PROGRAM)
            .ok_or(OpenError::Object("it has no program 'director'"))?
            .try_into()
            .map_err(OpenError::Program)
    }

    /// The program that answers about routes.
    fn route_program(&self) -> &Xdp {
        let program = self.ebpf.program(ROUTE_PROGRAM).and_then(|program| program.try_into().ok());
        program.expect("invariant: it was there when it was loaded")
    }

    /// Declares an interface's link address to the program without attaching to it: a test's packets come in by
    /// the loopback interface.
    ///
    /// # Errors
    /// [`ApplyError::Map`] if the kernel refuses.
    pub fn declare_interface(&mut self, ifindex: u32, mac: [u8; 6], native: bool) -> Result<(), ApplyError> {
        self.maps.set_interface(ifindex, mac, native).map_err(ApplyError::Map)
    }

    fn adoption(&self) -> Adoption {
        Adoption::Adopted {
            services: self.plan.names().map(str::to_owned).collect(),
            interfaces: self.links.keys().cloned().collect(),
        }
    }
}

/// Seconds of the clock that packets are told the time by: `CLOCK_MONOTONIC`, which goes on without any process.
pub fn monotonic_seconds() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("invariant: Linux has this clock");
    u32::try_from(now.tv_sec()).unwrap_or(u32::MAX)
}

/// Buckets of a table of connections: as many as are wanted, or as it was made with.
fn buckets_to_have(options: &Options, map: &str, connections: u32) -> Result<u32, OpenError> {
    let wanted = buckets_for(connections.max(1));
    let found = pins::size_of_map(&options.pin_dir, map)?.unwrap_or(wanted);
    if found != wanted {
        tracing::warn!(
            map,
            found = connections_in(found),
            wanted = connections,
            "the table of connections keeps its size until a start with --fresh"
        );
    }
    Ok(found)
}

/// Buckets of the table of leases. One that had room for none, because there were no local addresses, is made anew.
fn leases_to_have(options: &Options) -> Result<u32, OpenError> {
    let wanted = leases::room(options);
    if pins::size_of_map(&options.pin_dir, "LEASES")?.is_some_and(|found| found == 1) {
        for map in ["LEASES", "LEASE_OWNERS"] {
            pins::drop_resized(&options.pin_dir, map, buckets_for(wanted))?;
        }
    }
    let found = pins::size_of_map(&options.pin_dir, "LEASES")?;
    if wanted <= 1 { Ok(found.unwrap_or(1)) } else { buckets_to_have(options, "LEASES", wanted) }
}

/// A secret that nobody else has.
fn draw_secret() -> Result<HashKey, OpenError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(OpenError::Secret)?;
    Ok(HashKey::from_bytes(bytes))
}

fn load(pin_dir: &Path, sizes: &[(&'static str, u32)]) -> Result<Ebpf, OpenError> {
    let paths: Vec<(&str, PathBuf)> =
        maps::NAMES.iter().map(|name| (*name, pins::map_path(pin_dir, name))).collect();
    let mut loader = EbpfLoader::new();
    for (name, entries) in sizes {
        loader.map_max_entries(name, *entries);
    }
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    loader.load(OBJECT).map_err(OpenError::Load)
}

fn fresh_config(config: Config, options: &Options, secret: HashKey) -> Config {
    // Nobody watches yet, whatever a process that died has left.
    let others = config.flags & !(Config::FLAG_FLOW_ACCOUNTING | Config::CAPTURE_FLAGS);
    let flags = if options.flow_accounting { others | Config::FLAG_FLOW_ACCOUNTING } else { others };
    let sources = options.tunnel_sources;
    // What is in the tables is found by the secrets it was put there with.
    let pins = if config.magic == CONFIG_MAGIC { config.pins } else { PinHash::new(secret) };
    Config {
        magic: CONFIG_MAGIC,
        layout: LAYOUT_VERSION,
        pins,
        flags,
        icmp_rate: options.icmp_rate,
        tunnel_v4: sources.v4.map(|source| maps::address(source.into())).unwrap_or_default(),
        tunnel_v6: sources.v6.map(|source| maps::address(source.into())).unwrap_or_default(),
        ..config
    }
}

/// `entry` with the way replaced; the largest packet is capped at what the field holds.
fn with_way(entry: RealEntry, next_hop: Option<NextHop>) -> RealEntry {
    match next_hop {
        None => RealEntry { ifindex: 0, ..entry },
        Some(hop) => RealEntry {
            ifindex: hop.ifindex,
            mtu: u16::try_from(hop.mtu).unwrap_or(u16::MAX),
            destination_mac: hop.destination_mac,
            source_mac: hop.source_mac,
            ..entry
        },
    }
}
