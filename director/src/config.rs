//! The operator's words: one TOML file, checked as a whole before anything acts on it.
//!
//! [`Config`] is the validated form; the raw one ([`file`]) does not leave this module. Every error names
//! the file, the line and the column, and says what to write instead.

mod address;
mod areas;
mod authentication;
mod definition;
mod file;
mod health;
mod local;
mod nat;
mod overlap;
mod persistence;
mod real;
mod service;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU8;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use director_proto::definitions::Definitions;
use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

pub use address::{Ports, Protocol, VirtualAddress, family};
pub use health::HealthCheck;
pub use local::Locals;
pub use persistence::Persistence;
pub use real::Real;
pub use service::{Datagrams, Forwarding, Service, Timeouts, Tracking, Tunnel};

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
    /// What is written of them, to be told to other directors.
    pub definitions: Arc<Definitions>,
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
    /// Our address in tunnels.
    pub tunnel_sources: TunnelSources,
    /// What full NAT puts in the place of clients.
    pub locals: Locals,
    /// Who answers echo requests to a VIP.
    pub echo: Echo,
    /// Most ICMP errors (packet too big) in a second, for each processor; 0 for none.
    pub icmp_rate: u32,
    /// Room for connections, of tracked services and of slots that change; 90 bytes each.
    pub connections: u32,
    /// Room for connections of tracked services that have begun and not gone on yet.
    pub half_open: u32,
}

/// Outer source addresses of tunnels, by family of the real server. They should be addresses of this node, for
/// what routers on the way have to say comes back to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelSources {
    /// Towards real servers with an IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Towards real servers with an IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl TunnelSources {
    /// Whether there is one of the family of `real`.
    pub fn reaches(&self, real: IpAddr) -> bool {
        if real.is_ipv4() { self.v4.is_some() } else { self.v6.is_some() }
    }

    /// The one that is in `prefix`.
    fn within(&self, prefix: &IpNet) -> Option<IpAddr> {
        let all = [self.v4.map(IpAddr::V4), self.v6.map(IpAddr::V6)];
        all.into_iter().flatten().find(|address| prefix.contains(address))
    }
}

/// Who answers echo requests (ping) to a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// The director, while the VIP has a real server.
    WhileServed,
    /// The director, always.
    Always,
    /// The kernel, if it owns the address.
    Kernel,
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
    /// Seconds between Hellos.
    pub hello_interval: u16,
    /// Seconds of silence after which a neighbour is down.
    pub dead_interval: u32,
    /// Prefixes of the node itself.
    pub announce: Vec<IpNet>,
    /// What announcements as external routes have in common.
    pub external: routing::ExternalConfig,
    /// Prefixes announced in place of the VIPs inside them.
    pub aggregates: Vec<IpNet>,
    /// Learned prefixes to install; `None` for all but VIPs and our own.
    pub import: Option<Vec<IpNet>>,
    /// Whether OSPFv3 is spoken, for IPv6, on the same interfaces.
    pub ipv6: bool,
    /// The same, if it is written; else it follows from what is announced.
    pub ipv6_wanted: Option<bool>,
    /// Interfaces towards switches.
    pub interfaces: Vec<OspfInterface>,
}

/// `[[ospf.interface]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OspfInterface {
    /// Name of the interface.
    pub name: String,
    /// Its area.
    pub area: Ipv4Addr,
    /// How the area treats external routes.
    pub area_kind: routing::AreaKind,
    /// Whether the link has a designated router.
    pub broadcast: bool,
    /// Cost of the link for our own routes (others see MaxLinkMetric).
    pub cost: u16,
    /// Priority in the election of the designated router; 0 never is one.
    pub priority: u8,
    /// Announced, but without neighbours.
    pub passive: bool,
    /// Watch the neighbours by BFD.
    pub bfd: Option<Bfd>,
    /// How packets are authenticated.
    pub authentication: routing::Authentication,
    /// Send with a TTL of 255, and take nothing that has less (RFC 5082).
    pub ttl_security: bool,
    /// Send from the router id or the loopback's address where the device has none of its own.
    pub unnumbered: bool,
}

/// `bfd` of an `[[ospf.interface]]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bfd {
    /// Milliseconds between packets, in both directions, unless the switch wants more; 10 to 60,000.
    pub interval_ms: u32,
    /// Packets that may be missing before the path counts as broken.
    pub multiplier: NonZeroU8,
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
    /// What the director does that hears no majority of the others.
    pub isolated: Isolated,
}

/// `[cluster] isolated`: what a director does that hears no majority of the directors that were there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolated {
    /// It goes on, as the survivor it probably is; unless one that it hears hears most of the others.
    #[default]
    Serve,
    /// It withdraws its VIPs and changes no table: the others may have changed theirs. For clusters that would rather
    /// not serve than send a connection to another real server, and never lose most of their directors at once.
    Withdraw,
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
        let (node, locals) = node(&source, file.node)?;
        let services = service::services(&source, file.service, &node)?;
        let cluster = cluster(&source, file.cluster)?;
        let ospf = file.ospf.map(|ospf| self::ospf(&source, ospf, &services)).transpose()?;
        locals.check(&source, &services, &cluster, ospf.as_ref())?;
        Ok(Self {
            ospf,
            cluster,
            services,
            definitions: Arc::new(definition::definitions(&source)?),
            metrics: file.metrics.map(|metrics| metrics.listen),
            node,
        })
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

fn node(source: &Source<'_>, node: file::Node) -> Result<(Node, local::Written), ConfigError> {
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
    let (locals, written) = local::locals(source, node.local_addresses, node.local_ports.as_ref())?;
    let node = Node {
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
        tunnel_sources: tunnel_sources(source, &node.tunnel_source)?,
        echo: match node.echo {
            file::Echo::WhileServed => Echo::WhileServed,
            file::Echo::Always => Echo::Always,
            file::Echo::Kernel => Echo::Kernel,
        },
        icmp_rate: node.icmp_rate,
        connections: capacity(source, "connections", &node.connections)?,
        half_open: capacity(source, "half_open", &node.half_open)?,
        locals,
    };
    Ok((node, written))
}

/// Room for connections in the kernel, of which all is taken from the start.
fn capacity(source: &Source<'_>, name: &str, wanted: &Spanned<u32>) -> Result<u32, ConfigError> {
    const MOST: u32 = 1 << 26;
    match *wanted.get_ref() {
        count @ 1..=MOST => Ok(count),
        _ => Err(source.at(wanted, format!("{name} must be from 1 to {MOST}"))),
    }
}

fn tunnel_sources(source: &Source<'_>, addresses: &[Spanned<IpAddr>]) -> Result<TunnelSources, ConfigError> {
    let mut sources = TunnelSources::default();
    for address in addresses {
        if let Some(why) = address::not_unicast(&IpNet::from(*address.get_ref())) {
            let message = format!("{} cannot be a tunnel's source ({why})", address.get_ref());
            return Err(source.at(address, message + "; use an address of this node"));
        }
        let taken = match *address.get_ref() {
            IpAddr::V4(v4) => sources.v4.replace(v4).is_some(),
            IpAddr::V6(v6) => sources.v6.replace(v6).is_some(),
        };
        if taken {
            let family = family(*address.get_ref());
            let message = format!("a second {family} address: tunnel_source has at most one of each family");
            return Err(source.at(address, message));
        }
    }
    Ok(sources)
}

fn interface_name(source: &Source<'_>, name: &Spanned<String>) -> Result<(), ConfigError> {
    let text = name.get_ref();
    if text.is_empty() || text.len() > 15 || text.contains(['/', ' ']) {
        return Err(source.at(name, format!("{text:?} is no interface name (1 to 15 characters)")));
    }
    Ok(())
}

/// Whether there is an IPv6 prefix to announce.
fn announces_ipv6<'a>(
    mut announce: impl Iterator<Item = &'a IpNet>,
    services: &BTreeMap<String, Service>,
) -> bool {
    let is_v6 = |prefix: &IpNet| matches!(prefix, IpNet::V6(_));
    announce.any(is_v6) || services.values().any(|service| service.prefixes().iter().any(is_v6))
}

fn ospf(
    source: &Source<'_>,
    spanned: Spanned<file::Ospf>,
    services: &BTreeMap<String, Service>,
) -> Result<Ospf, ConfigError> {
    let span = spanned.span();
    let ospf = spanned.into_inner();
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
        return Err(source.error(Some(span.clone()), message));
    }
    let ipv6 =
        ospf.ipv6.unwrap_or_else(|| announces_ipv6(ospf.announce.iter().map(Spanned::get_ref), services));
    let (mut seen, mut areas) = (BTreeSet::new(), areas::Areas::default());
    let mut interfaces = Vec::new();
    for interface in ospf.interface {
        interface_name(source, &interface.name)?;
        if !seen.insert(interface.name.get_ref().clone()) {
            return Err(source
                .at(&interface.name, format!("interface {:?} is listed twice", interface.name.get_ref())));
        }
        let bfd = interface.bfd.as_ref().map(|wanted| bfd(source, wanted)).transpose()?;
        if bfd.is_some() && interface.passive {
            let message = "bfd on a passive interface watches nobody; leave one of the two out";
            return Err(source.at(&interface.name, message));
        }
        if interface.unnumbered && matches!(interface.network, file::Network::Broadcast) {
            let message =
                "unnumbered is for point-to-point networks; give the device an address, or change network";
            return Err(source.at(&interface.name, message));
        }
        if *interface.cost.get_ref() == 0 {
            return Err(source.at(&interface.cost, "cost must be from 1 to 65535"));
        }
        let (simple, keys) = (interface.authentication, interface.keys);
        let own = (interface.area.as_ref(), interface.area_type.as_ref());
        let (area, area_kind) = areas.of(source, (&ospf.area, ospf.area_type.as_ref()), own)?;
        interfaces.push(OspfInterface {
            authentication: authentication::authentication(source, simple, keys, ipv6)?,
            ttl_security: interface.ttl_security,
            unnumbered: interface.unnumbered,
            name: interface.name.into_inner(),
            area,
            area_kind,
            broadcast: matches!(interface.network, file::Network::Broadcast),
            cost: *interface.cost.get_ref(),
            priority: interface.priority,
            passive: interface.passive,
            bfd,
        });
    }
    let kinds = interfaces.iter().map(|interface: &OspfInterface| interface.area_kind);
    areas::check_services(kinds, services).map_err(|message| source.error(Some(span), message))?;
    Ok(Ospf {
        external: areas::external(source, ospf.external.as_ref())?,
        aggregates: areas::aggregates(source, &ospf.aggregate)?,
        hello_interval,
        dead_interval,
        ipv6,
        ipv6_wanted: ospf.ipv6,
        announce: own_prefixes(source, &ospf.announce, services)?,
        import: ospf.import,
        interfaces,
    })
}

/// `announce`: prefixes of the node itself. A VIP among them would be announced whether or not it can be served, and by
/// a drained director too.
fn own_prefixes(
    source: &Source<'_>,
    announce: &[Spanned<IpNet>],
    services: &BTreeMap<String, Service>,
) -> Result<Vec<IpNet>, ConfigError> {
    let own = |entry: &Spanned<IpNet>| {
        let prefix = entry.get_ref().trunc();
        match services.iter().find(|(_, service)| service.prefixes().contains(&prefix)) {
            None => Ok(prefix),
            Some((name, _)) => {
                let message = format!(
                    "{prefix} is a VIP of service {name:?}, which announces it while it can be served; leave it out \
                     of `announce`"
                );
                Err(source.at(entry, message))
            }
        }
    };
    announce.iter().map(own).collect()
}

fn bfd(source: &Source<'_>, wanted: &file::Bfd) -> Result<Bfd, ConfigError> {
    let interval_ms = *wanted.interval_ms.get_ref();
    if !(10..=60_000).contains(&interval_ms) {
        return Err(source.at(&wanted.interval_ms, "interval_ms must be from 10 to 60000 milliseconds"));
    }
    let multiplier = u8::try_from(*wanted.multiplier.get_ref()).ok().and_then(NonZeroU8::new);
    let multiplier =
        multiplier.ok_or_else(|| source.at(&wanted.multiplier, "multiplier must be from 1 to 255"))?;
    Ok(Bfd { interval_ms, multiplier })
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
            isolated: Isolated::default(),
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
        isolated: cluster.isolated,
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
