//! `[[service]]`: virtual services and their real servers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use director_common::tables::MAX_SERVICE_NAME;
use director_proto::tables::MAX_SERVICES;
use ipnet::IpNet;
use routing::AnnounceAs;
use toml::Spanned;

use super::address::{self, Protocol, VirtualAddress};
use super::health::{self, HealthCheck};
use super::overlap::{self, Claim};
use super::real::{self, Real};
use super::{ConfigError, Source, TunnelSources, file};
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
    /// How real servers are checked; `None`: not at all.
    pub health: Option<HealthCheck>,
    /// Live real servers it takes to announce the VIPs.
    pub quorum: Quorum,
    /// Real servers.
    pub reals: Vec<Real>,
}

impl Service {
    /// The port the service is known by, which its real servers are known by too: the lowest of its first
    /// address, 0 for all.
    pub fn port(&self) -> u16 {
        self.addresses.first().map_or(0, |address| address.ports.first)
    }

    /// The real servers, as slots are dealt to them.
    pub fn members(&self) -> Vec<Member> {
        let member = |real: &Real| Member {
            address: real.address,
            port: self.port(),
            weight: real.weight,
            dead: false,
        };
        self.reals.iter().map(member).collect()
    }

    /// Every prefix it answers on, once.
    pub fn prefixes(&self) -> BTreeSet<IpNet> {
        self.addresses.iter().map(|address| address.prefix).collect()
    }

    /// All of it that directors must have alike, as text, equal for services that are the same: real servers in any
    /// order, and without the checks, which may name a node's own files.
    pub(super) fn canonical(&self) -> String {
        let Self { addresses, forwarding, scheduler, slots, hash_port, timeouts, datagrams, .. } = self;
        let Self { metric, announce, quorum, reals, .. } = self;
        let mut reals = reals.clone();
        reals.sort();
        let scheduler = scheduler.name();
        format!(
            "{addresses:?} {forwarding} {scheduler} {slots} {hash_port} {timeouts} {datagrams:?} {metric} {announce:?} {quorum:?} {reals:?}"
        )
    }
}

/// How packets reach a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Direct return: only link addresses change, so real servers are of the VIP's family.
    Dr,
    /// In a tunnel, between any two families.
    Tunnel(Tunnel),
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
    tunnel_sources: &TunnelSources,
) -> Result<BTreeMap<String, Service>, ConfigError> {
    if let Some(entry) = list.get(MAX_SERVICES) {
        return Err(source.at(&entry.name, format!("at most {MAX_SERVICES} services are possible")));
    }
    let mut services = BTreeMap::new();
    let mut claims = Vec::new();
    for entry in list {
        let (name, place) = (entry.name.get_ref().clone(), entry.name.span());
        if name.is_empty()
            || name.len() > MAX_SERVICE_NAME
            || name.chars().any(|c| c.is_control() || c.is_whitespace())
        {
            let message = format!("a service's name has 1 to {MAX_SERVICE_NAME} bytes, without blanks");
            return Err(source.at(&entry.name, message));
        }
        let (service, places) = service(source, entry, tunnel_sources)?;
        for (address, place) in service.addresses.iter().zip(places) {
            if let Some(own) = tunnel_sources.within(&address.prefix) {
                let message =
                    format!("VIP {} holds {own}, which is a tunnel_source of this node", address.vip());
                return Err(source.error(Some(place), message + "; use another for either"));
            }
            claims.push(Claim { address: *address, service: name.clone(), place });
        }
        if services.insert(name.clone(), service).is_some() {
            return Err(source.error(Some(place), format!("two services are called {name:?}")));
        }
    }
    overlap::check(source, claims)?;
    Ok(services)
}

/// The service, and the place of each of its addresses.
fn service(
    source: &Source<'_>,
    entry: file::Service,
    tunnel_sources: &TunnelSources,
) -> Result<(Service, Vec<Range<usize>>), ConfigError> {
    let (addresses, places): (Vec<_>, Vec<_>) = addresses(source, &entry)?.into_iter().unzip();
    let forwarding = forwarding(source, &entry)?;
    let scheduler = match &entry.scheduler {
        None => Scheduler::Maglev,
        Some(name) => Scheduler::from_name(name.get_ref()).ok_or_else(|| {
            let message =
                format!("scheduler {:?} is not known to this version; use \"mh\" or \"ch\"", name.get_ref());
            source.at(name, message)
        })?,
    };
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
    let mut service = Service {
        timeouts: timeouts(source, &addresses, entry.timeouts.as_ref())?,
        datagrams: datagrams(source, &addresses, entry.one_packet.as_ref(), entry.quic.as_ref())?,
        addresses,
        forwarding,
        scheduler,
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
    service.reals = real::reals(source, &service, entry.real, tunnel_sources)?;
    if let Some(health) = entry.health {
        let targets: Vec<_> = service.reals.iter().map(|real| (real.address, service.port())).collect();
        let health = health::check(source, health, &targets)?;
        service.health = Some(health).filter(|health| health.check != Check::None);
    }
    Ok((service, places))
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
        file::Forwarding::Dr => match &entry.tunnel {
            None => Ok(Forwarding::Dr),
            Some(tunnel) => Err(source.at(tunnel, "a tunnel needs forwarding = \"tunnel\"; or leave it out")),
        },
        file::Forwarding::Tunnel => {
            tunnel(source, entry.tunnel.as_ref().map(Spanned::get_ref)).map(Forwarding::Tunnel)
        }
        other @ (file::Forwarding::Nat | file::Forwarding::Fullnat | file::Forwarding::Local) => {
            let what = format!("forwarding {other:?}").to_lowercase();
            Err(source.unsupported(&entry.forwarding, &what, "use \"dr\" or \"tunnel\""))
        }
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
