//! What the agent may change, as it is recorded and told.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::devices::Device;

/// Something that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// A kernel setting.
    Setting {
        /// Its name, as `sysctl` writes it.
        name: String,
        /// The value before.
        before: i32,
        /// The value now.
        after: i32,
    },
    /// The loopback interface was down and is up.
    LoopbackUp,
    /// A VIP was added to the loopback interface.
    Address(IpAddr),
    /// What a VIP sends is routed by our own table.
    Rule(IpAddr),
    /// Our own routing table was made: the main one, with the largest segment to ask clients for.
    Routes,
    /// A tunnel device, or a port of one, was made.
    Device(Device),
    /// The XDP program was put on an interface.
    Program {
        /// The interface's name.
        interface: String,
        /// Its index.
        ifindex: u32,
    },
}

/// Bits of a prefix that is one address.
pub(super) const fn host_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting { name, before, after } => write!(f, "{name} = {after} (was {before})"),
            Self::LoopbackUp => write!(f, "interface lo is up (was down)"),
            Self::Address(vip) => write!(f, "{vip}/{} is on interface lo (was not)", host_bits(*vip)),
            Self::Rule(vip) => {
                write!(f, "what {vip} sends is routed by table {} (was not)", super::segment::TABLE)
            }
            Self::Routes => {
                write!(f, "table {} has the main routes with a smaller advmss", super::segment::TABLE)
            }
            Self::Device(device) => write!(f, "{device}"),
            Self::Program { interface, .. } => write!(f, "the XDP program is on interface {interface}"),
        }
    }
}
