//! Sockets as the kernel treats them, and the headers that come out of them.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd,
    time::Duration,
};

use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
};
use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessageOwned, LinkAddr, MsgFlags, SockaddrIn6, recvfrom, recvmsg, setsockopt, sockopt,
    },
};
use proptest::prelude::*;
use socket2::{Domain, Protocol as IpProtocol, Socket, Type};

use tokio::net::UdpSocket;

use super::super::links::{self, Named};
use super::{Device, PRIORITY, PROTOCOL, Received, TOS, Transport, behind_ip_header, raw_socket};
use crate::{
    namespace::{device, in_namespace, index_of, ip},
    packet::{V2, v3::V3},
    speaker::{ALL_SPF_ROUTERS, Attached6},
};

/// A socket that sees what arrives on any device, within a few seconds.
fn listener(domain: Domain) -> Socket {
    let socket = Socket::new(domain, Type::RAW, Some(IpProtocol::from(PROTOCOL))).expect("root");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    socket
}

/// TOS and source of the next IPv4 packet.
fn heard_v4(socket: &Socket) -> (u32, Ipv4Addr) {
    let mut buffer = [0; 128];
    let mut reader = socket;
    let length = io::Read::read(&mut reader, &mut buffer).expect("a packet");
    assert!(length >= 20);
    (buffer[1].into(), Ipv4Addr::from(*buffer[12..].first_chunk::<4>().expect("a header")))
}

/// Traffic class of the next IPv6 packet.
fn heard_v6(socket: &Socket) -> u32 {
    let (mut buffer, mut space) = ([0; 128], cmsg_space!(libc::c_int));
    let mut parts = [io::IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())
        .expect("a packet");
    let class = message.cmsgs().expect("whole").find_map(|control| match control {
        ControlMessageOwned::Ipv6TClass(class) => u32::try_from(class).ok(),
        _ => None,
    });
    class.expect("asked for")
}

fn opened<V: Transport>(device: &str, attached: &V::Attached) -> Socket {
    let socket = raw_socket::<V>().expect("root");
    V::set_up(&socket, Device { index: index_of(device), ttl_security: false }, attached).expect("set up");
    socket
}

/// The address that a message of the kernel is about.
fn message(address: &str, secondary: bool) -> AddressMessage {
    let net: Ipv4Net = address.parse().expect("an address");
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = net.prefix_len();
    if secondary {
        message.header.flags |= AddressHeaderFlags::Secondary;
    }
    message.attributes.push(AddressAttribute::Local(net.addr().into()));
    message
}

#[test]
fn the_address_with_a_subnet_goes_before_vips_and_secondary_ones() {
    let rows = [
        (
            vec![("203.0.113.10/32", false), ("10.0.0.1/24", false), ("10.0.0.9/24", true)],
            Some("10.0.0.1/24"),
        ),
        (vec![("10.0.0.9/24", true), ("192.0.2.1/30", false), ("10.0.0.1/24", false)], Some("192.0.2.1/30")),
        (vec![("10.255.0.1/32", false), ("10.255.0.2/32", false)], Some("10.255.0.1/32")),
        (vec![], None),
    ];
    for (addresses, expected) in rows {
        let messages: Vec<_> =
            addresses.iter().map(|(address, secondary)| message(address, *secondary)).collect();
        let expected = expected.map(|net| net.parse().expect("a net"));
        assert_eq!(V2::attached(messages.iter()), expected, "{addresses:?}");
    }
}

#[test]
fn an_unnumbered_device_borrows_the_router_id_or_the_loopbacks_address() {
    let router = Ipv4Addr::new(10, 255, 0, 1);
    let rows = [
        (
            vec![("127.0.0.1/8", true), ("203.0.113.10/32", true), ("10.255.0.1/24", false)],
            Some("10.255.0.1/32"),
        ),
        (vec![("10.0.0.1/24", false), ("127.0.0.1/8", true), ("192.0.2.7/32", true)], Some("192.0.2.7/32")),
        (vec![("10.0.0.1/24", false), ("127.0.0.1/8", true)], None),
    ];
    for (addresses, expected) in rows {
        let messages: Vec<_> =
            addresses.iter().map(|(address, loopback)| (*loopback, message(address, false))).collect();
        let borrowed = V2::borrowed(router, messages.iter().map(|(loopback, message)| (*loopback, message)));
        assert_eq!(borrowed, expected.map(|net| net.parse().expect("a net")), "{addresses:?}");
    }
}

/// What is sent to `destination` on a device, as it leaves: source, and index of the device.
fn left(device: &str, attached: &Ipv4Net, destination: Ipv4Addr) -> (Ipv4Addr, u32) {
    // What leaves passes packet sockets, with its IP header.
    let protocol = i32::from(u16::try_from(libc::ETH_P_ALL).expect("16 bits").to_be());
    let tap = Socket::new(Domain::PACKET, Type::DGRAM, Some(IpProtocol::from(protocol))).expect("root");
    tap.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let socket = UdpSocket::from_std(opened::<V2>(device, attached).into()).expect("a runtime");
        V2::send(&socket, index_of(device), attached, destination, &[0; 24]).expect("sent");
    });
    loop {
        let mut buffer = [0; 128];
        let (length, from) = recvfrom::<LinkAddr>(tap.as_raw_fd(), &mut buffer).expect("a packet");
        if let Some(packet) = behind_ip_header(&buffer[..length]) {
            assert_eq!(packet.destination, destination);
            return (packet.source, u32::try_from(from.expect("a device").ifindex()).expect("positive"));
        }
    }
}

/// What the driver takes for the address of a device.
fn looked_at(router: Ipv4Addr, device: &str) -> Ipv4Net {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let links = runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().expect("netlink");
        tokio::spawn(connection);
        let named = Named { name: device.to_owned(), unnumbered: true };
        links::look::<V2>(router, &[named], &handle).await.expect("listed")
    });
    links[0].address.expect("an address")
}

#[test]
fn version_2_is_sent_from_the_address_of_the_link_whatever_routes_prefer() {
    in_namespace(|| {
        device("eth1");
        for address in ["203.0.113.10/32", "10.0.0.1/24", "10.0.0.9/24"] {
            ip(&format!("addr add {address} dev eth1"));
        }
        ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev eth1");
        ip("route replace 10.0.0.0/24 dev eth1 src 203.0.113.10");
        let attached = looked_at(Ipv4Addr::new(10, 255, 0, 1), "eth1");
        assert_eq!(attached, Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 1), 24));
        for destination in [ALL_SPF_ROUTERS, Ipv4Addr::new(10, 0, 0, 2)] {
            assert_eq!(left("eth1", &attached, destination), (attached.addr(), index_of("eth1")));
        }
    });
}

#[test]
fn unnumbered_links_share_an_address_and_keep_their_packets() {
    in_namespace(|| {
        let router = Ipv4Addr::new(10, 255, 0, 1);
        ip("addr add 203.0.113.10/32 dev lo");
        ip("addr add 10.255.0.1/32 dev lo");
        device("eth1");
        device("eth2");
        ip("addr add 10.255.0.1/32 dev eth2");
        for device in ["eth1", "eth2"] {
            let attached = looked_at(router, device);
            assert_eq!(attached, router.into());
            assert_eq!(left(device, &attached, ALL_SPF_ROUTERS), (router, index_of(device)));
        }
    });
}

#[test]
fn version_2_is_sent_as_network_control() {
    in_namespace(|| {
        let attached = Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 8);
        let (socket, listener) = (opened::<V2>("lo", &attached), listener(Domain::IPV4));
        assert_eq!(socket.priority().expect("read"), PRIORITY);
        socket.send_to(&[0; 24], &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into()).expect("sent");
        assert_eq!(heard_v4(&listener).0, TOS);
    });
}

#[test]
fn version_3_is_sent_as_network_control() {
    in_namespace(|| {
        ip("addr add fe80::1/64 dev lo nodad");
        let link_local: Ipv6Addr = "fe80::1".parse().expect("an address");
        let attached = Attached6 { link_local, prefixes: BTreeSet::new(), addresses: BTreeSet::new() };
        let (socket, listener) = (opened::<V3>("lo", &attached), listener(Domain::IPV6));
        setsockopt(&listener, sockopt::Ipv6RecvTClass, &true).expect("set");
        assert_eq!(socket.priority().expect("read"), PRIORITY);
        let to = SocketAddrV6::new(link_local, 0, 0, index_of("lo"));
        socket.send_to(&[0; 24], &to.into()).expect("sent");
        assert_eq!(heard_v6(&listener), TOS);
    });
}

#[test]
fn payload_ends_where_the_ip_header_says() {
    let mut bytes = vec![0; 30];
    bytes[0] = 0x45;
    bytes[3] = 26;
    bytes[9] = 89;
    bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 224, 0, 0, 5]);
    bytes[8] = 255;
    let Some(Received { source, destination, hops, payload }) = behind_ip_header(&bytes) else {
        panic!("not taken");
    };
    assert_eq!(hops, 255);
    assert_eq!((source, destination, payload.len()), ([10, 0, 0, 1].into(), ALL_SPF_ROUTERS, 6));
    bytes[9] = 17;
    assert!(behind_ip_header(&bytes).is_none());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = behind_ip_header(&bytes);
    }
}
