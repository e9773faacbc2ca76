//! The operator's words: one TOML file, checked as a whole before anything acts on it.
//!
//! [`Config`] is the validated form; the raw one ([`file`]) does not leave this module. Every error names
//! the file, the line and the column, and says what to write instead.

mod file;
mod health;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use director_proto::tables::Digest;
use ipnet::Ipv4Net;
use sha2::{Digest as _, Sha256};
use toml::Spanned;

use crate::health::{Check, Quorum};
use crate::slots::{Member, Scheduler};

pub use self::health::HealthCheck;

/// Everything one director is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node and its data plane.
    pub node: Node,
    /// The OSPF speaker; without it no VIP is announced.
    pub ospf: Option<Ospf>,
    /// The cluster; without it the director is alone.
    pub cluster: Cluster,
    /// Virtual services, by name.
    pub services: BTreeMap<String, Service>,
    /// Where Prometheus may ask.
    pub metrics: Option<SocketAddr>,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Identity in OSPF and in the cluster.
    pub router_id: Ipv4Addr,
    /// Where XDP is attached.
    pub interfaces: Vec<String>,
    /// How XDP is attached.
    pub xdp_mode: XdpMode,
    /// Whether each flow is counted; costs one map update per packet.
    pub flow_accounting: bool,
    /// Folder of a BPF file system for programs, links and maps.
    pub pin_dir: PathBuf,
    /// Folder that outlives restarts.
    pub state_dir: PathBuf,
}

/// Where in the receive path the XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver where it can, otherwise generic.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the network stack, after the kernel made its own packet buffer.
    Generic,
}

/// `[ospf]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ospf {
    /// Area of all interfaces.
    pub area: Ipv4Addr,
    /// Seconds between Hellos.
    pub hello_interval: u16,
    /// Seconds of silence after which a neighbour is down.
    pub dead_interval: u32,
    /// Prefixes of the node itself.
    pub announce: Vec<Ipv4Net>,
    /// Learned prefixes to install; `None` for all but VIPs and our own.
    pub import: Option<Vec<Ipv4Net>>,
    /// Interfaces towards switches.
    pub interfaces: Vec<OspfInterface>,
}

/// `[[ospf.interface]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OspfInterface {
    /// Name of the interface.
    pub name: String,
    /// Whether the link has a designated router.
    pub broadcast: bool,
    /// Cost of the link for our own routes (others see MaxLinkMetric).
    pub cost: u16,
    /// Priority in the election of the designated router; 0 never is one.
    pub priority: u8,
    /// Announced, but without neighbours.
    pub passive: bool,
}

/// `[cluster]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Peers of another cluster are refused.
    pub name: String,
    /// Where the sync service listens.
    pub listen: Option<SocketAddr>,
    /// Sync services of the other directors.
    pub peers: Vec<SocketAddr>,
    /// Mutual TLS.
    pub tls: Option<Tls>,
    /// How long a director without tables waits for peers that have them.
    pub grace: Duration,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// Silence after which a peer counts as dead.
    pub dead: Duration,
}

/// `[cluster] tls`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificates that may sign peers' certificates, PEM.
    pub ca: PathBuf,
    /// Our certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// `[[service]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Virtual IP.
    pub vip: Ipv4Addr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Virtual port; 0 for all.
    pub port: u16,
    /// How slots are dealt.
    pub scheduler: Scheduler,
    /// What the slot depends on besides the source address.
    pub hash_port: bool,
    /// OSPF metric of the VIP.
    pub metric: u16,
    /// How real servers are checked; `None`: not at all.
    pub health: Option<HealthCheck>,
    /// Live real servers it takes to announce the VIP.
    pub quorum: Quorum,
    /// Real servers.
    pub reals: Vec<Member>,
}

/// Transport protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl Protocol {
    /// Name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// Number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A configuration that cannot be used, with the place of the first mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// Line and column, from 1; absent when the file could not be read.
    pub place: Option<(usize, usize)>,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            path: path.to_owned(),
            place: None,
            message: format!("cannot read the configuration: {error}"),
        })?;
        Self::parse(path, &text)
    }

    /// Checks `text`; `path` is for messages, and relative file names in it start from its folder.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let source = Source { path, text };
        let file: file::File = toml::from_str(text)
            .map_err(|error| source.error(error.span(), error.message().trim_end().to_owned()))?;
        let services = services(&source, file.service)?;
        let cluster = cluster(&source, file.cluster)?;
        Ok(Self {
            node: node(&source, file.node)?,
            ospf: file.ospf.map(|ospf| self::ospf(&source, ospf)).transpose()?,
            cluster,
            services,
            metrics: file.metrics.map(|metrics| metrics.listen),
        })
    }

    /// Digest of what all directors must say alike: services and their real servers.
    pub fn services_digest(&self) -> Digest {
        let mut hash = Sha256::new();
        for (name, service) in &self.services {
            let mut reals = service.reals.clone();
            reals.sort();
            let text = format!(
                "{name:?} {} {} {} {} {} {} {:?} {reals:?}\n",
                service.vip,
                service.protocol.name(),
                service.port,
                service.scheduler.name(),
                service.hash_port,
                service.metric,
                service.quorum,
            );
            hash.update(text.as_bytes());
        }
        Digest(hash.finalize().into())
    }
}

/// The text being checked, for turning spans into places.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, span: Option<Range<usize>>, message: String) -> ConfigError {
        let place = span.filter(|span| span.start <= self.text.len()).map(|span| {
            let before = &self.text[..span.start];
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
        });
        ConfigError { path: self.path.to_owned(), place, message }
    }

    /// An error at a value.
    fn at<T>(&self, value: &Spanned<T>, message: impl Into<String>) -> ConfigError {
        self.error(Some(value.span()), message.into())
    }

    /// An error at a value that is fine in itself but that this version cannot honour.
    fn unsupported<T>(&self, value: &Spanned<T>, what: &str, remedy: &str) -> ConfigError {
        self.at(value, format!("{what} is not supported by this version; {remedy}"))
    }

    /// A path relative to the configuration file's folder.
    fn relative(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }
}

fn node(source: &Source<'_>, node: file::Node) -> Result<Node, ConfigError> {
    if node.router_id.get_ref().is_unspecified() {
        return Err(
            source.at(&node.router_id, "router_id must not be 0.0.0.0; use a loopback address of the node")
        );
    }
    if node.interfaces.get_ref().is_empty() {
        return Err(source.at(&node.interfaces, "name at least one interface for XDP"));
    }
    let mut seen = BTreeSet::new();
    for name in node.interfaces.get_ref() {
        interface_name(source, name)?;
        if !seen.insert(name.get_ref()) {
            return Err(source.at(name, format!("interface {:?} is listed twice", name.get_ref())));
        }
    }
    Ok(Node {
        router_id: *node.router_id.get_ref(),
        interfaces: node.interfaces.into_inner().into_iter().map(Spanned::into_inner).collect(),
        xdp_mode: match node.xdp_mode {
            file::XdpMode::Auto => XdpMode::Auto,
            file::XdpMode::Native => XdpMode::Native,
            file::XdpMode::Generic => XdpMode::Generic,
        },
        flow_accounting: node.flow_accounting,
        pin_dir: node.pin_dir,
        state_dir: node.state_dir,
    })
}

fn interface_name(source: &Source<'_>, name: &Spanned<String>) -> Result<(), ConfigError> {
    let text = name.get_ref();
    if text.is_empty() || text.len() > 15 || text.contains(['/', ' ']) {
        return Err(source.at(name, format!("{text:?} is no interface name (1 to 15 characters)")));
    }
    Ok(())
}

fn ospf(source: &Source<'_>, spanned: Spanned<file::Ospf>) -> Result<Ospf, ConfigError> {
    let span = spanned.span();
    let ospf = spanned.into_inner();
    if let Some(kind) = ospf.area_type.as_ref().filter(|kind| *kind.get_ref() != file::AreaType::Normal) {
        return Err(source.unsupported(kind, "an area_type other than \"normal\"", "leave it out"));
    }
    let hello_interval = *ospf.hello_interval.get_ref();
    if hello_interval == 0 {
        return Err(source.at(&ospf.hello_interval, "hello_interval must be at least 1 second"));
    }
    let dead_interval =
        ospf.dead_interval.as_ref().map_or(u32::from(hello_interval) * 4, |dead| *dead.get_ref());
    if let Some(dead) = ospf.dead_interval.as_ref().filter(|_| dead_interval <= hello_interval.into()) {
        let message = format!(
            "dead_interval ({dead_interval} s) must be longer than hello_interval ({hello_interval} s); four times is usual"
        );
        return Err(source.at(dead, message));
    }
    if ospf.interface.is_empty() {
        let message = "name at least one [[ospf.interface]] towards a switch, or leave [ospf] out".to_owned();
        return Err(source.error(Some(span), message));
    }
    let mut seen = BTreeSet::new();
    let mut interfaces = Vec::new();
    for interface in ospf.interface {
        interface_name(source, &interface.name)?;
        if !seen.insert(interface.name.get_ref().clone()) {
            return Err(source
                .at(&interface.name, format!("interface {:?} is listed twice", interface.name.get_ref())));
        }
        if let Some(bfd) = &interface.bfd {
            return Err(source.unsupported(bfd, "bfd", "leave it out"));
        }
        if let Some(authentication) = &interface.authentication {
            return Err(source.unsupported(authentication, "authentication", "leave it out"));
        }
        if *interface.cost.get_ref() == 0 {
            return Err(source.at(&interface.cost, "cost must be from 1 to 65535"));
        }
        interfaces.push(OspfInterface {
            name: interface.name.into_inner(),
            broadcast: matches!(interface.network, file::Network::Broadcast),
            cost: *interface.cost.get_ref(),
            priority: interface.priority,
            passive: interface.passive,
        });
    }
    Ok(Ospf {
        area: ospf.area.into_inner(),
        hello_interval,
        dead_interval,
        announce: ospf.announce.iter().map(Ipv4Net::trunc).collect(),
        import: ospf.import,
        interfaces,
    })
}

fn cluster(source: &Source<'_>, cluster: Option<file::Cluster>) -> Result<Cluster, ConfigError> {
    let Some(cluster) = cluster else {
        return Ok(Cluster {
            name: "alone".to_owned(),
            listen: None,
            peers: Vec::new(),
            tls: None,
            grace: Duration::ZERO,
            heartbeat: Duration::from_millis(200),
            dead: Duration::from_secs(1),
        });
    };
    if cluster.name.get_ref().is_empty() || cluster.name.get_ref().len() > 255 {
        return Err(source.at(&cluster.name, "the cluster's name must have 1 to 255 bytes"));
    }
    if let Some(discover) = &cluster.discover {
        return Err(source.unsupported(discover, "discover", "list the other directors in `peers`"));
    }
    if let Some(listen) = cluster.listen.as_ref().filter(|_| cluster.tls.is_none())
        && !listen.get_ref().ip().is_loopback()
    {
        let message = "without `tls` the sync service listens on loopback only; add \
                       tls = { ca = …, certificate = …, key = … }";
        return Err(source.at(listen, message));
    }
    let mut seen = BTreeSet::new();
    for peer in &cluster.peers {
        if !seen.insert(*peer.get_ref()) {
            return Err(source.at(peer, format!("peer {} is listed twice", peer.get_ref())));
        }
        if cluster.listen.as_ref().is_some_and(|listen| listen.get_ref() == peer.get_ref()) {
            return Err(source.at(peer, "this is the director's own `listen` address; list the others only"));
        }
    }
    if let Some(peer) = cluster.peers.first().filter(|_| cluster.listen.is_none()) {
        return Err(source.at(peer, "a director with peers needs `listen`, for them to reach it"));
    }
    let heartbeat = *cluster.heartbeat_ms.get_ref();
    if heartbeat < 10 {
        return Err(source.at(&cluster.heartbeat_ms, "heartbeat_ms must be at least 10"));
    }
    if *cluster.dead_ms.get_ref() < heartbeat.saturating_mul(2) {
        return Err(source.at(&cluster.dead_ms, "dead_ms must be at least twice heartbeat_ms"));
    }
    Ok(Cluster {
        name: cluster.name.into_inner(),
        listen: cluster.listen.map(Spanned::into_inner),
        peers: cluster.peers.into_iter().map(Spanned::into_inner).collect(),
        tls: cluster.tls.map(|tls| self::tls(source, &tls)).transpose()?,
        grace: Duration::from_millis(cluster.grace_ms.into()),
        heartbeat: Duration::from_millis(heartbeat.into()),
        dead: Duration::from_millis((*cluster.dead_ms.get_ref()).into()),
    })
}

fn tls(source: &Source<'_>, tls: &file::Tls) -> Result<Tls, ConfigError> {
    let readable = |value: &Spanned<PathBuf>| {
        let path = source.relative(value.get_ref());
        match std::fs::File::open(&path) {
            Ok(_) => Ok(path),
            Err(error) => Err(source.at(value, format!("cannot read {}: {error}", path.display()))),
        }
    };
    Ok(Tls { ca: readable(&tls.ca)?, certificate: readable(&tls.certificate)?, key: readable(&tls.key)? })
}

fn services(source: &Source<'_>, list: Vec<file::Service>) -> Result<BTreeMap<String, Service>, ConfigError> {
    let mut services = BTreeMap::new();
    let mut keys: BTreeMap<(Ipv4Addr, Protocol, u16), String> = BTreeMap::new();
    for entry in list {
        let name = entry.name.get_ref().clone();
        if name.is_empty() || name.len() > 64 || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(source.at(&entry.name, "a service's name has 1 to 64 bytes, without blanks"));
        }
        let (key_place, name_place) = (entry.port.span(), entry.name.span());
        let service = service(source, entry)?;
        if let Some(other) = keys.insert((service.vip, service.protocol, service.port), name.clone()) {
            let message = format!(
                "services {other:?} and {name:?} have the same address: {} {}:{}; change one of them",
                service.protocol.name(),
                service.vip,
                service.port
            );
            return Err(source.error(Some(key_place), message));
        }
        if services.insert(name.clone(), service).is_some() {
            return Err(source.error(Some(name_place), format!("two services are called {name:?}")));
        }
    }
    Ok(services)
}

fn service(source: &Source<'_>, entry: file::Service) -> Result<Service, ConfigError> {
    let IpAddr::V4(vip) = *entry.vip.get_ref() else {
        return Err(source.unsupported(&entry.vip, "an IPv6 VIP", "use an IPv4 address"));
    };
    if vip.is_unspecified() || vip.is_multicast() || vip.is_broadcast() || vip.is_loopback() {
        return Err(source.at(&entry.vip, format!("{vip} cannot be a VIP; use a unicast address")));
    }
    let protocol = match entry.protocol.get_ref() {
        file::Protocol::Tcp => Protocol::Tcp,
        file::Protocol::Udp => Protocol::Udp,
        file::Protocol::Sctp => {
            return Err(source.unsupported(&entry.protocol, "protocol \"sctp\"", "use \"tcp\" or \"udp\""));
        }
    };
    if *entry.forwarding.get_ref() != file::Forwarding::Dr {
        let what = format!("forwarding {:?}", entry.forwarding.get_ref()).to_lowercase();
        return Err(source.unsupported(&entry.forwarding, &what, "use \"dr\""));
    }
    let scheduler = match &entry.scheduler {
        None => Scheduler::Maglev,
        Some(name) => Scheduler::from_name(name.get_ref()).ok_or_else(|| {
            let message =
                format!("scheduler {:?} is not known to this version; use \"mh\" or \"ch\"", name.get_ref());
            source.at(name, message)
        })?,
    };
    let port = *entry.port.get_ref();
    let reals = reals(source, vip, port, entry.real)?;
    let targets: Vec<(IpAddr, u16)> = reals.iter().map(|real| (real.address, real.port)).collect();
    let health = entry.health.map(|health| health::check(source, health, &targets)).transpose()?;
    let quorum = Quorum { needed: entry.quorum, hysteresis: entry.hysteresis };
    Ok(Service {
        vip,
        protocol,
        port,
        scheduler,
        hash_port: matches!(entry.hash, file::Hash::SourcePort),
        metric: entry.metric,
        health: health.filter(|health| health.check != Check::None),
        quorum,
        reals,
    })
}

fn reals(
    source: &Source<'_>,
    vip: Ipv4Addr,
    port: u16,
    list: Vec<file::Real>,
) -> Result<Vec<Member>, ConfigError> {
    let mut reals = Vec::new();
    let mut seen = BTreeSet::new();
    for real in list {
        let IpAddr::V4(address) = *real.address.get_ref() else {
            let remedy = "use an IPv4 address, as the VIP is";
            return Err(source.unsupported(&real.address, "an IPv6 real server", remedy));
        };
        if address == vip || address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return Err(source.at(&real.address, format!("{address} cannot be a real server of VIP {vip}")));
        }
        if let Some(given) = real.port.as_ref().filter(|given| *given.get_ref() != port) {
            let message =
                format!("dr does not rewrite ports: write port = {port}, as the service's, or leave it out");
            return Err(source.at(given, message));
        }
        if !seen.insert(address) {
            return Err(source.at(&real.address, format!("real server {address} is listed twice")));
        }
        if *real.weight.get_ref() > 65_535 {
            return Err(source.at(&real.weight, "weight must be from 0 to 65535"));
        }
        reals.push(Member { address: address.into(), port, weight: *real.weight.get_ref(), dead: false });
    }
    Ok(reals)
}
