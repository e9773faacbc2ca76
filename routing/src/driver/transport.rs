//! The seam between the versions as far as the kernel goes: raw sockets (RFC 2328 section A.1, RFC 5340
//! section A.1) and addresses of devices.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6},
    num::NonZeroU32,
    os::fd::AsRawFd,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
};
use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, recv, recvmsg, sendmsg,
        setsockopt, sockopt,
    },
};
use rtnetlink::MulticastGroup;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol as IpProtocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;

use crate::{
    packet::{V2, v3::V3},
    speaker::{Attached6, Protocol},
};

/// IP protocol number of OSPF.
const PROTOCOL: i32 = 89;
/// Class selector 6, internetwork control, in the place of the type of service or the traffic class.
const TOS: u32 = 0xc0;
/// Priority of what is sent, for the queues of the kernel and the 802.1p bits of a VLAN: the highest that needs no
/// privilege. In IPv4 the kernel derives one from the TOS, and makes best effort of this one.
pub(super) const PRIORITY: u32 = 6;
/// Receive buffer asked for, in bytes: a neighbour may send its whole database at once.
const RECEIVE_BUFFER: usize = 2 << 20;

/// The TTL or hop limit that no router has touched (RFC 5082).
pub(super) const SECURE_HOPS: u8 = 255;

/// The device a socket is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    /// Its index.
    pub(super) index: u32,
    /// Send with a TTL of 255.
    pub(super) ttl_security: bool,
}

impl Device {
    /// The TTL or hop limit to send with.
    fn hops(self) -> u32 {
        if self.ttl_security { SECURE_HOPS.into() } else { 1 }
    }
}

/// A packet that came in: IP source and destination, TTL or hop limit, and where its payload is in the buffer.
pub(super) struct Received<A> {
    pub(super) source: A,
    pub(super) destination: A,
    pub(super) hops: u8,
    pub(super) payload: std::ops::Range<usize>,
}

/// What a version asks of the kernel.
pub(super) trait Transport: Protocol {
    /// The IP family of its sockets.
    const DOMAIN: Domain;
    /// Whether its neighbours have IPv6 addresses.
    const IS_V6: bool;
    /// The family of its addresses in rtnetlink.
    const FAMILY: AddressFamily;
    /// News about its addresses in rtnetlink.
    const ADDRESS_GROUP: MulticastGroup;

    /// Makes a raw socket that of one device.
    fn set_up(socket: &Socket, device: Device, attached: &Self::Attached) -> io::Result<()>;

    /// Joins or leaves a multicast group.
    fn membership(socket: &SockRef<'_>, index: u32, group: Self::Address, join: bool) -> io::Result<()>;

    /// Sends a packet from the device and the address that the socket is for.
    fn send(
        socket: &UdpSocket,
        index: u32,
        attached: &Self::Attached,
        destination: Self::Address,
        payload: &[u8],
    ) -> io::Result<()>;

    /// Whether the kernel has to be told that a neighbour's address is on the link, for none of our prefixes says so.
    fn is_beyond_prefix(attached: &Self::Attached, gateway: IpAddr) -> bool;

    /// What a device without an address of its own is for OSPF: an address that another device has, each with whether
    /// that is a loopback.
    fn borrowed<'a>(
        router: Ipv4Addr,
        addresses: impl Iterator<Item = (bool, &'a AddressMessage)>,
    ) -> Option<Self::Attached>;

    /// Takes a packet from the socket; none if it is not OSPF.
    fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Received<Self::Address>>>;

    /// What the addresses of one device, in the kernel's order, are for OSPF.
    fn attached<'a>(addresses: impl Iterator<Item = &'a AddressMessage>) -> Option<Self::Attached>;
}

/// A raw socket for OSPF, not bound to anything.
pub(super) fn raw_socket<V: Transport>() -> io::Result<Socket> {
    let socket = Socket::new(V::DOMAIN, Type::RAW, Some(IpProtocol::from(PROTOCOL)))?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    Ok(socket)
}

impl Transport for V2 {
    const DOMAIN: Domain = Domain::IPV4;
    const IS_V6: bool = false;
    const FAMILY: AddressFamily = AddressFamily::Inet;
    const ADDRESS_GROUP: MulticastGroup = MulticastGroup::Ipv4Ifaddr;

    /// Not bound to an address, for then no multicast would come in; every packet says its source.
    fn set_up(socket: &Socket, device: Device, _: &Ipv4Net) -> io::Result<()> {
        socket.bind_device_by_index_v4(NonZeroU32::new(device.index))?;
        socket.set_multicast_all_v4(false)?;
        socket.set_multicast_loop_v4(false)?;
        socket.set_multicast_ttl_v4(device.hops())?;
        socket.set_ttl_v4(device.hops())?;
        socket.set_tos_v4(TOS)?;
        socket.set_priority(PRIORITY) // behind the TOS, which sets one as well
    }

    fn membership(socket: &SockRef<'_>, index: u32, group: Ipv4Addr, join: bool) -> io::Result<()> {
        let on = InterfaceIndexOrAddress::Index(index);
        if join { socket.join_multicast_v4_n(&group, &on) } else { socket.leave_multicast_v4_n(&group, &on) }
    }

    /// The source and the device are said with each packet (ip(7), `IP_PKTINFO`): left to the kernel, the source would
    /// be what the route prefers, and an address that several devices have would not name one.
    fn send(
        socket: &UdpSocket,
        index: u32,
        attached: &Ipv4Net,
        destination: Ipv4Addr,
        payload: &[u8],
    ) -> io::Result<()> {
        let address = |address: Ipv4Addr| libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) };
        let from = libc::in_pktinfo {
            ipi_ifindex: i32::try_from(index).map_err(io::Error::other)?,
            ipi_spec_dst: address(attached.addr()),
            ipi_addr: address(Ipv4Addr::UNSPECIFIED),
        };
        let (parts, control) = ([io::IoSlice::new(payload)], [ControlMessage::Ipv4PacketInfo(&from)]);
        let to = SockaddrIn::from(SocketAddrV4::new(destination, 0));
        sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&to))?;
        Ok(())
    }

    fn is_beyond_prefix(attached: &Ipv4Net, gateway: IpAddr) -> bool {
        !IpNet::V4(*attached).contains(&gateway)
    }

    /// The router id where it is an address here, else the first of a loopback: a host address in any case, so that the
    /// link is unnumbered (RFC 2328 section 12.4.1.1).
    fn borrowed<'a>(
        router: Ipv4Addr,
        addresses: impl Iterator<Item = (bool, &'a AddressMessage)>,
    ) -> Option<Ipv4Net> {
        let usable = |(is_loopback, message): (bool, &AddressMessage)| match address(message)? {
            IpAddr::V4(address) => {
                let fits = address == router || (is_loopback && !address.is_loopback());
                fits.then_some((address != router, address))
            }
            IpAddr::V6(_) => None,
        };
        // The first of those that are equally good.
        addresses.filter_map(usable).min_by_key(|(other, _)| *other).map(|(_, address)| address.into())
    }

    fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Received<Ipv4Addr>>> {
        let length = recv(socket.as_raw_fd(), buffer, MsgFlags::empty())?;
        Ok(behind_ip_header(&buffer[..length]))
    }

    /// The first primary address that has a subnet, for a host address beside it is a VIP as a rule, or else the first
    /// primary address.
    fn attached<'a>(addresses: impl Iterator<Item = &'a AddressMessage>) -> Option<Ipv4Net> {
        let primary = addresses.filter_map(|message| {
            let secondary = message.header.flags.contains(AddressHeaderFlags::Secondary);
            match address(message).filter(|_| !secondary)? {
                IpAddr::V4(address) => Ipv4Net::new(address, message.header.prefix_len).ok(),
                IpAddr::V6(_) => None,
            }
        });
        primary.min_by_key(|net| net.prefix_len() == 32) // of equal ones the first
    }
}

/// Takes the IP header off; none if it is not one. The kernel has verified its checksum.
fn behind_ip_header(bytes: &[u8]) -> Option<Received<Ipv4Addr>> {
    let header = usize::from(bytes.first()? & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]));
    let address = |at: usize| {
        let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    let is_ospf = bytes[0] >> 4 == 4 && header >= 20 && i32::from(*bytes.get(9)?) == PROTOCOL;
    bytes.get(header..total).filter(|_| is_ospf)?;
    let (source, destination, hops) = (address(12)?, address(16)?, *bytes.get(8)?);
    Some(Received { source, destination, hops, payload: header..total })
}

impl Transport for V3 {
    const DOMAIN: Domain = Domain::IPV6;
    const IS_V6: bool = true;
    const FAMILY: AddressFamily = AddressFamily::Inet6;
    const ADDRESS_GROUP: MulticastGroup = MulticastGroup::Ipv6Ifaddr;

    /// Bound to the link-local address: it is the source of every packet, whatever others there are.
    fn set_up(socket: &Socket, device: Device, attached: &Attached6) -> io::Result<()> {
        let Device { index, .. } = device;
        socket.bind_device_by_index_v6(NonZeroU32::new(index))?;
        socket.set_multicast_all_v6(false)?;
        socket.set_multicast_loop_v6(false)?;
        socket.set_multicast_hops_v6(device.hops())?;
        socket.set_multicast_if_v6(index)?;
        socket.set_unicast_hops_v6(device.hops())?;
        socket.set_recv_hoplimit_v6(true)?;
        socket.set_tclass_v6(TOS)?;
        socket.set_priority(PRIORITY)?;
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        socket.bind(&SocketAddrV6::new(attached.link_local, 0, 0, index).into())
    }

    fn membership(socket: &SockRef<'_>, index: u32, group: Ipv6Addr, join: bool) -> io::Result<()> {
        if join { socket.join_multicast_v6(&group, index) } else { socket.leave_multicast_v6(&group, index) }
    }

    fn send(
        socket: &UdpSocket,
        index: u32,
        _: &Attached6,
        destination: Ipv6Addr,
        payload: &[u8],
    ) -> io::Result<()> {
        let to = SocketAddrV6::new(destination, 0, 0, index).into();
        SockRef::from(socket).send_to(payload, &to).map(drop)
    }

    /// Neighbours have link-local addresses.
    fn is_beyond_prefix(_: &Attached6, _: IpAddr) -> bool {
        false
    }

    /// Every device has a link-local address of its own.
    fn borrowed<'a>(_: Ipv4Addr, _: impl Iterator<Item = (bool, &'a AddressMessage)>) -> Option<Attached6> {
        None
    }

    /// IPv6 sockets hand out the payload; the destination comes beside it.
    fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Received<Ipv6Addr>>> {
        let mut space = cmsg_space!(libc::in6_pktinfo, libc::c_int);
        let mut parts = [io::IoSliceMut::new(buffer)];
        let flags = MsgFlags::empty();
        let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let (mut destination, mut hops) = (None, 0);
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                }
                ControlMessageOwned::Ipv6HopLimit(limit) => hops = u8::try_from(limit).unwrap_or(0),
                _ => {}
            }
        }
        let source = message.address.map(|address| address.ip());
        let payload = 0..message.bytes;
        let received = |(source, destination)| Received { source, destination, hops, payload };
        Ok(source.zip(destination).map(received))
    }

    /// None without a link-local address that is known to be unique (RFC 4862 section 5.4).
    fn attached<'a>(addresses: impl Iterator<Item = &'a AddressMessage>) -> Option<Attached6> {
        let (mut link_local, mut prefixes, mut others) = (None, BTreeSet::new(), BTreeSet::new());
        let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
        for message in addresses.filter(|message| !message.header.flags.intersects(unusable)) {
            let Some(IpAddr::V6(address)) = address(message) else { continue };
            if address.is_unicast_link_local() {
                link_local.get_or_insert(address);
            } else if let Ok(net) = Ipv6Net::new(address, message.header.prefix_len) {
                prefixes.insert(net.trunc());
                others.insert(net.addr());
            }
        }
        Some(Attached6 { link_local: link_local?, prefixes, addresses: others })
    }
}

/// The own address of the message.
fn address(message: &AddressMessage) -> Option<IpAddr> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    find(true).or_else(|| find(false))
}

#[cfg(test)]
mod tests;
