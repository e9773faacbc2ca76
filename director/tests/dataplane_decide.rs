//! `decide` in user space: the case table, and input nobody intended.

mod dataplane_fixture;

use dataplane_fixture::cases::tunnels::tunnelled;
use dataplane_fixture::cases::{INGRESS, V4, V6, cases, memory};
use dataplane_fixture::packets::{ACK, OUR_MAC, Packet, ROUTER_MAC};
use director_common::tables::{Address, ServiceEntry};
use director_common::verdict::{AnswerReason, DropReason, Outcome};
use director_common::{Action, Decision, Verdict};
use proptest::prelude::*;

/// The outcome that a counter number stands for.
fn outcome(number: u32) -> Outcome {
    Outcome::all().find(|(index, _)| *index == number).expect("a known counter").1
}

#[test]
fn every_case_has_its_outcome() {
    let memory = memory();
    for (what, frame, expected) in cases() {
        let mut out = frame.clone();
        let decision = memory.run(INGRESS, &mut out);
        let (action, counter) = decision.verdict.disposition();
        assert_eq!(outcome(counter), expected, "{what}");
        match action {
            // These have tests of their own.
            Action::Transmit | Action::Redirect
                if decision.tunnel_source.is_some()
                    || !decision.verdict.is_forward()
                    || is_nat(&decision) => {}
            Action::Transmit | Action::Redirect => {
                assert_eq!(out[..6], *decision.way.expect("way").destination_mac.as_slice(), "{what}");
                let mut restored = out.clone();
                restored[..12].copy_from_slice(&frame[..12]);
                let start = decision.ip.start;
                if decision.ip.is_v6() {
                    restored[start + 7] += 1;
                } else {
                    restored[start + 8] += 1;
                    restored[start + 10..start + 12].copy_from_slice(&frame[start + 10..start + 12]);
                    let header = &out[start..decision.ip.payload];
                    assert_eq!(dataplane_fixture::packets::checksum(header), 0, "{what}: checksum");
                }
                assert_eq!(restored, frame, "{what}: nothing else changes");
            }
            Action::Pass if decision.verdict.is_reply() => {}
            Action::Pass | Action::Drop => assert_eq!(out, frame, "{what}: untouched"),
        }
    }
}

fn is_nat(decision: &Decision<'_>) -> bool {
    decision.entry.is_some_and(ServiceEntry::is_nat)
}

/// What a tunnel makes of a packet, against frames built from scratch.
#[test]
fn tunnels_carry_the_packet_within_right_headers() {
    let memory = memory();
    for (family, port, vlan, flags) in [V4, V6].iter().flat_map(|family| {
        (90..=95).flat_map(move |port| [(None, 0), (Some(7), 0x4000)].map(move |(v, f)| (family, port, v, f)))
    }) {
        let flags = if family.name == "IPv4" { flags } else { 0 };
        let packet = Packet::tcp((family.client, 40_000), (family.vip, port), ACK).with(|p| {
            (p.vlan, p.fragment, p.traffic_class, p.padding) = (vlan, flags, 0xbb, 3);
        });
        let what = format!("{} in {port}, tag {vlan:?}", family.name);
        let mut out = packet.bytes();
        let decision = memory.run(INGRESS, &mut out);
        assert_eq!(decision.verdict, Verdict::Transmit, "{what}");
        let (mut expected, free) = tunnelled(port, &packet.clone().with(|p| p.ttl -= 1));
        for (at, bits) in free {
            assert_eq!(out[at] & !bits, expected[at] & !bits, "{what}: byte {at}");
            out[at] &= !bits;
            expected[at] &= !bits;
        }
        let start = if vlan.is_some() { 18 } else { 14 };
        if port % 2 == 0 {
            let header = &out[start..start + 20];
            assert_eq!(dataplane_fixture::packets::checksum(header), 0, "{what}: checksum");
            let atomic = family.name == "IPv6" || flags == 0x4000;
            assert_eq!(header[6..8], if atomic { [0x40, 0] } else { [0, 0] }, "{what}: don't fragment");
            assert_eq!(header[4..6] == [0, 0], atomic, "{what}: identification");
            for at in [4, 5, 6, 10, 11] {
                expected[start + at] = header[at];
            }
        }
        assert_eq!(out, expected, "{what}");
    }
}

#[test]
fn an_echo_reply_is_the_request_sent_back_with_right_checksums() {
    let memory = memory();
    for (family, ttl) in [(V4, 1), (V6, 1), (V4, 255), (V6, 64)] {
        let request = family.echo(family.vip).with(|p| p.ttl = ttl);
        let mut out = request.bytes();
        assert_eq!(memory.run(INGRESS, &mut out).verdict, Verdict::Answer(AnswerReason::Echo));
        let kind = if family.name == "IPv4" { 0 } else { 129 };
        let message = [&[kind][..], &request.payload[1..]].concat();
        let reply = family.message(family.vip, family.client, &message).with(|p| p.ttl = 64).bytes();
        assert_eq!((&out[..6], &out[6..12]), (&ROUTER_MAC[..], &OUR_MAC[..]));
        assert_eq!(out[12..], reply[12..], "{}", family.name);
    }
}

#[test]
fn an_error_reaches_the_real_server_of_the_flow_it_is_about() {
    let memory = memory();
    for family in [V4, V6] {
        // Services that deal by source address and by source and port.
        for port in [82, 83] {
            for client_port in 1..200 {
                let packet = Packet::tcp((family.client, client_port), (family.vip, port), ACK);
                let flow = memory.run(INGRESS, &mut packet.bytes());
                let answer = Packet::tcp((family.vip, port), (family.client, client_port), ACK);
                let error = family.error((3, 1), &family.shown(&answer, 8));
                let related = memory.run(INGRESS, &mut error.bytes());
                assert!(related.verdict.is_forward(), "{:?}", related.verdict);
                assert_eq!(related.forward.real, flow.forward.real, "{} {client_port}", family.name);
                assert_eq!((related.forward.related, flow.forward.related), (1, 0));
            }
        }
    }
}

#[test]
fn fragments_of_one_datagram_reach_one_real_server_for_a_minute() {
    let memory = memory();
    for (family, client_port) in [V4, V6].iter().flat_map(|family| (1..200).map(move |port| (family, port))) {
        let packet = Packet::tcp((family.client, client_port), (family.vip, 83), ACK)
            .with(|p| (p.identification, p.fragment) = (0x1_0000 + u32::from(client_port), 0x2000));
        let later = packet.clone().with(|p| p.fragment = 100).bytes();
        let first = memory.run(INGRESS, &mut packet.bytes());
        let second = memory.run(INGRESS, &mut later.clone());
        assert!(second.verdict.is_forward(), "{:?}", second.verdict);
        assert_eq!(second.forward.real, first.forward.real);
        memory.now.set(memory.now.get() + 61);
        let late = memory.run(INGRESS, &mut later.clone()).verdict;
        assert_eq!(late, Verdict::Drop(DropReason::Fragment));
    }
}

#[test]
fn the_identification_of_a_tunnels_header_is_that_of_the_packet() {
    let memory = memory();
    let outer = |identification| {
        let mut out = Packet::tcp((V4.client, 40_000), (V4.vip, 90), ACK)
            .with(|p| p.identification = identification)
            .bytes();
        assert!(memory.run(INGRESS, &mut out).verdict.is_forward());
        u16::from_be_bytes([out[18], out[19]])
    };
    // Fragments of two packets must not be put together at the end of the tunnel (RFC 6864, section 4.3).
    let seen: std::collections::BTreeSet<u16> = (1..=1_000).map(outer).collect();
    assert_eq!(seen.len(), 1_000);
}

#[test]
fn a_packet_too_big_is_told_the_largest_that_fits() {
    let memory = memory();
    for (family, port, overhead) in
        [(V4, 80, 0), (V6, 80, 0), (V4, 90, 20), (V6, 90, 20), (V4, 91, 40), (V6, 93, 44), (V6, 95, 52)]
    {
        // With what stands between the header and that of TCP, too: options of IPv4, a fragment header of IPv6.
        for (vlan, is_bare) in [(None, true), (Some(7), true), (None, false), (Some(7), false)] {
            let large = Packet::tcp((family.client, 40_000), (family.vip, port), ACK).with(|p| {
                (p.fragment, p.vlan) = (if p.version == 4 { 0x4000 } else { 0 }, vlan);
                match p.version {
                    _ if is_bare => {}
                    4 => p.options = vec![1; 12],
                    _ => p.fragment = 0x2000,
                }
                p.payload.resize(1_500, 7);
            });
            let mut out = large.bytes();
            assert_eq!(memory.run(INGRESS, &mut out).verdict, Verdict::Answer(AnswerReason::TooBig));
            let kind = if family.name == "IPv4" { [3, 4] } else { [2, 0] };
            let answer = family.told(kind, 1_500 - overhead, &large, family.vip);
            assert_eq!((&out[..6], &out[6..12]), (&ROUTER_MAC[..], &OUR_MAC[..]));
            assert_eq!(out[12..], answer.bytes()[12..], "{} {port}", family.name);
        }
    }
}

#[test]
fn a_packet_at_the_end_of_its_life_is_told_by_whom() {
    let mut memory = memory();
    for configured in [true, false] {
        if !configured {
            (memory.config.tunnel_v4, memory.config.tunnel_v6) = (Address::default(), Address::default());
        }
        // Through a tunnel, to a service without real servers, and directly; a datagram shorter than what is shown,
        // too.
        for (family, vlan, ttl) in
            [V4, V6].iter().flat_map(|family| [(None, 1), (Some(7), 0)].map(move |(v, ttl)| (family, v, ttl)))
        {
            let mut packets: Vec<Packet> = [80, 81, 84, 95]
                .map(|port| Packet::tcp((family.client, 40_000), (family.vip, port), ACK))
                .to_vec();
            packets.push(Packet::udp((family.client, 40_000), (family.vip, 53), b""));
            for packet in packets {
                let packet = packet.with(|p| (p.vlan, p.ttl) = (vlan, ttl));
                let mut out = packet.bytes();
                let verdict = memory.run(INGRESS, &mut out).verdict;
                assert_eq!(verdict, Verdict::Answer(AnswerReason::TimeExceeded));
                let source = if configured { family.own() } else { family.vip.to_owned() };
                let answer = family.told(family.time_exceeded(), 0, &packet, &source);
                assert_eq!((&out[..6], &out[6..12]), (&ROUTER_MAC[..], &OUR_MAC[..]));
                assert_eq!(out[12..], answer.bytes()[12..], "{} {vlan:?} from {source}", family.name);
            }
        }
    }
}

#[test]
fn all_errors_share_one_limit_in_each_second() {
    let mut memory = memory();
    memory.config.icmp_rate = 3;
    let large = Packet::udp((V6.client, 9), (V6.vip, 53), &[7; 1_500]).bytes();
    let expired = Packet::udp((V4.client, 9), (V4.vip, 53), &[7; 20]).with(|p| p.ttl = 1).bytes();
    let answered = |memory: &dataplane_fixture::memory::Memory| {
        let verdicts =
            (0..10).flat_map(|_| [&large, &expired]).map(|frame| memory.run(INGRESS, &mut frame.clone()));
        let (told, dropped): (Vec<Verdict>, Vec<Verdict>) = verdicts
            .map(|decision| decision.verdict)
            .partition(|verdict| matches!(verdict, Verdict::Answer(_)));
        let (too_big, too_old) = (AnswerReason::TooBig, AnswerReason::TimeExceeded);
        assert_eq!(told, [too_big, too_old, too_big].map(Verdict::Answer));
        let (too_big, too_old) = (DropReason::TooBig, DropReason::TtlExpired);
        assert_eq!(dropped[..3], [too_old, too_big, too_old].map(Verdict::Drop));
        assert_eq!(dropped.len(), 17);
    };
    answered(&memory);
    memory.now.set(memory.now.get() + 1);
    answered(&memory);
}

#[test]
fn flows_of_one_client_differ_in_the_source_port_of_the_tunnel() {
    let memory = memory();
    let port = |source_port| {
        let packet = Packet::tcp((V4.client, source_port), (V4.vip, 94), ACK);
        let mut out = packet.bytes();
        assert!(memory.run(INGRESS, &mut out).verdict.is_forward());
        u16::from_be_bytes([out[34], out[35]])
    };
    let ports: std::collections::BTreeSet<u16> = (1..=1_000).map(port).collect();
    assert!(ports.len() > 900, "{} of 1000", ports.len());
    assert!(ports.iter().all(|port| *port >= 0xc000));
    assert_eq!(port(7), port(7));
}

#[test]
fn every_reason_has_a_case_or_is_an_internal_contradiction() {
    let expected: Vec<Outcome> = cases().into_iter().map(|(_, _, outcome)| outcome).collect();
    let missing: Vec<String> = Outcome::all()
        .map(|(_, outcome)| outcome)
        .filter(|outcome| !expected.contains(outcome))
        .map(|outcome| format!("{outcome:?}"))
        .collect();
    // These need tables that are not there or contradict themselves, or other routes (see `dataplane_nat`); those of
    // tracked services are in `dataplane_tracking`, and in `dataplane_full_nat`.
    let excused = [
        "Passed(ForwardingOff)",
        "Passed(NotConfigured)",
        "Dropped(BadTable)",
        "Dropped(NoConnection)",
        "Dropped(TableFull)",
        "Dropped(NoLocalPort)",
        "Dropped(RewriteFailed)",
        "Replied(Transmitted)",
    ];
    assert_eq!(missing, excused);
}

#[test]
fn source_hash_keeps_all_connections_of_a_client_together() {
    let memory = memory();
    let servers = |port: u16| {
        let run = |source_port| {
            let packet = Packet::tcp(("198.51.100.7", source_port), ("203.0.113.10", port), 0x10);
            memory.run(INGRESS, &mut packet.bytes()).forward.real
        };
        (1..500_u16).map(run).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(servers(82), 1, "hash = source");
    assert_eq!(servers(83), 2, "hash = source-port");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn random_frames_never_panic(mut frame in prop::collection::vec(any::<u8>(), 0..200), ifindex in 0_u32..3) {
        let before = frame.clone();
        let decision = memory_once().run(ifindex, &mut frame);
        if !decision.verdict.rewrites() {
            prop_assert_eq!(frame, before);
        }
    }

    #[test]
    fn damaged_packets_never_panic(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        length in any::<prop::sample::Index>(),
        truncate: bool,
    ) {
        let cases = cases_once();
        let mut frame = cases[which.index(cases.len())].1.clone();
        for (at, value) in damage {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        if truncate {
            frame.truncate(length.index(frame.len() + 1));
        }
        let before = frame.clone();
        let decision = memory_once().run(INGRESS, &mut frame);
        if !decision.verdict.rewrites() {
            prop_assert_eq!(frame, before);
        }
    }
}

fn memory_once() -> &'static dataplane_fixture::memory::Memory {
    thread_local! {
        static MEMORY: &'static dataplane_fixture::memory::Memory = Box::leak(Box::new(memory()));
    }
    MEMORY.with(|memory| *memory)
}

fn cases_once() -> &'static [dataplane_fixture::cases::Case] {
    static CASES: std::sync::OnceLock<Vec<dataplane_fixture::cases::Case>> = std::sync::OnceLock::new();
    CASES.get_or_init(cases)
}
