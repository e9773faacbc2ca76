//! Explanations against what the program in the kernel then does with the very same packet.

mod dataplane_fixture;

use aya::TestRunOptions;
use aya::programs::TestRun as _;
use dataplane_fixture::cases::{INGRESS, V4, cases, fill, next_hop};
use dataplane_fixture::memory::mapped;
use dataplane_fixture::packets::OUR_MAC;
use dataplane_fixture::{isolated, open, options};
use director::dataplane::{Counters, Dataplane, Explanation, Lookup, MatchedKey, Probe, Protocol, TcpFlags};
use director_common::SlotState;
use director_common::tables::ServiceKey;
use director_common::verdict::{DropReason, Outcome, ReplyReason};

/// Runs one frame through the program in the kernel; its verdict and the frame it leaves.
fn kernel(dataplane: &Dataplane, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 64];
    let run = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = dataplane.program().expect("program").test_run(run).expect("test run");
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

/// What the program counted for one packet: its outcome, service and real server's position.
fn difference(before: &Counters, after: &Counters) -> (Vec<Outcome>, Option<String>, Option<u16>) {
    let outcomes = before.outcomes.iter().zip(&after.outcomes);
    let outcomes = outcomes.filter(|(before, after)| before != after).map(|(_, after)| after.0).collect();
    let changed = |(name, after): (&String, &director::dataplane::ServiceCounters)| {
        let before = &before.services[name];
        let real = before.reals.iter().zip(&after.reals).find(|(before, after)| before != after);
        (before.total != after.total).then(|| (name.clone(), real.map(|(_, after)| after.position)))
    };
    match after.services.iter().find_map(changed) {
        Some((service, real)) => (outcomes, Some(service), real),
        None => (outcomes, None, None),
    }
}

/// Explains the frame, changing nothing; sends it through the program; and both agree.
fn agrees(dataplane: &Dataplane, frame: &[u8], what: &str) -> Explanation {
    let before = dataplane.counters().expect("counters");
    let explained = dataplane.explain(&mut frame.to_vec(), INGRESS).expect("explanation");
    assert_eq!(dataplane.counters().expect("counters"), before, "{what}: nothing is counted");
    let (_, out) = kernel(dataplane, frame);
    let (outcomes, service, real) = difference(&before, &dataplane.counters().expect("counters"));
    assert_eq!(outcomes, [explained.outcome], "{what}");
    assert_eq!(explained.service.as_ref().map(|service| service.name.clone()), service, "{what}");
    if let Some(position) = real {
        assert_eq!(explained.real.expect("a real server").position, position, "{what}");
        if explained.outcome == Outcome::Replied(ReplyReason::ByKernel) {
            // The kernel finds the way.
            assert_eq!((explained.next_hop, &out[..12]), (None, &frame[..12]), "{what}");
            return explained;
        }
        let hop = explained.next_hop.expect("a way");
        assert_eq!(out[..6], hop.destination_mac, "{what}");
        assert_eq!(out[6..12], hop.source_mac, "{what}");
    } else {
        assert_eq!(explained.next_hop, None, "{what}");
    }
    explained
}

#[test]
fn an_explanation_is_what_the_kernel_then_does_on_every_case() {
    isolated(|| {
        let mut dataplane = open(&options());
        fill(&mut dataplane);
        for (what, frame, expected) in cases() {
            assert_eq!(agrees(&dataplane, &frame, &what).outcome, expected, "{what}");
        }
    });
}

#[test]
fn an_explanation_is_what_the_kernel_then_does_with_any_flow() {
    isolated(|| {
        let mut dataplane = open(&options());
        fill(&mut dataplane);
        let mut seen = std::collections::BTreeSet::new();
        // A fixed walk through addresses and ports: reproducible, and as good as random for a keyed hash.
        for step in 0..400_u32 {
            let mixed = step.wrapping_mul(0x9e37_79b1);
            let port = (mixed >> 16) as u16 | 1;
            let (source, vip) = if step % 2 == 0 {
                (format!("198.51.{}.{}:{port}", mixed as u8, (mixed >> 8) as u8), "203.0.113.10")
            } else {
                (format!("[2001:db8:51::{:x}]:{port}", mixed & 0xffff), "[2001:db8:113::10]")
            };
            let service = [80, 81, 82, 83, 84, 85, 90, 93, 94, 99][step as usize % 10];
            let probe = Probe {
                source: source.parse().expect("source"),
                destination: format!("{vip}:{service}").parse().expect("destination"),
                protocol: if step % 7 == 6 { Protocol::Udp } else { Protocol::Tcp },
                flags: if step % 3 == 0 { TcpFlags::Syn } else { TcpFlags::Ack },
                length: if step % 5 == 4 { 1_480 } else { 0 },
            };
            let explained = agrees(&dataplane, &probe.emit(OUR_MAC).expect("packet"), &format!("{probe:?}"));
            seen.extend(explained.real.map(|real| real.position));
            if let Some(slot) = explained.slot {
                assert!(explained.hash.is_some(), "{probe:?}: the slot follows from the hash that is shown");
                assert_eq!(slot.state, Some(SlotState::Settled));
                assert_eq!(explained.real, slot.current);
            }
        }
        assert_eq!(seen.len(), 2, "both real servers were met");
    });
}

#[test]
fn an_explanation_tells_service_slot_server_and_way() {
    isolated(|| {
        let mut dataplane = open(&options());
        fill(&mut dataplane);
        let probe = |port, flags| Probe {
            source: "198.51.100.7:40000".parse().expect("source"),
            destination: format!("203.0.113.10:{port}").parse().expect("destination"),
            protocol: Protocol::Tcp,
            flags,
            length: 0,
        };
        let explain = |port, flags| {
            let mut frame = probe(port, flags).emit(OUR_MAC).expect("packet");
            dataplane.explain(&mut frame, INGRESS).expect("explanation")
        };
        let there = explain(81, TcpFlags::Syn);
        assert_eq!(there.outcome, Outcome::Redirected);
        assert!(there.opens && !explain(81, TcpFlags::Ack).opens);
        let service = there.service.expect("service");
        assert_eq!(
            (service.name.as_str(), service.key),
            ("there", MatchedKey::Exact(ServiceKey::service(mapped(V4.vip.parse().expect("vip")), 6, 81)))
        );
        assert_eq!(there.real.expect("real").address, "10.0.2.12:81".parse().expect("address"));
        assert_eq!(there.next_hop, next_hop("10.0.2.12".parse().expect("address")));
        assert_eq!(there.tunnel, None);
        let tunnel = explain(90, TcpFlags::Ack).tunnel.expect("tunnel");
        assert_eq!(tunnel.source.to_string(), "10.255.0.1");
        assert_eq!(tunnel.destination.to_string(), "10.0.2.11");
        let lost = explain(85, TcpFlags::Ack);
        assert_eq!(lost.outcome, Outcome::Dropped(DropReason::NoNextHop));
        assert_eq!(lost.outcome.words(), "The way to the real server is not known.");
        assert_eq!(lost.real.expect("chosen").address, "10.0.2.13:85".parse().expect("address"));
        let kinds: Vec<bool> =
            lost.lookups.iter().map(|lookup| matches!(lookup, Lookup::Service { .. })).collect();
        assert_eq!(kinds.iter().filter(|kind| **kind).count(), 1, "the exact key is found at once");
    });
}

#[test]
fn an_explanation_tells_the_previous_owner_and_the_pin_and_makes_none() {
    isolated(|| {
        let mut dataplane = open(&options());
        fill(&mut dataplane);
        let probe = Probe {
            source: "198.51.100.7:40100".parse().expect("source"),
            destination: format!("{}:96", V4.changing).parse().expect("destination"),
            protocol: Protocol::Tcp,
            flags: TcpFlags::Ack,
            length: 0,
        };
        let frame = probe.emit(OUR_MAC).expect("packet");
        let pins = |explained: &Explanation| {
            let found = |lookup: &Lookup| match lookup {
                Lookup::Pin { found, .. } => Some(found.is_some()),
                _ => None,
            };
            let makes = |lookup: &Lookup| matches!(lookup, Lookup::AddPin { granted: true, .. });
            (explained.lookups.iter().find_map(found), explained.lookups.iter().any(makes))
        };
        for _ in 0..2 {
            let explained = dataplane.explain(&mut frame.clone(), INGRESS).expect("explanation");
            let slot = explained.slot.expect("a slot");
            assert_eq!(slot.state, Some(SlotState::Moving));
            let address = |real: Option<director::dataplane::ExplainedReal>| real.expect("real").address.ip();
            let [first, second] =
                ["10.0.2.11", "10.0.2.12"].map(|real| real.parse::<std::net::IpAddr>().expect("address"));
            assert_eq!((address(slot.previous), address(slot.current)), (first, second));
            assert_eq!(address(explained.real), first, "it was there before");
            assert_eq!(pins(&explained), (Some(false), true), "still none, and one would be made");
        }
        let _ = kernel(&dataplane, &frame);
        let explained = dataplane.explain(&mut frame.clone(), INGRESS).expect("explanation");
        assert_eq!(pins(&explained), (Some(true), false));
    });
}

#[test]
fn asking_a_thousand_times_takes_no_token_and_remembers_no_fragment() {
    isolated(|| {
        let mut dataplane = open(&director::dataplane::Options { icmp_rate: 1, ..options() });
        fill(&mut dataplane);
        let large = Probe {
            source: "198.51.100.7:40000".parse().expect("source"),
            destination: "203.0.113.10:80".parse().expect("destination"),
            protocol: Protocol::Tcp,
            flags: TcpFlags::Ack,
            length: 1_501,
        };
        let mut frame = large.emit(OUR_MAC).expect("packet");
        for _ in 0..1_000 {
            let explained = dataplane.explain(&mut frame, INGRESS).expect("explanation");
            assert_eq!(explained.outcome.name(), "too-big-answered");
            assert_eq!(explained.mtu, Some(1_500));
        }
        let first = cases().into_iter().find(|(what, ..)| what.contains("first fragment"));
        let (what, first, _) = first.expect("the case table has a first fragment");
        let mut later = first.clone();
        // The same datagram's later part: offset 100 units, no port of its own.
        later[20..22].copy_from_slice(&100_u16.to_be_bytes());
        dataplane_fixture::packets::fix_checksum(&mut later);
        dataplane.explain(&mut first.clone(), INGRESS).expect("explanation");
        let known = |dataplane: &Dataplane| {
            let explained = dataplane.explain(&mut later.clone(), INGRESS).expect("explanation");
            explained.lookups.iter().any(|lookup| matches!(lookup, Lookup::Fragment { found: Some(_), .. }))
        };
        assert!(!known(&dataplane), "{what}: an explanation leaves nothing behind");
        let _ = kernel(&dataplane, &first);
        assert!(known(&dataplane), "{what}: the packet itself does");
    });
}
