//! What a speaker needs to know before it starts. The node turns its own configuration file into this;
//! [`Config::validate`] is the only judge of whether it can work.

mod bfd;
mod change;
mod places;

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use bfd::BfdConfig;
pub use change::ChangeError;
pub(crate) use places::Places;

use crate::{
    auth::{Authentication, KeyError},
    speaker::SpfDelays,
};

/// Metric of an announced prefix, 0 to 65534; 65535 is refused, as switches take it for unreachable.
pub type Metric = u16;

/// How an area treats routes from outside the domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AreaKind {
    /// AS-external-LSAs are flooded into it.
    #[default]
    Normal,
    /// No AS-external-LSAs; a default route comes as a summary (RFC 2328 section 3.6).
    Stub,
    /// A stub area of whose summaries only the default route is used. Border routers send no others as a rule; on
    /// the wire it is a stub area.
    TotallyStubby,
    /// No AS-external-LSAs, but NSSA-LSAs of its own (RFC 3101).
    Nssa,
}

impl AreaKind {
    /// Whether external prefixes can be announced in it.
    #[must_use]
    pub fn takes_externals(self) -> bool {
        matches!(self, Self::Normal | Self::Nssa)
    }

    /// Whether a route to another area is used in it.
    pub(crate) fn admits_summary(self, prefix: &IpNet) -> bool {
        self != Self::TotallyStubby || prefix.prefix_len() == 0
    }

    /// The name by which both sides of a mismatch are told.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Stub | Self::TotallyStubby => "stub",
            Self::Nssa => "NSSA",
        }
    }
}

/// Metric type of external routes (RFC 2328 section 2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MetricType {
    /// E1: the distance to us is added to the metric.
    #[serde(rename = "1")]
    One,
    /// E2: the metric alone counts, the distance only between equals.
    #[default]
    #[serde(rename = "2")]
    Two,
}

/// What external announcements have in common, unless one says otherwise. Their metrics are their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExternalConfig {
    /// Type of their metrics.
    pub metric_type: MetricType,
    /// Tag for the policies of others (RFC 2328 section A.4.5); 0 for none.
    pub tag: u32,
}

/// The kind of network behind an interface (RFC 2328 section 1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// One neighbour, no designated router.
    PointToPoint,
    /// Any number of neighbours with a designated router.
    Broadcast,
}

impl Network {
    /// The name in a configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PointToPoint => "point-to-point",
            Self::Broadcast => "broadcast",
        }
    }
}

/// One interface that takes part in OSPF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceConfig {
    /// Name of the network device, 1 to 15 bytes. It may appear later.
    pub name: String,
    /// Kind of network.
    pub network: Network,
    /// Area of the link.
    pub area: Ipv4Addr,
    /// How the area treats external routes; equal on every interface of an area.
    pub area_kind: AreaKind,
    /// Cost of sending over the interface for our own routes, 1 to 65535. What is advertised for transit is
    /// always MaxLinkMetric (RFC 6987), so that nobody routes through a director.
    pub cost: u16,
    /// Seconds between Hellos, 1 to 65535; equal on both sides.
    pub hello_interval: u16,
    /// Seconds of silence after which a neighbour is dead, above `hello_interval`; equal on both sides.
    pub dead_interval: u32,
    /// Seconds between retransmissions, 1 to 65535.
    pub retransmit_interval: u16,
    /// Priority to become designated router, 0 to 255; 0 is never.
    pub priority: u8,
    /// Advertise the prefix, speak to nobody.
    pub passive: bool,
    /// Accept neighbours whose MTU is larger than ours.
    pub mtu_ignore: bool,
    /// Instance id of OSPFv3 on the link, 0 to 31 for IPv6 unicast (RFC 5838 section 2.1); equal on both
    /// sides. Version 2 has none.
    pub instance: u8,
    /// Watch the neighbours by BFD; not on a passive interface, which has none.
    pub bfd: Option<BfdConfig>,
    /// How packets are authenticated; equal on both sides. What is serialised has substitutes for the secrets.
    pub authentication: Authentication,
    /// Send with an IP TTL of 255 and take nothing that has less, which can only come from the link itself
    /// (RFC 5082); the neighbours must send with 255 as well.
    pub ttl_security: bool,
    /// Point-to-point without an address of its own: version 2 sends from the router id, if that is an address of this
    /// machine, or else from that of its loopback. An address that the device does have goes first. Version 3 needs
    /// none.
    pub unnumbered: bool,
}

impl InterfaceConfig {
    /// An interface with the usual values: area 0, cost 10, hello 10 s, dead 40 s, priority 0.
    #[must_use]
    pub fn new(name: impl Into<String>, network: Network) -> Self {
        Self {
            name: name.into(),
            network,
            area: Ipv4Addr::UNSPECIFIED,
            area_kind: AreaKind::Normal,
            cost: 10,
            hello_interval: 10,
            dead_interval: 40,
            retransmit_interval: 2,
            priority: 0,
            passive: false,
            mtu_ignore: false,
            instance: 0,
            bfd: None,
            authentication: Authentication::None,
            ttl_security: false,
            unnumbered: false,
        }
    }

    pub(crate) fn hello(&self) -> Duration {
        Duration::from_secs(u64::from(self.hello_interval))
    }

    pub(crate) fn dead(&self) -> Duration {
        Duration::from_secs(u64::from(self.dead_interval))
    }

    pub(crate) fn retransmit(&self) -> Duration {
        Duration::from_secs(u64::from(self.retransmit_interval))
    }
}

/// Everything a speaker is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Identity in the OSPF domain; not zero, used by nobody else.
    pub router_id: Ipv4Addr,
    /// Speak version 2, for IPv4.
    pub ipv4: bool,
    /// Speak version 3, for IPv6, on the same interfaces.
    pub ipv6: bool,
    /// Interfaces, each name once.
    pub interfaces: Vec<InterfaceConfig>,
    /// Learned routes inside one of these prefixes go to the kernel; `0.0.0.0/0` admits all, an empty list
    /// none. What is announced or protected here is never installed.
    pub import: Vec<Ipv4Net>,
    /// The same for IPv6; `::/0` admits all.
    pub import6: Vec<Ipv6Net>,
    /// Kernel route table for learned routes, 1 or above; 254 is `main`.
    pub table: u32,
    /// `rtm_protocol` of installed routes, 5 to 255: how a later run knows its own.
    pub protocol: u8,
    /// Metric (`priority`) of installed routes in the kernel, above that of its routes to the links: in IPv6 those have
    /// 256, which is added.
    pub kernel_metric: u32,
    /// Next hops of one route at most, 1 to 64.
    pub max_paths: usize,
    /// How prefixes are announced that are announced as external.
    pub external: ExternalConfig,
    /// Each is announced in place of the announced prefixes inside it, while there is one. Routes to it or into it
    /// are never installed.
    pub aggregates: Vec<IpNet>,
    /// How calculations of routes are spread (RFC 8405).
    pub spf: SpfDelays,
}

/// The `rtm_protocol` of our routes unless configured otherwise (unassigned in iproute2's list).
pub const DEFAULT_PROTOCOL: u8 = 201;

/// Why a configuration cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The router id is zero.
    #[error("router_id 0.0.0.0 identifies nobody; use an address of this node")]
    RouterId,
    /// Neither version is spoken.
    #[error("ospf: neither ipv4 nor ipv6 is spoken; switch one of them on")]
    NoVersion,
    /// A name that no network device can have.
    #[error("interface name {name:?} is not 1 to 15 bytes without '/' and spaces")]
    Name {
        /// The name.
        name: String,
    },
    /// An interface listed twice.
    #[error("interface {name} is listed twice; keep one entry")]
    Twice {
        /// The name.
        name: String,
    },
    /// A value outside its range.
    #[error("{place}: {field} = {value}, expected {expected}")]
    Range {
        /// Interface name or `ospf`.
        place: String,
        /// Field name.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What it may be.
        expected: &'static str,
    },
    /// Two interfaces disagree about the type of an area.
    #[error("interface {name}: area {area} is of another type on another interface; make them equal")]
    AreaKind {
        /// The later interface.
        name: String,
        /// The area.
        area: Ipv4Addr,
    },
    /// BFD where nobody can be watched.
    #[error("interface {name}: bfd on a passive interface watches nobody; leave one of the two out")]
    PassiveBfd {
        /// The interface.
        name: String,
    },
    /// A broadcast network whose routers could not tell each other's addresses.
    #[error(
        "interface {name}: unnumbered is for point-to-point networks; give the device an address, or change network"
    )]
    UnnumberedBroadcast {
        /// The interface.
        name: String,
    },
    /// An authentication that cannot work.
    #[error("interface {name}: {error}")]
    Authentication {
        /// The interface.
        name: String,
        /// Why.
        error: KeyError,
    },
    /// The backbone cannot be a stub area or an NSSA.
    #[error(
        "interface {name}: area 0.0.0.0 cannot be a {kind} area; give the area another id, or make it normal"
    )]
    StubBackbone {
        /// The interface.
        name: String,
        /// What it was to be.
        kind: &'static str,
    },
}

impl Config {
    /// A configuration with the usual values: version 2 alone, all routes admitted, table `main`, protocol 201, 16
    /// paths.
    #[must_use]
    pub fn new(router_id: Ipv4Addr, interfaces: Vec<InterfaceConfig>) -> Self {
        Self {
            router_id,
            ipv4: true,
            ipv6: false,
            interfaces,
            import: vec![Ipv4Net::default()],
            import6: vec![Ipv6Net::default()],
            table: 254,
            protocol: DEFAULT_PROTOCOL,
            kernel_metric: 110,
            max_paths: 16,
            external: ExternalConfig::default(),
            aggregates: Vec::new(),
            spf: SpfDelays::default(),
        }
    }

    /// Checks every range and the agreement of the interfaces with each other.
    ///
    /// # Errors
    /// The first thing that cannot work, with its place and remedy.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.router_id.is_unspecified() {
            return Err(ConfigError::RouterId);
        }
        if !(self.ipv4 || self.ipv6) {
            return Err(ConfigError::NoVersion);
        }
        range("ospf", "table", u64::from(self.table), self.table >= 1, "1 or above")?;
        range("ospf", "protocol", u64::from(self.protocol), self.protocol >= 5, "5 to 255")?;
        let paths = u64::try_from(self.max_paths).unwrap_or(u64::MAX);
        range("ospf", "max_paths", paths, (1..=64).contains(&paths), "1 to 64")?;
        let hold_down = u64::try_from(self.spf.hold_down.as_millis()).unwrap_or(u64::MAX);
        let longer = self.spf.hold_down > self.spf.time_to_learn;
        range("ospf", "spf hold_down", hold_down, longer, "more than the time to learn")?;
        let mut names = BTreeSet::new();
        for interface in &self.interfaces {
            if !names.insert(&interface.name) {
                return Err(ConfigError::Twice { name: interface.name.clone() });
            }
            interface.validate()?;
            let authentic = interface.authentication.validate(self.ipv6);
            let name = || interface.name.clone();
            authentic.map_err(|error| ConfigError::Authentication { name: name(), error })?;
            if self.ipv6 {
                interface.validate_version_3()?;
            }
            let differs = |other: &&InterfaceConfig| {
                other.area == interface.area && other.area_kind != interface.area_kind
            };
            if self.interfaces.iter().any(|other| differs(&other)) {
                let (name, area) = (interface.name.clone(), interface.area);
                return Err(ConfigError::AreaKind { name, area });
            }
        }
        Ok(())
    }
}

impl InterfaceConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let place = format!("interface {}", self.name);
        let bad = |c: char| c == '/' || c.is_whitespace();
        if self.name.is_empty() || self.name.len() > 15 || self.name.contains(bad) {
            return Err(ConfigError::Name { name: self.name.clone() });
        }
        if self.area.is_unspecified() && self.area_kind != AreaKind::Normal {
            let (name, kind) = (self.name.clone(), self.area_kind.name());
            return Err(ConfigError::StubBackbone { name, kind });
        }
        range(&place, "cost", u64::from(self.cost), self.cost >= 1, "1 to 65535")?;
        let hello = self.hello_interval;
        range(&place, "hello_interval", u64::from(hello), hello >= 1, "1 to 65535 seconds")?;
        let dead = self.dead_interval;
        let above = dead > u32::from(hello);
        range(&place, "dead_interval", u64::from(dead), above, "more seconds than hello_interval")?;
        let again = self.retransmit_interval;
        range(&place, "retransmit_interval", u64::from(again), again >= 1, "1 to 65535 seconds")?;
        if self.passive && self.bfd.is_some() {
            return Err(ConfigError::PassiveBfd { name: self.name.clone() });
        }
        if self.unnumbered && self.network == Network::Broadcast {
            return Err(ConfigError::UnnumberedBroadcast { name: self.name.clone() });
        }
        self.bfd.map_or(Ok(()), |bfd| bfd.validate(&place))
    }

    /// What version 3 has less room for.
    fn validate_version_3(&self) -> Result<(), ConfigError> {
        let place = format!("interface {}", self.name);
        let dead = self.dead_interval;
        let fits = dead <= u32::from(u16::MAX);
        range(&place, "dead_interval", u64::from(dead), fits, "65535 seconds at most in OSPFv3")?;
        let instance = self.instance;
        range(&place, "instance", u64::from(instance), instance < 32, "0 to 31")
    }
}

fn range(
    place: &str,
    field: &'static str,
    value: u64,
    holds: bool,
    expected: &'static str,
) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Range { place: place.into(), field, value, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut Config)) -> String {
        let interface = InterfaceConfig::new("eth1", Network::PointToPoint);
        let mut config = Config::new(Ipv4Addr::new(10, 255, 0, 1), vec![interface]);
        config.validate().expect("the base is valid");
        change(&mut config);
        config.validate().expect_err("the change makes it invalid").to_string()
    }

    #[test]
    fn every_bad_value_is_refused_by_name() {
        assert!(refusal(|c| c.router_id = Ipv4Addr::UNSPECIFIED).contains("router_id"));
        assert!(refusal(|c| c.interfaces.push(c.interfaces[0].clone())).contains("listed twice"));
        assert!(refusal(|c| c.interfaces[0].cost = 0).contains("eth1: cost = 0"));
        assert!(refusal(|c| c.interfaces[0].dead_interval = 10).contains("dead_interval"));
        assert!(refusal(|c| c.interfaces[0].hello_interval = 0).contains("hello_interval"));
        assert!(refusal(|c| c.interfaces[0].name = "a/b".into()).contains("a/b"));
        assert!(refusal(|c| c.interfaces[0].area_kind = AreaKind::Stub).contains("stub"));
        assert!(refusal(|c| c.interfaces[0].area_kind = AreaKind::Nssa).contains("NSSA"));
        assert!(refusal(|c| c.spf.hold_down = c.spf.time_to_learn).contains("hold_down"));
        assert!(refusal(|c| c.max_paths = 0).contains("max_paths"));
        assert!(refusal(|c| c.protocol = 2).contains("protocol"));
        assert!(refusal(|c| c.ipv4 = false).contains("neither"));
        let bfd = |milliseconds| {
            let interval = Duration::from_millis(milliseconds);
            Some(BfdConfig { interval, ..BfdConfig::default() })
        };
        assert!(refusal(|c| c.interfaces[0].bfd = bfd(9)).contains("eth1: bfd interval = 9, expected 10 to"));
        assert!(refusal(|c| c.interfaces[0].bfd = bfd(60_001)).contains("bfd interval = 60001"));
        let watches_nobody = refusal(|c| {
            c.interfaces[0].passive = true;
            c.interfaces[0].bfd = bfd(50);
        });
        assert!(watches_nobody.contains("eth1: bfd on a passive interface"));
        let broadcast = refusal(|c| {
            c.interfaces[0].network = Network::Broadcast;
            c.interfaces[0].unnumbered = true;
        });
        assert!(broadcast.contains("eth1: unnumbered is for point-to-point"));
        let version_3 = |change: fn(&mut InterfaceConfig)| {
            refusal(|c| {
                c.ipv6 = true;
                change(&mut c.interfaces[0]);
            })
        };
        assert!(version_3(|i| i.dead_interval = 65_536).contains("65535 seconds at most"));
        assert!(version_3(|i| i.instance = 64).contains("instance = 64"));
    }
}
