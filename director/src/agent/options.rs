//! What the operator asks of a real server, checked.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use director_common::decapsulate::Settings;
use director_common::packet::overhead;
use director_common::tables::{Address, Encapsulation};
use ipnet::IpNet;

use super::AgentError;

/// UDP port of GUE where none is given.
pub const DEFAULT_GUE_PORT: u16 = 6080;
/// Smallest packet that every IPv4 host takes whole (RFC 791, section 3.1); IPv6's is 1280 (RFC 8200, section 5).
const LEAST_INNER: [u32; 2] = [576, 1280];
/// IP and TCP header without options, in bytes, for IPv4 and IPv6.
const HEADERS: [u32; 2] = [40, 60];

/// A kind of tunnel that directors reach this real server by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tunnel {
    /// IP in IP.
    Ipip,
    /// GRE.
    Gre,
    /// Generic UDP encapsulation.
    Gue {
        /// UDP port of this end.
        port: u16,
    },
}

impl Tunnel {
    const fn encapsulation(self) -> Encapsulation {
        match self {
            Self::Ipip => Encapsulation::Ipip,
            Self::Gre => Encapsulation::Gre,
            Self::Gue { .. } => Encapsulation::Gue,
        }
    }
}

impl FromStr for Tunnel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').map_or((text, None), |(kind, port)| (kind, Some(port))) {
            ("ipip", None) => Ok(Self::Ipip),
            ("gre", None) => Ok(Self::Gre),
            ("gue", None) => Ok(Self::Gue { port: DEFAULT_GUE_PORT }),
            ("gue", Some(port)) => match port.parse() {
                Ok(port) if port != 0 => Ok(Self::Gue { port }),
                _ => Err(format!("'{port}' is no UDP port (1 to 65535)")),
            },
            _ => Err(format!("'{text}' is none of ipip, gre, gue and gue:PORT")),
        }
    }
}

/// Who takes the inner packets out of tunnels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Devices of the kernel where it has them, else our XDP program.
    #[default]
    Auto,
    /// Devices of the kernel, or fail. Our XDP program checks what they get.
    Kernel,
    /// Our XDP program.
    Xdp,
}

/// What the agent is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// VIPs that this real server serves.
    pub vips: BTreeSet<IpAddr>,
    /// Tunnels that directors use; none for direct return.
    pub tunnels: BTreeSet<Tunnel>,
    /// Interfaces that tunnels come in by; if empty, every Ethernet interface that has an address for it.
    pub interfaces: Vec<String>,
    /// Prefixes of the directors' addresses; if empty, tunnels from anywhere are taken.
    pub from: Vec<IpNet>,
    /// Who takes the inner packets out.
    pub mode: Mode,
    /// Largest outer packet on the way from the directors in bytes; by default that of the interfaces.
    pub mtu: Option<u32>,
    /// Folder of the record of changes and of the pins.
    pub folder: PathBuf,
}

impl Options {
    /// Direct return of these VIPs.
    pub fn new(vips: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            vips: vips.into_iter().collect(),
            tunnels: BTreeSet::new(),
            interfaces: Vec::new(),
            from: Vec::new(),
            mode: Mode::default(),
            mtu: None,
            folder: PathBuf::from("/run/director"),
        }
    }

    /// # Errors
    /// [`AgentError::Vip`] or [`AgentError::Options`] of what cannot be.
    pub(super) fn check(&self) -> Result<(), AgentError> {
        if let Some(wrong) = self.vips.iter().find(|vip| !may_be_vip(**vip)) {
            return Err(AgentError::Vip(*wrong));
        }
        if self.vips.is_empty() {
            return Err(AgentError::Options("no VIP is given: name each by --vip"));
        }
        if self.gue_ports().count() > 1 {
            return Err(AgentError::Options("GUE can end at one port only: give --tunnel gue:PORT once"));
        }
        let idle = self.tunnels.is_empty() && (!self.from.is_empty() || self.mtu.is_some());
        if idle || self.tunnels.is_empty() && !self.interfaces.is_empty() {
            return Err(AgentError::Options(
                "--interface, --from and --mtu mean something with --tunnel only",
            ));
        }
        Ok(())
    }

    fn gue_ports(&self) -> impl Iterator<Item = u16> {
        self.tunnels.iter().filter_map(|tunnel| match tunnel {
            Tunnel::Gue { port } => Some(*port),
            Tunnel::Ipip | Tunnel::Gre => None,
        })
    }

    /// What the program is to do; a `guard` leaves the taking out to devices of the kernel.
    pub(super) fn settings(&self, guard: bool) -> Settings {
        let listed = if self.from.is_empty() { 0 } else { Settings::LISTED_ONLY };
        let guard = if guard { Settings::GUARD } else { 0 };
        self.tunnels.iter().fold(Settings(listed | guard), |settings, tunnel| match tunnel {
            Tunnel::Ipip => Settings(settings.0 | Settings::IPIP),
            Tunnel::Gre => Settings(settings.0 | Settings::GRE),
            Tunnel::Gue { port } => settings.with_gue(*port),
        })
    }

    /// The families of the VIPs: whether any is IPv4, and whether any is IPv6.
    pub(super) fn families(&self) -> [bool; 2] {
        [self.vips.iter().any(IpAddr::is_ipv4), self.vips.iter().any(IpAddr::is_ipv6)]
    }

    /// The largest TCP segments to ask clients for, in bytes, in IPv4 and in IPv6, so that they fit into the tunnels:
    /// outer packets hold `mtu` bytes, and `locals` are the addresses they may go to.
    ///
    /// # Errors
    /// [`AgentError::Mtu`] if not even the smallest packets of the VIPs' families fit.
    pub(super) fn segments(&self, mtu: u32, locals: &BTreeSet<IpAddr>) -> Result<[u32; 2], AgentError> {
        let outer = |v6: bool| if v6 { Address::default() } else { Address::from_ipv4([0; 4]) };
        let room = locals.iter().map(IpAddr::is_ipv6).flat_map(|v6| {
            self.tunnels.iter().map(move |tunnel| overhead(tunnel.encapsulation(), &outer(v6)) as u32)
        });
        let room = room.max().unwrap_or_default();
        let families = self.families().into_iter().zip(LEAST_INNER);
        let least = families.filter_map(|(any, least)| any.then_some(least)).max().unwrap_or_default();
        if mtu < least.saturating_add(room) {
            return Err(AgentError::Mtu { mtu, least: least.saturating_add(room) });
        }
        Ok(HEADERS.map(|headers| mtu.saturating_sub(room).saturating_sub(headers)))
    }
}

/// Whether the address can be served by several machines to clients elsewhere.
fn may_be_vip(vip: IpAddr) -> bool {
    let common = !(vip.is_unspecified() || vip.is_multicast() || vip.is_loopback());
    common
        && match vip {
            IpAddr::V4(vip) => !vip.is_broadcast() && !vip.is_link_local(),
            IpAddr::V6(vip) => !vip.is_unicast_link_local() && vip.to_ipv4_mapped().is_none(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn tunnels_are_read_with_their_port() {
        assert_eq!("ipip".parse(), Ok(Tunnel::Ipip));
        assert_eq!("gre".parse(), Ok(Tunnel::Gre));
        assert_eq!("gue".parse(), Ok(Tunnel::Gue { port: 6080 }));
        assert_eq!("gue:9999".parse(), Ok(Tunnel::Gue { port: 9999 }));
        for wrong in ["", "gue:", "gue:0", "gue:65536", "ipip:1", "vxlan"] {
            assert!(wrong.parse::<Tunnel>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn segments_leave_room_for_the_widest_tunnel() {
        let mut options = Options::new([ip("203.0.113.10"), ip("2001:db8::10")]);
        options.tunnels = BTreeSet::from([Tunnel::Ipip]);
        let v4 = BTreeSet::from([ip("10.0.0.1")]);
        let both = BTreeSet::from([ip("10.0.0.1"), ip("2001:db8:1::1")]);
        assert_eq!(options.segments(1500, &v4).expect("fits"), [1440, 1420]);
        assert_eq!(options.segments(1500, &both).expect("fits"), [1420, 1400]);
        options.tunnels.insert(Tunnel::Gue { port: 6080 });
        assert_eq!(options.segments(1500, &both).expect("fits"), [1408, 1388]);
        assert!(matches!(options.segments(1331, &both), Err(AgentError::Mtu { least: 1332, .. })));
    }

    #[test]
    fn what_only_tunnels_use_is_refused_without() {
        let mut options = Options::new([ip("203.0.113.10")]);
        assert!(options.check().is_ok());
        options.from = vec!["10.0.0.0/8".parse().expect("prefix")];
        assert!(matches!(options.check(), Err(AgentError::Options(_))));
        options.tunnels = BTreeSet::from([Tunnel::Gue { port: 1 }, Tunnel::Gue { port: 2 }]);
        assert!(matches!(options.check(), Err(AgentError::Options(_))));
    }
}
