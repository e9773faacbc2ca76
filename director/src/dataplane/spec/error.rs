//! What can be wrong with a specification.

use std::net::IpAddr;

use director_common::tables::MAX_SERVICE_NAME;
use director_common::{SLOTS, SMALL_SLOTS};
use ipnet::IpNet;

use super::{Ports, ServiceAddress};

/// What is wrong with a list of services. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A name that is empty or too long.
    #[error("service name '{0}' must have 1 to {MAX_SERVICE_NAME} bytes")]
    Name(String),
    /// Two services of one name.
    #[error("there are two services named '{0}'")]
    DuplicateName(String),
    /// A service without an address.
    #[error("service '{0}' has no address")]
    NoAddress(String),
    /// Two services on one address, protocol and ports.
    #[error("service '{service}' and service '{other}' both want {address}")]
    DuplicateAddress {
        /// One of them.
        service: String,
        /// The other (the same, if it lists the address twice).
        other: String,
        /// What both want.
        address: ServiceAddress,
    },
    /// Ranges of which neither is more specific.
    #[error(
        "service '{service}' has {address} and service '{other}' has {ports} there: of ranges that overlap one must \
         be within the other"
    )]
    Overlap {
        /// One of the services.
        service: String,
        /// What it wants.
        address: ServiceAddress,
        /// The other (possibly the same).
        other: String,
        /// What the other wants of that address and protocol.
        ports: Ports,
    },
    /// A prefix with bits behind its length, or one that has IPv4 addresses in IPv6's form.
    #[error("service '{service}': {prefix} is not a prefix of VIPs: {reason}")]
    Prefix {
        /// The service.
        service: String,
        /// The prefix.
        prefix: IpNet,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Ports that end before they begin, or port 0.
    #[error("service '{service}': {ports} is no range of 1-65535")]
    Ports {
        /// The service.
        service: String,
        /// The ports.
        ports: Ports,
    },
    /// A tunnel needs an address of ours.
    #[error(
        "service '{service}': the tunnel to {address} has no source address of that family: set the node's tunnel \
         source"
    )]
    NoTunnelSource {
        /// The service.
        service: String,
        /// The real server.
        address: IpAddr,
    },
    /// Port 0 is no port.
    #[error("service '{0}': port 0 cannot be the far end of a tunnel")]
    TunnelPort(String),
    /// Neither direct return nor a tunnel can rewrite ports.
    #[error(
        "service '{service}': real server {address} has port {port}, but direct return and tunnels cannot change \
         the port of a packet to {wanted}"
    )]
    Port {
        /// The service.
        service: String,
        /// The real server.
        address: IpAddr,
        /// Its port.
        port: u16,
        /// The service's ports.
        wanted: ServiceAddress,
    },
    /// Of a prefix nobody could tell which VIP an answer is to come from.
    #[error("service '{service}': NAT needs single VIPs, and {prefix} is a prefix")]
    NatPrefix {
        /// The service.
        service: String,
        /// The prefix.
        prefix: IpNet,
    },
    /// NAT changes addresses and not families.
    #[error(
        "service '{service}': NAT cannot take packets for {wanted} to {address}, which is of the other family"
    )]
    NatFamily {
        /// The service.
        service: String,
        /// The real server.
        address: IpAddr,
        /// One of the service's addresses.
        wanted: ServiceAddress,
    },
    /// Full NAT keeps an entry for every connection.
    #[error("service '{0}': with full NAT its connections must be tracked")]
    FullNatUntracked(String),
    /// There is nothing to put in the place of clients.
    #[error(
        "service '{service}': full NAT to {address} needs a local address of that family: set the node's local_addresses"
    )]
    NoLocalAddress {
        /// The service.
        service: String,
        /// The real server.
        address: IpAddr,
    },
    /// Two VIPs or ports that a real server's answers could be of.
    #[error(
        "services '{service}' and '{other}' both have {ports} of real server {address} by NAT: nobody could tell whose \
         its answers are"
    )]
    NatConflict {
        /// One of them.
        service: String,
        /// The other (the same, if it has two addresses for that port).
        other: String,
        /// The real server.
        address: IpAddr,
        /// Its ports, as the first of them has them.
        ports: Ports,
    },
    /// Too many real servers.
    #[error("service '{service}' has {count} real servers, at most {limit} are possible")]
    TooManyReals {
        /// The service.
        service: String,
        /// How many it has.
        count: usize,
        /// How many it may have.
        limit: usize,
    },
    /// The wrong number of slots.
    #[error("service '{service}' has {count} slots instead of {SLOTS} or {SMALL_SLOTS}")]
    SlotCount {
        /// The service.
        service: String,
        /// How many it has.
        count: usize,
    },
    /// A slot whose owner is not there.
    #[error("service '{service}': slot {slot} names position {position}, but there are {count} real servers")]
    Position {
        /// The service.
        service: String,
        /// The slot.
        slot: usize,
        /// What it names.
        position: u16,
        /// How many real servers there are.
        count: usize,
    },
    /// One real server twice.
    #[error("service '{service}' lists real server {address} port {port} twice")]
    DuplicateReal {
        /// The service.
        service: String,
        /// The real server.
        address: IpAddr,
        /// Its port.
        port: u16,
    },
    /// A server id that is nowhere in a connection id.
    #[error(
        "service '{0}': a QUIC server id has 1 to 4 bytes and lies within the 20 bytes that a connection id has at most"
    )]
    QuicPosition(String),
    /// A server id that does not fit, or is another's.
    #[error(
        "service '{service}': QUIC server id {id} of {address} is another real server's, or has too many bytes"
    )]
    QuicId {
        /// The service.
        service: String,
        /// The real server.
        address: IpAddr,
        /// Its id.
        id: u32,
    },
    /// A scheduler that chooses for connections, where there are none.
    #[error("service '{0}' is tracked, so its datagrams are flows: neither one-packet nor QUIC")]
    TrackedDatagrams(String),
    /// A client that no address is.
    #[error(
        "service '{service}' is persistent by the first {prefix_v4} bits of IPv4 addresses and the first {prefix_v6} of \
         IPv6 ones, which must be 1 to 32 and 1 to 128"
    )]
    PersistencePrefix {
        /// Which service.
        service: String,
        /// Bits of IPv4 addresses.
        prefix_v4: u8,
        /// Bits of IPv6 addresses.
        prefix_v6: u8,
    },
    /// More services or addresses than the maps hold.
    #[error("{count} {what} are more than the {limit} the data plane holds")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
}
