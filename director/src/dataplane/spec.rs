//! What the caller asks for, checked before anything changes.

mod error;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use director_common::packet::{PROTOCOL_TCP, PROTOCOL_UDP};
use director_common::schedulers::MAX_WHEEL;
pub use director_common::schedulers::{Method, Thresholds};
use director_common::slot::MAX_POSITION;
use director_common::tables::{MAX_REALS, MAX_SERVICE_NAME, MAX_SERVICES, ServiceEntry};
use director_common::{SLOTS, SMALL_SLOTS};
use ipnet::IpNet;

pub use director_common::tables::HashInput;
pub use error::SpecError;

use super::keys::{self, Keys, Prefix};
use super::locals::LocalAddresses;
use super::replies;
use super::window::Timeouts;

/// Slot value in a specification that names no real server.
pub(super) const NO_REAL: u16 = u16::MAX;

/// A transport protocol the data plane balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => PROTOCOL_TCP,
            Self::Udp => PROTOCOL_UDP,
        }
    }
}

/// How packets reach a real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// Direct return: only the link addresses change, the real server owns the VIP too and answers the client
    /// itself.
    #[default]
    DirectReturn,
    /// IP in IP, to the real server's address, of either family.
    Ipip,
    /// GRE (RFC 2784).
    Gre,
    /// Generic UDP encapsulation.
    Gue {
        /// UDP port of the real servers' end.
        port: u16,
    },
    /// Network address translation: the destination becomes the real server's address and port, and its answers, which
    /// pass some director on their way to the client, come from the VIP again.
    Nat,
    /// As that, and the source becomes an address and port of this director's: real servers may be in any network, and
    /// answer to the director that has the connection. Such a service is tracked.
    FullNat,
}

impl Forwarding {
    /// The same as the maps say it: `FORWARD_*` and the port.
    pub(super) const fn packed(self) -> (u16, u16) {
        match self {
            Self::DirectReturn => (ServiceEntry::FORWARD_DIRECT, 0),
            Self::Ipip => (ServiceEntry::FORWARD_IPIP, 0),
            Self::Gre => (ServiceEntry::FORWARD_GRE, 0),
            Self::Gue { port } => (ServiceEntry::FORWARD_GUE, port),
            Self::Nat => (ServiceEntry::FORWARD_NAT, 0),
            Self::FullNat => (ServiceEntry::FORWARD_FULL_NAT, 0),
        }
    }
}

/// Our addresses in tunnels, by family of the real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelSources {
    /// Towards real servers with an IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Towards real servers with an IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl TunnelSources {
    fn reaches(&self, real: IpAddr) -> bool {
        if real.is_ipv4() { self.v4.is_some() } else { self.v6.is_some() }
    }
}

/// Ports of an address that a service answers on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// The first one.
    pub first: u16,
    /// The last one.
    pub last: u16,
}

impl Ports {
    /// All that no other service of the address has.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// One port.
    pub const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// The port, if it is one.
    pub const fn single(self) -> Option<u16> {
        if self.first == self.last { Some(self.first) } else { None }
    }

    /// Whether all of `other` is among these.
    pub(super) fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether these are more than one port, but not all.
    pub(super) fn is_range(self) -> bool {
        self.single().is_none() && self != Self::ALL
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            _ if *self == Self::ALL => f.write_str("all ports"),
            Some(port) => write!(f, "port {port}"),
            None => write!(f, "ports {}-{}", self.first, self.last),
        }
    }
}

/// What a service answers on; it may have several of these. Where services meet, the most specific one has the
/// packet: the longest prefix first, and within it one port before a range before a wider range before all ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceAddress {
    /// The VIP, or a prefix all of whose addresses are VIPs.
    pub prefix: IpNet,
    /// The protocol.
    pub protocol: Protocol,
    /// The ports.
    pub ports: Ports,
}

impl fmt::Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        write!(f, "{} {protocol} {}", self.prefix, self.ports)
    }
}

/// One real server of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealSpec {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 for the packet's own, as it must be where the service has several. Only NAT can make it another than
    /// the service's.
    pub port: u16,
    /// Whether it serves. One that does not takes no packet, and its connections are not waited for.
    pub alive: bool,
    /// Its share of new connections relative to the others, in a tracked service; 0 takes none.
    pub weight: u32,
    /// How many connections it takes, in a tracked service.
    pub thresholds: Thresholds,
    /// It takes, in a tracked service, what nobody else takes, and nothing else.
    pub is_sorry: bool,
    /// It has left the service and keeps its connections. What it had to itself, by NAT, may be another service's by now.
    pub is_left: bool,
    /// The server id in QUIC connection ids that it gives out, first byte highest; see [`Datagrams::Quic`].
    pub quic_id: Option<u32>,
}

impl RealSpec {
    /// A real server that serves.
    pub const fn new(address: IpAddr, port: u16) -> Self {
        let thresholds = Thresholds { upper: 0, lower: 0 };
        Self {
            address,
            port,
            alive: true,
            weight: 1,
            thresholds,
            is_sorry: false,
            is_left: false,
            quic_id: None,
        }
    }
}

/// What a service takes datagrams for. TCP is not concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Datagrams {
    /// Parts of flows, which stay with their real server while it serves.
    ///
    /// No datagram begins a flow in a way that shows. So while a slot moves, whatever has no pin goes to the previous
    /// owner and is pinned there: no live flow is moved, and nothing is stored while nothing changes. The price is
    /// that a server that leaves still gets new flows of its slots, for one idle timeout.
    #[default]
    Tracked,
    /// Each complete in itself (DNS, syslog): every one goes to its slot's owner, and nothing is ever stored.
    OnePacket,
    /// QUIC whose connection ids name the real server; see [`RealSpec::quic_id`]. Initial and 0-RTT packets, and ids
    /// that name nobody, go by the slot.
    Quic {
        /// Where in the connection id the server id begins, in bytes: 0 to 19.
        offset: u8,
        /// Length of the server id in bytes: 1 to 4.
        length: u8,
    },
}

impl Datagrams {
    /// The same as the maps say it: flags of a [`ServiceEntry`].
    pub(super) const fn flags(self) -> u32 {
        match self {
            Self::Tracked => 0,
            Self::OnePacket => ServiceEntry::FLAG_ONE_PACKET,
            Self::Quic { offset, length } => ServiceEntry::quic_flags(offset, length),
        }
    }
}

/// What becomes of a connection that finds no room to be tracked, and of a packet that belongs to none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// It goes by its slot, untracked.
    #[default]
    Forward,
    /// It is dropped.
    Refuse,
}

/// For some time, all connections of a client go to one real server; see [`template`](director_common::template).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// For how long after the client's last new connection. It is longer while connections are known.
    pub timeout: Duration,
    /// First bits of an IPv4 address that make a client: 1 to 32.
    pub prefix_v4: u8,
    /// The same of an IPv6 address: 1 to 128.
    pub prefix_v6: u8,
    /// A server of weight 0 gets no new connections of clients that it had either.
    pub expire_quiescent: bool,
}

/// Every connection has an entry from its first packet on, with the server that a scheduler chose for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracking {
    /// The scheduler.
    pub method: Method,
    /// Where there is no room.
    pub when_full: WhenFull,
    /// Whether clients stay with their servers.
    pub persistence: Option<Persistence>,
}

impl Tracking {
    /// The same as the maps say it: flags of a [`ServiceEntry`].
    pub(super) const fn flags(self) -> u32 {
        let refuse = match self.when_full {
            WhenFull::Forward => 0,
            WhenFull::Refuse => ServiceEntry::FLAG_REFUSE,
        };
        let persistent = match self.persistence {
            Some(Persistence { prefix_v4, prefix_v6, .. }) => {
                ServiceEntry::persistence_flags(prefix_v4, prefix_v6)
            }
            None => 0,
        };
        ServiceEntry::tracking_flags(self.method) | refuse | persistent
    }
}

/// One service, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec<'a> {
    /// Its name, by which it is known across restarts.
    pub name: &'a str,
    /// The addresses it answers on: one at least.
    pub addresses: Vec<ServiceAddress>,
    /// What its slots depend on.
    pub hash: HashInput,
    /// How packets reach its real servers.
    pub forwarding: Forwarding,
    /// Its real servers by position.
    pub reals: Vec<RealSpec>,
    /// Position of each slot's owner, `u16::MAX` for none; [`SLOTS`] or [`SMALL_SLOTS`] of them.
    pub slots: &'a [u16],
    /// How long idle connections are kept.
    pub timeouts: Timeouts,
    /// What it takes datagrams for. A tracked service takes flows.
    pub datagrams: Datagrams,
    /// Its connections are tracked; else they go by their slots.
    pub tracking: Option<Tracking>,
}

impl ServiceSpec<'_> {
    /// The real server that a slot value names, if it serves.
    pub(super) fn owner(&self, slot: u16) -> Option<&RealSpec> {
        self.reals.get(usize::from(slot)).filter(|real| real.alive)
    }

    /// Whether some slot has an owner that serves, or a sorry server takes what nobody else takes.
    pub(super) fn is_served(&self) -> bool {
        let has_sorry = || self.reals.iter().any(|real| real.is_sorry && real.alive);
        self.slots.iter().any(|slot| self.owner(*slot).is_some()) || (self.tracking.is_some() && has_sorry())
    }

    /// Whether some address has this protocol.
    pub(super) fn has(&self, protocol: Protocol) -> bool {
        self.addresses.iter().any(|address| address.protocol == protocol)
    }
}

/// Checks the whole list, and works out its keys, given the classes in force.
pub(super) fn check(
    services: &[ServiceSpec<'_>],
    sources: &TunnelSources,
    locals: &LocalAddresses,
    classes: &std::collections::BTreeMap<Prefix, u32>,
) -> Result<Keys, SpecError> {
    limit("services", services.len(), MAX_SERVICES)?;
    let mut names = BTreeSet::new();
    for service in services {
        check_service(service)?;
        check_tunnel(service, sources)?;
        check_full_nat(service, locals)?;
        if !names.insert(service.name) {
            return Err(SpecError::DuplicateName(service.name.to_owned()));
        }
    }
    replies::check(services)?;
    keys::compile(services, classes)
}

pub(super) fn limit(what: &'static str, count: usize, limit: usize) -> Result<(), SpecError> {
    if count > limit { Err(SpecError::TooMany { what, count, limit }) } else { Ok(()) }
}

fn check_service(service: &ServiceSpec<'_>) -> Result<(), SpecError> {
    let name = || service.name.to_owned();
    if service.name.is_empty() || service.name.len() > MAX_SERVICE_NAME {
        return Err(SpecError::Name(name()));
    }
    if service.addresses.is_empty() {
        return Err(SpecError::NoAddress(name()));
    }
    let max_reals = usize::from(MAX_POSITION) + 1;
    let count = service.reals.len();
    if count > max_reals.min(MAX_REALS) {
        return Err(SpecError::TooManyReals { service: name(), count, limit: max_reals.min(MAX_REALS) });
    }
    if service.tracking.is_some() {
        if service.datagrams != Datagrams::Tracked {
            return Err(SpecError::TrackedDatagrams(name()));
        }
        limit("real servers of a tracked service", count, MAX_WHEEL)?;
    }
    let persistence = service.tracking.and_then(|tracking| tracking.persistence);
    if let Some(Persistence { prefix_v4, prefix_v6, .. }) = persistence
        && !((1..=32).contains(&prefix_v4) && (1..=128).contains(&prefix_v6))
    {
        return Err(SpecError::PersistencePrefix { service: name(), prefix_v4, prefix_v6 });
    }
    check_ports(service)?;
    replies::check_service(service)?;
    check_reals(service)?;
    if service.slots.len() != SLOTS && service.slots.len() != SMALL_SLOTS {
        return Err(SpecError::SlotCount { service: name(), count: service.slots.len() });
    }
    let stray = |position: u16| position != NO_REAL && usize::from(position) >= count;
    match service.slots.iter().position(|position| stray(*position)) {
        Some(slot) => {
            Err(SpecError::Position { service: name(), slot, position: service.slots[slot], count })
        }
        None => Ok(()),
    }
}

fn check_tunnel(service: &ServiceSpec<'_>, sources: &TunnelSources) -> Result<(), SpecError> {
    match service.forwarding {
        Forwarding::DirectReturn | Forwarding::Nat | Forwarding::FullNat => return Ok(()),
        Forwarding::Gue { port: 0 } => return Err(SpecError::TunnelPort(service.name.to_owned())),
        Forwarding::Ipip | Forwarding::Gre | Forwarding::Gue { .. } => {}
    }
    match service.reals.iter().find(|real| !sources.reaches(real.address)) {
        Some(real) => {
            Err(SpecError::NoTunnelSource { service: service.name.to_owned(), address: real.address })
        }
        None => Ok(()),
    }
}

fn check_full_nat(service: &ServiceSpec<'_>, locals: &LocalAddresses) -> Result<(), SpecError> {
    if service.forwarding != Forwarding::FullNat {
        return Ok(());
    }
    let name = || service.name.to_owned();
    if service.tracking.is_none() {
        return Err(SpecError::FullNatUntracked(name()));
    }
    match service.reals.iter().find(|real| !locals.reaches(real.address)) {
        Some(real) => Err(SpecError::NoLocalAddress { service: name(), address: real.address }),
        None => Ok(()),
    }
}

/// Each real server is there once, and has a server id of its own.
fn check_reals(service: &ServiceSpec<'_>) -> Result<(), SpecError> {
    let name = || service.name.to_owned();
    let id_bytes = match service.datagrams {
        Datagrams::Quic { offset, length } if (1..=4).contains(&length) && offset <= 20 - length => length,
        Datagrams::Quic { .. } => return Err(SpecError::QuicPosition(name())),
        Datagrams::Tracked | Datagrams::OnePacket => 4,
    };
    let (mut seen, mut ids) = (BTreeSet::new(), BTreeSet::new());
    for real in &service.reals {
        if !seen.insert((real.address, real.port)) {
            return Err(SpecError::DuplicateReal { service: name(), address: real.address, port: real.port });
        }
        let Some(id) = real.quic_id else { continue };
        if u64::from(id) >= 1 << (8 * u32::from(id_bytes)) || !ids.insert(id) {
            return Err(SpecError::QuicId { service: name(), address: real.address, id });
        }
    }
    Ok(())
}

fn check_ports(service: &ServiceSpec<'_>) -> Result<(), SpecError> {
    if matches!(service.forwarding, Forwarding::Nat | Forwarding::FullNat) {
        return Ok(());
    }
    for wanted in &service.addresses {
        let fits = |port| port == 0 || wanted.ports.single() == Some(port);
        if let Some(real) = service.reals.iter().find(|real| !fits(real.port)) {
            return Err(SpecError::Port {
                service: service.name.to_owned(),
                address: real.address,
                port: real.port,
                wanted: *wanted,
            });
        }
    }
    Ok(())
}
