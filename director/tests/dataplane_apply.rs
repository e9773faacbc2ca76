//! Applying specifications: minimal change, nothing by halves, and what a new process finds.

mod dataplane_fixture;

use std::net::IpAddr;

use aya::TestRunOptions;
use aya::maps::{Array, Map, MapData};
use aya::programs::TestRun as _;
use dataplane_fixture::cases::{self, HERE, INGRESS, KEY, Slots, services};
use dataplane_fixture::packets::{ACK, OUR_MAC, Packet, SYN};
use dataplane_fixture::{isolated, open, options};
use director::dataplane::{
    Adoption, ApplyError, Datagrams, Dataplane, Forwarding, HashInput, NextHop, OpenError, Options, Ports,
    Protocol, RealSpec, ServiceAddress, ServiceSpec, SpecError, Timeouts, TunnelSources,
};
use director_common::SLOTS;
use director_common::tables::{Config, LAYOUT_VERSION};

const VIP: &str = "203.0.113.10";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn real(text: &str) -> RealSpec {
    RealSpec::new(ip(text), 80)
}

fn web<'a>(name: &'a str, reals: &[&str], slots: &'a [u16]) -> ServiceSpec<'a> {
    ServiceSpec {
        name,
        addresses: vec![ServiceAddress {
            prefix: ip(VIP).into(),
            protocol: Protocol::Tcp,
            ports: Ports::one(80),
        }],
        hash: HashInput::Source,
        forwarding: Forwarding::DirectReturn,
        reals: reals.iter().map(|address| real(address)).collect(),
        slots,
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking: None,
    }
}

fn hop(last: u8) -> NextHop {
    NextHop { destination_mac: [2, 0, 0, 0, 9, last], ..HERE }
}

/// A data plane that knows the ways to 10.0.2.11 to 10.0.2.19.
fn ready() -> Dataplane {
    ready_with(&options())
}

fn ready_with(options: &Options) -> Dataplane {
    let mut dataplane = open(options);
    dataplane.set_hash_key(KEY).expect("key");
    dataplane.declare_interface(INGRESS, OUR_MAC, true).expect("interface");
    for last in 11..20 {
        dataplane.set_next_hop(ip(&format!("10.0.2.{last}")), Some(hop(last))).expect("next hop");
    }
    dataplane
}

/// Last byte of the link address a packet of a client's connection is sent to, or the program's other verdict.
fn sent_to(dataplane: &Dataplane, client: u8) -> Result<u8, u32> {
    sent(dataplane, client, 5, ACK)
}

/// The same of a packet that begins a connection.
fn begun_at(dataplane: &Dataplane, client: u8) -> Result<u8, u32> {
    sent(dataplane, client, 6, SYN)
}

fn sent(dataplane: &Dataplane, client: u8, port: u16, flags: u8) -> Result<u8, u32> {
    let frame = Packet::tcp((&format!("198.51.100.{client}"), port), (VIP, 80), flags).bytes();
    let mut out = vec![0; frame.len()];
    let options = TestRunOptions { data_in: Some(&frame), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = dataplane.program().expect("program").test_run(options).expect("run");
    if result.return_value == 3 { Ok(out[5]) } else { Err(result.return_value) }
}

fn dealt(positions: &[u16]) -> Vec<u16> {
    (0..SLOTS).map(|slot| positions[slot % positions.len()]).collect()
}

#[test]
fn applying_twice_changes_nothing() {
    isolated(|| {
        let mut dataplane = ready();
        let slots = Slots::new();
        let first = dataplane.apply(&services(&slots)).expect("apply");
        assert_eq!(first.added.len(), services(&slots).len());
        let second = dataplane.apply(&services(&slots)).expect("apply");
        assert!(second.is_unchanged(), "{second:?}");
    });
}

#[test]
fn a_server_leaving_and_a_server_coming_switch_only_their_slots() {
    isolated(|| {
        let mut dataplane = ready();
        let two = dealt(&[0, 1]);
        dataplane.apply(&[web("web", &["10.0.2.11", "10.0.2.12"], &two)]).expect("apply");
        let before: Vec<_> = (0..=255).map(|client| sent_to(&dataplane, client)).collect();
        assert!(before.contains(&Ok(11)) && before.contains(&Ok(12)));
        // Position 1 leaves, position 2 takes its slots.
        let replaced: Vec<u16> = two.iter().map(|slot| if *slot == 1 { 2 } else { 0 }).collect();
        let report = dataplane
            .apply(&[web("web", &["10.0.2.11", "10.0.2.12", "10.0.2.13"], &replaced)])
            .expect("apply");
        assert_eq!((report.switched.as_slice(), report.reals_written), (["web".to_owned()].as_slice(), 1));
        for (client, before) in before.into_iter().enumerate() {
            let expected = if before == Ok(12) { Ok(13) } else { before };
            assert_eq!(begun_at(&dataplane, client as u8), expected, "client {client}");
            assert_eq!(sent_to(&dataplane, client as u8), before, "client {client}, connected before");
        }
    });
}

#[test]
fn replacing_a_server_in_force_never_sends_by_the_old_table_to_the_new_server() {
    isolated(|| {
        let mut dataplane = ready();
        let one = dealt(&[0]);
        dataplane.apply(&[web("web", &["10.0.2.11"], &one)]).expect("apply");
        assert_eq!(sent_to(&dataplane, 7), Ok(11));
        // The same position and the same slots, but another server: needs a position of its own.
        let report = dataplane.apply(&[web("web", &["10.0.2.14"], &one)]).expect("apply");
        assert_eq!(report.switched, ["web"]);
        assert_eq!((begun_at(&dataplane, 7), sent_to(&dataplane, 7)), (Ok(14), Ok(11)));
        let counters = dataplane.counters().expect("counters");
        let of: Vec<_> =
            counters.services["web"].reals.iter().map(|r| (r.address, r.counters.packets_in)).collect();
        assert_eq!(of, [(ip("10.0.2.11"), 2), (ip("10.0.2.14"), 1)]);
        assert_eq!(counters.services["web"].total.packets_in, 3);
    });
}

#[test]
fn a_service_that_takes_anothers_place_starts_from_zero() {
    isolated(|| {
        let mut dataplane = ready();
        let one = dealt(&[0]);
        dataplane.apply(&[web("old", &["10.0.2.11"], &one)]).expect("apply");
        assert_eq!(sent_to(&dataplane, 7), Ok(11));
        let report = dataplane.apply(&[web("new", &["10.0.2.11"], &one)]).expect("apply");
        assert_eq!((report.added, report.removed), (vec!["new".to_owned()], vec!["old".to_owned()]));
        dataplane.apply(&[]).expect("apply");
        assert_eq!(sent_to(&dataplane, 7), Err(2), "no service: the kernel's");
        dataplane.apply(&[web("newest", &["10.0.2.11"], &one)]).expect("apply");
        let counters = dataplane.counters().expect("counters");
        assert_eq!(counters.services.len(), 1);
        assert_eq!(counters.services["newest"].total.packets_in, 0);
        assert_eq!(counters.services["newest"].reals[0].counters.packets_in, 0);
    });
}

#[test]
fn a_lost_next_hop_drops_and_a_new_one_is_used_by_every_service() {
    isolated(|| {
        let mut dataplane = ready();
        let one = dealt(&[0]);
        dataplane.apply(&[web("web", &["10.0.2.11"], &one)]).expect("apply");
        dataplane.set_next_hop(ip("10.0.2.11"), None).expect("next hop");
        assert_eq!(sent_to(&dataplane, 7), Err(1));
        dataplane.set_next_hop(ip("10.0.2.11"), Some(hop(77))).expect("next hop");
        assert_eq!(sent_to(&dataplane, 7), Ok(77));
    });
}

#[test]
fn a_hundred_changes_exhaust_nothing() {
    isolated(|| {
        let mut dataplane = ready();
        let one = dealt(&[0]);
        for round in 0..100 {
            let server = if round % 2 == 0 { "10.0.2.11" } else { "10.0.2.12" };
            dataplane.apply(&[web("web", &[server], &one)]).expect("apply");
        }
        assert_eq!(begun_at(&dataplane, 7), Ok(12));
    });
}

#[test]
fn a_wrong_specification_changes_nothing_and_names_the_culprit() {
    isolated(|| {
        let v4_only = TunnelSources { v6: None, ..options().tunnel_sources };
        let mut dataplane = ready_with(&Options { tunnel_sources: v4_only, ..options() });
        let (one, stray) = (dealt(&[0]), dealt(&[5]));
        dataplane.apply(&[web("web", &["10.0.2.11"], &one)]).expect("apply");
        let good = web("web", &["10.0.2.12"], &one);
        let port = ServiceSpec { reals: vec![RealSpec { port: 8080, ..real("10.0.2.11") }], ..good.clone() };
        let six = RealSpec::new(ip("2001:db8::1"), 80);
        let six = ServiceSpec { reals: vec![six], ..good.clone() };
        let quic =
            |offset, length| ServiceSpec { datagrams: Datagrams::Quic { offset, length }, ..good.clone() };
        let twice = vec![real("10.0.2.11"), real("10.0.2.11")];
        let id =
            |last, id| RealSpec { quic_id: Some(id), ..RealSpec::new(ip(&format!("10.0.2.{last}")), 80) };
        let long = "x".repeat(57);
        let wrong: Vec<(&str, Vec<ServiceSpec<'_>>)> = vec![
            ("slot 0 names position 5", vec![web("web", &["10.0.2.11"], &stray)]),
            ("has 3 slots instead of 65537 or 4093", vec![web("web", &["10.0.2.11"], &one[..3])]),
            ("two services named 'web'", vec![good.clone(), good.clone()]),
            ("both want", vec![good.clone(), web("other", &["10.0.2.11"], &one)]),
            ("cannot change the port of a packet to 203.0.113.10/32 TCP port 80", vec![port]),
            ("no source address", vec![ServiceSpec { forwarding: Forwarding::Ipip, ..six }]),
            ("port 0", vec![ServiceSpec { forwarding: Forwarding::Gue { port: 0 }, ..good.clone() }]),
            ("twice", vec![ServiceSpec { reals: twice, ..good.clone() }]),
            ("1 to 4 bytes", vec![quic(0, 5)]),
            ("1 to 4 bytes", vec![quic(18, 3)]),
            ("server id 7", vec![ServiceSpec { reals: vec![id(11, 7), id(12, 7)], ..quic(0, 1) }]),
            ("server id 256", vec![ServiceSpec { reals: vec![id(11, 256)], ..quic(19, 1) }]),
            ("has no address", vec![ServiceSpec { addresses: vec![], ..good.clone() }]),
            ("1 to 56 bytes", vec![web(&long, &["10.0.2.11"], &one)]),
        ];
        for (message, services) in wrong {
            match dataplane.apply(&services) {
                Err(ApplyError::Spec(error)) => assert!(error.to_string().contains(message), "{error}"),
                other => panic!("{message}: {other:?}"),
            }
            assert_eq!(sent_to(&dataplane, 7), Ok(11), "{message}");
        }
        assert!(matches!(
            dataplane.apply(&[ServiceSpec { addresses: vec![], ..good }]),
            Err(ApplyError::Spec(SpecError::NoAddress(_)))
        ));
    });
}

#[test]
fn a_new_process_adopts_tables_ways_key_and_counters() {
    isolated(|| {
        let slots = Slots::new();
        let mut first = open(&options());
        cases::fill(&mut first);
        let before: Vec<_> = (0..50).map(|client| sent_to(&first, client)).collect();
        let counters = first.counters().expect("counters");
        assert_eq!(counters.services["here"].total.packets_in, 50);
        drop(first);

        let (mut second, adoption) = Dataplane::open(&options()).expect("open");
        let Adoption::Adopted { services: names, .. } = adoption else { panic!("{adoption:?}") };
        assert_eq!(names.len(), services(&slots).len());
        assert_eq!(second.counters().expect("counters"), counters);
        assert_eq!(second.hash_key().expect("key"), KEY);
        assert_eq!(second.next_hop(ip("10.0.2.11")), Some(HERE));
        assert!(second.apply(&services(&slots)).expect("apply").is_unchanged());
        let after: Vec<_> = (0..50).map(|client| sent_to(&second, client)).collect();
        assert_eq!(after, before);

        second.detach().expect("detach");
        assert_eq!(Dataplane::open(&options()).expect("open").1, Adoption::Fresh);
    });
}

#[test]
fn maps_of_another_version_are_refused_with_the_way_out() {
    isolated(|| {
        let mut first = open(&options());
        cases::fill(&mut first);
        drop(first);
        let pin = options().pin_dir.join("CONFIG");
        let map = Map::Array(MapData::from_pin(pin).expect("pin"));
        let mut config: Array<MapData, [u32; size_of::<Config>() / 4]> = map.try_into().expect("array");
        let mut value = config.get(&0, 0).expect("config");
        assert_eq!(value[1], LAYOUT_VERSION);
        value[1] += 1;
        config.set(0, value, 0).expect("config");

        match Dataplane::open(&options()) {
            Err(error @ OpenError::Layout { .. }) => {
                assert!(error.to_string().contains("--fresh"), "{error}")
            }
            other => panic!("{other:?}"),
        }
        let fresh = Options { discard_pins: true, ..options() };
        assert_eq!(Dataplane::open(&fresh).expect("open").1, Adoption::Fresh);
    });
}

#[test]
fn flow_accounting_can_be_switched_by_a_restart() {
    isolated(|| {
        let mut first = open(&options());
        cases::fill(&mut first);
        let _ = sent_to(&first, 7);
        assert!(first.flows().expect("flows").is_empty());
        drop(first);
        let second = open(&Options { flow_accounting: true, flow_capacity: 1_000, ..options() });
        let _ = sent_to(&second, 7);
        assert_eq!(second.flows().expect("flows").len(), 1);
    });
}
