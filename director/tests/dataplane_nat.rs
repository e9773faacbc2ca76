//! NAT both ways, against packets built from scratch; and what only the kernel's own routes can show.

mod dataplane_fixture;

use aya::TestRunOptions;
use aya::programs::TestRun as _;
use dataplane_fixture::cases::nat::{MAPPED, PORT, Way, services};
use dataplane_fixture::cases::{Family, HERE, INGRESS, Slots, V4, V6, fill, memory};
use dataplane_fixture::memory::Memory;
use dataplane_fixture::packets::{OUR_MAC, Packet, ROUTER_MAC};
use dataplane_fixture::routes::{GATEWAY_MAC, UPLINK};
use dataplane_fixture::{isolated, open, options};
use director::dataplane::{ApplyError, RealSpec, SpecError};
use director_common::Verdict;
use director_common::tables::{RouteEntry, RouteQuery};
use director_common::verdict::{AnswerReason, DropReason, Outcome, PassReason, ReplyReason};

/// Runs a packet; what leaves, behind the link addresses.
fn sent(memory: &Memory, packet: &Packet, expected: Verdict) -> (Vec<u8>, Vec<u8>) {
    let mut out = packet.bytes();
    let verdict = memory.run(INGRESS, &mut out).verdict;
    assert_eq!(verdict, expected, "{packet:?}");
    let rest = out.split_off(12);
    (out, rest)
}

fn less(packet: &Packet) -> Packet {
    packet.clone().with(|p| p.ttl -= 1)
}

#[test]
fn a_request_arrives_as_if_sent_to_the_real_server() {
    let memory = memory();
    for f in [V4, V6] {
        let udp = |data: &[u8]| f.request_udp(data);
        let large = f.request(PORT).with(|p| p.payload.resize(1_201, 0xf7)).summed();
        let rows = [
            (f.request(PORT), f.real, MAPPED),
            (large, f.real, MAPPED),
            (f.request(PORT).with(|p| p.vlan = Some(7)), f.real, MAPPED),
            (udp(b"odd").summed(), f.real, MAPPED),
            (udp(b"even").summed(), f.real, MAPPED),
            (f.request(115), f.real, 115),
            (f.request(9).to((f.translated, 9)).summed(), f.hidden, 9),
        ];
        for (request, real, port) in rows {
            let expected = less(&request.clone().to((real, port)).summed());
            let (link, rest) = sent(&memory, &request, Verdict::Transmit);
            assert_eq!(link, [HERE.destination_mac, HERE.source_mac].concat());
            assert_eq!(rest, expected.bytes()[12..], "{} to port {port}", f.name);
        }
        // Without a checksum there is none afterwards either.
        let without = udp(b"even");
        let (_, rest) = sent(&memory, &without, Verdict::Transmit);
        assert_eq!(rest, less(&without.to((f.real, MAPPED))).bytes()[12..], "{}", f.name);
    }
}

#[test]
fn an_answer_comes_from_the_vip() {
    let memory = memory();
    for f in [V4, V6] {
        let rows = [
            (f.given(MAPPED), f.vip, PORT),
            (f.given(MAPPED).with(|p| p.payload.resize(1_201, 0xf7)).summed(), f.vip, PORT),
            (f.given_udp(MAPPED, b"odd"), f.translated, PORT),
            (f.given(115), f.vip, 115),
            (f.given(9).from((f.hidden, 9)).summed(), f.translated, 9),
        ];
        for (answer, vip, port) in rows {
            let expected = less(&answer.clone().from((vip, port)).summed());
            let (link, rest) = sent(&memory, &answer, Verdict::Reply(ReplyReason::Redirected));
            assert_eq!(link, [GATEWAY_MAC, UPLINK.1].concat());
            assert_eq!(rest, expected.bytes()[12..], "{} from port {port}", f.name);
        }
        // The kernel is a router itself, and takes its share of the packet's life.
        let tagged = f.given(MAPPED).with(|p| p.vlan = Some(7));
        let (link, rest) = sent(&memory, &tagged, Verdict::Reply(ReplyReason::ByKernel));
        assert_eq!(link, [OUR_MAC, ROUTER_MAC].concat());
        assert_eq!(rest, tagged.from((f.vip, PORT)).summed().bytes()[12..], "{}", f.name);
    }
}

#[test]
fn later_fragments_follow_their_first_one_both_ways() {
    let memory = memory();
    for f in [V4, V6] {
        let as_fragment = |p: Packet, at| p.with(|p| (p.identification, p.fragment) = (0x1_0042, at));
        let out = [0x2000, 100].map(|at| {
            let (there, back) = (as_fragment(f.request(PORT), at), as_fragment(f.given(MAPPED), at));
            let there = sent(&memory, &there, Verdict::Transmit).1;
            (there, sent(&memory, &back, Verdict::Reply(ReplyReason::Redirected)).1)
        });
        let (first, later) = (&out[0], &out[1]);
        let expected = less(&as_fragment(f.request(PORT).to((f.real, MAPPED)).summed(), 0x2000));
        assert_eq!(first.0, expected.bytes()[12..], "{}", f.name);
        let expected = less(&as_fragment(f.given(MAPPED).from((f.vip, PORT)).summed(), 0x2000));
        assert_eq!(first.1, expected.bytes()[12..], "{}", f.name);
        // Here the payload is data, whatever it looks like: only addresses change.
        let there = f.request(PORT).with(|p| p.destination = f.real.parse().expect("address"));
        assert_eq!(later.0, less(&as_fragment(there, 100)).bytes()[12..], "{}", f.name);
        let back = f.given(MAPPED).with(|p| p.source = f.vip.parse().expect("address"));
        assert_eq!(later.1, less(&as_fragment(back, 100)).bytes()[12..], "{}", f.name);
    }
}

/// An ICMP error with this packet in it, `bytes` of its payload.
fn error(f: &Family, from: &str, to: &str, about: &Packet, bytes: usize) -> Packet {
    let kind = if f.name == "IPv4" { [3, 4, 0, 0, 0, 0, 5, 0] } else { [2, 0, 0, 0, 0, 0, 5, 0] };
    f.message(from, to, &[&kind[..], &f.shown(about, bytes)].concat())
}

#[test]
fn errors_are_about_what_their_receiver_has_sent() {
    let memory = memory();
    for f in [V4, V6] {
        for bytes in [8, 16, 18, 25] {
            // A router on the client's side, about an answer.
            let (answer, given) = (f.answer(PORT).summed(), f.given(MAPPED));
            let told = error(&f, f.router, f.vip, &answer, bytes);
            let expected = less(&error(&f, f.router, f.real, &given, bytes));
            assert_eq!(sent(&memory, &told, Verdict::Transmit).1, expected.bytes()[12..], "{}", f.name);
            // The real server, and a router before it, about a request.
            for (from, seen) in [(f.real, f.vip), (f.router, f.router)] {
                let told = error(&f, from, f.client, &f.received(MAPPED), bytes);
                let expected = less(&error(&f, seen, f.client, &f.request(PORT), bytes));
                let out = sent(&memory, &told, Verdict::Reply(ReplyReason::Redirected)).1;
                assert_eq!(out, expected.bytes()[12..], "{} from {from}", f.name);
            }
        }
    }
}

#[test]
fn a_real_server_is_told_that_it_is_no_client() {
    let mut memory = memory();
    for f in [V4, V6] {
        let request = f.request(PORT).from((f.real, 40_000)).summed();
        let kind = if f.name == "IPv4" { [3, 13] } else { [1, 1] };
        let told = f.told(kind, 0, &request, f.vip).with(|p| p.destination = request.source);
        // What it is told is summed up again: the address is another.
        let told = f.message(f.vip, f.real, &told.payload).with(|p| {
            (p.fragment, p.traffic_class, p.identification) =
                if f.name == "IPv4" { (0x4000, 0xc0, 0) } else { (0, 0, p.identification) };
        });
        let (link, rest) = sent(&memory, &request, Verdict::Answer(AnswerReason::Hairpin));
        assert_eq!(link, [ROUTER_MAC, OUR_MAC].concat());
        assert_eq!(rest, told.bytes()[12..], "{}", f.name);
    }
    memory.config.icmp_rate = 0;
    let request = V4.request(PORT).from((V4.real, 40_000)).summed();
    sent(&memory, &request, Verdict::Drop(DropReason::Hairpin));
}

#[test]
fn the_way_to_the_client_decides_how_an_answer_leaves() {
    let mut memory = memory();
    let back = |_: &RouteQuery| RouteEntry { ifindex: INGRESS, source_mac: OUR_MAC, ..RouteEntry::default() };
    memory.routes = back;
    sent(&memory, &V4.given(MAPPED), Verdict::Reply(ReplyReason::Transmitted));
    memory.routes = |_| RouteEntry { answer: RouteEntry::DISABLED, ..RouteEntry::default() };
    sent(&memory, &V6.given(MAPPED), Verdict::Pass(PassReason::ForwardingOff));
    // The routes are asked for the packet as it leaves.
    memory.routes = |query| {
        let (vip, client) = (query.source.ipv4(), query.destination.ipv4());
        assert_eq!((vip, client), (Some([203, 0, 113, 10]), Some([198, 51, 100, 7])));
        assert_eq!((query.source_port, query.destination_port, query.bytes), (MAPPED, 40_000, 45));
        RouteEntry { answer: RouteEntry::STAYS, ..RouteEntry::default() }
    };
    sent(&memory, &V4.given(MAPPED), Verdict::Pass(PassReason::NoService));
}

#[test]
fn the_kernel_says_what_it_does_not_forward() {
    isolated(|| {
        let mut dataplane = open(&options());
        fill(&mut dataplane);
        let run = |packet: &Packet| {
            let (frame, mut out) = (packet.bytes(), vec![0; 2_000]);
            let options =
                TestRunOptions { data_in: Some(&frame), data_out: Some(&mut out), ..TestRunOptions::new() };
            let result = dataplane.program().expect("program").test_run(options).expect("test run");
            out.truncate(result.data_size_out as usize);
            out
        };
        let counted = |wanted| {
            let counters = dataplane.counters().expect("counters");
            counters.outcomes.iter().find(|(outcome, _)| *outcome == wanted).expect("outcome").1
        };
        let explained =
            |packet: &Packet| dataplane.explain(&mut packet.bytes(), INGRESS).expect("explanation");
        for f in [V4, V6] {
            let answer = f.given(MAPPED);
            let before = explained(&answer);
            assert_eq!(before.outcome, Outcome::Replied(ReplyReason::Redirected), "{}", f.name);
            assert_eq!(before.next_hop.map(|hop| hop.destination_mac), Some(GATEWAY_MAC));
            let (from, to) = before.translated.expect("it is translated");
            assert_eq!((from.ip().to_string().as_str(), from.port()), (f.vip, PORT));
            assert_eq!((to.ip().to_string().as_str(), to.port()), (f.client, 40_000));
            let service = before.service.expect("its service");
            assert_eq!(service.name, if f.name == "IPv4" { "nat" } else { "nat-6" });
            assert_eq!(
                before.real.map(|real| real.address.to_string()),
                Some(match f.name {
                    "IPv4" => format!("{}:{MAPPED}", f.real),
                    _ => format!("[{}]:{MAPPED}", f.real),
                })
            );
            let request = explained(&f.request(PORT));
            let (_, to) = request.translated.expect("it is translated");
            assert_eq!((to.ip().to_string().as_str(), to.port()), (f.real, MAPPED));
            assert_eq!(explained(&f.request(80)).translated, None);
            let lost =
                answer.clone().with(|p| p.destination = f.client_of(Way::Refused).parse().expect("address"));
            assert_eq!(explained(&lost).outcome, Outcome::Dropped(DropReason::ReplyRefused));
        }
        // All of it also by the program itself, which counts.
        for f in [V4, V6] {
            run(&f.given(MAPPED));
            run(&f.request(PORT));
            run(&f.given(MAPPED).with(|p| p.ttl = 1));
        }
        let counters = dataplane.counters().expect("counters");
        for (name, bytes) in [("nat", 45), ("nat-6", 65)] {
            let traffic = counters.services[name].total;
            assert_eq!((traffic.packets_in, traffic.bytes_in), (1, bytes), "{name}");
            assert_eq!((traffic.packets_out, traffic.bytes_out, traffic.dropped), (1, bytes, 1), "{name}");
            let real = counters.services[name].reals[0].counters;
            assert_eq!((real.packets_in, real.packets_out), (1, 1), "{name}");
        }
        assert_eq!(dataplane.packets().expect("counters"), 4, "a request and an answer of each service");
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/{setting}"), "0").expect(setting);
        }
        for f in [V4, V6] {
            let answer = f.given(MAPPED);
            assert_eq!(explained(&answer).outcome, Outcome::Passed(PassReason::ForwardingOff), "{}", f.name);
            assert_eq!(run(&answer), answer.bytes());
        }
        assert_eq!(counted(Outcome::Passed(PassReason::ForwardingOff)), 2);
    });
}

#[test]
fn answers_are_known_while_their_service_has_the_real_server() {
    isolated(|| {
        let mut dataplane = open(&options());
        fill(&mut dataplane);
        let slots = Slots::new();
        let all = dataplane_fixture::cases::services(&slots);
        let outcome = |dataplane: &director::dataplane::Dataplane| {
            let explained = dataplane.explain(&mut V4.given(MAPPED).bytes(), INGRESS).expect("explanation");
            explained.outcome
        };
        assert_eq!(outcome(&dataplane), Outcome::Replied(ReplyReason::Redirected));
        let without: Vec<_> = all.iter().filter(|service| service.name != "nat").cloned().collect();
        dataplane.apply(&without).expect("apply");
        assert_eq!(outcome(&dataplane), Outcome::Passed(PassReason::NoService));
        dataplane.apply(&all).expect("apply");
        assert_eq!(outcome(&dataplane), Outcome::Replied(ReplyReason::Redirected));
        // An adopted data plane goes on where the last process stopped, and forgets what is not wanted any more.
        drop(dataplane);
        let mut dataplane = open(&options());
        assert_eq!(outcome(&dataplane), Outcome::Replied(ReplyReason::Redirected));
        dataplane.apply(&without).expect("apply");
        assert_eq!(outcome(&dataplane), Outcome::Passed(PassReason::NoService));
        let first = &services(all[0].slots)[0];
        let mut other = first.clone();
        (other.name, other.addresses[0].ports) = ("other", director::dataplane::Ports::one(1));
        other.reals = vec![RealSpec::new(V4.real.parse().expect("address"), MAPPED)];
        let refused = dataplane.apply(&[first.clone(), other]).expect_err("one port, two services");
        let names = |error: &SpecError| match error {
            SpecError::NatConflict { service, other, .. } => Some((service.clone(), other.clone())),
            _ => None,
        };
        assert!(
            matches!(&refused, ApplyError::Spec(error) if names(error) == Some(("nat".into(), "other".into()))),
            "{refused}"
        );
    });
}
