//! The codec against captures of other implementations, and against anything at all.

use std::{collections::BTreeSet, path::PathBuf};

use bytes::BytesMut;
use proptest::{collection::vec, prelude::*};

use super::*;

/// A frame of a capture file.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Link type of the file: 0 for the loopback of BSD, 1 for Ethernet, 107 for Frame Relay.
    link: u32,
    bytes: Vec<u8>,
}

impl Frame {
    /// The packet of a network protocol in it, by Ethertype.
    pub(crate) fn network(&self, ethertype: u16) -> Option<&[u8]> {
        let behind = |at: usize| {
            let kind: [u8; 2] = self.bytes.get(at..at + 2)?.try_into().ok()?;
            self.bytes.get(at + 2..).filter(|_| u16::from_be_bytes(kind) == ethertype)
        };
        match self.link {
            // An address family in the order of the machine that captured; 2 is IPv4 everywhere.
            0 => self.bytes.strip_prefix(&[2, 0, 0, 0]).filter(|_| ethertype == 0x0800),
            1 => behind(12),
            107 => behind(2), // as Cisco encapsulates: a DLCI of two bytes
            link => panic!("link type {link} in a capture: say here where its packets begin"),
        }
    }
}

/// IPv4 OSPF payloads of a capture file.
fn payloads(file: &[u8]) -> Vec<Bytes> {
    frames(file).iter().filter_map(payload).collect()
}

fn payload(frame: &Frame) -> Option<Bytes> {
    let ip = frame.network(0x0800)?;
    let header = usize::from(ip[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    (ip[9] == 89).then(|| Bytes::copy_from_slice(&ip[header..total]))
}

/// Frames of a capture file in either of the two formats, pcap and pcapng.
pub(crate) fn frames(file: &[u8]) -> Vec<Frame> {
    let little = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"));
    let big = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().expect("four bytes"));
    let mut frames = Vec::new();
    if file.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) {
        let (mut at, mut links) = (0, Vec::new());
        while at + 12 <= file.len() {
            match little(at) {
                1 => links.push(little(at + 8) & 0xffff),
                6 => {
                    let bytes = file[at + 28..at + 28 + little(at + 20) as usize].to_vec();
                    frames.push(Frame { link: links[little(at + 8) as usize], bytes });
                }
                _ => {}
            }
            at += little(at + 4) as usize;
        }
    } else {
        let word = |at: usize| if file[0] == 0xa1 { big(at) } else { little(at) };
        let (mut at, link) = (24, word(20));
        while at + 16 <= file.len() {
            let length = word(at + 8) as usize;
            frames.push(Frame { link, bytes: file[at + 16..at + 16 + length].to_vec() });
            at += 16 + length;
        }
    }
    frames
}

/// Capture files by path. Where there are none the test is skipped: they are others', and not in the repository.
pub(crate) fn captures() -> Option<Vec<(PathBuf, Vec<u8>)>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference/captures");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("skipped: no captures in {}", folder.display());
        return None;
    };
    let paths = entries.map(|entry| entry.expect("readable").path());
    Some(paths.map(|path| (path.clone(), std::fs::read(path).expect("readable"))).collect())
}

/// The packet with its authentication taken off: type null, and the checksum that goes with it.
fn unauthenticated(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    if bytes[15] == 2 && length <= bytes.len() {
        bytes[12..24].fill(0);
        let sum = checksum::internet(&[&bytes[..length]]);
        bytes[12..14].copy_from_slice(&sum.to_be_bytes());
    }
    bytes.into()
}

/// What `emit` makes of a packet that others sent: the same bytes.
fn assert_round_trip(original: &Bytes, packet: &Packet) {
    let emitted = packet.emit();
    let length = emitted.len();
    assert_eq!(emitted, original[..length]);
    assert_eq!(Packet::parse(&emitted).as_ref(), Ok(packet));
}

/// A body written again, where there is an emitter for it.
fn written_again(body: &LsaBody) -> Option<BytesMut> {
    match body {
        LsaBody::Router(body) => Some(body.emit()),
        LsaBody::Network(body) => Some(body.emit()),
        LsaBody::External(body) => Some(body.emit()),
        LsaBody::Summary(_) | LsaBody::Opaque => None,
    }
}

#[test]
fn captured_packets_round_trip_byte_for_byte() {
    let Some(files) = captures() else { return };
    let (mut parsed, mut lsas, mut refused) = (0, 0, Vec::new());
    let mut bodies = BTreeSet::new();
    for (path, file) in files {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let payloads = payloads(&file);
        let of_version_2 = ["OSPFv2", "ospf-", "ospf_"].iter().any(|start| name.starts_with(start));
        assert!(!of_version_2 || !payloads.is_empty(), "nothing was found in {name}");
        for bytes in payloads.into_iter().filter(|bytes| bytes.first() == Some(&VERSION)) {
            let bytes = unauthenticated(&bytes);
            match Packet::parse(&bytes) {
                Ok(packet) => {
                    assert_round_trip(&bytes, &packet);
                    parsed += 1;
                    if let Body::Update(update) = &packet.body {
                        for lsa in update {
                            assert!(lsa.verify(), "{} in {}", lsa.header.key, path.display());
                            let body = LsaBody::parse(lsa).expect("a body");
                            if let Some(again) = written_again(&body) {
                                assert_eq!(again, lsa.body(), "{} in {}", lsa.header.key, path.display());
                                bodies.insert(lsa.header.key.kind);
                            }
                            lsas += 1;
                        }
                    }
                }
                Err(error) => refused.push((path.clone(), error)),
            }
        }
    }
    eprintln!("{parsed} packets with {lsas} LSAs; bodies of types {bodies:?}; refused: {refused:?}");
    assert!([ROUTER, NETWORK, EXTERNAL].iter().all(|kind| bodies.contains(kind)), "{bodies:?}");
    assert!(parsed >= 30, "only {parsed} packets parsed");
    assert!(refused.len() <= 2, "{refused:?}");
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    any::<u32>().prop_map(Ipv4Addr::from)
}

fn key() -> impl Strategy<Value = LsaKey> {
    (any::<u8>(), address(), address()).prop_map(|(kind, id, router)| LsaKey { kind, id, router })
}

fn header() -> impl Strategy<Value = LsaHeader> {
    let numbers = (any::<u16>(), any::<u8>(), any::<i32>(), any::<u16>(), any::<u16>());
    (key(), numbers).prop_map(|(key, (age, options, sequence, checksum, length))| LsaHeader {
        age,
        options,
        key,
        sequence,
        checksum,
        length,
    })
}

fn lsa() -> impl Strategy<Value = Lsa> {
    (key(), any::<u8>(), any::<i32>(), vec(any::<u8>(), 0..80))
        .prop_map(|(key, options, sequence, body)| Lsa::build(key, options, sequence, &body).expect("short"))
}

fn body() -> impl Strategy<Value = Body> {
    let hello = (address(), any::<(u16, u8, u8, u32)>(), address(), address(), vec(address(), 0..20));
    let hello =
        hello.prop_map(|(mask, (hello_interval, options, priority, dead_interval), dr, bdr, neighbors)| {
            Body::Hello(Hello { mask, hello_interval, options, priority, dead_interval, dr, bdr, neighbors })
        });
    let description = (any::<(u16, u8, u8, u32)>(), vec(header(), 0..20));
    let description = description.prop_map(|((mtu, options, flags, sequence), headers)| {
        Body::Description(Description { mtu, options, flags, sequence, headers })
    });
    prop_oneof![
        hello,
        description,
        vec(key(), 0..20).prop_map(Body::Request),
        vec(lsa(), 0..8).prop_map(Body::Update),
        vec(header(), 0..20).prop_map(Body::Ack),
    ]
}

proptest! {
    #[test]
    fn emitted_packets_parse_to_themselves(router in address(), area in address(), body in body()) {
        let packet = Packet { router, area, body };
        prop_assert_eq!(Packet::parse(&packet.emit()), Ok(packet));
    }

    #[test]
    fn external_bodies_parse_to_themselves(
        mask in address(), type_2 in any::<bool>(), metric in 0u32..1 << 24, forwarding in address(),
        tag in any::<u32>()
    ) {
        let body = ExternalBody { mask, type_2, metric, forwarding, tag };
        for kind in [EXTERNAL, NSSA] {
            let key = LsaKey { kind, id: Ipv4Addr::LOCALHOST, router: Ipv4Addr::LOCALHOST };
            let lsa = Lsa::build(key, 0, 1, &body.emit()).expect("short");
            prop_assert_eq!(LsaBody::parse(&lsa), Ok(LsaBody::External(body)));
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed(body in body(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let packet = Packet { router: Ipv4Addr::LOCALHOST, area: Ipv4Addr::UNSPECIFIED, body };
        let mut bytes = packet.emit().to_vec();
        let at = at.index(bytes.len());
        prop_assume!(!(16..24).contains(&at)); // authentication is outside the checksum
        bytes[at] ^= 1 << bit;
        prop_assert!(Packet::parse(&bytes.into()).is_err());
    }

    #[test]
    fn any_bytes_with_a_right_checksum_are_survived(
        kind in 0u8..8, content in vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>()
    ) {
        let mut bytes = vec![VERSION, kind, 0, 0];
        bytes.resize(HEADER_LEN, 0);
        bytes.extend(content);
        let length = u16::try_from(bytes.len()).expect("short");
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        let sum = checksum::internet(&[&bytes]);
        bytes[12..14].copy_from_slice(&sum.to_be_bytes());
        let cut = cut.index(bytes.len());
        let bytes = Bytes::from(bytes);
        if let Ok(packet) = Packet::parse(&bytes) {
            let again = Packet::parse(&packet.emit());
            prop_assert_eq!(again.as_ref(), Ok(&packet));
            if let Body::Update(lsas) = packet.body {
                lsas.iter().for_each(|lsa| drop(LsaBody::parse(lsa)));
            }
        }
        prop_assert!(Packet::parse(&bytes.slice(..cut)).is_err());
    }
}
