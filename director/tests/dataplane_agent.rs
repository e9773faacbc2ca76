//! The agent on a real server: what it changes, and that it leaves nothing behind.

mod dataplane_fixture;

use std::net::IpAddr;

use dataplane_fixture::{isolated, run};
use director::agent::{self, Agent, AgentError, Options};
use futures::stream::pending;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn block_on<T>(body: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(body)
}

/// Everything the agent may touch, as text.
fn state() -> String {
    let settings =
        ["arp_ignore", "arp_announce", "rp_filter"].map(|name| format!("net.ipv4.conf.all.{name}"));
    run("sysctl", &settings.join(" ")) + &run("ip", "-o addr show dev lo")
}

#[test]
fn agent_prepares_says_so_and_restores() {
    isolated(|| {
        run("sysctl", "-q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.lo.rp_filter=1");
        let before = state();
        let mut said = Vec::new();
        block_on(agent::run(
            Options::new([ip("203.0.113.10")]),
            |line| said.push(line.to_owned()),
            pending(),
            async {
                let now = state();
                for expected in ["arp_ignore = 1", "arp_announce = 2", "rp_filter = 2", "203.0.113.10/32"] {
                    assert!(now.contains(expected), "{expected} in {now}");
                }
            },
        ))
        .expect("agent");
        assert_eq!(state(), before);
        assert_eq!(
            said,
            [
                "changed: net.ipv4.conf.all.arp_ignore = 1 (was 0)",
                "changed: net.ipv4.conf.all.arp_announce = 2 (was 0)",
                "changed: net.ipv4.conf.all.rp_filter = 2 (was 0)",
                "changed: 203.0.113.10/32 is on interface lo (was not)",
                "undone: 203.0.113.10/32 is on interface lo (was not)",
                "undone: net.ipv4.conf.all.rp_filter = 2 (was 0)",
                "undone: net.ipv4.conf.all.arp_announce = 2 (was 0)",
                "undone: net.ipv4.conf.all.arp_ignore = 1 (was 0)",
            ]
        );
    });
}

#[test]
fn what_was_right_before_stays_after() {
    isolated(|| {
        run("ip", "addr add 203.0.113.10/32 dev lo");
        run("sysctl", "-q -w net.ipv4.conf.all.arp_ignore=2 net.ipv4.conf.all.arp_announce=2");
        run("sysctl", "-q -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.lo.rp_filter=0");
        let before = state();
        let agent = block_on(async {
            let agent = Agent::prepare(Options::new([ip("203.0.113.10")])).await.expect("agent");
            assert_eq!(agent.changes(), []);
            agent.undo().await
        });
        assert_eq!(agent.expect("undo"), []);
        assert_eq!(state(), before);
    });
}

#[test]
fn a_setting_somebody_else_changed_is_left_alone() {
    isolated(|| {
        block_on(async {
            let agent =
                Agent::prepare(Options::new([ip("203.0.113.10"), ip("203.0.113.11")])).await.expect("agent");
            run("sysctl", "-q -w net.ipv4.conf.all.arp_announce=1");
            run("ip", "addr del 203.0.113.11/32 dev lo");
            agent.undo().await.expect("undo");
        });
        let after = state();
        assert!(after.contains("arp_announce = 1"), "{after}");
        assert!(after.contains("arp_ignore = 0"), "{after}");
        assert!(!after.contains("203.0.113"), "{after}");
    });
}

#[test]
fn addresses_that_cannot_be_vips_are_refused() {
    isolated(|| {
        for wrong in ["127.0.0.1", "224.0.0.5", "0.0.0.0", "255.255.255.255", "::1", "fe80::1"] {
            match block_on(Agent::prepare(Options::new([ip("203.0.113.10"), ip(wrong)]))) {
                Err(AgentError::Vip(vip)) => assert_eq!(vip, ip(wrong)),
                other => panic!("{wrong}: {other:?}"),
            }
        }
        assert!(!state().contains("203.0.113.10"), "nothing by halves");
    });
}
