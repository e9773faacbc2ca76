//! Both versions through a pair of guards, and whole speakers on a virtual clock.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{Algorithm, Authenticated, Authentication, Guard, Heard, Key, Numbers, Refused, Secret, Window};
use crate::{
    packet::{
        V2,
        v3::V3,
        wire::{Body, Envelope, Greeting},
    },
    speaker::Refusal,
};

const NOW: Duration = Duration::from_secs(1_800_000_000);
const ALGORITHMS: [Algorithm; 5] = [
    Algorithm::Md5,
    Algorithm::HmacSha1,
    Algorithm::HmacSha256,
    Algorithm::HmacSha384,
    Algorithm::HmacSha512,
];

/// A version with addresses to test with.
trait Family: Authenticated {
    const HERE: Self::Address;
    const THERE: Self::Address;
}

impl Family for V2 {
    const HERE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
    const THERE: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 5);
}

impl Family for V3 {
    const HERE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const THERE: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 5);
}

fn hello<V: Family>() -> Bytes {
    let envelope =
        Envelope { router: Ipv4Addr::new(10, 255, 0, 1), area: Ipv4Addr::UNSPECIFIED, instance: 0 };
    let greeting = Greeting {
        mark: 0xffff_ff00,
        hello_interval: 1,
        options: 2,
        priority: 0,
        dead_interval: 4,
        dr: Ipv4Addr::UNSPECIFIED,
        bdr: Ipv4Addr::UNSPECIFIED,
        neighbors: vec![Ipv4Addr::new(10, 255, 1, 1)],
    };
    V::seal(envelope, Body::Hello(greeting.into()), V::HERE, V::THERE)
}

fn acknowledgement<V: Family>() -> Bytes {
    let envelope =
        Envelope { router: Ipv4Addr::new(10, 255, 0, 1), area: Ipv4Addr::UNSPECIFIED, instance: 0 };
    V::seal(envelope, Body::Ack(Vec::new()), V::HERE, V::THERE)
}

fn key(id: u8, algorithm: Algorithm, secret: &str) -> Key {
    Key::new(id, algorithm, Secret::new(secret))
}

fn keyed(algorithm: Algorithm, secret: &str) -> Authentication {
    Authentication::Keys(vec![key(7, algorithm, secret)])
}

fn sealed<V: Family>(authentication: Authentication, packet: Bytes) -> Bytes {
    Guard::new(authentication).seal::<V>(&mut Numbers::default(), NOW, packet, V::HERE).expect("sealed")
}

fn refusal<V: Family>(authentication: Authentication, payload: &[u8]) -> Refused {
    let payload = Bytes::copy_from_slice(payload);
    let opened = Guard::new(authentication).open::<V>(NOW, &payload, V::HERE, V::THERE);
    opened.expect_err("refused")
}

fn passes<V: Family>(algorithm: Algorithm) {
    let mut sender = Guard::new(keyed(algorithm, "swordfish"));
    let receiver = Guard::new(keyed(algorithm, "swordfish"));
    for packet in [hello::<V>(), acknowledgement::<V>()] {
        let plain = V::open(&packet, V::HERE, V::THERE).expect("well formed");
        let payload =
            sender.seal::<V>(&mut Numbers::default(), NOW, packet.clone(), V::HERE).expect("sealed");
        assert_eq!(payload.len(), packet.len() + sender.overhead::<V>(), "{algorithm}");
        let (envelope, body, proof) = receiver.open::<V>(NOW, &payload, V::HERE, V::THERE).expect("opened");
        assert_eq!(envelope, plain.0);
        match (body, plain.1) {
            // The AT bit of version 3 is in the options.
            (Body::Hello(ours), Body::Hello(theirs)) => {
                let (ours, theirs): (Greeting, Greeting) = (ours.into(), theirs.into());
                assert_eq!(Greeting { options: theirs.options, ..ours }, theirs);
            }
            (ours, theirs) => assert_eq!(ours, theirs),
        }
        assert!(proof.is_some(), "a digest comes with a number");
    }
}

#[test]
fn every_algorithm_opens_what_it_sealed() {
    for algorithm in ALGORITHMS {
        passes::<V2>(algorithm);
    }
    for algorithm in &ALGORITHMS[1..] {
        passes::<V3>(*algorithm);
    }
}

#[test]
fn a_password_is_compared_in_full() {
    let simple = |text: &str| Authentication::Simple(Secret::new(text));
    let payload = sealed::<V2>(simple("sesame"), hello::<V2>());
    let open = |password| Guard::new(simple(password)).open::<V2>(NOW, &payload, V2::HERE, V2::THERE);
    assert!(open("sesame").is_ok());
    for wrong in ["sesam", "sesame1", "simsim"] {
        assert_eq!(open(wrong).expect_err("refused").reason, Refusal::AuthenticationDigest, "{wrong}");
    }
    assert!(
        Guard::new(simple("sesame"))
            .seal::<V3>(&mut Numbers::default(), NOW, hello::<V3>(), V3::HERE)
            .is_none()
    );
}

#[test]
fn a_password_leaves_the_checksum_in_force() {
    let simple = || Authentication::Simple(Secret::new("sesame"));
    let mut payload = sealed::<V2>(simple(), hello::<V2>()).to_vec();
    payload[30] ^= 1;
    assert_eq!(refusal::<V2>(simple(), &payload).reason, Refusal::Checksum);
}

/// Nobody is taken for another: neither without authentication nor with another kind of it.
fn types_do_not_mix<V: Family>() {
    let ours = keyed(Algorithm::HmacSha256, "swordfish");
    let plain = refusal::<V>(ours.clone(), &hello::<V>());
    assert_eq!(plain.reason, Refusal::Authentication);
    assert_eq!(plain.detail, "they say none (0), we say keyed digest (2)");
    let keyed = refusal::<V>(Authentication::None, &sealed::<V>(ours.clone(), hello::<V>()));
    assert_eq!(keyed.detail, "they say keyed digest (2), we say none (0)");
    let silent = refusal::<V>(ours, &acknowledgement::<V>());
    assert_eq!(silent.reason, Refusal::Authentication, "a packet type without options");
}

#[test]
fn another_type_of_authentication_is_refused_by_name() {
    types_do_not_mix::<V2>();
    types_do_not_mix::<V3>();
}

fn keys_do_not_mix<V: Family>() {
    let payload = sealed::<V>(keyed(Algorithm::HmacSha256, "swordfish"), hello::<V>());
    let wrong = refusal::<V>(keyed(Algorithm::HmacSha256, "catfish"), &payload);
    assert_eq!(wrong.reason, Refusal::AuthenticationDigest);
    assert!(!wrong.detail.contains("catfish"), "{}", wrong.detail);
    let other = refusal::<V>(keyed(Algorithm::HmacSha512, "swordfish"), &payload);
    assert_eq!(other.reason, Refusal::AuthenticationDigest);
    assert!(other.detail.contains("32 bytes, ours (hmac-sha-512) 64"), "{}", other.detail);
    let unknown =
        Authentication::Keys(vec![key(1, Algorithm::HmacSha256, "a"), key(2, Algorithm::HmacSha256, "b")]);
    let unknown = refusal::<V>(unknown, &payload);
    assert_eq!(
        (unknown.reason, unknown.detail.as_str()),
        (Refusal::AuthenticationKey, "they use key 7, we know 1, 2")
    );
    let accept = Window { from: None, until: Some(NOW.as_secs()) };
    let old = Key { accept, ..key(7, Algorithm::HmacSha256, "swordfish") };
    let expired = Authentication::Keys(vec![old, key(8, Algorithm::HmacSha256, "b")]);
    let expired = refusal::<V>(expired, &payload);
    assert_eq!(expired.reason, Refusal::AuthenticationExpired);
    let detail =
        "they use key 7, which we accept until 2027-01-15T08:00:00Z; it is 2027-01-15T08:00:00Z here";
    assert_eq!(expired.detail, detail);
}

#[test]
fn another_key_is_refused_by_name() {
    keys_do_not_mix::<V2>();
    keys_do_not_mix::<V3>();
}

#[test]
fn the_source_address_is_part_of_a_version_3_digest() {
    let ours = keyed(Algorithm::HmacSha256, "swordfish");
    let payload = sealed::<V3>(ours.clone(), hello::<V3>());
    let other = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    let refused = Guard::new(ours).open::<V3>(NOW, &payload, other, V3::THERE).expect_err("refused");
    assert_eq!(refused.reason, Refusal::AuthenticationDigest);
}

/// Hellos that BIRD 2.0.12 sent, and ospf6d of FRR 8.4.4; the secret is `swordfish`.
mod captured {
    use super::*;

    fn bytes(hex: &str) -> Bytes {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    fn opens<V: Family>(key: Key, source: V::Address, hex: &str) -> Envelope {
        let guard = Guard::new(Authentication::Keys(vec![key]));
        let (envelope, body, _) = guard.open::<V>(NOW, &bytes(hex), source, V::THERE).expect("authentic");
        assert!(matches!(body, Body::Hello(_)));
        envelope
    }

    #[test]
    fn version_2_packets_are_authentic() {
        let rows = [
            (Algorithm::Md5, "106b01d069", "e5a36000def9302d68b6e6326e8ba5b3"),
            (Algorithm::HmacSha1, "146b01d06f", "96c3385746ac922d5c7de58bb164927ce8e96d94"),
            (
                Algorithm::HmacSha256,
                "206b01d06c",
                "3ed2ff7edb48aaf6a995beb3f02c90f9fca6791d926cdc1ea5cb6ea3767faa43",
            ),
        ];
        let header = "0201002c0aff01010000000000000002000007";
        let hello = "fffffffc00010201000000040000000000000000";
        for (algorithm, length_and_number, digest) in rows {
            let hex = format!("{header}{length_and_number}{hello}{digest}");
            let envelope = opens::<V2>(key(7, algorithm, "swordfish"), V2::HERE, &hex);
            assert_eq!(envelope.router, Ipv4Addr::new(10, 255, 1, 1), "{algorithm}");
        }
    }

    #[test]
    fn version_3_packets_are_authentic() {
        let source = "fe80::f0cd:92ff:fe95:127b".parse().expect("address");
        let hello = "030100240aff010100000000000000000000000201000513000100040000000000000000";
        let rows = [
            (
                Algorithm::HmacSha256,
                "000100300000000700000000000000035cd26ee481e41d1bd0cd31277ba6b0afaf18bcf6269dbc3db6020f9513da59b8",
            ),
            (
                Algorithm::HmacSha384,
                "00010040000000070000000000000003b59808e4ae517cfec5224e07abe95f921a36e7f6a190fc57554fab5ec745d176\
                 5d3a75dc68a1e132731f478dddbb5a46",
            ),
        ];
        for (algorithm, trailer) in rows {
            opens::<V3>(key(7, algorithm, "swordfish"), source, &format!("{hello}{trailer}"));
        }
    }

    #[test]
    fn frr_8_is_understood_with_its_swapped_protocol_id() {
        let source = "fe80::ac8c:43ff:fe9f:23e7".parse().expect("address");
        let hex = "030100240aff0101000000000000000000000002010004130001000400000000000000000001003000000009\
                   000000060000001e3031e0af89b8e24395209aec1e39924fded5e0aa0ef169b92b8b0fca7ab6d60c";
        let plain = key(9, Algorithm::HmacSha256, "swordfish");
        let refused = refusal_from::<V3>(plain.clone(), source, &bytes(hex));
        assert_eq!(refused.reason, Refusal::AuthenticationDigest);
        opens::<V3>(Key { swapped_protocol_id: true, ..plain }, source, hex);
    }

    fn refusal_from<V: Family>(key: Key, source: V::Address, payload: &Bytes) -> Refused {
        let guard = Guard::new(Authentication::Keys(vec![key]));
        guard.open::<V>(NOW, payload, source, V::THERE).expect_err("refused")
    }
}

/// An LLS block of two words behind a Hello that announces it (RFC 7166 section 2.3).
#[test]
fn an_lls_block_comes_before_the_trailer_and_is_covered() {
    let ours = keyed(Algorithm::HmacSha256, "swordfish");
    let mut packet = hello::<V3>().to_vec();
    packet[22] |= 0x02; // the L bit
    let length = packet.len();
    packet.extend([0, 0, 0, 2, 0, 1, 0, 0]);
    let payload = sealed::<V3>(ours.clone(), Bytes::from(packet));
    assert!(Guard::new(ours.clone()).open::<V3>(NOW, &payload, V3::HERE, V3::THERE).is_ok());
    let mut changed = payload.to_vec();
    changed[length + 5] ^= 1;
    assert_eq!(refusal::<V3>(ours, &changed).reason, Refusal::AuthenticationDigest);
}

/// RFC 2328 section D.4.3 appends the digest; what comes behind it is an LLS block.
#[test]
fn an_lls_block_behind_a_version_2_digest_is_left_alone() {
    let ours = keyed(Algorithm::Md5, "swordfish");
    let mut payload = sealed::<V2>(ours.clone(), hello::<V2>()).to_vec();
    payload.extend([0, 0, 0, 1]);
    let payload = Bytes::from(payload);
    assert!(Guard::new(ours).open::<V2>(NOW, &payload, V2::HERE, V2::THERE).is_ok());
}

#[test]
fn a_replayed_packet_is_seen_by_its_number() {
    let mut sender = Guard::new(keyed(Algorithm::HmacSha256, "swordfish"));
    let receiver = Guard::new(keyed(Algorithm::HmacSha256, "swordfish"));
    let mut numbers = Numbers::default();
    let mut send = || {
        let payload = sender.seal::<V3>(&mut numbers, NOW, hello::<V3>(), V3::HERE).expect("sealed");
        let (_, _, proof) = receiver.open::<V3>(NOW, &payload, V3::HERE, V3::THERE).expect("opened");
        proof.expect("numbered")
    };
    let (first, second) = (send(), send());
    let mut heard = Heard::default();
    heard.note(second);
    assert!(heard.objection(first).is_some() && heard.objection(second).is_some());
    assert_eq!(heard.objection(send()), None);
}

#[test]
fn the_sending_key_is_news_once() {
    let send = Window { from: Some(NOW.as_secs() + 10), until: None };
    let next = Key { send, ..key(8, Algorithm::HmacSha512, "b") };
    let keys = vec![key(7, Algorithm::HmacSha256, "a"), next];
    let mut guard = Guard::new(Authentication::Keys(keys));
    let mut at = |seconds| {
        guard
            .seal::<V2>(&mut Numbers::default(), NOW + Duration::from_secs(seconds), hello::<V2>(), V2::HERE)
            .expect("sealed");
        guard.take_news().map(|news| (news.id, news.expired))
    };
    let seen: Vec<_> = [0, 1, 10, 11].map(&mut at).into();
    assert_eq!(seen, [Some((7, false)), None, Some((8, false)), None]);
    assert_eq!(guard.describe(), "key 8, hmac-sha-512");
}

fn changed_packet_never_passes<V: Family>(at: usize, bit: u8) {
    let ours = keyed(Algorithm::HmacSha256, "swordfish");
    let mut payload = sealed::<V>(ours.clone(), hello::<V>()).to_vec();
    let at = at % payload.len();
    payload[at] ^= 1 << bit;
    let payload = Bytes::from(payload);
    let opened = Guard::new(ours).open::<V>(NOW, &payload, V::HERE, V::THERE);
    assert!(opened.is_err(), "bit {bit} of byte {at}");
}

fn any_bytes_are_judged<V: Family>(bytes: &[u8]) {
    let payload = Bytes::copy_from_slice(bytes);
    for ours in [Authentication::None, keyed(Algorithm::HmacSha1, "swordfish")] {
        let _ = Guard::new(ours).open::<V>(NOW, &payload, V::HERE, V::THERE);
    }
}

proptest! {
    #[test]
    fn no_changed_bit_passes(at in 0usize..200, bit in 0u8..8) {
        changed_packet_never_passes::<V2>(at, bit);
        changed_packet_never_passes::<V3>(at, bit);
    }

    #[test]
    fn any_bytes_are_survived(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0u8..7, length in 0u16..120
    ) {
        any_bytes_are_judged::<V2>(&bytes);
        if let [version, type_, high, low, ..] = bytes.as_mut_slice() {
            *type_ = kind;
            [*high, *low] = length.to_be_bytes();
            *version = 2;
            any_bytes_are_judged::<V2>(&bytes);
            bytes[0] = 3;
            any_bytes_are_judged::<V3>(&bytes);
        }
    }
}

/// A recording has nothing of a secret that is not in use here, and refuses or accepts as the guard did.
fn discloses_nothing<V: Family>(spoil: impl Fn(&mut Vec<u8>)) {
    let keys = |secret| Authentication::Keys(vec![Key::new(7, Algorithm::HmacSha256, Secret::new(secret))]);
    for theirs in [Authentication::None, Authentication::Simple(Secret::new("theirs!!")), keys("theirs")] {
        for ours in [Authentication::None, keys("ours")] {
            let Some(sealed) =
                Guard::new(theirs.clone()).seal::<V>(&mut Numbers::default(), NOW, hello::<V>(), V::HERE)
            else {
                continue;
            };
            let mut sent = sealed.to_vec();
            let secret = sent[sent.len() - 32..].to_vec();
            spoil(&mut sent);
            let (guard, sent) = (Guard::new(ours), Bytes::from(sent));
            let recorded = guard.disguise::<V>(&sent, V::HERE);
            let open =
                |packet| guard.open::<V>(NOW, packet, V::HERE, V::THERE).map_err(|refused| refused.reason);
            let said =
                |packet| guard.open::<V>(NOW, packet, V::HERE, V::THERE).map_err(|refused| refused.detail);
            assert_eq!(open(&recorded).err(), open(&sent).err());
            assert_eq!(said(&recorded).err(), said(&sent).err());
            let has = |part: &[u8]| recorded.windows(part.len()).any(|bytes| bytes == part);
            assert!(!has(b"theirs!!"), "a password");
            assert!(!matches!(theirs, Authentication::Keys(_)) || !has(&secret[..16]), "a digest");
        }
    }
}

#[test]
fn nothing_of_a_strangers_secret_is_recorded() {
    discloses_nothing::<V2>(|_| {});
    discloses_nothing::<V2>(|packet| packet[15] = 0); // said to be none
    discloses_nothing::<V2>(|packet| packet[15] = 9); // of an unknown type
    discloses_nothing::<V2>(|packet| packet[19] = 200); // longer than it is
    discloses_nothing::<V2>(|packet| packet[0] = 7);
    discloses_nothing::<V3>(|_| {});
    discloses_nothing::<V3>(|packet| packet[16 + 6] &= !4); // the bit that announces the trailer
    discloses_nothing::<V3>(|packet| packet[16 + 6] |= 2); // an LLS block that is none
    discloses_nothing::<V3>(|packet| packet[0] = 7);
    discloses_nothing::<V3>(|packet| packet[2] = 0xff);
    let trailer = hello::<V3>().len();
    for (at, byte) in [(trailer + 1, 9), (trailer + 3, 200)] {
        // Its type, and its length.
        discloses_nothing::<V3>(|packet| {
            if let Some(field) = packet.get_mut(at) {
                *field = byte;
            }
        });
    }
}
