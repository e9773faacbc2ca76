//! What services with NAT need of the kernel: that it forwards, for answers go by its routes; and with full NAT that it
//! answers for the local addresses, and has no use for their ports itself.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use super::cluster;
use crate::config::{Config, Forwarding, Service};

/// The setting for IPv4, and the one for IPv6.
const SETTINGS: [(bool, &str); 2] = [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")];
/// The ports that the kernel gives to sockets, of both families.
const EPHEMERAL: &str = "net/ipv4/ip_local_port_range";

/// Says what services with NAT lack. No error: it may come later, and until then it shows in the counters.
pub(super) fn warn_if_lacking(config: &Config) {
    warn_if_off(config);
    warn_of_local_addresses(config);
}

fn setting(name: &str) -> String {
    std::fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default()
}

/// Says for each family that has services with NAT if the kernel does not forward its packets: answers are counted as
/// `forwarding-off` then.
fn warn_if_off(config: &Config) {
    for (is_v4, name) in SETTINGS {
        let concerns = |service: &Service| {
            matches!(service.forwarding, Forwarding::Nat | Forwarding::FullNat)
                && service.prefixes().iter().any(|prefix| prefix.addr().is_ipv4() == is_v4)
        };
        let services = config.services.iter().filter(|(_, service)| concerns(service));
        let services: Vec<&str> = services.map(|(name, _)| name.as_str()).collect();
        if !services.is_empty() && setting(name).trim() == "0" {
            tracing::warn!(
                ?services,
                "answers by NAT cannot be sent on, for the kernel does not forward: sysctl -w {}=1",
                name.replace('/', ".")
            );
        }
    }
}

/// Says what is amiss with local addresses, as far as this node shows it.
fn warn_of_local_addresses(config: &Config) {
    for note in local_notes(config) {
        tracing::warn!("{note}");
    }
}

/// What is amiss with local addresses, as far as the node shows it that this is called on:
///
/// - one that nothing brings to this node: it is on none of its interfaces, so nobody answers ARP or neighbour discovery
///   for it, and no route to it is announced;
/// - one that another director cannot take over: it is in the subnet of a link, where the switch asks for it by ARP
///   whatever the routes say, or nothing announces it at all;
/// - ports that the kernel gives out as well: an answer to such a socket, of a health check say, could be taken for a
///   client's.
pub(crate) fn local_notes(config: &Config) -> Vec<String> {
    let (locals, mut notes) = (cluster::local_addresses(config), Vec::new());
    let services = config.services.values();
    if locals.addresses.is_empty()
        || !services.into_iter().any(|service| service.forwarding == Forwarding::FullNat)
    {
        return notes;
    }
    let is_announced =
        |address: &IpAddr| config.ospf.as_ref().is_some_and(|ospf| address.is_ipv4() || ospf.ipv6);
    if let Some(address) = locals.stranger().filter(|address| !is_announced(address)) {
        notes.push(format!(
            "local address {address} is on no interface of this node and OSPF does not announce it, so real servers \
             cannot answer to it: ip address add {address} dev INTERFACE"
        ));
    }
    if let Some(address) = locals.addresses.iter().find(|address| !is_announced(address)) {
        notes.push(format!(
            "OSPF does not announce local address {address}: if this director is lost, nobody takes over what is sent to it, \
             and connections with full NAT end, unless you route it to another one"
        ));
    }
    for address in locals.addresses.iter().filter(|address| is_announced(address)) {
        if let Some((interface, subnet)) = subnets().into_iter().find(|(_, subnet)| subnet.contains(address))
        {
            notes.push(format!(
                "local address {address} is in {subnet}, the subnet of {interface}: a switch there delivers to it by ARP or \
                 neighbour discovery as long as it has no route to the address alone, and so it may not be taken over if \
                 this director is lost; use an address outside every link's subnet, on lo for instance"
            ));
        }
    }
    let range = setting(EPHEMERAL);
    let ends: Vec<u16> = range.split_whitespace().filter_map(|end| end.parse().ok()).collect();
    if let [first, last] = ends[..]
        && first <= locals.ports.last
        && locals.ports.first <= last
    {
        notes.push(format!(
            "the kernel gives ports {first}-{last} to sockets of this node, and full NAT uses {} of the same addresses: set \
             other local_ports in [node], or sysctl -w {}",
            locals.ports,
            EPHEMERAL.replace('/', ".")
        ));
    }
    notes
}

/// Subnets of this node's interfaces, without those of single addresses. None where the kernel does not tell.
fn subnets() -> Vec<(String, IpNet)> {
    let addresses = getifaddrs().into_iter().flatten();
    let subnet = |interface: nix::ifaddrs::InterfaceAddress| {
        let ip = |storage: &SockaddrStorage| -> Option<IpAddr> {
            let v4 = storage.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        };
        let (address, mask) = (ip(interface.address.as_ref()?)?, ip(interface.netmask.as_ref()?)?);
        let subnet = IpNet::with_netmask(address, mask).ok()?.trunc();
        let is_link = subnet.prefix_len() < subnet.max_prefix_len() && !address.is_loopback();
        is_link.then_some((interface.interface_name, subnet))
    };
    addresses.filter_map(subnet).collect()
}
