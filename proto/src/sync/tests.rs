use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::health::{Health, RealId};
use crate::tables::{
    Epoch, MAX_DEFINITIONS, MAX_NAME, MAX_SERVICES, MAX_TOTAL_REALS, MAX_TOTAL_SLOTS, NO_REAL, SLOTS,
    SMALL_SLOTS, ServicePatch, ServiceTable, TableReal, TableSet,
};

fn version(number: u64) -> Version {
    Version { epoch: Epoch { number, leader: Ipv4Addr::new(10, 255, 0, 1) }, digest: Digest([9; 32]) }
}

fn table() -> ServiceTable {
    let reals = vec![
        TableReal { address: IpAddr::from([10, 0, 2, 11]), port: 80, weight: 100, dead: false },
        TableReal { address: "2001:db8::2".parse().expect("address"), port: 8080, weight: 0, dead: true },
    ];
    let slots: Vec<u16> =
        (0..SLOTS).map(|slot| if slot % 3 == 2 { NO_REAL } else { (slot % 3) as u16 }).collect();
    ServiceTable { scheduler: "mh".into(), reals, slots: slots.into(), definition: "name = 'web'".into() }
}

fn small_table() -> ServiceTable {
    ServiceTable { slots: table().slots[..SMALL_SLOTS].to_vec().into(), ..table() }
}

fn tables() -> TableSet {
    TableSet {
        epoch: version(4).epoch,
        hash_key: *b"sixteen bytes ok",
        services: BTreeMap::from([("web".to_owned(), table()), ("dns".to_owned(), small_table())]),
    }
}

fn through_the_wire(frame: &Frame) -> Result<Frame, FrameError> {
    let bytes = wire::Frame::from(frame).encode_to_vec();
    wire::Frame::decode(&*bytes).expect("own encoding").try_into()
}

fn observations() -> Observations {
    let real = |address: &str, port| RealId {
        service: "web".into(),
        address: address.parse().expect("address"),
        port,
    };
    let observed = vec![
        (real("10.0.2.11", 80), Health::Up),
        (real("2001:db8::2", 0), Health::Down),
        (real("10.0.2.12", 80), Health::Unknown),
    ];
    Observations { from: 3, to: 6, observed }
}

fn frames() -> Vec<Frame> {
    let patch = ServicePatch {
        scheduler: "ch".into(),
        reals: table().reals,
        slots: vec![(0, 1), (65_536, 0)],
        definition: Some("".into()),
    };
    let delta = Delta {
        from: version(4),
        to: version(5),
        replaced: BTreeMap::from([("web".to_owned(), table())]),
        patched: BTreeMap::from([("dns".to_owned(), patch)]),
        removed: BTreeSet::from(["old".to_owned()]),
    };
    let chunk = Chunk { version: version(3), offset: 10, total: 15, data: Bytes::from_static(b"abcde") };
    vec![
        Frame::Hello(Hello {
            protocol: PROTOCOL,
            cluster: "edge".into(),
            router_id: Ipv4Addr::new(10, 255, 0, 1),
            boot_id: BootId(u64::MAX),
            endpoint: "10.255.0.1:7000".into(),
            software: "0.1.0".into(),
        }),
        Frame::Refusal("another cluster".into()),
        Frame::Report(
            Report {
                tables: Some(version(1)),
                candidate: None,
                config_digest: Digest([3; 32]),
                software: String::new(),
                observations: 12,
                sequence: 4,
                prepared: Some(version(2)),
                phase: Phase::Prepared,
                leader: Some(Ipv4Addr::new(10, 255, 0, 1)),
                hears: vec![Ipv4Addr::new(10, 255, 0, 2), Ipv4Addr::new(10, 255, 0, 3)],
                serves: true,
                floor: 44,
            },
            77,
        ),
        Frame::Echo(77),
        Frame::Message(Message::Request(Request { version: Some(version(2)), offset: 1 })),
        Frame::Message(Message::Chunk(chunk)),
        Frame::Message(Message::Prepare(Arc::new(Prepare {
            from: version(4),
            to: version(5),
            cause: "web: 10.0.2.11 is dead".into(),
            delta: Some(delta),
        }))),
        Frame::Message(Message::Acknowledge(version(5))),
        Frame::Message(Message::Observations(Arc::new(observations()))),
        Frame::Message(Message::ObservationsSince(3)),
        Frame::Message(Message::Prepared(version(5))),
        Frame::Message(Message::Refused { version: version(5), reason: "no room".into() }),
        Frame::Message(Message::Commit(version(5))),
        Frame::Message(Message::Finish(version(5))),
        Frame::Message(Message::Abort(version(5))),
        Frame::Message(Message::DefinitionsRequest { digest: Digest([4; 32]), offset: 9 }),
        Frame::Message(Message::Definitions(DefinitionsPiece {
            digest: Digest([4; 32]),
            offset: 9,
            total: 12,
            data: Bytes::from_static(b"abc"),
        })),
        Frame::Message(Message::Wish { id: u64::MAX, digest: Digest([4; 32]) }),
        Frame::Message(Message::WishOutcome { id: 7, outcome: Ok(version(5)) }),
        Frame::Message(Message::WishOutcome { id: 7, outcome: Err("no way".into()) }),
    ]
}

#[test]
fn every_frame_survives_the_wire() {
    for frame in frames() {
        assert_eq!(through_the_wire(&frame), Ok(frame));
    }
}

#[test]
fn tables_survive_their_encoding_and_equal_tables_give_equal_bytes() {
    let bytes = encode_tables(&tables());
    assert_eq!(bytes, encode_tables(&tables()));
    assert_eq!(decode_tables(bytes), Ok(tables()));
}

#[test]
fn a_slot_beyond_the_real_servers_is_refused() {
    let mut wrong = tables();
    wrong.services.get_mut("web").expect("service").slots[5] = 2;
    let error = decode_tables(encode_tables(&wrong)).expect_err("position 2 of 2");
    assert_eq!(error.to_string(), "service web: slot 5 names position 2 of 2");
}

#[test]
fn a_table_of_another_size_is_refused() {
    let mut wrong = tables();
    let web = wrong.services.get_mut("web").expect("service");
    web.slots = web.slots[..5_000].to_vec().into();
    let error = decode_tables(encode_tables(&wrong)).expect_err("5000 slots");
    assert_eq!(error.to_string(), "service web: 5000 slots instead of 65537 or 4093");
}

#[test]
fn the_largest_tables_fit_into_a_snapshot() {
    let real = TableReal {
        address: "2001:db8::2".parse().expect("address"),
        port: u16::MAX,
        weight: u32::MAX,
        dead: true,
    };
    let one = |services, reals: usize, slots: usize| {
        let table = ServiceTable {
            scheduler: "s".repeat(MAX_NAME),
            reals: vec![real.clone(); reals],
            slots: vec![NO_REAL; slots].into(),
            definition: "".into(),
        };
        let services: usize = services;
        let name = |number| format!("{number:0>width$}", width = MAX_NAME);
        let services = (0..services).map(|number| (name(number), table.clone())).collect();
        encode_tables(&TableSet { services, ..tables() }).len()
    };
    let empty = one(0, 0, 0);
    // What each service, position and slot adds; lengths of lengths grow, hence the large samples.
    let service = one(1, 0, SLOTS) - 2 * SLOTS - empty;
    let position = (one(1, 4_096, SLOTS) - one(1, 0, SLOTS)).div_ceil(4_096);
    let largest = empty + MAX_SERVICES * service + MAX_TOTAL_REALS * position + MAX_TOTAL_SLOTS * 2;
    // The length of a definition, beside its bytes.
    let largest = largest + MAX_DEFINITIONS + MAX_SERVICES * 5;
    assert!(largest <= MAX_SNAPSHOT, "{largest} bytes");
}

#[test]
fn epoch_zero_is_refused() {
    let frame = Frame::Message(Message::Acknowledge(version(0)));
    assert_eq!(through_the_wire(&frame), Err(FrameError::Range { field: "number", value: 0 }));
}

#[test]
fn a_chunk_beyond_its_total_is_refused() {
    let chunk = Chunk { version: version(3), offset: 11, total: 15, data: Bytes::from_static(b"abcde") };
    let error = through_the_wire(&Frame::Message(Message::Chunk(chunk)));
    assert_eq!(error, Err(FrameError::Range { field: "offset", value: 11 }));
}

#[test]
fn a_frame_without_body_is_refused() {
    assert_eq!(Frame::try_from(wire::Frame { body: None }), Err(FrameError::Empty));
}

#[test]
fn observations_that_lead_nowhere_are_refused() {
    let backwards = Observations { to: 3, ..observations() };
    let error = through_the_wire(&Frame::Message(Message::Observations(Arc::new(backwards))));
    assert_eq!(error, Err(FrameError::Range { field: "to", value: 3 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(frame) = wire::Frame::decode(&*bytes) {
            let _ = Frame::try_from(frame);
        }
        let _ = decode_tables(bytes.into());
    }

    #[test]
    fn a_flipped_byte_gives_an_error_or_a_well_formed_frame(kind in 0usize..15, at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = wire::Frame::from(&frames()[kind]).encode_to_vec();
        let at = at.index(bytes.len().min(400));
        bytes[at] ^= flip;
        if let Ok(Ok(frame)) = wire::Frame::decode(&*bytes).map(Frame::try_from) {
            prop_assert_eq!(through_the_wire(&frame), Ok(frame));
        }
    }
}
