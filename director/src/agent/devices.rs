//! Tunnel devices of the kernel, made by the `ip` command (iproute2).
//!
//! They take from any source and know nothing of VIPs: the XDP program stands guard before them. What comes out of one
//! can only be for this machine, since it forwards nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::AgentError;
use super::options::Tunnel;

/// The address of our devices (the dummy address of RFC 7600, section 4.8): from one without any address, reverse-path
/// filtering takes nothing, not even where it is loose.
pub(super) const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// A tunnel device, or a UDP port whose packets go to one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// A device, by what `ip link add` is told.
    Link {
        /// Its name.
        name: String,
        /// Type and what belongs to it.
        kind: String,
    },
    /// A port at which GUE is taken.
    Port {
        /// The UDP port.
        port: u16,
        /// Over IPv6, else over IPv4.
        v6: bool,
    },
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link { name, kind } => write!(f, "tunnel device {name} is made ({kind})"),
            Self::Port { port, v6 } => {
                let family = if *v6 { "IPv6" } else { "IPv4" };
                write!(f, "GUE is taken at UDP port {port} over {family}")
            }
        }
    }
}

/// The devices for these tunnels, which may end at these addresses.
pub(super) fn plan(tunnels: &BTreeSet<Tunnel>, ends: &BTreeSet<IpAddr>) -> Vec<Device> {
    let link = |name: &str, kind: &str| Device::Link { name: name.to_owned(), kind: kind.to_owned() };
    let v4: Vec<IpAddr> = ends.iter().copied().filter(IpAddr::is_ipv4).collect();
    let (over_v4, over_v6) = (!v4.is_empty(), ends.iter().any(IpAddr::is_ipv6));
    let mut devices = Vec::new();
    // What GUE holds is handed to the devices of IP in IP.
    let ip_in_ip = tunnels.iter().any(|tunnel| matches!(tunnel, Tunnel::Ipip | Tunnel::Gue { .. }));
    if ip_in_ip && over_v4 {
        devices.push(link("dir-ipip", "ipip external"));
        // This kind has no "external", and without an address of ours it would be that of the kernel's own sit0.
        let sit = v4.iter().enumerate();
        devices.extend(sit.map(|(number, end)| {
            link(&format!("dir-sit{number}"), &format!("sit mode ip6ip remote any local {end}"))
        }));
    }
    if ip_in_ip && over_v6 {
        devices.push(link("dir-ip6tnl", "ip6tnl mode any external"));
    }
    if tunnels.contains(&Tunnel::Gre) && over_v4 {
        devices.push(link("dir-gre", "gre external"));
    }
    if tunnels.contains(&Tunnel::Gre) && over_v6 {
        devices.push(link("dir-ip6gre", "ip6gre external"));
    }
    for tunnel in tunnels {
        if let Tunnel::Gue { port } = *tunnel {
            let families = [(over_v4, false), (over_v6, true)].into_iter();
            devices.extend(families.filter_map(|(any, v6)| any.then_some(Device::Port { port, v6 })));
        }
    }
    devices
}

impl Device {
    /// Makes it.
    pub(super) fn make(&self) -> Result<(), AgentError> {
        match self {
            Self::Link { name, kind } => {
                ip(&format!("link add {name} type {kind}"))?;
                ip(&format!("link set {name} addrgenmode none"))?;
                ip(&format!("link set {name} up"))?;
                ip(&format!("address add {DUMMY}/32 dev {name} scope host"))?;
                for family in ["ipv4", "ipv6"] {
                    close(family, name)?;
                }
                Ok(())
            }
            Self::Port { port, v6 } => {
                // The kernel does not fetch this module by itself; where it is built in there is none to fetch, and
                // where it is missing the next command says so.
                let _ = Command::new("modprobe").args(["-q", "-a", "fou", "fou6"]).output();
                ip(&format!("fou add port {port} gue{}", family_flag(*v6)))
            }
        }
    }

    /// Removes it; `false` if it is gone already.
    pub(super) fn remove(&self) -> Result<bool, AgentError> {
        match self {
            Self::Link { name, .. } => {
                if ip(&format!("link show dev {name}")).is_err() {
                    return Ok(false);
                }
                ip(&format!("link del {name}")).map(|()| true)
            }
            Self::Port { port, v6 } => Ok(ip(&format!("fou del port {port}{}", family_flag(*v6))).is_ok()),
        }
    }
}

const fn family_flag(v6: bool) -> &'static str {
    if v6 { " -6" } else { "" }
}

/// Lets nothing that came by a device be forwarded.
fn close(family: &str, device: &str) -> Result<(), AgentError> {
    let path = std::path::PathBuf::from(format!("/proc/sys/net/{family}/conf/{device}/forwarding"));
    match std::fs::write(&path, "0") {
        // Without IPv6 there is nothing to forward.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(AgentError::Sysctl { path, source: error })
        }
        _ => Ok(()),
    }
}

fn ip(arguments: &str) -> Result<(), AgentError> {
    let failed = |said| AgentError::Device { command: format!("ip {arguments}"), said };
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .map_err(|error| failed(format!("{error} (install iproute2)")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
