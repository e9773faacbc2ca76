//! Addresses a service answers on: host or prefix, protocol, port or ports.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use toml::Spanned;

use super::{ConfigError, Source, file};

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

/// One port, a range of them, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl Ports {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// A single port; 0 stands for all of them.
    pub fn one(port: u16) -> Self {
        match port {
            0 => Self::ALL,
            port => Self { first: port, last: port },
        }
    }

    /// Whether this is one port and no more.
    pub fn is_one(self) -> bool {
        self.first == self.last
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ALL => f.write_str("all"),
            Self { first, last } if first == last => write!(f, "{first}"),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

/// One address a service answers on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VirtualAddress {
    /// The VIP, or all of them. No bit beyond the length is set.
    pub prefix: IpNet,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Virtual ports.
    pub ports: Ports,
}

impl VirtualAddress {
    /// The VIP without the length that says it is one address; `address/length` for more.
    pub fn vip(&self) -> String {
        if is_host(&self.prefix) { self.prefix.addr().to_string() } else { self.prefix.to_string() }
    }
}

impl fmt::Display for VirtualAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, vip, ports) = (self.protocol.name(), self.vip(), self.ports);
        match self.prefix {
            IpNet::V4(_) => write!(f, "{protocol} {vip}:{ports}"),
            IpNet::V6(_) => write!(f, "{protocol} [{vip}]:{ports}"),
        }
    }
}

/// Name of an address's family.
pub fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Whether the prefix is one address.
pub(super) fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// What no packet that is forwarded has as its destination, and what it is.
const NEVER_UNICAST: [(&str, &str); 8] = [
    ("0.0.0.0/8", "\"this network\""),
    ("127.0.0.0/8", "loopback"),
    ("224.0.0.0/4", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("::/127", "unspecified or loopback"),
    ("::ffff:0:0/96", "IPv4 written as IPv6"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

/// Why `prefix` has addresses that no packet can be sent to by a router, if it has.
pub(super) fn not_unicast(prefix: &IpNet) -> Option<&'static str> {
    NEVER_UNICAST.iter().find_map(|(net, what)| {
        let net: IpNet = net.parse().expect("invariant: a constant prefix");
        (net.contains(prefix) || prefix.contains(&net)).then_some(*what)
    })
}

/// The VIP or the prefix of VIPs written there.
pub(super) fn prefix(source: &Source<'_>, text: &Spanned<String>) -> Result<IpNet, ConfigError> {
    let written = text.get_ref();
    let parsed = match written.contains('/') {
        true => written.parse::<IpNet>().ok(),
        false => written.parse::<IpAddr>().ok().map(IpNet::from),
    };
    let Some(prefix) = parsed else {
        let message = format!(
            "{written:?} is neither an IP address nor a prefix; write for example \"203.0.113.10\", \"2001:db8::10\" \
             or \"203.0.113.0/28\""
        );
        return Err(source.at(text, message));
    };
    if prefix != prefix.trunc() {
        let message = format!("{prefix} has bits set beyond its length; write \"{}\"", prefix.trunc());
        return Err(source.at(text, message));
    }
    match not_unicast(&prefix) {
        Some(why) => {
            Err(source.at(text, format!("{written} cannot be a VIP ({why}); use a unicast address")))
        }
        None => Ok(prefix),
    }
}

/// The ports written as `port` or `ports`, of which there must not be both; `None` if there is neither.
pub(super) fn ports(
    source: &Source<'_>,
    port: Option<&Spanned<u16>>,
    range: Option<&Spanned<String>>,
) -> Result<Option<Ports>, ConfigError> {
    let Some(range) = range else { return Ok(port.map(|port| Ports::one(*port.get_ref()))) };
    if port.is_some() {
        return Err(source.at(range, "write either `port` or `ports`, not both"));
    }
    let ends = range.get_ref().split_once('-');
    let parsed = ends.and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match parsed {
        Some((first, last)) if 0 < first && first < last => Ok(Some(Ports { first, last })),
        Some((first, last)) if 0 < first && first == last => {
            Err(source.at(range, format!("a range of one port: write port = {first}")))
        }
        Some((0, u16::MAX)) => Err(source.at(range, "for all ports write port = 0")),
        _ => {
            let message = format!(
                "{:?} is no range of ports; write ports = \"8000-8999\", the lower one first, both from 1 to 65535",
                range.get_ref()
            );
            Err(source.at(range, message))
        }
    }
}

/// The protocol, if this version knows it.
pub(super) fn protocol(
    source: &Source<'_>,
    protocol: &Spanned<file::Protocol>,
) -> Result<Protocol, ConfigError> {
    match protocol.get_ref() {
        file::Protocol::Tcp => Ok(Protocol::Tcp),
        file::Protocol::Udp => Ok(Protocol::Udp),
        file::Protocol::Sctp => {
            Err(source.unsupported(protocol, "protocol \"sctp\"", "use \"tcp\" or \"udp\""))
        }
    }
}
