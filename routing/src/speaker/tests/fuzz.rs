//! Fuzzing by time: both codecs, and the whole way of a packet through a speaker that is talking to a live neighbour.
//!
//! What goes in is what that neighbour says, spoiled: bits flipped, fields set to their extremes, pieces cut, doubled and
//! put together with those of other packets; then, mostly, lengths and checksums are set right again, so that the damage
//! gets past the first checks. No panic, no packet that costs more than a moment, no growth beyond what was sent.
//!
//! Two seconds for each version are part of every run of the tests. For a long run:
//! `OSPF_FUZZ_SECONDS=1800 OSPF_FUZZ_SEED=$RANDOM cargo test --workspace --lib speaker::tests::fuzz -- --nocapture`
//! The seed is printed; with it a failure comes again.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    lan, p2p,
    simulator::{Family, Heard, Network},
};
use crate::{
    auth::{Algorithm, Authentication, Key, Secret},
    config::{AreaKind, InterfaceConfig},
    packet::{
        LSA_HEADER_LEN, V2, checksum,
        v3::V3,
        wire::{Body, Lsa, Version},
    },
    speaker::{Input, InterfaceId},
};

/// Inputs of one network before the next one begins.
const ROUND: usize = 300;
/// One input, with all that follows from it at once, takes no longer, however busy the machine is.
const LONGEST: Duration = Duration::from_secs(5);

/// Xorshift: the same numbers for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let limit = u64::try_from(limit.max(1)).expect("small");
        usize::try_from(self.0 % limit).expect("small")
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

/// How a version says that a packet is whole.
trait Sealed: Family {
    /// Sets the packet's checksum right.
    fn reseal(bytes: &mut [u8], source: Self::Address, destination: Self::Address);
}

impl Sealed for V2 {
    fn reseal(bytes: &mut [u8], _: Ipv4Addr, _: Ipv4Addr) {
        if bytes.len() < Self::HEADER_LEN {
            return;
        }
        bytes[12..14].fill(0);
        let sum = checksum::internet(&[&bytes[..16], &bytes[24..]]);
        bytes[12..14].copy_from_slice(&sum.to_be_bytes());
    }
}

impl Sealed for V3 {
    fn reseal(bytes: &mut [u8], source: std::net::Ipv6Addr, destination: std::net::Ipv6Addr) {
        if bytes.len() < Self::HEADER_LEN {
            return;
        }
        bytes[12..14].fill(0);
        let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
        let pseudo: [&[u8]; 4] = [&source.octets(), &destination.octets(), &length, &[0, 0, 0, 89]];
        let sum = checksum::internet(&[pseudo[0], pseudo[1], pseudo[2], pseudo[3], bytes]);
        bytes[12..14].copy_from_slice(&sum.to_be_bytes());
    }
}

fn spoil(dice: &mut Dice, bytes: &mut Vec<u8>, others: &[u8]) {
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len());
        match dice.below(8) {
            0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
            2 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][dice.below(5)],
            3 if bytes.len() >= at + 2 => bytes[at..at + 2].fill([0, 0xff][dice.below(2)]),
            4 => bytes.truncate(at),
            5 => {
                let piece = bytes[at..].to_vec();
                bytes.extend(piece);
            }
            6 => {
                let from = dice.below(others.len());
                bytes.truncate(at);
                bytes.extend(&others[from..]);
            }
            _ => bytes.extend((0..dice.below(24)).map(|byte| u8::try_from(byte * 11 % 256).expect("a byte"))),
        }
    }
    bytes.truncate(4000);
}

/// Sets the length, and in updates the lengths of LSAs that reach too far and all their checksums.
fn repair<V: Sealed>(dice: &mut Dice, bytes: &mut [u8], source: V::Address, destination: V::Address) {
    if bytes.len() < V::HEADER_LEN {
        return;
    }
    let length = u16::try_from(bytes.len()).expect("short");
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    if bytes[1] == 4 && dice.percent(80) {
        let (mut at, mut count) = (V::HEADER_LEN + 4, 0u32);
        while at + LSA_HEADER_LEN <= bytes.len() {
            let said = usize::from(u16::from_be_bytes([bytes[at + 18], bytes[at + 19]]));
            let end = if said < LSA_HEADER_LEN { bytes.len() } else { (at + said).min(bytes.len()) };
            let length = u16::try_from(end - at).expect("short");
            bytes[at + 18..at + 20].copy_from_slice(&length.to_be_bytes());
            bytes[at + 16..at + 18].fill(0);
            let sum = checksum::fletcher(&bytes[at + 2..end]);
            bytes[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
            (at, count) = (end, count + 1);
        }
        if at == bytes.len() {
            bytes[V::HEADER_LEN..V::HEADER_LEN + 4].copy_from_slice(&count.to_be_bytes());
        }
    }
    V::reseal(bytes, source, destination);
}

/// What parses is emitted as what parses to the same; the bodies of LSAs are read by all who read them.
fn check_codec<V: Sealed>(bytes: &[u8], source: V::Address, destination: V::Address) -> bool {
    let _ = V::claim(bytes, true);
    let Ok((envelope, body)) = V::open(&Bytes::copy_from_slice(bytes), source, destination) else {
        return false;
    };
    if let Body::Update(lsas) = &body {
        lsas.iter().for_each(read_lsa);
    }
    let again = V::seal(envelope, body.clone(), source, destination);
    assert_eq!(V::open(&again, source, destination), Ok((envelope, body)), "of {bytes:02x?}");
    true
}

fn read_lsa<V: Sealed>(lsa: &Lsa<V>) {
    let _ = (lsa.verify(), V::judge(lsa), V::grace(lsa), V::describe(lsa), V::kind_name(lsa.header.key.kind));
    let again = Lsa::<V>::parse(&mut lsa.bytes().clone());
    assert_eq!(again.as_ref(), Ok(lsa));
}

/// Every kind of interface, and every kind of authentication.
fn interface(round: usize, ipv6: bool) -> InterfaceConfig {
    let key = |algorithm| Authentication::Keys(vec![Key::new(7, algorithm, Secret::new("fuzzing"))]);
    let authentication = match round % 6 {
        3 if !ipv6 => Authentication::Simple(Secret::new("fuzz")),
        4 if !ipv6 => key(Algorithm::Md5),
        5 => key(Algorithm::HmacSha256),
        _ => Authentication::None,
    };
    let network = if round.is_multiple_of(2) { p2p() } else { lan(1) };
    let (area, area_kind) = match round % 4 {
        2 => (Ipv4Addr::new(0, 0, 0, 1), AreaKind::Nssa),
        3 => (Ipv4Addr::new(0, 0, 0, 1), AreaKind::Stub),
        _ => (Ipv4Addr::UNSPECIFIED, AreaKind::Normal),
    };
    InterfaceConfig { authentication, area, area_kind, ..network }
}

/// What the runs did, to see that the damage gets somewhere.
#[derive(Debug, Default)]
struct Tally {
    packets: usize,
    parsed: usize,
    lsas: usize,
}

fn round<V: Sealed>(dice: &mut Dice, number: usize, tally: &mut Tally) {
    let mut sim = Network::<V>::new(dice.0);
    let ipv6 = V::NUMBER == 3;
    sim.segment(&[(0, interface(number, ipv6)), (1, interface(number, ipv6))]);
    sim.tap = Some(Vec::new());
    sim.start();
    let mut heard: Vec<Heard<V>> = Vec::new();
    for step in 0..ROUND {
        // Slowly at first: the neighbours shall be seen in every state.
        let pause = if step < ROUND / 3 { 20 } else { 400 };
        sim.run(Duration::from_millis(u64::try_from(dice.below(pause)).expect("small")));
        heard.append(sim.tap.as_mut().expect("tapped"));
        let recent = heard.len().saturating_sub(40);
        heard.drain(..recent);
        if heard.is_empty() {
            continue;
        }
        let (source, destination, mut payload) = heard[dice.below(heard.len())].clone();
        let others = heard[dice.below(heard.len())].2.clone();
        spoil(dice, &mut payload, &others);
        if dice.percent(90) {
            repair::<V>(dice, &mut payload, source, destination);
        }
        tally.packets += 1;
        tally.parsed += usize::from(check_codec::<V>(&payload, source, destination));
        let begin = Instant::now();
        sim.input(0, Input::Packet { interface: InterfaceId(0), source, destination, payload });
        assert!(begin.elapsed() < LONGEST, "one packet took {:?}", begin.elapsed());
        let status = sim.status(0);
        // An update of 4,000 bytes holds 200 LSAs at most.
        assert!(status.lsdb.len() <= 200 * (step + 1) && status.neighbors.len() <= step + 2);
        tally.lsas = tally.lsas.max(status.lsdb.len());
    }
    // It can still be asked, told and stopped.
    let _ = (sim.machine(0).lsdb(true), sim.machine(0).route_status());
    sim.stop(0, crate::speaker::Stop::Flush);
    sim.run(Duration::from_secs(3));
    assert!(sim.has_stopped(0));
}

fn fuzz<V: Sealed>() {
    let number = |name: &str, usual: u64| {
        std::env::var(name)
            .map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let (seconds, seed) = (number("OSPF_FUZZ_SECONDS", 2), number("OSPF_FUZZ_SEED", 1));
    let (begin, mut tally, mut rounds) = (Instant::now(), Tally::default(), 0);
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    while rounds < 6 || begin.elapsed() < Duration::from_secs(seconds) {
        round::<V>(&mut dice, rounds, &mut tally);
        rounds += 1;
    }
    println!("version {}: seed {seed}, {rounds} rounds in {:?}, {tally:?}", V::NUMBER, begin.elapsed());
    assert!(tally.parsed * 10 > tally.packets, "the damage is stopped at the door: {tally:?}");
}

#[test]
fn version_2_survives_what_it_is_sent() {
    fuzz::<V2>();
}

#[test]
fn version_3_survives_what_it_is_sent() {
    fuzz::<V3>();
}
