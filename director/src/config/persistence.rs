//! `persistent`: for some time, all connections of a client go to one real server.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;

use super::address::VirtualAddress;
use super::{ConfigError, Source, file};

/// Longest time in seconds: a week.
const MAX_TIMEOUT: u32 = 604_800;

/// How clients stay with their real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// For how long after the client's last new connection; longer while connections are known.
    pub timeout: Duration,
    /// First bits of an IPv4 address that make a client: 1 to 32.
    pub prefix_v4: u8,
    /// The same of an IPv6 address: 1 to 128.
    pub prefix_v6: u8,
    /// A real server of weight 0 gets no new connections of clients that it had either.
    pub expire_quiescent: bool,
}

impl Persistence {
    /// Who a client with this address is: all that have its first bits in common, by the first of their addresses.
    pub fn client(&self, address: IpAddr) -> IpAddr {
        let length = if address.is_ipv4() { self.prefix_v4 } else { self.prefix_v6 };
        IpNet::new(address, length).map_or(address, |network| network.trunc().addr())
    }
}

impl fmt::Display for Persistence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeout, prefix_v4, prefix_v6, expire_quiescent } = self;
        write!(f, "persistent {} s by /{prefix_v4} and /{prefix_v6}", timeout.as_secs())?;
        if *expire_quiescent { f.write_str(", not with weight 0") } else { Ok(()) }
    }
}

/// What is written about it.
pub(super) fn persistence(
    source: &Source<'_>,
    entry: &file::Service,
    addresses: &[VirtualAddress],
) -> Result<Option<Persistence>, ConfigError> {
    let Some(persistent) = &entry.persistent else {
        let alone = "is for services whose clients stay with a real server: write persistent = SECONDS too, or leave it out";
        if let Some(prefix) = &entry.persistent_prefix {
            return Err(source.at(prefix, format!("persistent_prefix {alone}")));
        }
        return match &entry.expire_quiescent {
            Some(expires) => Err(source.at(expires, format!("expire_quiescent {alone}"))),
            None => Ok(None),
        };
    };
    let seconds = *persistent.get_ref();
    if !(1..=MAX_TIMEOUT).contains(&seconds) {
        let message = format!(
            "persistent must be from 1 to {MAX_TIMEOUT} seconds; leave it out where clients need not stay"
        );
        return Err(source.at(persistent, message));
    }
    if matches!(entry.hash, file::Hash::SourcePort) {
        let message = "clients stay by their addresses, so their ports must not matter: leave hash = \"source-port\" out";
        return Err(source.at(persistent, message));
    }
    if let Some(one_packet) = entry.one_packet.as_ref().filter(|one_packet| *one_packet.get_ref()) {
        let message = "of datagrams that stand for themselves nothing is remembered: leave one_packet out, or persistent";
        return Err(source.at(one_packet, message));
    }
    if let Some(quic) = &entry.quic {
        let message =
            "QUIC connections are found by their ids, whoever the client is: leave quic out, or persistent";
        return Err(source.at(quic, message));
    }
    let written = entry.persistent_prefix.as_ref().map(Spanned::get_ref);
    let prefix = |name: &str, length: Option<&Spanned<u8>>, is_v4: bool, most: u8| {
        let Some(length) = length else { return Ok(most) };
        if !addresses.iter().any(|address| address.prefix.addr().is_ipv4() == is_v4) {
            let family = if is_v4 { "IPv4" } else { "IPv6" };
            return Err(source.at(length, format!("the service has no {family} address: leave {name} out")));
        }
        if !(1..=most).contains(length.get_ref()) {
            let message = format!("{name} must be from 1 to {most}: the first bits of a client's address");
            return Err(source.at(length, message));
        }
        Ok(*length.get_ref())
    };
    Ok(Some(Persistence {
        timeout: Duration::from_secs(seconds.into()),
        prefix_v4: prefix("v4", written.and_then(|written| written.v4.as_ref()), true, 32)?,
        prefix_v6: prefix("v6", written.and_then(|written| written.v6.as_ref()), false, 128)?,
        expire_quiescent: entry.expire_quiescent.as_ref().is_some_and(|expires| *expires.get_ref()),
    }))
}
