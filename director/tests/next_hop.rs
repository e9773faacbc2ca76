//! Ways to IPv6 real servers, with a real kernel: on the link, behind a gateway, and as things change.

mod dataplane_fixture;

use std::net::IpAddr;
use std::time::Duration;

use dataplane_fixture::{isolated, run};
use director::dataplane::NextHop;
use director::next_hop::{Change, Resolver};
use tokio::sync::mpsc::UnboundedReceiver;

const REAL: &str = "2001:db8:2::11";
const FAR: &str = "2001:db8:3::11";
/// How long any change may take: neighbour discovery asks three times, a second apart, before it gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// d1 (2001:db8:2::1, fe80::1) --- r1 in `near`; d2 (2001:db8:4::1) --- r2 in `other`. Both are routers to `FAR`.
fn build() {
    for (name, ours, theirs, network, last) in
        [("near", "d1", "r1", "2001:db8:2:", 0x11), ("other", "d2", "r2", "2001:db8:4:", 0x12)]
    {
        run("ip", &format!("netns add {name}"));
        run("ip", &format!("link add {ours} type veth peer name {theirs} netns {name}"));
        for (command, device, address, link_local) in [
            ("".to_owned(), ours, format!("{network}:1/64"), "fe80::1/64".to_owned()),
            (format!("-n {name} "), theirs, format!("{network}:{last:x}/64"), format!("fe80::{last:x}/64")),
        ] {
            run("ip", &format!("{command}link set {device} addrgenmode none"));
            run("ip", &format!("{command}addr add {address} dev {device} nodad"));
            run("ip", &format!("{command}addr add {link_local} dev {device} nodad"));
            run("ip", &format!("{command}link set {device} up"));
        }
    }
}

/// The link address of a device in a namespace.
fn mac(namespace: &str, device: &str) -> [u8; 6] {
    let shown = run("ip", &format!("-n {namespace} -o link show dev {device}"));
    let words: Vec<&str> = shown.split_whitespace().collect();
    let after = words.iter().position(|word| *word == "link/ether").expect("an Ethernet device");
    let bytes: Vec<u8> =
        words[after + 1].split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
    bytes.try_into().expect("six bytes")
}

fn index(device: &str) -> u32 {
    nix::net::if_::if_nametoindex(device).expect("device")
}

/// Waits for a change to the way to `address` that is as `wanted` says.
async fn until(
    changes: &mut UnboundedReceiver<Change>,
    address: &str,
    wanted: impl Fn(Option<NextHop>) -> bool,
) -> Option<NextHop> {
    let address: IpAddr = address.parse().expect("address");
    let wait = async {
        loop {
            let change = changes.recv().await.expect("the resolver runs");
            if change.address == address && wanted(change.next_hop) {
                return change.next_hop;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("a change in time")
}

/// Runs `story` with a resolver that looks for these addresses.
fn watching(addresses: &[&str], story: impl AsyncFnOnce(UnboundedReceiver<Change>)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let (resolver, changes) = Resolver::start([]).expect("resolver");
        resolver.watch(addresses.iter().map(|address| address.parse().expect("address")));
        story(changes).await;
    });
}

#[test]
fn a_real_server_on_the_link_is_found_replaced_and_lost() {
    isolated(|| {
        build();
        for setting in ["base_reachable_time_ms=500", "retrans_time_ms=100", "delay_first_probe_time=1"] {
            run("sysctl", &format!("-q -w net.ipv6.neigh.d1.{setting}"));
        }
        watching(&[REAL], async |mut changes| {
            let way = until(&mut changes, REAL, |way| way.is_some()).await.expect("way");
            assert_eq!((way.ifindex, way.mtu), (index("d1"), 1500));
            assert_eq!(way.destination_mac, mac("near", "r1"));
            // Another machine takes the address over and says so (RFC 4861, section 7.2.6), or is found by a probe.
            run("ip", "-n near link set r1 address 02:00:00:00:00:77");
            let new = until(&mut changes, REAL, |way| way.is_some_and(|way| way.destination_mac[5] == 0x77));
            assert_eq!(new.await.expect("way").source_mac, way.source_mac);
            // A machine that falls silent is noticed although no packet of the kernel's own goes there.
            run("ip", &format!("-n near addr del {REAL}/64 dev r1"));
            assert_eq!(until(&mut changes, REAL, |way| way.is_none()).await, None);
            run("ip", &format!("-n near addr add {REAL}/64 dev r1 nodad"));
            until(&mut changes, REAL, |way| way.is_some()).await;
            run("ip", "link set d1 mtu 1400");
            until(&mut changes, REAL, |way| way.is_some_and(|way| way.mtu == 1400)).await;
            run("ip", "-n near link set r1 down");
            assert_eq!(until(&mut changes, REAL, |way| way.is_none()).await, None);
        });
    });
}

#[test]
fn a_way_follows_its_route_over_global_and_link_local_gateways() {
    isolated(|| {
        build();
        watching(&[FAR, "10.0.9.9"], async |mut changes| {
            let on = |device: &'static str| {
                let index = index(device);
                move |way: Option<NextHop>| way.is_some_and(|way| way.ifindex == index)
            };
            run("ip", &format!("-6 route add 2001:db8:3::/64 via {REAL}"));
            let way = until(&mut changes, FAR, on("d1")).await.expect("way");
            assert_eq!(way.destination_mac, mac("near", "r1"));
            // The same network by the other uplink, whose gateway is link-local, and with a smaller MTU.
            run("ip", "-6 route replace 2001:db8:3::/64 via fe80::12 dev d2 mtu 1380");
            let way = until(&mut changes, FAR, on("d2")).await.expect("way");
            assert_eq!((way.destination_mac, way.mtu), (mac("other", "r2"), 1380));
            run("ip", "-6 route replace 2001:db8:3::/64 via fe80::11 dev d1");
            let way = until(&mut changes, FAR, on("d1")).await.expect("way");
            assert_eq!((way.destination_mac, way.mtu), (mac("near", "r1"), 1500));
            run("ip", "-6 route replace unreachable 2001:db8:3::/64");
            assert_eq!(until(&mut changes, FAR, |way| way.is_none()).await, None);
            // IPv4 behind an IPv6 gateway (RFC 8950).
            run("ip", "addr add 10.0.8.1/24 dev d2");
            run("ip", "route add 10.0.9.0/24 via inet6 fe80::12 dev d2");
            let way = until(&mut changes, "10.0.9.9", on("d2")).await.expect("way");
            assert_eq!(way.destination_mac, mac("other", "r2"));
        });
    });
}
