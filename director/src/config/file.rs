//! The configuration file as TOML spells it. Only [`super::Config`], the validated form, leaves the
//! parent module. Every key is either honoured or refused: what a later version will know is refused by name.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) node: Node,
    pub(super) ospf: Option<Spanned<Ospf>>,
    pub(super) cluster: Option<Cluster>,
    #[serde(default)]
    pub(super) service: Vec<Service>,
    pub(super) metrics: Option<Metrics>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub(super) router_id: Spanned<Ipv4Addr>,
    pub(super) interfaces: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    pub(super) xdp_mode: XdpMode,
    #[serde(default)]
    pub(super) flow_accounting: bool,
    #[serde(default = "default_pin_dir")]
    pub(super) pin_dir: PathBuf,
    #[serde(default = "default_state_dir")]
    pub(super) state_dir: PathBuf,
    #[serde(default)]
    pub(super) tunnel_source: Vec<Spanned<IpAddr>>,
    #[serde(default)]
    pub(super) local_addresses: Vec<Spanned<IpAddr>>,
    pub(super) local_ports: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) echo: Echo,
    #[serde(default = "default_icmp_rate")]
    pub(super) icmp_rate: u32,
    #[serde(default = "default_connections")]
    pub(super) connections: Spanned<u32>,
    #[serde(default = "default_half_open")]
    pub(super) half_open: Spanned<u32>,
}

fn default_pin_dir() -> PathBuf {
    "/run/director/bpf".into()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/director".into()
}

fn default_connections() -> Spanned<u32> {
    unplaced(1 << 20)
}

fn default_half_open() -> Spanned<u32> {
    unplaced(1 << 16)
}

fn default_icmp_rate() -> u32 {
    1_000
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Echo {
    #[default]
    WhileServed,
    Always,
    Kernel,
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "lowercase")]
pub(super) enum XdpMode {
    #[default]
    Auto,
    Native,
    Generic,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ospf {
    #[serde(default = "backbone")]
    pub(super) area: Spanned<Ipv4Addr>,
    #[serde(default)]
    pub(super) area_type: Option<Spanned<AreaType>>,
    /// How services are announced that are announced as external.
    pub(super) external: Option<External>,
    /// Prefixes announced in place of the VIPs inside them.
    #[serde(default)]
    pub(super) aggregate: Vec<Spanned<IpNet>>,
    #[serde(default = "default_hello")]
    pub(super) hello_interval: Spanned<u16>,
    pub(super) dead_interval: Option<Spanned<u32>>,
    /// Prefixes of the node itself, announced as stub links beside the VIPs.
    #[serde(default)]
    pub(super) announce: Vec<Spanned<IpNet>>,
    /// Which learned prefixes are installed; absent: all but VIPs and our own.
    pub(super) import: Option<Vec<IpNet>>,
    /// Speak OSPFv3 too; absent: if there is an IPv6 prefix to announce.
    pub(super) ipv6: Option<bool>,
    #[serde(default)]
    pub(super) interface: Vec<OspfInterface>,
}

fn backbone() -> Spanned<Ipv4Addr> {
    unplaced(Ipv4Addr::UNSPECIFIED)
}

fn default_hello() -> Spanned<u16> {
    unplaced(10)
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(super) enum AreaType {
    Normal,
    Stub,
    TotallyStubby,
    Nssa,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct External {
    /// 1 or 2.
    #[serde(rename = "type", default = "default_metric_type")]
    pub(super) metric_type: Spanned<u8>,
    #[serde(default)]
    pub(super) tag: u32,
}

fn default_metric_type() -> Spanned<u8> {
    unplaced(2)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OspfInterface {
    pub(super) name: Spanned<String>,
    /// Where it differs from that of `[ospf]`.
    pub(super) area: Option<Spanned<Ipv4Addr>>,
    pub(super) area_type: Option<Spanned<AreaType>>,
    #[serde(default)]
    pub(super) network: Network,
    #[serde(default = "default_cost")]
    pub(super) cost: Spanned<u16>,
    #[serde(default)]
    pub(super) priority: u8,
    #[serde(default)]
    pub(super) passive: bool,
    pub(super) bfd: Option<Bfd>,
    pub(super) authentication: Option<Spanned<OspfAuthentication>>,
    pub(super) keys: Option<Spanned<Vec<OspfKey>>>,
    #[serde(default)]
    pub(super) ttl_security: bool,
    #[serde(default)]
    pub(super) unnumbered: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OspfAuthentication {
    #[serde(rename = "type")]
    pub(super) kind: Spanned<String>,
    pub(super) secret: Option<String>,
    pub(super) secret_file: Option<Spanned<PathBuf>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OspfKey {
    pub(super) id: u8,
    pub(super) algorithm: Spanned<String>,
    pub(super) secret: Option<String>,
    pub(super) secret_file: Option<Spanned<PathBuf>>,
    pub(super) send_from: Option<Spanned<toml::value::Datetime>>,
    pub(super) send_until: Option<Spanned<toml::value::Datetime>>,
    pub(super) accept_from: Option<Spanned<toml::value::Datetime>>,
    pub(super) accept_until: Option<Spanned<toml::value::Datetime>>,
    #[serde(default)]
    pub(super) swapped_protocol_id: bool,
}

/// `bfd = {}` takes the defaults, which are FRR's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bfd {
    #[serde(default = "default_bfd_interval")]
    pub(super) interval_ms: Spanned<u32>,
    #[serde(default = "default_bfd_multiplier")]
    pub(super) multiplier: Spanned<u16>,
}

fn default_bfd_interval() -> Spanned<u32> {
    unplaced(300)
}

fn default_bfd_multiplier() -> Spanned<u16> {
    unplaced(3)
}

fn default_cost() -> Spanned<u16> {
    unplaced(10)
}

#[derive(Deserialize, Clone, Copy, Default)]
pub(super) enum Network {
    #[default]
    #[serde(rename = "point-to-point")]
    PointToPoint,
    #[serde(rename = "broadcast")]
    Broadcast,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cluster {
    pub(super) name: Spanned<String>,
    pub(super) listen: Option<Spanned<SocketAddr>>,
    #[serde(default)]
    pub(super) peers: Vec<Spanned<SocketAddr>>,
    pub(super) discover: Option<Spanned<toml::Value>>,
    pub(super) tls: Option<Tls>,
    #[serde(default = "default_grace")]
    pub(super) grace_ms: u32,
    #[serde(default = "default_heartbeat")]
    pub(super) heartbeat_ms: Spanned<u32>,
    #[serde(default = "default_dead")]
    pub(super) dead_ms: Spanned<u32>,
    #[serde(default)]
    pub(super) isolated: super::Isolated,
}

fn default_grace() -> u32 {
    3_000
}

fn default_heartbeat() -> Spanned<u32> {
    unplaced(200)
}

fn default_dead() -> Spanned<u32> {
    unplaced(1_000)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) ca: Spanned<PathBuf>,
    pub(super) certificate: Spanned<PathBuf>,
    pub(super) key: Spanned<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {
    pub(super) listen: SocketAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: Spanned<String>,
    /// An address or a prefix.
    pub(super) vip: Spanned<String>,
    #[serde(default = "default_protocol")]
    pub(super) protocol: Spanned<Protocol>,
    /// One port, or 0 for all.
    pub(super) port: Option<Spanned<u16>>,
    /// A range of ports, `"first-last"`.
    pub(super) ports: Option<Spanned<String>>,
    /// More addresses of the same service.
    #[serde(default)]
    pub(super) also: Vec<Spanned<Also>>,
    #[serde(default = "default_forwarding")]
    pub(super) forwarding: Spanned<Forwarding>,
    pub(super) tunnel: Option<Spanned<Tunnel>>,
    #[serde(default)]
    pub(super) scheduler: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) hash: Hash,
    pub(super) slots: Option<Spanned<u32>>,
    pub(super) timeouts: Option<Spanned<Timeouts>>,
    pub(super) when_full: Option<Spanned<WhenFull>>,
    /// Takes new connections that nobody else takes.
    pub(super) sorry_server: Option<Spanned<IpAddr>>,
    /// Seconds for which a client's connections go to one real server after its last new one.
    pub(super) persistent: Option<Spanned<u32>>,
    pub(super) persistent_prefix: Option<Spanned<PersistentPrefix>>,
    pub(super) expire_quiescent: Option<Spanned<bool>>,
    pub(super) one_packet: Option<Spanned<bool>>,
    pub(super) quic: Option<Spanned<Quic>>,
    /// OSPF metric of the VIP.
    #[serde(default = "default_metric")]
    pub(super) metric: Spanned<u16>,
    /// As what OSPF announces the VIP.
    #[serde(default)]
    pub(super) announce: Announce,
    /// How, if it is external and not as `[ospf]` says.
    pub(super) external: Option<Spanned<External>>,
    pub(super) health: Option<super::health::Raw>,
    /// Live real servers it takes to announce the VIP.
    #[serde(default = "default_quorum")]
    pub(super) quorum: u32,
    /// How far beyond `quorum` it must go either way before the VIP comes or goes.
    #[serde(default)]
    pub(super) hysteresis: u32,
    #[serde(default)]
    pub(super) real: Vec<Real>,
}

/// First bits of an address that make a client.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PersistentPrefix {
    pub(super) v4: Option<Spanned<u8>>,
    pub(super) v6: Option<Spanned<u8>>,
}

/// Of connections that find no room to be tracked.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum WhenFull {
    Forward,
    Refuse,
}

/// One more address of a service; what is left out is as for the first.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Also {
    pub(super) vip: Spanned<String>,
    pub(super) protocol: Option<Spanned<Protocol>>,
    pub(super) port: Option<Spanned<u16>>,
    pub(super) ports: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tunnel {
    #[serde(rename = "type", default)]
    pub(super) kind: TunnelKind,
    /// UDP port of the real servers' end; GUE only.
    pub(super) port: Option<Spanned<u16>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub(super) enum TunnelKind {
    #[default]
    Ipip,
    Gre,
    Gue,
}

/// Seconds without a packet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    pub(super) established: Option<Spanned<u32>>,
    pub(super) fin: Option<Spanned<u32>>,
    pub(super) udp: Option<Spanned<u32>>,
}

/// Where a QUIC connection id holds the real server's id, in bytes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Quic {
    pub(super) offset: Spanned<u8>,
    pub(super) length: Spanned<u8>,
}

fn default_quorum() -> u32 {
    1
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "lowercase")]
pub(super) enum Announce {
    #[default]
    Stub,
    External,
}

fn default_metric() -> Spanned<u16> {
    unplaced(10)
}

fn default_protocol() -> Spanned<Protocol> {
    unplaced(Protocol::Tcp)
}

fn default_forwarding() -> Spanned<Forwarding> {
    unplaced(Forwarding::Dr)
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// With `nat` real servers must send their answers to the directors, any of them: these are their gateway, or whoever
/// is sends on to them what comes from there (the lab's switches do).
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub(super) enum Forwarding {
    Dr,
    Tunnel,
    Nat,
    Fullnat,
    Local,
}

/// With `source-port` the slot depends on the client's port too. A later fragment of a datagram has none: it follows
/// its first one, and is dropped and counted if it comes before that.
#[derive(Deserialize, Clone, Copy, Default)]
pub(super) enum Hash {
    #[default]
    #[serde(rename = "source")]
    Source,
    #[serde(rename = "source-port")]
    SourcePort,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Real {
    pub(super) address: Spanned<IpAddr>,
    pub(super) port: Option<Spanned<u16>>,
    #[serde(default = "default_weight")]
    pub(super) weight: Spanned<u32>,
    /// Connections with which it takes no more.
    pub(super) upper: Option<Spanned<u32>>,
    /// Connections below which it takes some again.
    pub(super) lower: Option<Spanned<u32>>,
    pub(super) quic_id: Option<Spanned<u32>>,
}

fn default_weight() -> Spanned<u32> {
    unplaced(1)
}

/// A default value: it has no place in the file.
fn unplaced<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}
