//! The program in the kernel against `decide` in user space, packet by packet (`BPF_PROG_TEST_RUN`).

mod dataplane_fixture;

use aya::TestRunOptions;
use aya::programs::TestRun as _;
use dataplane_fixture::cases::{HERE, INGRESS, Slots, V4, V6, cases, fill, memory, services};
use dataplane_fixture::packets::{ACK, OUR_MAC, Packet};
use dataplane_fixture::{isolated, open, options};
use director::dataplane::{Dataplane, EchoPolicy, Forwarding, NextHop, Options, TunnelSources};
use director_common::tables::{Address, MAX_FRAGMENTS};
use director_common::verdict::{AnswerReason, Outcome};
use director_common::{Action, Verdict};
use nix::time::{ClockId, clock_gettime};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// XDP's return values (`linux/bpf.h`).
const fn code(action: Action) -> u32 {
    match action {
        Action::Drop => 1,
        Action::Pass => 2,
        Action::Transmit => 3,
        Action::Redirect => 4,
    }
}

/// Runs one frame through the program in the kernel.
fn kernel(dataplane: &Dataplane, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 64];
    let result = dataplane
        .program()
        .expect("program")
        .test_run(TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() })
        .expect("test run");
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

fn packets(dataplane: &Dataplane, wanted: Outcome) -> u64 {
    let counters = dataplane.counters().expect("counters");
    counters.outcomes.iter().find(|(outcome, _)| *outcome == wanted).expect("outcome").1
}

#[test]
fn kernel_agrees_on_every_case() {
    isolated(|| {
        let mut dataplane = open(&options());
        fill(&mut dataplane);
        let memory = memory();
        for (what, frame, expected) in cases() {
            let mut want = frame.clone();
            let (action, _) = memory.run(INGRESS, &mut want).verdict.disposition();
            let before = packets(&dataplane, expected);
            let (got, out) = kernel(&dataplane, &frame);
            assert_eq!(got, code(action), "{what}");
            assert_eq!(out, want, "{what}");
            assert_eq!(packets(&dataplane, expected), before + 1, "{what}: counted as {expected:?}");
        }
        let counters = dataplane.counters().expect("counters");
        let total: u64 = counters.outcomes.iter().map(|(_, packets)| packets).sum();
        assert_eq!(total, cases().len() as u64, "every packet is counted once");
    });
}

/// Answers as a router's come from the director's own address; here it has none, and so no service with a tunnel.
#[test]
fn kernel_agrees_without_an_address_of_its_own() {
    isolated(|| {
        let mut dataplane = open(&Options { tunnel_sources: TunnelSources::default(), ..options() });
        let slots = Slots::new();
        let mut services = services(&slots);
        services.retain(|service| service.forwarding == Forwarding::DirectReturn);
        dataplane.declare_interface(INGRESS, OUR_MAC, true).expect("interface");
        dataplane.apply(&services).expect("apply");
        let mut memory = memory();
        (memory.config.tunnel_v4, memory.config.tunnel_v6) = (Address::default(), Address::default());
        for (family, vlan) in [(V4, None), (V6, None), (V4, Some(7)), (V6, Some(7))] {
            let packet = Packet::tcp((family.client, 40_000), (family.vip, 80), ACK)
                .with(|p| (p.ttl, p.vlan) = (1, vlan))
                .bytes();
            let mut want = packet.clone();
            assert_eq!(memory.run(INGRESS, &mut want).verdict, Verdict::Answer(AnswerReason::TimeExceeded));
            assert_eq!(kernel(&dataplane, &packet), (code(Action::Transmit), want), "{}", family.name);
        }
        assert_eq!(packets(&dataplane, Outcome::Answered(AnswerReason::TimeExceeded)), 4);
    });
}

/// It gives up after a million, and what it goes through grows with the program: not by accident. Linux 6.1 goes through
/// 900,000 for what 6.18 does in 680,000.
#[test]
fn the_verifier_has_room_to_spare() {
    isolated(|| {
        let dataplane = open(&options());
        let info = dataplane.program().expect("program").info().expect("what the kernel says of it");
        let instructions = info.verified_instruction_count().expect("Linux 5.16 or later");
        println!("{instructions} instructions verified");
        assert!(instructions < 500_000, "{instructions}");
    });
}

/// How many damaged packets: some in every run, more where somebody asks for it.
fn fuzz_cases() -> u32 {
    let asked = std::env::var("DIRECTOR_FUZZ_CASES").ok();
    asked.map_or(20_000, |cases| cases.parse().expect("DIRECTOR_FUZZ_CASES is a number"))
}

/// The clock that the program reads, in seconds.
fn now() -> u32 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("clock").tv_sec() as u32
}

#[test]
fn kernel_agrees_on_damaged_packets() {
    isolated(|| {
        let mut dataplane = open(&options());
        fill(&mut dataplane);
        let (mut memory, cases) = (memory(), cases());
        memory.follow(&options().pin_dir);
        let input = (
            any::<prop::sample::Index>(),
            prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            any::<prop::sample::Index>(),
            prop::bool::weighted(0.3),
            any::<u32>(),
        );
        let mut runner =
            TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(fuzz_cases()) });
        let result = runner.run(&input, |(which, damage, length, truncate, source)| {
            let mut frame = cases[which.index(cases.len())].1.clone();
            if !truncate && frame.len() >= 34 && frame[12..14] == [0x08, 0x00] {
                frame[26..30].copy_from_slice(&source.to_be_bytes());
                dataplane_fixture::packets::fix_checksum(&mut frame);
            }
            for (at, value) in damage {
                let at = at.index(frame.len());
                frame[at] = value;
            }
            if truncate {
                frame.truncate(length.index(frame.len() + 1).max(14));
            }
            let mut want = frame.clone();
            memory.now.set(now());
            let decision = memory.run(INGRESS, &mut want);
            let (verdict, follows): (Verdict, bool) = (decision.verdict, decision.forward.follows != 0);
            let (got, out) = kernel(&dataplane, &frame);
            if follows && (got == code(Action::Drop) || got == code(Action::Pass)) && out == frame {
                // The kernel's memory of first fragments is bounded, and has forgotten this one.
                return Ok(());
            }
            let what = &cases[which.index(cases.len())].0;
            prop_assert_eq!(got, code(verdict.disposition().0), "{}: {:?}", what, verdict);
            prop_assert_eq!(out, want, "{}: {:?}", what, verdict);
            Ok(())
        });
        result.expect("kernel and user space agree");
    });
}

/// Frames of anything, some of them with what lets a packet in: our link address, the type of IP, a VIP.
#[test]
fn kernel_agrees_on_random_frames() {
    isolated(|| {
        let mut dataplane = open(&options());
        fill(&mut dataplane);
        let mut memory = memory();
        memory.follow(&options().pin_dir);
        let input = (prop::collection::vec(any::<u8>(), 14..200), any::<u8>());
        let mut runner =
            TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(fuzz_cases()) });
        let result = runner.run(&input, |(mut frame, look)| {
            if look & 1 != 0 {
                frame[..6].copy_from_slice(&OUR_MAC);
            }
            let (ethertype, version, vip) =
                if look & 2 != 0 { ([0x08, 0x00], 0x45, 30..34) } else { ([0x86, 0xdd], 0x60, 38..54) };
            if look & 4 != 0 {
                frame[12..14].copy_from_slice(&ethertype);
            }
            if look & 8 != 0 && frame.len() > vip.end {
                frame[14] = version;
                let address = if look & 2 != 0 { V4.vip } else { V6.vip };
                match address.parse().expect("VIP") {
                    std::net::IpAddr::V4(address) => frame[vip].copy_from_slice(&address.octets()),
                    std::net::IpAddr::V6(address) => frame[vip].copy_from_slice(&address.octets()),
                }
                if look & 16 != 0 {
                    // As long as the frame, of a protocol that services have.
                    let length = (frame.len() - 14) as u16;
                    let (at, length, protocol) =
                        if look & 2 != 0 { (16, length, 23) } else { (18, length.saturating_sub(40), 20) };
                    frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
                    frame[protocol] = if look & 32 != 0 { 6 } else { 17 };
                }
                dataplane_fixture::packets::fix_checksum(&mut frame);
            }
            let mut want = frame.clone();
            memory.now.set(now());
            let decision = memory.run(INGRESS, &mut want);
            let (got, out) = kernel(&dataplane, &frame);
            prop_assert_eq!(got, code(decision.verdict.disposition().0), "{:?}", decision.verdict);
            prop_assert_eq!(out, want, "{:?}", decision.verdict);
            Ok(())
        });
        result.expect("kernel and user space agree");
    });
}

#[test]
fn the_kernel_answers_with_no_more_errors_than_it_may() {
    isolated(|| {
        let mut dataplane = open(&Options { icmp_rate: 5, ..options() });
        fill(&mut dataplane);
        let expired = Packet::tcp((V4.client, 40_000), (V4.vip, 80), ACK).with(|p| p.ttl = 1).bytes();
        let begun = now();
        for _ in 0..1_000 {
            let _ = kernel(&dataplane, &expired);
        }
        // One processor at least has answered, none more than five times in a second.
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let most = 5 * processors * u64::from(now() - begun + 1);
        let answered = packets(&dataplane, Outcome::Answered(AnswerReason::TimeExceeded));
        assert!((5..=most).contains(&answered), "{answered} answers, at most {most}");
        let dropped = packets(&dataplane, Outcome::Dropped(director_common::verdict::DropReason::TtlExpired));
        assert_eq!(answered + dropped, 1_000);
    });
}

/// A flood of first fragments takes the place of the oldest, and no more room than there is.
#[test]
fn the_memory_of_first_fragments_is_bounded() {
    isolated(|| {
        const DATAGRAMS: u32 = 2 * MAX_FRAGMENTS as u32;
        let mut dataplane = open(&options());
        fill(&mut dataplane);
        // Of a service that chooses by the port, which a later fragment does not have.
        let part = |identification: u32, fragment| {
            Packet::udp((V6.client, 40_000), (V6.vip, 53), &[5; 64])
                .with(|p| (p.identification, p.fragment) = (identification, fragment))
                .bytes()
        };
        for identification in 0..DATAGRAMS {
            assert_eq!(kernel(&dataplane, &part(identification, 0x2000)).0, code(Action::Transmit));
        }
        let known = |identification| kernel(&dataplane, &part(identification, 9)).0 == code(Action::Transmit);
        assert!((DATAGRAMS - 100..DATAGRAMS).all(known), "the latest");
        let all = (0..DATAGRAMS).filter(|identification| known(*identification)).count();
        assert!((MAX_FRAGMENTS / 2..=MAX_FRAGMENTS).contains(&all), "{all} are known");
    });
}

#[test]
fn echo_requests_are_answered_as_configured() {
    for (policy, served, unserved) in [
        (EchoPolicy::WhileServed, Action::Transmit, Action::Drop),
        (EchoPolicy::Always, Action::Transmit, Action::Transmit),
        (EchoPolicy::Kernel, Action::Pass, Action::Pass),
    ] {
        isolated(move || {
            let mut dataplane = open(&Options { echo: policy, ..options() });
            fill(&mut dataplane);
            for family in [V4, V6] {
                let answer = |vip| kernel(&dataplane, &family.echo(vip).bytes()).0;
                let expected = (code(served), code(unserved));
                assert_eq!((answer(family.vip), answer(family.dead)), expected, "{} {policy:?}", family.name);
            }
        });
    }
}

#[test]
fn traffic_is_counted_per_service_real_server_and_flow() {
    isolated(|| {
        let mut dataplane = open(&Options { flow_accounting: true, ..options() });
        fill(&mut dataplane);
        let syn = Packet::tcp(("198.51.100.7", 1_000), ("203.0.113.10", 80), 0x02).bytes();
        let data = Packet::tcp(("198.51.100.7", 1_000), ("203.0.113.10", 80), ACK).bytes();
        let expired =
            Packet::tcp(("198.51.100.7", 1_000), ("203.0.113.10", 80), ACK).with(|p| p.ttl = 1).bytes();
        for frame in [&syn, &data, &data, &expired] {
            let _ = kernel(&dataplane, frame);
        }
        let counters = dataplane.counters().expect("counters");
        let here = &counters.services["here"];
        assert_eq!((here.total.packets_in, here.total.bytes_in), (4, 4 * 45));
        assert_eq!((here.total.connections, here.total.dropped), (1, 1));
        let first = &here.reals[0];
        assert_eq!(first.address.to_string(), "10.0.2.11");
        assert_eq!((first.counters.packets_in, first.counters.connections), (3, 1));
        assert_eq!(here.reals[1].counters.packets_in, 0);
        let flows = dataplane.flows().expect("flows");
        assert_eq!(flows.len(), 1);
        assert_eq!((flows[0].packets, flows[0].bytes), (3, 3 * 45));
        assert_eq!(flows[0].source.to_string(), "198.51.100.7:1000");
        assert_eq!(flows[0].service.as_deref(), Some("here"));
        assert_eq!(flows[0].real.map(|real| real.to_string()).as_deref(), Some("10.0.2.11"));
    });
}

/// Prints what a packet costs. Nanoseconds depend on the machine (and an emulated one takes microseconds), so
/// what is asserted is the ratio to the cheapest packet there is.
#[test]
fn forwarding_costs_a_small_multiple_of_passing() {
    isolated(|| {
        let mut dataplane = open(&options());
        fill(&mut dataplane);
        // A run finds the packet as the last one left it: still ours, but for the time to live.
        let to_ourselves = NextHop { destination_mac: OUR_MAC, ..HERE };
        dataplane.set_next_hop("10.0.2.11".parse().expect("address"), Some(to_ourselves)).expect("next hop");
        let measure = |what: &str, frame: &[u8]| {
            let once = || {
                let options = TestRunOptions { data_in: Some(frame), repeat: 250, ..TestRunOptions::new() };
                dataplane.program().expect("program").test_run(options).expect("test run").duration
            };
            // The quickest of many: the others met an interrupt.
            let best = (0..200).map(|_| once()).min().expect("some").as_nanos();
            println!("{what}: {best} ns");
            best
        };
        let client = ("198.51.100.7", 1);
        let packet = |destination, ttl| Packet::tcp(client, destination, ACK).with(|p| p.ttl = ttl);
        let not_ip = packet(("10.9.9.9", 80), 64).with(|p| p.ethertype = 0x0806);
        let passed = measure("not IP", &not_ip.bytes());
        let not_ours = measure("not for a VIP", &packet(("10.9.9.9", 80), 64).bytes());
        let forwarded = measure("forwarded", &packet(("203.0.113.10", 80), 255).bytes());
        assert!(not_ours < 10 * passed && forwarded < 20 * passed);
        let counters = dataplane.counters().expect("counters");
        assert_eq!(counters.services["here"].reals[0].counters.packets_in, 200 * 250, "all were forwarded");
    });
}
