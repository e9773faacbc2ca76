use bytes::{BufMut as _, BytesMut};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::sync::{Frame, FrameError, wire as messages};

fn address() -> impl Strategy<Value = Address> {
    prop_oneof![any::<[u8; 4]>().prop_map(Address::from_ipv4), any::<[u8; 16]>().prop_map(Address)]
}

fn record() -> impl Strategy<Value = Record> {
    let state =
        prop::sample::select(vec![PinState::Opening, PinState::Open, PinState::Finished, PinState::Reset]);
    let lease = prop_oneof![
        Just(Lease::NONE),
        (1..=u8::MAX, 1..=u16::MAX).prop_map(|(number, port)| Lease { number, port })
    ];
    let age = prop_oneof![Just(0), NEW + 1..=MAX_AGE];
    (address(), any::<[u16; 3]>(), state, 0..=MAX_REMAINING, lease, age).prop_map(
        |(client, [port, target, server], state, remaining, lease, age)| Record {
            client,
            port,
            target,
            server,
            state,
            remaining,
            lease,
            age: if lease.is_some() { age } else { 0 },
        },
    )
}

fn batch(records: Vec<Record>) -> Batch {
    let removals = records.iter().map(|Record { client, port, target, .. }| Removal {
        client: *client,
        port: *port,
        target: *target,
    });
    Batch {
        position: Position { session: 3, sequence: 9 },
        begins: Some(Begin::Changes),
        ends_snapshot: true,
        targets: vec![(7, Target { protocol: 6, address: Address::from_ipv4([203, 0, 113, 10]), port: 80 })],
        servers: vec![(9, Server { service: "web".into(), address: [10, 0, 2, 11].into(), port: 80 })],
        locals: vec![
            (1, Local { address: Address::from_ipv4([10, 0, 9, 1]), is_own: true }),
            (255, Local { address: Address([0x20; 16]), is_own: false }),
        ],
        removals: removals.collect(),
        records,
    }
}

proptest! {
    #[test]
    fn a_batch_comes_back_as_it_was(records in prop::collection::vec(record(), 0..200)) {
        let mut sent = batch(records);
        // IPv4 goes before IPv6; a mapped address is IPv4. What has a lease comes after what has none.
        sent.records.sort_by_key(|record| {
            (record.lease.is_some(), record.age > NEW, record.client.ipv4().is_none())
        });
        sent.removals.sort_by_key(|removal| removal.client.ipv4().is_none());
        let frame = Frame::Pins(PinMessage::Batch(Box::new(sent)));
        let bytes = messages::Frame::from(&frame).encode_to_vec();
        let decoded = messages::Frame::decode(bytes.as_slice()).expect("encoding");
        prop_assert_eq!(Frame::try_from(decoded), Ok(frame));
    }

    #[test]
    fn no_bytes_break_the_decoder(v4 in prop::collection::vec(any::<u8>(), 0..100), size in 0_u32..40) {
        let message = messages::PinBatch {
            session: 1, sequence: 1, v4: v4.clone().into(), size_v4: size, removed_v6: v4.clone().into(),
            leased_v4: v4.clone().into(), size_leased_v4: size, aged_v6: v4.into(), size_aged_v6: size,
            ..Default::default()
        };
        let _ = Batch::try_from(message);
    }
}

#[test]
fn an_ipv4_record_has_13_bytes_one_with_a_lease_16_an_old_one_19_and_a_removal_8() {
    let taken = Lease { number: 1, port: 2_000 };
    for (lease, age) in [(Lease::NONE, 0), (taken, 0), (taken, NEW), (taken, NEW + 1), (taken, u32::MAX)] {
        let records: Vec<Record> = (0..1_000_u16)
            .map(|port| Record {
                client: Address::from_ipv4([198, 51, 100, 7]),
                port,
                target: 0,
                server: 1,
                state: PinState::Open,
                remaining: 900,
                lease,
                age,
            })
            .collect();
        let message = messages::PinBatch::from(&batch(records));
        let expected = match (lease.is_some(), age > NEW) {
            (false, _) => [13_000, 0, 0, 8_000],
            (true, false) => [0, 16_000, 0, 8_000],
            (true, true) => [0, 0, 19_000, 8_000],
        };
        let parts = [&message.v4, &message.leased_v4, &message.aged_v4, &message.removed_v4];
        assert_eq!(parts.map(|part| part.len()), expected);
        let length = expected.iter().sum::<usize>() + 150;
        assert!(message.encoded_len() < length, "{}", message.encoded_len());
        let again = Batch::try_from(message).expect("its own");
        let told = if age > NEW { age.min(MAX_AGE) } else { 0 };
        assert!(again.records.iter().all(|record| record.age == told));
    }
}

#[test]
fn a_later_versions_longer_records_are_read_as_far_as_they_are_known() {
    let short = messages::PinBatch::from(&batch(vec![Record {
        client: Address::from_ipv4([198, 51, 100, 7]),
        port: 4,
        target: 7,
        server: 9,
        state: PinState::Finished,
        remaining: 77,
        lease: Lease::NONE,
        age: 0,
    }]));
    let mut long = BytesMut::from(&*short.v4);
    long.put_u32(0xffff_ffff);
    let long = messages::PinBatch { v4: long.freeze(), size_v4: 17, ..short.clone() };
    assert_eq!(Batch::try_from(long), Batch::try_from(short));
}

#[test]
fn what_cannot_be_is_refused() {
    let good = messages::PinBatch { session: 1, sequence: 1, ..Default::default() };
    assert!(Batch::try_from(good.clone()).is_ok());
    let expiry = (MAX_REMAINING + 1).to_le_bytes();
    let absurd = [&[0; 10], &expiry[..3]].concat();
    let cases = [
        messages::PinBatch { session: 0, ..good.clone() },
        messages::PinBatch { sequence: 0, ..good.clone() },
        messages::PinBatch { v4: vec![0; 12].into(), size_v4: 12, ..good.clone() },
        messages::PinBatch { v4: vec![0; 14].into(), size_v4: 13, ..good.clone() },
        messages::PinBatch { v4: absurd.into(), size_v4: 13, ..good.clone() },
        messages::PinBatch { removed_v4: vec![0; 8 * (MAX_RECORDS + 1)].into(), ..good.clone() },
        messages::PinBatch { leased_v4: vec![0; 16].into(), size_leased_v4: 16, ..good.clone() },
        messages::PinBatch { leased_v4: vec![1; 13].into(), size_leased_v4: 13, ..good.clone() },
        messages::PinBatch { locals: vec![own_address(0)], ..good.clone() },
        messages::PinBatch { locals: vec![own_address(256)], ..good.clone() },
        messages::PinBatch { locals: vec![local([0, 0, 0, 0])], ..good.clone() },
        messages::PinBatch { locals: vec![local([224, 0, 0, 5])], ..good.clone() },
        messages::PinBatch { locals: vec![local([127, 0, 0, 1])], ..good.clone() },
        messages::PinBatch {
            servers: vec![messages::PinServer {
                number: 1 << 16,
                service: "a".into(),
                address: vec![0; 4].into(),
                port: 1,
            }],
            ..good
        },
    ];
    for case in cases {
        assert!(
            matches!(
                Batch::try_from(case.clone()),
                Err(FrameError::Range { .. } | FrameError::Length { .. } | FrameError::Address { .. })
            ),
            "{case:?}"
        );
    }
}

fn local(address: [u8; 4]) -> messages::PinLocal {
    messages::PinLocal { address: address.to_vec().into(), ..own_address(1) }
}

fn own_address(number: u32) -> messages::PinLocal {
    messages::PinLocal { number, address: vec![10, 0, 9, 1].into(), own: true }
}
