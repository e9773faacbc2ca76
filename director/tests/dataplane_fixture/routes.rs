//! The routes to clients: of the namespace that a test runs in, and the same in user space.

use std::net::IpAddr;

use director_common::tables::{RouteEntry, RouteQuery};
use ipnet::IpNet;

use super::cases::INGRESS;
use super::run;

/// Link address of the router that most clients are behind.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
/// An interface that the program is on, with its link address; one that it is not on.
pub const UPLINK: (u32, [u8; 6]) = (70, [2, 0, 0, 0, 0, 0x70]);
const OTHER: (u32, [u8; 6]) = (71, [2, 0, 0, 0, 0, 0x71]);

/// Prefixes by what becomes of packets there.
const ROUTES: [(&str, &str); 12] = [
    ("198.51.100.0/24", "via 10.77.0.1 dev uplink onlink"),
    ("2001:db8:51::/64", "via fe80::1 dev uplink onlink"),
    // A narrow link on the way.
    ("198.51.101.0/24", "via 10.77.0.1 dev uplink onlink mtu lock 1300"),
    ("2001:db8:52::/64", "via fe80::1 dev uplink onlink mtu lock 1300"),
    // A neighbour that nobody has heard of.
    ("198.51.102.0/24", "via 10.77.0.2 dev uplink onlink"),
    ("2001:db8:53::/64", "via fe80::2 dev uplink onlink"),
    ("198.51.103.0/24", "via 10.77.0.1 dev other onlink"),
    ("2001:db8:54::/64", "via fe80::1 dev other onlink"),
    ("198.51.104.0/24", "prohibit"),
    ("2001:db8:55::/64", "prohibit"),
    ("198.51.105.0/24", "local"),
    ("2001:db8:56::/64", "local"),
];

/// Makes the routes in the thread's namespace.
pub fn make() {
    for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/{setting}"), "1").expect(setting);
    }
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    for (name, (index, address)) in [("uplink", UPLINK), ("other", OTHER)] {
        let address = mac(address);
        run("ip", &format!("link add {name} index {index} address {address} type veth peer name far-{name}"));
        // No routes but those below.
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1").expect("no address");
        run("ip", &format!("link set {name} up"));
        run("ip", &format!("link set far-{name} up"));
        for gateway in ["10.77.0.1", "fe80::1"] {
            run("ip", &format!("neigh add {gateway} lladdr {} nud permanent dev {name}", mac(GATEWAY_MAC)));
        }
    }
    for (prefix, way) in ROUTES {
        match way {
            "prohibit" => run("ip", &format!("route add prohibit {prefix}")),
            "local" => run("ip", &format!("route add local {prefix} dev lo")),
            way => run("ip", &format!("route add {prefix} {way}")),
        };
    }
}

/// What the kernel says of a packet by those routes.
pub fn answer(query: &RouteQuery) -> RouteEntry {
    let ip = match query.destination.ipv4() {
        Some(octets) => IpAddr::from(octets),
        None => IpAddr::from(query.destination.0),
    };
    assert_eq!(query.ifindex, INGRESS);
    let holds = |prefix: &str| prefix.parse::<IpNet>().expect("prefix").contains(&ip);
    let Some((_, way)) = ROUTES.iter().find(|(prefix, _)| holds(prefix)) else {
        return RouteEntry { answer: RouteEntry::STAYS, ..RouteEntry::default() };
    };
    let is = |part: &str| way.contains(part);
    let mtu = if is("mtu") { 1300 } else { 1500 };
    let (ifindex, source_mac) = if is("other") { OTHER } else { UPLINK };
    let answer = match way {
        _ if is("local") => RouteEntry::STAYS,
        _ if is("prohibit") => RouteEntry::REFUSED,
        _ if u32::from(query.bytes) > mtu => RouteEntry::TOO_BIG,
        _ if is("10.77.0.2") || is("fe80::2") => RouteEntry::BY_KERNEL,
        _ => RouteEntry::FORWARD,
    };
    RouteEntry { answer, ifindex, mtu, destination_mac: GATEWAY_MAC, source_mac }
}
