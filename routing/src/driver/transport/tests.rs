//! Sockets as the kernel treats them, and the headers that come out of them.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd,
    time::Duration,
};

use ipnet::Ipv4Net;
use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt},
};
use proptest::prelude::*;
use socket2::{Domain, Protocol as IpProtocol, Socket, Type};

use super::{Device, PRIORITY, PROTOCOL, Received, TOS, Transport, behind_ip_header, raw_socket};
use crate::{
    namespace::{in_namespace, index_of, ip},
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
