//! The tunnels' program in the kernel against `decapsulate` in user space, packet by packet (`BPF_PROG_TEST_RUN`).

mod dataplane_fixture;

use std::collections::BTreeSet;
use std::net::IpAddr;

use aya::TestRunOptions;
use aya::programs::TestRun as _;
use dataplane_fixture::isolated;
use dataplane_fixture::memory::{Growing, mapped};
use dataplane_fixture::packets::{Packet, fix_checksum};
use director::agent::TunnelEnd;
use director_common::Action;
use director_common::decapsulate::{Endpoint, Reception, Settings, Shrink, decapsulate, strip};
use director_common::packet::{Ethernet, Frame, Ip, Outer};
use director_common::tables::{Address, Encapsulation, FlowKey};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

const DIRECTORS: [&str; 2] = ["10.255.0.1", "2001:db8:ff::1"];
const STRANGERS: [&str; 2] = ["10.254.0.1", "2001:db8:fe::1"];
const OURS: [&str; 2] = ["10.0.2.11", "2001:db8:2::11"];
const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8::10"];
const CLIENTS: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];
const KINDS: [Encapsulation; 3] = [Encapsulation::Ipip, Encapsulation::Gre, Encapsulation::Gue];

fn addresses(texts: [&str; 2]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().expect("address")).collect()
}

/// What the program's maps hold, in ordinary memory.
struct Memory(Settings);

fn holds(texts: [&str; 2], address: &Address) -> bool {
    addresses(texts).into_iter().any(|known| mapped(known) == *address)
}

impl Endpoint for Memory {
    fn settings(&self) -> Settings {
        self.0
    }
    fn is_local(&self, address: &Address) -> bool {
        holds(OURS, address)
    }
    fn is_listed(&self, source: &Address) -> bool {
        // By the prefixes that `end` gives the program.
        let Address([a, b, c, d, e, f, ..]) = *source;
        source.ipv4().is_some_and(|[a, b, ..]| (a, b) == (10, 255))
            || (a, b, c, d, e, f) == (0x20, 0x01, 0x0d, 0xb8, 0, 0xff)
    }
    fn serves(&self, vip: &Address) -> bool {
        holds(VIPS, vip)
    }
}

struct Elastic<'a>(Growing<'a>);

impl Frame for Elastic<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.read(offset)
    }
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        self.0.write(offset, bytes)
    }
    fn grow<const N: usize>(&mut self) -> Option<()> {
        self.0.grow::<N>()
    }
    fn truncate(&mut self, len: usize) -> Option<()> {
        self.0.truncate(len)
    }
}

impl Shrink for Elastic<'_> {
    fn shrink(&mut self, bytes: usize) -> Option<()> {
        let Growing(frame) = &mut self.0;
        (bytes <= frame.len()).then(|| drop(frame.drain(..bytes)))
    }
}

fn settings(flags: u32) -> Settings {
    Settings(Settings::IPIP | Settings::GRE | flags).with_gue(6080)
}

fn end(settings: Settings) -> TunnelEnd {
    let mut end = TunnelEnd::load(settings).expect("the kernel takes the program");
    end.set_vips(&addresses(VIPS)).expect("VIPs");
    end.set_locals(&addresses(OURS)).expect("addresses");
    let prefixes = ["10.255.0.0/16", "2001:db8:ff::/48"].map(|text| text.parse().expect("prefix"));
    end.add_sources(&prefixes).expect("prefixes");
    end
}

/// What user space says of the frame, and the frame then.
fn user(settings: Settings, frame: &[u8]) -> (Reception, Vec<u8>) {
    let mut out = frame.to_vec();
    let mut elastic = Elastic(Growing(&mut out));
    let decision = decapsulate(&elastic, &Memory(settings), &mut FlowKey::default());
    if decision.reception == Reception::Decapsulated {
        strip(&mut elastic, &decision).expect("the same frame");
    }
    (decision.reception, out)
}

/// What the program in the kernel says, and the frame then.
fn kernel(end: &TunnelEnd, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 64];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = end.program().expect("program").test_run(options).expect("test run");
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

/// XDP's return values (`linux/bpf.h`).
fn code(reception: Reception) -> u32 {
    match reception.action() {
        Action::Drop => 1,
        Action::Pass => 2,
        other => panic!("{other:?} at a tunnel's end"),
    }
}

fn count(end: &TunnelEnd, wanted: Reception) -> u64 {
    let counters = end.counters().expect("counters");
    counters.into_iter().find(|(reception, _)| *reception == wanted).expect("every outcome").1
}

/// A packet as it leaves the director: in this tunnel from one of `sources`.
fn tunnel(kind: Encapsulation, over_v6: bool, sources: [&str; 2], inner: &Packet) -> Vec<u8> {
    let mut bytes = inner.bytes();
    let mut frame = Growing(&mut bytes);
    let ethernet = Ethernet::parse(&frame).expect("Ethernet");
    let ip = Ip::parse(&frame, &ethernet, &mut FlowKey::default()).expect("IP");
    let address = |texts: [&str; 2]| mapped(texts[usize::from(over_v6)].parse().expect("address"));
    let (source, destination) = (&address(sources), &address(OURS));
    let outer = Outer { encapsulation: kind, port: 6080, source, destination, entropy: 0x1234_5678 };
    outer.emit(&mut frame, &ip).expect("room");
    Ethernet::emit_addresses(&mut frame, inner.destination_mac, [2, 0, 0, 0, 0, 0x99]).expect("long enough");
    bytes
}

/// Frames of every kind, family pair and tagging, to a VIP or past it, from a director or a stranger.
fn frames() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for kind in KINDS {
        for bits in 0..16_u8 {
            let [inner_v6, over_v6, tagged, stranger] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
            let family = usize::from(inner_v6);
            for destination in [VIPS[family], OURS[family]] {
                for class in [0, 0xb8 | 1, 2, 3] {
                    let inner =
                        Packet::tcp((CLIENTS[family], 1_000), (destination, 80), 0x02).with(|packet| {
                            packet.vlan = tagged.then_some(42);
                            packet.traffic_class = class;
                        });
                    let sources = if stranger { STRANGERS } else { DIRECTORS };
                    frames.push(tunnel(kind, over_v6, sources, &inner));
                }
            }
        }
    }
    frames.push(Packet::tcp((CLIENTS[0], 1_000), (OURS[0], 80), 0x02).bytes());
    frames.push(Packet::udp((CLIENTS[1], 1_000), (OURS[1], 53), b"question").bytes());
    frames
}

/// Both say the same, and the program counts it.
fn agree(end: &TunnelEnd, settings: Settings, frame: &[u8]) {
    let (reception, want) = user(settings, frame);
    let before = count(end, reception);
    let (got, out) = kernel(end, frame);
    assert_eq!(got, code(reception), "{reception:?} {frame:02x?}");
    assert_eq!(out, want, "{reception:?} {frame:02x?}");
    assert_eq!(count(end, reception), before + 1, "counted as {reception:?}");
}

#[test]
fn kernel_agrees_on_every_tunnel() {
    isolated(|| {
        for flags in [0, Settings::LISTED_ONLY, Settings::GUARD, Settings::GUARD | Settings::LISTED_ONLY] {
            let settings = settings(flags);
            let end = end(settings);
            for frame in frames() {
                agree(&end, settings, &frame);
            }
            let counters = end.counters().expect("counters");
            assert_eq!(counters.iter().map(|(_, packets)| packets).sum::<u64>(), frames().len() as u64);
        }
    });
}

/// How many damaged packets: some in every run, more where somebody asks for it.
fn fuzz_cases() -> u32 {
    let asked = std::env::var("DIRECTOR_FUZZ_CASES").ok();
    asked.map_or(20_000, |cases| cases.parse().expect("DIRECTOR_FUZZ_CASES is a number"))
}

#[test]
fn kernel_agrees_on_damaged_tunnels() {
    isolated(|| {
        let settings = settings(Settings::LISTED_ONLY);
        let (end, frames) = (end(settings), frames());
        let damage = prop::collection::vec((0_usize..96, any::<u8>()), 0..4);
        let input =
            (any::<prop::sample::Index>(), damage, prop::option::weighted(0.2, 14_usize..120), any::<bool>());
        let mut runner =
            TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(fuzz_cases()) });
        let result = runner.run(&input, |(which, damage, cut, fix)| {
            let mut frame = frames[which.index(frames.len())].clone();
            for (at, value) in damage {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            if fix {
                fix_checksum(&mut frame);
            }
            if let Some(cut) = cut {
                frame.truncate(cut);
            }
            let (reception, want) = user(settings, &frame);
            let (got, out) = kernel(&end, &frame);
            prop_assert_eq!(got, code(reception), "{:?}", reception);
            prop_assert_eq!(out, want, "{:?}", reception);
            Ok(())
        });
        result.expect("kernel and user space agree");
    });
}

#[test]
fn addresses_are_exchanged_in_place() {
    isolated(|| {
        let settings = settings(0);
        let mut end = end(settings);
        let inner = Packet::tcp((CLIENTS[0], 1_000), (VIPS[0], 80), 0x02);
        let frame = tunnel(Encapsulation::Ipip, false, DIRECTORS, &inner);
        assert_eq!(kernel(&end, &frame).1, inner.bytes());
        end.set_vips(&addresses([VIPS[1], "203.0.113.11"])).expect("VIPs");
        assert_eq!(kernel(&end, &frame), (1, frame.clone()));
        assert_eq!(count(&end, Reception::NotAVip), 1);
        end.set_locals(&BTreeSet::new()).expect("addresses");
        assert_eq!(kernel(&end, &frame), (2, frame.clone()));
        assert_eq!(count(&end, Reception::NotForUs), 1);
    });
}
