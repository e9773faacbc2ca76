//! The codec of version 3 against captures of other implementations, and against anything at all.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::packet::tests::{Frame, captures, frames};

/// OSPF packets over plain IPv6, with their addresses.
fn payload(frame: &Frame) -> Option<(Bytes, Ipv6Addr, Ipv6Addr)> {
    let ip = frame.network(0x86dd)?;
    let address = |at: usize| {
        let octets: [u8; 16] = ip.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets))
    };
    let length = usize::from(u16::from_be_bytes([*ip.get(4)?, *ip.get(5)?]));
    let payload = ip.get(40..40 + length).filter(|_| ip[6] == NEXT_HEADER)?;
    Some((Bytes::copy_from_slice(payload), address(8)?, address(24)?))
}

/// A body written again, where there is an emitter for it.
fn written_again(body: &body::LsaBody) -> Option<BytesMut> {
    use body::LsaBody::{
        External, InterAreaPrefix, InterAreaRouter, IntraAreaPrefix, Link, Network, Router, Unknown,
    };
    match body {
        Router(body) => Some(body.emit()),
        Network(body) => Some(body.emit()),
        External(body) => Some(body.emit()),
        Link(body) => Some(body.emit()),
        IntraAreaPrefix(body) => Some(body.emit()),
        InterAreaPrefix { .. } | InterAreaRouter { .. } | Unknown => None,
    }
}

#[test]
fn captured_packets_round_trip_byte_for_byte() {
    let Some(files) = captures() else { return };
    let (mut parsed, mut lsas, mut refused) = (0, 0, Vec::new());
    let mut bodies = std::collections::BTreeSet::new();
    for (path, file) in files {
        for (bytes, source, destination) in frames(&file).iter().filter_map(payload) {
            match Packet::parse(&bytes, source, destination) {
                Ok(packet) => {
                    let emitted = packet.emit(source, destination);
                    assert_eq!(emitted, bytes[..emitted.len()]);
                    parsed += 1;
                    if let Body::Update(update) = &packet.body {
                        for lsa in update {
                            assert!(lsa.verify(), "{} in {}", lsa.header.key, path.display());
                            let body = body::LsaBody::parse(lsa).expect("a body");
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
    let seen = [ROUTER, NETWORK, LINK, INTRA_AREA_PREFIX];
    assert!(seen.iter().all(|kind| bodies.contains(kind)), "{bodies:?}");
    assert!(parsed >= 100, "only {parsed} packets parsed");
    // One file is malformed, and an authentication trailer takes the place of the checksum.
    let odd =
        |path: &std::path::Path| ["oobr", "auth"].iter().any(|odd| path.to_string_lossy().contains(odd));
    assert!(refused.iter().all(|(path, _)| odd(path)), "{refused:?}");
}

fn address() -> impl Strategy<Value = Ipv4Addr> {
    any::<u32>().prop_map(Ipv4Addr::from)
}

fn address6() -> impl Strategy<Value = Ipv6Addr> {
    any::<u128>().prop_map(Ipv6Addr::from)
}

fn options() -> impl Strategy<Value = u32> {
    0u32..1 << 24
}

fn key() -> impl Strategy<Value = LsaKey> {
    (any::<u16>(), address(), address()).prop_map(|(kind, id, router)| LsaKey {
        kind: LsType(kind),
        id,
        router,
    })
}

fn header() -> impl Strategy<Value = LsaHeader> {
    (key(), any::<(u16, i32, u16, u16)>()).prop_map(|(key, (age, sequence, checksum, length))| LsaHeader {
        age,
        options: (),
        key,
        sequence,
        checksum,
        length,
    })
}

fn lsa() -> impl Strategy<Value = Lsa> {
    (key(), any::<i32>(), vec(any::<u8>(), 0..80))
        .prop_map(|(key, sequence, body)| Lsa::build(key, (), sequence, &body).expect("short"))
}

fn packet_body() -> impl Strategy<Value = Body> {
    let numbers = any::<(u32, u8, u16, u16)>();
    let hello = (numbers, options(), address(), address(), vec(address(), 0..20)).prop_map(
        |((interface_id, priority, hello_interval, dead_interval), options, dr, bdr, neighbors)| {
            Body::Hello(Hello {
                interface_id,
                priority,
                options,
                hello_interval,
                dead_interval,
                dr,
                bdr,
                neighbors,
            })
        },
    );
    let description = (any::<(u16, u8, u32)>(), options(), vec(header(), 0..20)).prop_map(
        |((mtu, flags, sequence), options, headers)| {
            Body::Description(Description { mtu, options, flags, sequence, headers })
        },
    );
    prop_oneof![
        hello,
        description,
        vec(key(), 0..20).prop_map(Body::Request),
        vec(lsa(), 0..8).prop_map(Body::Update),
        vec(header(), 0..20).prop_map(Body::Ack),
    ]
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (address6(), 0u8..=128, any::<(u8, u16)>()).prop_map(|(address, length, (options, field))| Prefix {
        net: ipnet::Ipv6Net::new_assert(address, length).trunc(),
        options,
        field,
    })
}

fn built(kind: LsType, body: &[u8]) -> Lsa {
    let key = LsaKey { kind, id: Ipv4Addr::LOCALHOST, router: Ipv4Addr::LOCALHOST };
    Lsa::build(key, (), 1, body).expect("short")
}

proptest! {
    #[test]
    fn emitted_packets_parse_to_themselves(
        router in address(), area in address(), instance in any::<u8>(), body in packet_body(),
        source in address6(), destination in address6()
    ) {
        let packet = Packet { router, area, instance, body };
        let bytes = packet.emit(source, destination);
        prop_assert_eq!(Packet::parse(&bytes, source, destination), Ok(packet));
    }

    #[test]
    fn a_flipped_bit_or_another_address_is_noticed(
        body in packet_body(), at in any::<prop::sample::Index>(), bit in 0u8..8,
        source in address6(), destination in address6()
    ) {
        let router = Ipv4Addr::LOCALHOST;
        let packet = Packet { router, area: Ipv4Addr::UNSPECIFIED, instance: 0, body };
        let bytes = packet.emit(source, destination);
        let other = Ipv6Addr::from(u128::from(source) ^ 1);
        prop_assert!(Packet::parse(&bytes, other, destination).is_err());
        let mut bytes = bytes.to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Packet::parse(&bytes.into(), source, destination).is_err());
    }

    #[test]
    fn bodies_parse_to_themselves(
        links in vec(any::<(u16, u32, u32, u32, u8)>(), 0..20), flags in any::<u8>(), options in options(),
        routers in vec(address(), 0..20), prefixes in vec(prefix(), 0..20), address in address6()
    ) {
        use body::{IntraAreaPrefixBody, LinkBody, LinkKind, LsaBody, NetworkBody, RouterBody, RouterLink};
        let link = |&(metric, interface, neighbor_interface, neighbor, kind): &(u16, u32, u32, u32, u8)| {
            let kinds = [LinkKind::PointToPoint, LinkKind::Transit, LinkKind::Virtual];
            let (kind, neighbor) = (kinds[usize::from(kind % 3)], neighbor.into());
            RouterLink { kind, metric, interface, neighbor_interface, neighbor }
        };
        let router = RouterBody { flags, options, links: links.iter().map(link).collect() };
        prop_assert_eq!(LsaBody::parse(&built(ROUTER, &router.emit())), Ok(LsaBody::Router(router)));
        let network = NetworkBody { options, routers };
        prop_assert_eq!(LsaBody::parse(&built(NETWORK, &network.emit())), Ok(LsaBody::Network(network)));
        let link = LinkBody { priority: flags, options, address, prefixes: prefixes.clone() };
        prop_assert_eq!(LsaBody::parse(&built(LINK, &link.emit())), Ok(LsaBody::Link(link)));
        let (id, router) = (Ipv4Addr::from(options), Ipv4Addr::LOCALHOST);
        let intra = IntraAreaPrefixBody { kind: NETWORK, id, router, prefixes };
        let lsa = built(INTRA_AREA_PREFIX, &intra.emit());
        prop_assert_eq!(LsaBody::parse(&lsa), Ok(LsaBody::IntraAreaPrefix(intra)));
    }

    #[test]
    fn external_bodies_parse_to_themselves(
        prefix in prefix(), metric in 0u32..1 << 24, type_2 in any::<bool>(),
        forwarding in prop::option::of(address6()), tag in prop::option::of(any::<u32>()), id in any::<u32>()
    ) {
        let referenced = (prefix.field != 0).then_some(id);
        let body = body::ExternalBody { type_2, metric, prefix, forwarding, tag, referenced };
        for kind in [EXTERNAL, NSSA] {
            let lsa = built(kind, &body.emit());
            prop_assert_eq!(body::LsaBody::parse(&lsa), Ok(body::LsaBody::External(body)));
        }
    }

    #[test]
    fn any_body_of_any_type_is_survived(
        kind in prop_oneof![(1u16..10).prop_map(|code| 0x2000 | code), Just(0x4005), Just(8), any::<u16>()],
        content in vec(any::<u8>(), 0..200)
    ) {
        let _ = body::LsaBody::parse(&built(LsType(kind), &content));
    }

    #[test]
    fn any_bytes_with_a_right_checksum_are_survived(
        kind in 0u8..8, content in vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>(),
        source in address6(), destination in address6()
    ) {
        let bytes = sealed(kind, Ipv4Addr::LOCALHOST, &content, source, destination);
        let cut = cut.index(bytes.len());
        let bytes = Bytes::from(bytes);
        if let Ok(packet) = Packet::parse(&bytes, source, destination) {
            let again = Packet::parse(&packet.emit(source, destination), source, destination);
            prop_assert_eq!(again.as_ref(), Ok(&packet));
            if let Body::Update(lsas) = packet.body {
                lsas.iter().for_each(|lsa| drop(body::LsaBody::parse(lsa)));
            }
        }
        prop_assert!(Packet::parse(&bytes.slice(..cut), source, destination).is_err());
    }
}
