//! `[[service]]`: virtual services and their real servers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use director_common::schedulers::{MAX_WHEEL, Method};
use director_common::tables::MAX_SERVICE_NAME;
use director_proto::tables::MAX_SERVICES;
use ipnet::IpNet;
use routing::{AnnounceAs, ExternalConfig};
use toml::Spanned;

use super::address::{self, Protocol, VirtualAddress};
use super::health::{self, HealthCheck};
use super::local;
use super::nat;
use super::overlap::{self, Claim};
use super::persistence::{self, Persistence};
use super::real::{self, Real};
use super::{ConfigError, Node, Source, areas, file};
use crate::health::{Check, Quorum};
use crate::slots::{Member, Scheduler};

/// `[[service]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The addresses it answers on; the first is the one it is known by.
    pub addresses: Vec<VirtualAddress>,
    /// How packets reach the real servers.
    pub forwarding: Forwarding,
    /// How slots are dealt.
    pub scheduler: Scheduler,
    /// How each new connection's real server is chosen, if they are tracked; the slots are for the others then.
    pub tracking: Option<Tracking>,
    /// How many slots there are.
    pub slots: u32,
    /// Whether the slot depends on the source port, besides the source address.
    pub hash_port: bool,
    /// When an idle connection is over.
    pub timeouts: Timeouts,
    /// What is remembered of datagrams.
    pub datagrams: Datagrams,
    /// OSPF metric of the VIPs.
    pub metric: u16,
    /// As what OSPF announces the VIPs.
    pub announce: AnnounceAs,
    /// Metric type and tag as externals; `None`: those of `[ospf]`.
    pub external: Option<ExternalConfig>,
    /// How real servers are checked; `None`: not at all.
    pub health: Option<HealthCheck>,
    /// Live real servers it takes to announce the VIPs.
    pub quorum: Quorum,
    /// Real servers.
    pub reals: Vec<Real>,
}

impl Service {
    /// The port the service is known by: the lowest of its first address, 0 for all.
    pub fn port(&self) -> u16 {
        self.addresses.first().map_or(0, |address| address.ports.first)
    }

    /// The port of all its addresses, if it is one and the same.
    pub fn one_port(&self) -> Option<u16> {
        let first = self.addresses.first()?.ports;
        let same = self.addresses.iter().all(|address| address.ports == first);
        (same && first.is_one()).then_some(first.first)
    }

    /// The name of the scheduler, as in the configuration.
    pub fn scheduler_name(&self) -> &'static str {
        match &self.tracking {
            Some(tracking) if tracking.method != Method::Slots => tracking.method.name(),
            _ => self.scheduler.name(),
        }
    }

    /// Who takes new connections that nobody else takes.
    pub fn sorry_server(&self) -> Option<IpAddr> {
        self.tracking.as_ref().and_then(|tracking| tracking.sorry_server)
    }

    /// The real servers, as slots are dealt to them.
    pub fn members(&self) -> Vec<Member> {
        let member =
            |real: &Real| Member { address: real.address, port: real.port, weight: real.weight, dead: false };
        self.reals.iter().map(member).collect()
    }

    /// Every prefix it answers on, once.
    pub fn prefixes(&self) -> BTreeSet<IpNet> {
        self.addresses.iter().map(|address| address.prefix).collect()
    }

    /// All of it that directors must have alike, as text, equal for services that are the same: real servers in any
    /// order, and without the checks, which may name a node's own files.
    pub(super) fn canonical(&self) -> String {
        let tracking = self.tracking.map(|tracking| tracking.to_string()).unwrap_or_default();
        let Self { addresses, forwarding, slots, hash_port, timeouts, datagrams, .. } = self;
        let Self { metric, announce, quorum, reals, .. } = self;
        let mut reals = reals.clone();
        reals.sort();
        let scheduler = self.scheduler_name();
        format!(
            "{addresses:?} {forwarding} {scheduler} {tracking} {slots} {hash_port} {timeouts} {datagrams:?} {metric} {announce:?} {quorum:?} {reals:?}"
        )
    }
}

/// What it is to track every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracking {
    /// The scheduler.
    pub method: Method,
    /// Connections that find no room, and packets of none that is known, are refused; else they go by their slots.
    pub refuse: bool,
    /// Takes new connections that nobody else takes.
    pub sorry_server: Option<IpAddr>,
    /// How clients stay with their real servers, if they do.
    pub persistence: Option<Persistence>,
}

impl fmt::Display for Tracking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "when full {}", if self.refuse { "refuse" } else { "forward" })?;
        self.sorry_server.map_or(Ok(()), |sorry| write!(f, ", sorry server {sorry}"))?;
        self.persistence.map_or(Ok(()), |persistence| write!(f, ", {persistence}"))
    }
}

/// How packets reach a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Direct return: only link addresses change, so real servers are of the VIP's family.
    Dr,
    /// In a tunnel, between any two families.
    Tunnel(Tunnel),
    /// By network address translation, both ways: real servers are of the VIP's family, and send their answers to the
    /// directors.
    Nat,
    /// As that, and an address and port of the director stands for the client: real servers may be anywhere.
    FullNat,
}

/// Kind of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// IP in IP (RFC 2003, RFC 2473, RFC 4213).
    Ipip,
    /// GRE (RFC 2784).
    Gre,
    /// Generic UDP encapsulation (draft-ietf-intarea-gue-09).
    Gue {
        /// UDP port of the real servers' end.
        port: u16,
    },
}

impl fmt::Display for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dr => f.write_str("dr"),
            Self::Nat => f.write_str("nat"),
            Self::FullNat => f.write_str("fullnat"),
            Self::Tunnel(Tunnel::Ipip) => f.write_str("tunnel ipip"),
            Self::Tunnel(Tunnel::Gre) => f.write_str("tunnel gre"),
            Self::Tunnel(Tunnel::Gue { port }) => write!(f, "tunnel gue port {port}"),
        }
    }
}

/// How long a connection may be idle before it counts as over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP.
    pub established: Duration,
    /// TCP, once an end has said that it is through.
    pub fin: Duration,
    /// UDP.
    pub udp: Duration,
}

impl Default for Timeouts {
    /// Those of IPVS (`ipvsadm --set`).
    fn default() -> Self {
        let [established, fin, udp] = [900, 120, 300].map(Duration::from_secs);
        Self { established, fin, udp }
    }
}

impl fmt::Display for Timeouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [established, fin, udp] = [self.established, self.fin, self.udp].map(|time| time.as_secs());
        write!(f, "established {established} s, fin {fin} s, udp {udp} s")
    }
}

/// What is remembered of the datagrams of a service while its slots move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagrams {
    /// Datagrams between the same ends belong together.
    Tracked,
    /// Each stands for itself.
    OnePacket,
    /// QUIC: the connection id names the real server.
    Quic {
        /// Bytes of the connection id before the server's.
        offset: u8,
        /// Bytes of the server's.
        length: u8,
    },
}

impl fmt::Display for Datagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tracked => f.write_str("tracked"),
            Self::OnePacket => f.write_str("one-packet"),
            Self::Quic { offset, length } => write!(f, "quic offset {offset} length {length}"),
        }
    }
}

/// Numbers of slots to choose from: primes, so that Maglev's permutations reach every slot.
const SLOTS: [u32; 2] = [65_537, 4_093];
/// GUE's port (IANA "gue").
const GUE_PORT: u16 = 6_080;
/// Longest idle time: a week.
const MAX_TIMEOUT: u32 = 604_800;
/// Longest connection id in bytes (RFC 9000, section 17.2).
const MAX_CONNECTION_ID: u8 = 20;

pub(super) fn services(
    source: &Source<'_>,
    list: Vec<file::Service>,
    node: &Node,
) -> Result<BTreeMap<String, Service>, ConfigError> {
    let tunnel_sources = &node.tunnel_sources;
    if let Some(entry) = list.get(MAX_SERVICES) {
        return Err(source.at(&entry.name, format!("at most {MAX_SERVICES} services are possible")));
    }
    let mut services = BTreeMap::new();
    let (mut claims, mut nat) = (Vec::new(), nat::Claims::default());
    for entry in list {
        let reals: Vec<_> = entry.real.iter().map(|real| real.address.span()).collect();
        let sorry = entry.sorry_server.as_ref().map(Spanned::span);
        let (name, place) = (entry.name.get_ref().clone(), entry.name.span());
        if name.is_empty()
            || name.len() > MAX_SERVICE_NAME
            || name.chars().any(|c| c.is_control() || c.is_whitespace())
        {
            let message = format!("a service's name has 1 to {MAX_SERVICE_NAME} bytes, without blanks");
            return Err(source.at(&entry.name, message));
        }
        let (service, places) = service(source, entry, node)?;
        for (address, place) in service.addresses.iter().zip(places) {
            if let Some(own) = tunnel_sources.within(&address.prefix) {
                let message =
                    format!("VIP {} holds {own}, which is a tunnel_source of this node", address.vip());
                return Err(source.error(Some(place), message + "; use another for either"));
            }
            claims.push(Claim { address: *address, service: name.clone(), place });
        }
        nat.add(&name, &service, &reals);
        if let Some(place) = sorry {
            nat.add_sorry(&name, &service, place);
        }
        if services.insert(name.clone(), service).is_some() {
            return Err(source.error(Some(place), format!("two services are called {name:?}")));
        }
    }
    overlap::check(source, claims)?;
    nat.check(source)?;
    Ok(services)
}

/// The service, and the place of each of its addresses.
fn service(
    source: &Source<'_>,
    entry: file::Service,
    node: &Node,
) -> Result<(Service, Vec<Range<usize>>), ConfigError> {
    let (addresses, places): (Vec<_>, Vec<_>) = addresses(source, &entry)?.into_iter().unzip();
    let forwarding = forwarding(source, &entry)?;
    let many = |(address, _): &(&VirtualAddress, &Range<usize>)| !address::is_host(&address.prefix);
    if forwarding == Forwarding::Nat
        && let Some((_, place)) = addresses.iter().zip(&places).find(many)
    {
        let message = "nat needs single VIPs, for of a prefix nobody could tell which one an answer is to come from; list \
                       the addresses in `also`";
        return Err(source.error(Some(place.clone()), message.to_owned()));
    }
    let (scheduler, method) = scheduler(source, entry.scheduler.as_ref())?;
    let persistence = persistence::persistence(source, &entry, &addresses)?;
    let tracking = tracking(source, &entry, method, forwarding, persistence)?;
    for address in &addresses {
        local::check_service(source, forwarding, &node.locals, address.prefix.addr(), &entry.forwarding)?;
    }
    let slots = match &entry.slots {
        Some(slots) if !SLOTS.contains(slots.get_ref()) => {
            let message = "slots must be 65537, or 4093 for one of many small services";
            return Err(source.at(slots, message));
        }
        slots => slots.as_ref().map_or(SLOTS[0], |slots| *slots.get_ref()),
    };
    if *entry.metric.get_ref() == u16::MAX {
        let message = "metric 65535 says \"unreachable\" (RFC 6987); use a lower one";
        return Err(source.at(&entry.metric, message));
    }
    let external = match &entry.external {
        Some(place) if matches!(entry.announce, file::Announce::Stub) => {
            let message =
                "external has a meaning beside announce = \"external\" alone; add that, or leave it out";
            return Err(source.at(place, message));
        }
        Some(external) => Some(areas::external(source, Some(external.get_ref()))?),
        None => None,
    };
    let mut service = Service {
        external,
        timeouts: timeouts(source, &addresses, entry.timeouts.as_ref())?,
        datagrams: datagrams(source, &addresses, entry.one_packet.as_ref(), entry.quic.as_ref())?,
        addresses,
        forwarding,
        scheduler,
        tracking,
        slots,
        hash_port: matches!(entry.hash, file::Hash::SourcePort),
        metric: *entry.metric.get_ref(),
        announce: match entry.announce {
            file::Announce::Stub => AnnounceAs::Stub,
            file::Announce::External => AnnounceAs::External,
        },
        health: None,
        quorum: Quorum { needed: entry.quorum, hysteresis: entry.hysteresis },
        reals: Vec::new(),
    };
    let sorry = entry.sorry_server.as_ref();
    service.reals = real::reals(source, &service, entry.real, sorry, &node.tunnel_sources)?;
    if let Some(health) = entry.health {
        let targets: Vec<_> = service.reals.iter().map(|real| (real.address, real.port)).collect();
        let health = health::check(source, health, &targets)?;
        service.health = Some(health).filter(|health| health.check != Check::None);
    }
    Ok((service, places))
}

/// How slots are dealt, and how connections' servers are chosen, if that is another thing.
fn scheduler(
    source: &Source<'_>,
    name: Option<&Spanned<String>>,
) -> Result<(Scheduler, Option<Method>), ConfigError> {
    let Some(place) = name else { return Ok((Scheduler::Maglev, None)) };
    let name = place.get_ref().as_str();
    if let Some(scheduler) = Scheduler::from_name(name) {
        return Ok((scheduler, None));
    }
    if let Some(method) = Method::from_name(name) {
        return Ok((Scheduler::Maglev, Some(method)));
    }
    let instead = match name {
        "sh" => "use \"mh\", which hashes the source too, and moves fewer clients when servers change",
        "dh" | "lblc" | "lblcr" => "use \"mh\", or \"wlc\"",
        _ => {
            let methods = Method::ALL.map(Method::name).join(", ");
            let message = format!("scheduler {name:?} is not known; use one of mh, ch, {methods}");
            return Err(source.at(place, message));
        }
    };
    Err(source.unsupported(place, &format!("scheduler {name:?}"), instead))
}

/// What it is to track the connections of a service, if its scheduler needs that.
fn tracking(
    source: &Source<'_>,
    entry: &file::Service,
    method: Option<Method>,
    forwarding: Forwarding,
    persistence: Option<Persistence>,
) -> Result<Option<Tracking>, ConfigError> {
    let only = |what: &str| {
        let methods = Method::ALL.map(Method::name).join(", ");
        format!(
            "{what} is for services whose connections are tracked: with scheduler = one of {methods}; or leave it out"
        )
    };
    let is_full_nat = forwarding == Forwarding::FullNat;
    if is_full_nat
        && let Some(when_full) = &entry.when_full
        && matches!(when_full.get_ref(), file::WhenFull::Forward)
    {
        let message = "with fullnat a packet of no known connection cannot be forwarded, for nothing says as whom: write \
                       when_full = \"refuse\", or leave it out";
        return Err(source.at(when_full, message));
    }
    // By its slot, where the scheduler says no more.
    let method = method.or((is_full_nat || persistence.is_some()).then_some(Method::Slots));
    let Some(method) = method else {
        if let Some(when_full) = &entry.when_full {
            return Err(source.at(when_full, only("when_full")));
        }
        if let Some(sorry) = &entry.sorry_server {
            return Err(source.at(sorry, only("sorry_server")));
        }
        let place = entry.real.iter().find_map(|real| real.upper.as_ref().or(real.lower.as_ref()));
        return place.map_or(Ok(None), |place| Err(source.at(place, only("a threshold"))));
    };
    if let Some(one_packet) = entry.one_packet.as_ref().filter(|one_packet| *one_packet.get_ref()) {
        let message = match is_full_nat {
            true => {
                "with fullnat datagrams are tracked, for their answers must find the way back: leave one_packet out"
            }
            false => {
                "datagrams that stand for themselves are not tracked: use scheduler = \"mh\", or leave one_packet out"
            }
        };
        return Err(source.at(one_packet, message));
    }
    if let Some(quic) = &entry.quic {
        let message = match is_full_nat {
            true => "with fullnat QUIC is tracked as any datagrams are, by address and port: leave quic out",
            false => {
                "QUIC connections are found by their ids, not tracked: use scheduler = \"mh\", or leave quic out"
            }
        };
        return Err(source.at(quic, message));
    }
    if let Some(real) = entry.real.get(MAX_WHEEL) {
        let message = format!("at most {MAX_WHEEL} real servers are possible with this scheduler");
        return Err(source.at(&real.address, message));
    }
    if method == Method::Slots {
        if let Some(sorry) = &entry.sorry_server {
            return Err(source.at(sorry, only("sorry_server")));
        }
        if let Some(place) = entry.real.iter().find_map(|real| real.upper.as_ref().or(real.lower.as_ref())) {
            return Err(source.at(place, only("a threshold")));
        }
    }
    for real in &entry.real {
        let (upper, lower) = (real.upper.as_ref(), real.lower.as_ref());
        let most = upper.map_or(0, |upper| *upper.get_ref());
        if let Some(lower) = lower.filter(|lower| *lower.get_ref() > most) {
            return Err(source.at(lower, "lower must not be above upper, the threshold that it takes back"));
        }
    }
    Ok(Some(Tracking {
        method,
        refuse: is_full_nat
            || entry.when_full.as_ref().is_some_and(|it| matches!(it.get_ref(), file::WhenFull::Refuse)),
        sorry_server: entry.sorry_server.as_ref().map(|sorry| *sorry.get_ref()),
        persistence,
    }))
}

fn addresses(
    source: &Source<'_>,
    entry: &file::Service,
) -> Result<Vec<(VirtualAddress, Range<usize>)>, ConfigError> {
    let Some(ports) = address::ports(source, entry.port.as_ref(), entry.ports.as_ref())? else {
        let message =
            "the service has no port: write port = NUMBER, ports = \"FIRST-LAST\", or port = 0 for all";
        return Err(source.at(&entry.name, message));
    };
    let protocol = address::protocol(source, &entry.protocol)?;
    let prefix = address::prefix(source, &entry.vip)?;
    let place = entry.port.as_ref().map(Spanned::span).or(entry.ports.as_ref().map(Spanned::span));
    let mut addresses =
        vec![(VirtualAddress { prefix, protocol, ports }, place.unwrap_or_else(|| entry.vip.span()))];
    for also in &entry.also {
        let more = also.get_ref();
        let protocol = match &more.protocol {
            Some(protocol) => address::protocol(source, protocol)?,
            None => protocol,
        };
        let ports = address::ports(source, more.port.as_ref(), more.ports.as_ref())?.unwrap_or(ports);
        let prefix = address::prefix(source, &more.vip)?;
        addresses.push((VirtualAddress { prefix, protocol, ports }, also.span()));
    }
    Ok(addresses)
}

fn forwarding(source: &Source<'_>, entry: &file::Service) -> Result<Forwarding, ConfigError> {
    match entry.forwarding.get_ref() {
        file::Forwarding::Dr => without_tunnel(source, entry, Forwarding::Dr),
        file::Forwarding::Nat => without_tunnel(source, entry, Forwarding::Nat),
        file::Forwarding::Fullnat => without_tunnel(source, entry, Forwarding::FullNat),
        file::Forwarding::Tunnel => {
            tunnel(source, entry.tunnel.as_ref().map(Spanned::get_ref)).map(Forwarding::Tunnel)
        }
        file::Forwarding::Local => {
            let instead = "use \"dr\", \"tunnel\", \"nat\" or \"fullnat\"";
            Err(source.unsupported(&entry.forwarding, "forwarding local", instead))
        }
    }
}

fn without_tunnel(
    source: &Source<'_>,
    entry: &file::Service,
    forwarding: Forwarding,
) -> Result<Forwarding, ConfigError> {
    match &entry.tunnel {
        None => Ok(forwarding),
        Some(tunnel) => Err(source.at(tunnel, "a tunnel needs forwarding = \"tunnel\"; or leave it out")),
    }
}

fn tunnel(source: &Source<'_>, tunnel: Option<&file::Tunnel>) -> Result<Tunnel, ConfigError> {
    let Some(tunnel) = tunnel else { return Ok(Tunnel::Ipip) };
    let kind = match tunnel.kind {
        file::TunnelKind::Ipip => Tunnel::Ipip,
        file::TunnelKind::Gre => Tunnel::Gre,
        file::TunnelKind::Gue => {
            Tunnel::Gue { port: tunnel.port.as_ref().map_or(GUE_PORT, |port| *port.get_ref()) }
        }
    };
    match (&tunnel.port, kind) {
        (Some(port), Tunnel::Gue { port: 0 }) => {
            Err(source.at(port, format!("port 0 cannot be the far end of a tunnel; GUE's is {GUE_PORT}")))
        }
        (Some(port), Tunnel::Ipip | Tunnel::Gre) => {
            Err(source.at(port, "only a tunnel of type \"gue\" has a port; leave it out"))
        }
        _ => Ok(kind),
    }
}

/// Whether any of the addresses is of that protocol.
fn has(addresses: &[VirtualAddress], protocol: Protocol) -> bool {
    addresses.iter().any(|address| address.protocol == protocol)
}

fn timeouts(
    source: &Source<'_>,
    addresses: &[VirtualAddress],
    written: Option<&Spanned<file::Timeouts>>,
) -> Result<Timeouts, ConfigError> {
    let mut timeouts = Timeouts::default();
    let Some(written) = written.map(Spanned::get_ref) else { return Ok(timeouts) };
    for (name, seconds, protocol, time) in [
        ("established", &written.established, Protocol::Tcp, &mut timeouts.established),
        ("fin", &written.fin, Protocol::Tcp, &mut timeouts.fin),
        ("udp", &written.udp, Protocol::Udp, &mut timeouts.udp),
    ] {
        let Some(seconds) = seconds else { continue };
        if !has(addresses, protocol) {
            let message = format!("the service has no {} address: leave {name} out", protocol.name());
            return Err(source.at(seconds, message));
        }
        if !(1..=MAX_TIMEOUT).contains(seconds.get_ref()) {
            return Err(source.at(seconds, format!("{name} must be from 1 to {MAX_TIMEOUT} seconds")));
        }
        *time = Duration::from_secs((*seconds.get_ref()).into());
    }
    Ok(timeouts)
}

fn datagrams(
    source: &Source<'_>,
    addresses: &[VirtualAddress],
    one_packet: Option<&Spanned<bool>>,
    quic: Option<&Spanned<file::Quic>>,
) -> Result<Datagrams, ConfigError> {
    let one_packet = one_packet.filter(|one_packet| *one_packet.get_ref());
    if let Some(one_packet) = one_packet.filter(|_| has(addresses, Protocol::Tcp)) {
        let message = "one_packet is for datagrams: write protocol = \"udp\", or leave it out";
        return Err(source.at(one_packet, message));
    }
    let Some(quic) = quic else {
        return Ok(one_packet.map_or(Datagrams::Tracked, |_| Datagrams::OnePacket));
    };
    if has(addresses, Protocol::Tcp) {
        let message = "QUIC runs over UDP: write protocol = \"udp\", or leave quic out";
        return Err(source.at(quic, message));
    }
    if one_packet.is_some() {
        return Err(source.at(quic, "write either one_packet or quic: they exclude each other"));
    }
    let (offset, length) = (*quic.get_ref().offset.get_ref(), *quic.get_ref().length.get_ref());
    if !(1..=4).contains(&length) {
        return Err(source.at(&quic.get_ref().length, "length must be from 1 to 4 bytes"));
    }
    if offset > MAX_CONNECTION_ID - length {
        let message =
            format!("offset and length exceed the {MAX_CONNECTION_ID} bytes that a connection id may have");
        return Err(source.at(&quic.get_ref().offset, message));
    }
    Ok(Datagrams::Quic { offset, length })
}
