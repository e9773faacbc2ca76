//! What services with NAT need of the kernel: that it forwards, for answers go by its routes; and with full NAT that it
//! answers for the local addresses, and has no use for their ports itself.

use std::path::Path;

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

/// Says which local address is no address of this node: nobody answers ARP or neighbour discovery for it then, so no
/// answer of a real server arrives. And if the kernel gives out ports that leases are of: an answer to such a socket,
/// of a health check say, could be taken for a client's.
fn warn_of_local_addresses(config: &Config) {
    let locals = cluster::local_addresses(config);
    if let Some(address) = locals.stranger() {
        tracing::warn!(
            %address,
            "this local address is on no interface of this node, so real servers cannot answer to it: ip address add \
             {address} dev INTERFACE"
        );
    }
    let range = setting(EPHEMERAL);
    let ends: Vec<u16> = range.split_whitespace().filter_map(|end| end.parse().ok()).collect();
    if let [first, last] = ends[..]
        && !locals.addresses.is_empty()
        && first <= locals.ports.last
        && locals.ports.first <= last
    {
        tracing::warn!(
            local_ports = %locals.ports,
            "the kernel gives ports {first}-{last} to sockets of this node, which full NAT uses as well: set other \
             local_ports in [node], or sysctl -w {}",
            EPHEMERAL.replace('/', ".")
        );
    }
}
