//! What can go wrong on a real server.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// Why a real server could not be prepared or restored.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Not an address that can be a VIP.
    #[error("{0} cannot be a VIP of a real server: it must be a unicast address, not of one link or host")]
    Vip(IpAddr),
    /// A VIP is where it would be told of.
    #[error(
        "VIP {vip} is on interface {interface}, where this machine tells the network of it, so that its traffic \
         would pass the directors by: remove it there (ip address del {vip} dev {interface}), the agent puts it \
         on interface lo"
    )]
    Elsewhere {
        /// The VIP.
        vip: IpAddr,
        /// The interface.
        interface: String,
    },
    /// Options contradict each other.
    #[error("{0}")]
    Options(&'static str),
    /// A named interface is not there.
    #[error("there is no Ethernet interface '{0}': see `ip link` and correct --interface")]
    NoInterface(String),
    /// There is nothing to put the program on.
    #[error(
        "no Ethernet interface has an address that directors could send tunnels to: name one by --interface"
    )]
    NoInterfaces,
    /// The way is too narrow for anything to fit into the tunnel.
    #[error(
        "an outer packet of {mtu} bytes is too small for these tunnels: at least {least} (correct --mtu)"
    )]
    Mtu {
        /// Largest outer packet in bytes.
        mtu: u32,
        /// The smallest that would do, in bytes.
        least: u32,
    },
    /// Another agent is at work in this network namespace.
    #[error("another agent (process {0}) runs here: stop it first, it undoes its changes itself")]
    Running(u32),
    /// The record of changes could not be read or written.
    #[error("cannot {what} {path}")]
    State {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A kernel setting could not be read or written.
    #[error("cannot access {path} (needs root)")]
    Sysctl {
        /// The file under `/proc/sys`.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// An address, a rule, a route or an interface could not be changed.
    #[error("cannot {what} (needs root)")]
    Netlink {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: rtnetlink::Error,
    },
    /// A device of the kernel could not be made or removed.
    #[error("`{command}` failed: {said}")]
    Device {
        /// The command.
        command: String,
        /// What it said.
        said: String,
    },
    /// The XDP program could not be loaded, fed, read or attached.
    #[error("cannot {what}")]
    Program {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl AgentError {
    /// For `map_err`: the failure of something done with the XDP program.
    pub(super) fn program<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let what = what.into();
        move |source| Self::Program { what, source: Box::new(source) }
    }

    /// For `map_err`: the failure of a request by netlink.
    pub(super) fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let what = what.into();
        move |source| Self::Netlink { what, source }
    }
}

/// The innermost reason of an error.
pub(super) fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
