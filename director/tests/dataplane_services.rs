//! Services that own prefixes, ranges and groups, and thousands of services, in the kernel as in user space.

mod dataplane_fixture;

use std::net::IpAddr;

use aya::TestRunOptions;
use aya::programs::TestRun as _;
use dataplane_fixture::cases::{HERE, INGRESS, KEY, V4, V6, next_hop};
use dataplane_fixture::memory::Memory;
use dataplane_fixture::packets::{ACK, OUR_MAC, Packet, SYN};
use dataplane_fixture::{isolated, open, options};
use director::dataplane::{
    Adoption, Datagrams, Dataplane, Forwarding, HashInput, NextHop, Ports, Protocol, RealSpec,
    ServiceAddress, ServiceSpec, Timeouts,
};
use director_common::tables::Interface;
use director_common::verdict::{AnswerReason, DropReason, Outcome, PassReason};
use director_common::{Decision, SLOTS, SMALL_SLOTS, Verdict};

/// `203.0.113.0/28 80`, `2001:db8::/64 8000-8999` or `203.0.113.10/32 *`.
fn address(text: &str, protocol: Protocol) -> ServiceAddress {
    let (prefix, ports) = text.split_once(' ').expect("prefix and ports");
    let number = |text: &str| text.parse().expect("port");
    let ports = match ports.split_once('-') {
        Some((first, last)) => Ports { first: number(first), last: number(last) },
        None if ports == "*" => Ports::ALL,
        None => Ports::one(number(ports)),
    };
    ServiceAddress { prefix: prefix.parse().expect("prefix"), protocol, ports }
}

fn service<'a>(name: &'a str, addresses: &[&str], real: &str, slots: &'a [u16]) -> ServiceSpec<'a> {
    ServiceSpec {
        name,
        addresses: addresses.iter().map(|text| address(text, Protocol::Tcp)).collect(),
        hash: HashInput::Source,
        forwarding: Forwarding::DirectReturn,
        reals: vec![RealSpec::new(real.parse().expect("real"), 0)],
        slots,
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking: None,
    }
}

/// Services of both families that meet in every way.
fn services<'a>(large: &'a [u16], small: &'a [u16], none: &'a [u16]) -> Vec<ServiceSpec<'a>> {
    let mut services = vec![
        service("net", &["203.0.113.0/24 *", "2001:db8:113::/64 *"], "10.0.2.11", small),
        service("half", &["203.0.113.0/25 8000-8999", "2001:db8:113::/65 8000-8999"], "10.0.2.12", large),
        service("exact", &["203.0.113.10/32 8080", "2001:db8:113::10/128 8080"], "10.0.2.11", large),
        service(
            "range",
            &["203.0.113.10/32 8000-8499", "2001:db8:113::10/128 8000-8499"],
            "10.0.2.12",
            small,
        ),
        service(
            "inner",
            &["203.0.113.10/32 8100-8163", "2001:db8:113::10/128 8100-8163"],
            "10.0.2.11",
            small,
        ),
        service("rest", &["203.0.113.11/32 *", "2001:db8:113::11/128 *"], "10.0.2.12", small),
        service(
            "group",
            &["198.18.0.1/32 443", "198.18.0.2/32 440-449", "198.18.1.0/30 443", "2001:db8:18::/126 443"],
            "10.0.2.11",
            large,
        ),
        service("dead", &["198.18.2.0/24 80", "2001:db8:182::/64 80"], "10.0.2.11", none),
    ];
    let ports = [address("198.18.3.0/24 *", Protocol::Udp), address("2001:db8:183::/64 *", Protocol::Udp)];
    services.push(ServiceSpec { addresses: ports.to_vec(), ..service("datagrams", &[], "10.0.2.11", small) });
    services
}

fn ready() -> Dataplane {
    let mut dataplane = open(&options());
    dataplane.set_hash_key(KEY).expect("key");
    dataplane.declare_interface(INGRESS, OUR_MAC, true).expect("interface");
    for real in ["10.0.2.11", "10.0.2.12"] {
        let real: IpAddr = real.parse().expect("real");
        dataplane.set_next_hop(real, next_hop(real)).expect("next hop");
    }
    dataplane
}

fn memory(services: &[ServiceSpec<'_>]) -> Memory {
    let mut memory = Memory::new(KEY);
    services.iter().for_each(|service| memory.add(service, next_hop));
    memory.interfaces.insert(INGRESS, Interface { mac: OUR_MAC, flags: Interface::FLAG_NATIVE });
    memory
}

/// What the program in the kernel returns and leaves of the frame.
fn kernel(dataplane: &Dataplane, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 64];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = dataplane.program().expect("program").test_run(options).expect("test run");
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

/// Runs a frame through both, which must agree; the name of the service that had it.
fn owner<'a>(
    dataplane: &Dataplane,
    memory: &Memory,
    services: &[ServiceSpec<'a>],
    frame: &[u8],
    what: &str,
) -> (Verdict, Option<&'a str>) {
    let mut want = frame.to_vec();
    let decision = memory.run(INGRESS, &mut want);
    let (verdict, service) = (decision.verdict, decision.service);
    let action = match verdict.disposition().0 {
        director_common::Action::Drop => 1,
        director_common::Action::Pass => 2,
        director_common::Action::Transmit => 3,
        director_common::Action::Redirect => 4,
    };
    let name = services.get(service as usize).map(|service| service.name);
    assert_eq!(name.is_none(), service == Decision::NO_SERVICE, "{what}");
    let packets = |name| dataplane.counters().expect("counters").services[name].total.packets_in;
    let before = name.map(packets);
    assert_eq!(kernel(dataplane, frame), (action, want), "{what}: {verdict:?}");
    assert_eq!(name.map(packets), before.map(|before| before + 1), "{what}: counted for {name:?}");
    (verdict, name)
}

#[test]
fn the_most_specific_service_has_the_packet_in_the_kernel_too() {
    isolated(|| {
        let (large, small, none) = (vec![0; SLOTS], vec![0; SMALL_SLOTS], vec![u16::MAX; SMALL_SLOTS]);
        let services = services(&large, &small, &none);
        let memory = memory(&services);
        let mut dataplane = ready();
        dataplane.apply(&services).expect("apply");
        let check = |dataplane: &Dataplane| {
            for (v4, v6, port, expected) in [
                ("203.0.113.200", "2001:db8:113:0:8000::1", 80, Some("net")),
                ("203.0.113.200", "2001:db8:113:0:8000::1", 8_500, Some("net")),
                ("203.0.113.1", "2001:db8:113::1", 7_999, Some("net")),
                ("203.0.113.1", "2001:db8:113::1", 8_000, Some("half")),
                ("203.0.113.1", "2001:db8:113::1", 8_999, Some("half")),
                ("203.0.113.1", "2001:db8:113::1", 9_000, Some("net")),
                ("203.0.113.10", "2001:db8:113::10", 8_080, Some("exact")),
                ("203.0.113.10", "2001:db8:113::10", 8_081, Some("range")),
                ("203.0.113.10", "2001:db8:113::10", 8_099, Some("range")),
                ("203.0.113.10", "2001:db8:113::10", 8_100, Some("inner")),
                ("203.0.113.10", "2001:db8:113::10", 8_163, Some("inner")),
                ("203.0.113.10", "2001:db8:113::10", 8_164, Some("range")),
                ("203.0.113.10", "2001:db8:113::10", 8_500, Some("half")),
                ("203.0.113.10", "2001:db8:113::10", 80, Some("net")),
                ("203.0.113.11", "2001:db8:113::11", 8_500, Some("rest")),
                ("203.0.113.11", "2001:db8:113::11", 65_535, Some("rest")),
                ("198.18.1.3", "2001:db8:18::3", 443, Some("group")),
                ("198.18.1.3", "2001:db8:18::3", 442, None),
                ("198.18.1.4", "2001:db8:18::4", 443, None),
                ("198.18.2.9", "2001:db8:182::9", 80, Some("dead")),
            ] {
                for (vip, client) in [(v4, V4.client), (v6, V6.client)] {
                    let packet = Packet::tcp((client, 40_000), (vip, port), ACK);
                    let what = format!("{vip} port {port}");
                    let frame = packet.bytes();
                    assert_eq!(owner(dataplane, &memory, &services, &frame, &what).1, expected, "{what}");
                }
            }
            for (vip, port, expected) in [
                ("198.18.0.1", 443, Some("group")),
                ("198.18.0.2", 449, Some("group")),
                ("198.18.0.1", 440, None),
            ] {
                let frame = Packet::tcp((V4.client, 40_000), (vip, port), ACK).bytes();
                assert_eq!(
                    owner(dataplane, &memory, &services, &frame, vip).1,
                    expected,
                    "{vip} port {port}"
                );
            }
        };
        check(&dataplane);
        // A prefix's addresses are VIPs like any other.
        let verdicts =
            |packet: &Packet, what: &str| owner(&dataplane, &memory, &services, &packet.bytes(), what).0;
        for family in [V4, V6] {
            let v4 = family.name == "IPv4";
            let pick = |four, six| if v4 { four } else { six };
            let (dead, datagrams) =
                (pick("198.18.2.9", "2001:db8:182::9"), pick("198.18.3.9", "2001:db8:183::9"));
            let (served, shared) =
                (pick("203.0.113.200", "2001:db8:113:0:8000::1"), pick("203.0.113.10", "2001:db8:113::10"));
            let echo = |vip| verdicts(&family.echo(vip), "echo");
            assert_eq!(echo(served), Verdict::Answer(AnswerReason::Echo));
            assert_eq!(echo(dead), Verdict::Drop(DropReason::EchoUnserved));
            assert_eq!(echo(family.router), Verdict::Pass(PassReason::NoService));
            let other = Packet::new(132, family.client, served, vec![0; 20]);
            assert_eq!(verdicts(&other, "SCTP"), Verdict::Pass(PassReason::ProtocolToVip));
            let short = Packet::new(6, family.client, served, vec![0; 2]);
            assert_eq!(verdicts(&short, "short"), Verdict::Drop(DropReason::ShortTransport));
            // A later fragment: of an address that one service has alone, and of one that several share.
            let later = |vip, protocol| {
                Packet::new(protocol, family.client, vip, vec![7; 40]).with(|packet| packet.fragment = 100)
            };
            assert_eq!(verdicts(&later(datagrams, 17), "alone"), Verdict::Transmit);
            assert_eq!(verdicts(&later(shared, 6), "shared"), Verdict::Drop(DropReason::Fragment));
        }

        // The next process finds all of it, and changes nothing.
        drop(dataplane);
        let (mut second, adoption) = Dataplane::open(&options()).expect("open");
        assert!(matches!(adoption, Adoption::Adopted { .. }));
        assert!(second.apply(&services).expect("apply").is_unchanged());
        check(&second);
        second.apply(&[]).expect("apply");
        let frame = Packet::tcp((V4.client, 40_000), ("203.0.113.1", 8_000), ACK).bytes();
        assert_eq!(kernel(&second, &frame), (2, frame), "nobody's: the kernel's");
    });
}

#[test]
fn ten_thousand_services_are_applied_in_seconds_and_found() {
    isolated(|| {
        const COUNT: usize = 10_000;
        let small = [vec![0; SMALL_SLOTS], vec![1; SMALL_SLOTS]];
        let names: Vec<String> = (0..COUNT).map(|number| format!("service-{number}")).collect();
        let at = |number: usize| format!("100.64.{}.{}", number / 256, number % 256);
        let build = |slots| -> Vec<ServiceSpec<'_>> {
            let reals = ["10.0.2.11", "10.0.2.12"].map(|real| RealSpec::new(real.parse().expect("real"), 0));
            let spec = |(number, name)| {
                let text = match number % 100 {
                    7 => format!("10.64.{}.0/30 80", number / 100),
                    8 => format!("{}/32 8000-8999", at(number)),
                    _ => format!("{}/32 80", at(number)),
                };
                ServiceSpec { reals: reals.to_vec(), ..service(name, &[&text], "10.0.2.11", slots) }
            };
            names.iter().map(String::as_str).enumerate().map(spec).collect()
        };
        let mut dataplane = ready();
        let services = build(&small[0]);
        let memory = memory(&services);
        let started = std::time::Instant::now();
        dataplane.apply(&services).expect("apply");
        let first = started.elapsed();
        let find = |dataplane: &Dataplane, ifindex: u32, flags| {
            for (number, vip, port) in [
                (0, at(0), 80),
                (5_000, at(5_000), 80),
                (COUNT - 1, at(COUNT - 1), 80),
                (107, "10.64.1.3".to_owned(), 80),
                (9_908, at(9_908), 8_000),
                (9_908, at(9_908), 8_999),
            ] {
                let frame = Packet::tcp((V4.client, 40_000), (&vip, port), flags).bytes();
                let decision = memory.run(INGRESS, &mut frame.clone()).service;
                assert_eq!(decision as usize, number, "{vip}");
                let sent = if ifindex == HERE.ifindex { 3 } else { 4 };
                assert_eq!(kernel(dataplane, &frame).0, sent, "{vip} port {port}");
            }
        };
        find(&dataplane, HERE.ifindex, ACK);
        let counters = dataplane.counters().expect("counters");
        let counted: Vec<u64> = [0, 5_000, COUNT - 1, 107, 9_908]
            .map(|number: usize| counters.services[&names[number]].total.packets_in)
            .to_vec();
        assert_eq!(counted, [1, 1, 1, 1, 2]);

        let started = std::time::Instant::now();
        let report = dataplane.apply(&build(&small[1])).expect("apply");
        let second = started.elapsed();
        assert_eq!(report.switched.len(), COUNT);
        // The slots are moving: what begins now goes to the new owner.
        find(&dataplane, 77, SYN);
        let started = std::time::Instant::now();
        assert!(dataplane.apply(&build(&small[1])).expect("apply").is_unchanged());
        println!("{COUNT} services: first {first:?}, all tables {second:?}, nothing {:?}", started.elapsed());
        // Ten times what an idle machine with a debug build takes.
        assert!(first.as_secs() < 60 && second.as_secs() < 60, "{first:?}, {second:?}");
    });
}

/// Its first fragment goes by the connection id, which the later one does not show.
#[test]
fn a_fragment_that_overtakes_goes_by_no_slot_where_the_connection_id_decides() {
    isolated(|| {
        let slots = vec![0; SMALL_SLOTS];
        let addresses =
            ["203.0.113.20/32 *", "2001:db8:113::20/128 *"].map(|text| address(text, Protocol::Udp));
        let plain = ServiceSpec { addresses: addresses.to_vec(), ..service("web", &[], "10.0.2.11", &slots) };
        let mut quic = ServiceSpec { datagrams: Datagrams::Quic { offset: 1, length: 2 }, ..plain.clone() };
        quic.reals[0].quic_id = Some(7);
        for (spec, expected) in
            [(plain, Verdict::Transmit), (quic, Verdict::Drop(DropReason::FragmentNeedsPort))]
        {
            let specs = [spec];
            let mut dataplane = ready();
            dataplane.apply(&specs).expect("apply");
            let memory = memory(&specs);
            for (client, vip) in [(V4.client, "203.0.113.20"), (V6.client, "2001:db8:113::20")] {
                let later =
                    Packet::udp((client, 40_000), (vip, 443), &[5; 64]).with(|p| p.fragment = 9).bytes();
                assert_eq!(memory.run(INGRESS, &mut later.clone()).verdict, expected, "{client}");
                let action = if expected.is_forward() { 3 } else { 1 };
                assert_eq!(kernel(&dataplane, &later).0, action, "{client}");
            }
            dataplane.detach().expect("detach");
        }
    });
}

#[test]
fn a_prefix_may_come_and_go_around_an_address() {
    isolated(|| {
        let slots = vec![0; SMALL_SLOTS];
        let inner = service("inner", &["203.0.113.10/32 80"], "10.0.2.11", &slots);
        let outer = service("outer", &["203.0.113.0/28 *"], "10.0.2.12", &slots);
        let range = service("inner", &["203.0.113.10/32 80-89"], "10.0.2.11", &slots);
        let mut dataplane = ready();
        let histories: [(&[ServiceSpec<'_>], [u32; 3]); 6] = [
            (std::slice::from_ref(&inner), [3, 2, 2]),
            (&[inner.clone(), outer.clone()], [3, 4, 4]),
            (&[range.clone(), outer.clone()], [3, 3, 4]),
            (std::slice::from_ref(&outer), [4, 4, 4]),
            (std::slice::from_ref(&range), [3, 3, 2]),
            (std::slice::from_ref(&inner), [3, 2, 2]),
        ];
        for (step, (services, expected)) in histories.into_iter().enumerate() {
            dataplane.apply(services).expect("apply");
            let got = [80, 85, 90].map(|port| {
                kernel(&dataplane, &Packet::tcp((V4.client, 40_000), ("203.0.113.10", port), ACK).bytes()).0
            });
            assert_eq!(got, expected, "step {step}");
        }
    });
}

/// As many as a node is to have, each with a way of its own: every packet leaves for the one that its slot names.
#[test]
fn four_thousand_real_servers_are_told_apart() {
    isolated(|| {
        const EACH: usize = 1_024;
        let real = |service: usize, number: usize| {
            IpAddr::from([10, 10 + service as u8, (number >> 8) as u8, number as u8])
        };
        let mac = |service: usize, number: usize| [2, 7, service as u8, 0, (number >> 8) as u8, number as u8];
        let slots: Vec<u16> = (0..SLOTS).map(|slot| (slot % EACH) as u16).collect();
        let names = ["one", "two", "three", "four"];
        let vip = |service: usize| format!("203.0.113.{}", 100 + service);
        let specs: Vec<ServiceSpec<'_>> = (0..4)
            .map(|at| ServiceSpec {
                reals: (0..EACH).map(|number| RealSpec::new(real(at, number), 0)).collect(),
                ..service(names[at], &[&format!("{}/32 80", vip(at))], "10.0.2.11", &slots)
            })
            .collect();
        let way = |address: IpAddr| {
            let IpAddr::V4(v4) = address else { return None };
            let [_, net, high, low] = v4.octets();
            let number = usize::from(high) << 8 | usize::from(low);
            Some(NextHop { destination_mac: mac(usize::from(net) - 10, number), ..HERE })
        };
        let mut dataplane = ready();
        dataplane.apply(&specs).expect("apply");
        let begun = std::time::Instant::now();
        for (at, number) in (0..4).flat_map(|at| (0..EACH).map(move |number| (at, number))) {
            dataplane.set_next_hop(real(at, number), way(real(at, number))).expect("next hop");
        }
        // Not all entries are read for each of them.
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
        let mut memory = Memory::new(KEY);
        specs.iter().for_each(|spec| memory.add(spec, way));
        memory.interfaces.insert(INGRESS, Interface { mac: OUR_MAC, flags: Interface::FLAG_NATIVE });
        let mut met = std::collections::BTreeSet::new();
        for step in 0..20_000_usize {
            let client = format!("198.51.{}.{}", step >> 8 & 0xff, step & 0xff);
            let frame = Packet::tcp((&client, (step >> 4) as u16 | 1), (&vip(step % 4), 80), ACK).bytes();
            let mut want = frame.clone();
            assert_eq!(memory.run(INGRESS, &mut want).verdict, Verdict::Transmit);
            let (action, out) = kernel(&dataplane, &frame);
            assert_eq!((action, &out), (3, &want), "{client}");
            met.insert(out[..6].to_vec());
        }
        assert!(met.len() > 3_500, "{} of 4096 were met", met.len());
    });
}

/// What takes the shortcut is counted for the real server alone: the service and the outcomes must not lose it with that.
#[test]
fn what_was_counted_outlives_where_it_was_counted() {
    isolated(|| {
        let slots = vec![0; SMALL_SLOTS];
        let web = service("web", &["203.0.113.10/32 80"], "10.0.2.11", &slots);
        let dns = service("dns", &["203.0.113.11/32 80"], "10.0.2.12", &slots);
        // More real servers than the first block has room for.
        let more = (11..20).map(|last| RealSpec::new(IpAddr::from([10, 0, 2, last]), 0)).collect();
        let grown = ServiceSpec { reals: more, ..web.clone() };
        let mut dataplane = ready();
        let mut sent = [0; 3];
        // Services, to whom packets are sent, what they come to, and the packets of both services afterwards.
        type Step<'a> = (&'a [ServiceSpec<'a>], &'a str, usize, [Option<u64>; 2]);
        let history: [Step<'_>; 7] = [
            (std::slice::from_ref(&web), "203.0.113.10", 0, [Some(3), None]),
            (std::slice::from_ref(&grown), "203.0.113.10", 0, [Some(6), None]),
            (&[grown.clone(), dns.clone()], "203.0.113.11", 1, [Some(6), Some(3)]),
            (&[web.clone(), dns.clone()], "203.0.113.10", 0, [Some(9), Some(3)]),
            (std::slice::from_ref(&dns), "203.0.113.10", 2, [None, Some(3)]),
            // With the index that the other one had.
            (&[web.clone(), dns.clone()], "203.0.113.10", 0, [Some(3), Some(3)]),
            (&[], "203.0.113.10", 2, [None, None]),
        ];
        for (step, (services, vip, outcome, expected)) in history.into_iter().enumerate() {
            dataplane.apply(services).expect("apply");
            let frame = Packet::tcp((V4.client, 40_000), (vip, 80), ACK).bytes();
            for _ in 0..3 {
                assert_eq!(kernel(&dataplane, &frame).0, [3, 4, 2][outcome], "step {step}");
            }
            sent[outcome] += 3;
            let counters = dataplane.counters().expect("counters");
            let of = |name| counters.services.get(name).map(|service| service.total.packets_in);
            assert_eq!([of("web"), of("dns")], expected, "step {step}");
            let packets = |wanted| {
                counters.outcomes.iter().find(|(outcome, _)| *outcome == wanted).map_or(0, |(_, n)| *n)
            };
            let counted = [Outcome::Transmitted, Outcome::Redirected].map(packets);
            assert_eq!(counted, sent[..2], "step {step}");
            let passed: u64 = expected.into_iter().flatten().sum();
            assert_eq!(dataplane.packets().expect("packets"), passed, "step {step}");
        }
    });
}
