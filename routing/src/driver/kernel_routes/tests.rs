//! Routes in a kernel, in a network namespace of each test's own.

use super::*;
use crate::namespace::{device, in_namespace, index_of, ip};

const PLACE: Place = Place { family: AddressFamily::Inet, table: 254, protocol: 201, metric: 110 };

/// Two unnumbered devices, and what one comparison makes of `hops` there.
fn after(hops: Hops) -> (Memory, String) {
    for (device, address) in [("eth1", "10.255.0.1/32"), ("eth2", "10.255.0.1/32")] {
        ip(&format!("addr replace {address} dev {device}"));
    }
    let prefix = "198.51.100.0/24".parse().expect("a prefix");
    let wanted = Wanted { routes: [(prefix, hops)].into(), complete: true };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
        tokio::spawn(connection);
        let mut memory = Memory::default();
        reconcile(PLACE, &handle, &wanted, &mut memory).await.expect("listed");
        let (there, _) = dump(PLACE, &handle).await.expect("listed");
        let expected = memory.refused.is_empty().then_some(&wanted.routes);
        assert_eq!(Some(&there), expected.or(Some(&BTreeMap::new())), "what is there is what was wanted");
        (memory, ip("route show proto 201"))
    })
}

fn hop(device: &str, gateway: [u8; 4], onlink: bool) -> Hop {
    Hop { index: index_of(device), gateway: gateway.into(), onlink }
}

/// A neighbour on an unnumbered link is in no prefix of ours, and the kernel has to be told that it is on the link.
#[test]
fn routes_over_unnumbered_links_are_installed() {
    in_namespace(|| {
        device("eth1");
        device("eth2");
        let (memory, shown) = after([hop("eth1", [10, 255, 0, 2], true)].into());
        assert!(memory.refused.is_empty(), "{:?}", memory.refused);
        assert!(
            shown.contains("198.51.100.0/24 via 10.255.0.2 dev eth1") && shown.contains("onlink"),
            "{shown}"
        );
        let both = [hop("eth1", [10, 255, 0, 2], true), hop("eth2", [10, 255, 0, 3], true)];
        let (memory, shown) = after(both.into());
        assert!(memory.refused.is_empty(), "{:?}", memory.refused);
        assert_eq!(shown.matches("onlink").count(), 2, "{shown}");
        ip("route del 198.51.100.0/24");
        let (memory, shown) = after([hop("eth1", [10, 255, 0, 2], false)].into());
        assert_eq!((memory.refused.len(), shown.as_str()), (1, ""), "which is why it has to be told");
    });
}
