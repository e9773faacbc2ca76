//! The shortcut against the long way: what it takes comes out the same, and what it leaves is as it was.

mod dataplane_fixture;

use dataplane_fixture::cases::{Case, INGRESS, V4, V6, cases, memory};
use dataplane_fixture::memory::Memory;
use dataplane_fixture::packets::{ACK, Packet};
use proptest::prelude::*;

/// Whether the packet takes the shortcut. Panics unless that makes no difference.
fn takes(memory: &Memory, what: &str, frame: &[u8]) -> bool {
    let (mut short, mut long) = (frame.to_vec(), frame.to_vec());
    let forwarded = memory.hasten(INGRESS, &mut short);
    let decision = memory.run(INGRESS, &mut long);
    let Some(forwarded) = forwarded else {
        assert_eq!(short, frame, "{what}: left as it was");
        return false;
    };
    assert!(decision.verdict.is_forward(), "{what}: {:?}", decision.verdict);
    assert_eq!(short, long, "{what}");
    let forward = decision.forward;
    assert_eq!(
        (forwarded.real, forwarded.bytes, forwarded.opens, forwarded.ifindex),
        (forward.real, decision.bytes, u32::from(forward.opens), forward.ifindex),
        "{what}"
    );
    true
}

#[test]
fn the_shortcut_does_what_the_long_way_does() {
    let memory = memory();
    // Connections have their pins the second time.
    let taken = [(); 2]
        .map(|()| cases().iter().filter(|(what, frame, _)| takes(&memory, what.as_ref(), frame)).count());
    assert!(taken[0] > 20 && taken[1] > taken[0], "{taken:?}");
}

#[test]
fn ordinary_packets_take_the_shortcut() {
    let memory = memory();
    for family in [V4, V6] {
        let packet = Packet::tcp((family.client, 40_000), (family.vip, 80), ACK).bytes();
        assert!(takes(&memory, family.name, &packet), "{}", family.name);
    }
    let ipip = Packet::tcp((V4.client, 40_000), (V4.vip, 90), ACK).bytes();
    assert!(takes(&memory, "IPIP over IPv4", &ipip));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50_000))]

    #[test]
    fn damage_makes_no_difference(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        length in any::<prop::sample::Index>(),
        truncate: bool,
    ) {
        thread_local! {
            static ONCE: &'static (Memory, Vec<Case>) = Box::leak(Box::new((memory(), cases())));
        }
        let (memory, cases) = ONCE.with(|once| *once);
        let mut frame = cases[which.index(cases.len())].1.clone();
        for (at, value) in damage {
            // Headers, where it matters.
            let at = at.index(frame.len().min(80));
            frame[at] = value;
        }
        if truncate {
            frame.truncate(length.index(frame.len() + 1));
        }
        takes(memory, "damaged", &frame);
    }
}
