//! The UDP sockets of single hop BFD (RFC 5881): one listener for each interface and family, one sender for each
//! session.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// The destination port of Control packets.
pub const PORT: u16 = 3784;

/// RFC 5881 section 4: "The source port MUST be in the range 49152 through 65535."
pub(super) const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// The time to live a packet is sent with, and must still have when it arrives (RFC 5881 section 5).
pub(super) const TIME_TO_LIVE: u8 = 255;

/// Class selector 6, network control.
const TRAFFIC_CLASS: u32 = 0xc0;

/// Priority of what is sent, for the queues of the kernel and the 802.1p bits of a VLAN: the highest that needs no
/// privilege.
const PRIORITY: u32 = 6;

/// Octets the kernel queues for a listener: some hundred packets, the bookkeeping of the kernel included.
const RECEIVE_BUFFER: usize = 256 * 1024;

/// Larger than any Control packet, so that one that is too long is seen as such.
const DATAGRAM: usize = 512;

/// The reason why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such interface in this network namespace.
    #[error("interface {interface} does not exist")]
    NoInterface {
        /// The name.
        interface: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The port is taken.
    #[error("cannot listen on port {PORT} of {interface}: is another BFD daemon running?")]
    Listen {
        /// The interface.
        interface: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// No source port could be bound.
    #[error("cannot send from {local} on {interface}: is the address configured there?")]
    Send {
        /// The address.
        local: IpAddr,
        /// The interface.
        interface: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The kernel refused a socket or one of its options.
    #[error("cannot set up a UDP socket on {interface}")]
    Socket {
        /// The interface.
        interface: String,
        /// What the kernel says.
        source: io::Error,
    },
}

/// The index of an interface.
///
/// # Errors
/// [`OpenError::NoInterface`].
pub(super) fn interface_index(interface: &str) -> Result<u32, OpenError> {
    nix::net::if_::if_nametoindex(interface)
        .map_err(|errno| OpenError::NoInterface { interface: interface.to_owned(), source: errno.into() })
}

/// `address` with a port, and the interface as the scope of a link-local one.
fn socket_address(address: IpAddr, port: u16, interface_index: u32) -> SocketAddr {
    match address {
        IpAddr::V4(address) => SocketAddrV4::new(address, port).into(),
        IpAddr::V6(address) => {
            let scope = if address.is_unicast_link_local() { interface_index } else { 0 };
            SocketAddrV6::new(address, port, 0, scope).into()
        }
    }
}

/// A non-blocking UDP socket of one interface.
fn open(interface: &str, v6: bool) -> io::Result<Socket> {
    let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// A received datagram.
#[derive(Debug)]
pub(super) struct Datagram<'a> {
    /// The sender.
    pub source: IpAddr,
    /// TTL or Hop Limit on arrival, if the kernel told.
    pub time_to_live: Option<u8>,
    /// The payload, of which the first [`DATAGRAM`] octets are kept.
    pub payload: &'a [u8],
}

/// Receives all Control packets of one interface and family.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Socket,
    buffer: [u8; DATAGRAM],
    control: Vec<u8>,
}

impl Listener {
    /// Binds port 3784 on `interface`.
    ///
    /// # Errors
    /// [`OpenError::Socket`] or [`OpenError::Listen`].
    pub(super) fn open(interface: &str, v6: bool) -> Result<Self, OpenError> {
        let socket = Self::prepare(interface, v6)
            .map_err(|source| OpenError::Socket { interface: interface.to_owned(), source })?;
        let any = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        socket
            .bind(&SocketAddr::new(any, PORT).into())
            .map_err(|source| OpenError::Listen { interface: interface.to_owned(), source })?;
        Ok(Self { socket, buffer: [0; DATAGRAM], control: nix::cmsg_space!(libc::c_int) })
    }

    fn prepare(interface: &str, v6: bool) -> io::Result<Socket> {
        let socket = open(interface, v6)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        if v6 {
            setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
        }
        Ok(socket)
    }

    /// The next queued datagram; `None` when the queue is empty.
    ///
    /// # Errors
    /// What the kernel reports of the interface, such as that it went down; the next call goes on.
    pub(super) fn receive(&mut self) -> io::Result<Option<Datagram<'_>>> {
        let descriptor = self.socket.as_raw_fd();
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message = match recvmsg::<SockaddrStorage>(descriptor, &mut parts, Some(&mut self.control), flags)
        {
            Ok(message) => message,
            Err(nix::Error::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let time_to_live = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
                u8::try_from(ttl).ok()
            }
            _ => None,
        });
        let source = message.address.as_ref().and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        });
        let length = message.bytes;
        let source = source.ok_or_else(|| io::Error::other("datagram without source address"))?;
        Ok(Some(Datagram { source, time_to_live, payload: &self.buffer[..length] }))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends the Control packets of one session.
#[derive(Debug)]
pub(super) struct Sender {
    socket: Socket,
    peer: SockAddr,
    source_port: u16,
}

impl Sender {
    /// Binds `local` and one of the candidate source ports on `interface`.
    ///
    /// # Errors
    /// [`OpenError::Send`] if none of `ports` can be bound, or [`OpenError::Socket`].
    pub(super) fn open(
        interface: &str,
        interface_index: u32,
        local: IpAddr,
        peer: IpAddr,
        ports: impl Iterator<Item = u16>,
    ) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Socket { interface: interface.to_owned(), source };
        let socket = Self::prepare(interface, local.is_ipv6()).map_err(failed)?;
        let peer = socket_address(peer, PORT, interface_index).into();
        let mut refusal = io::Error::from(io::ErrorKind::AddrInUse);
        for source_port in ports {
            match socket.bind(&socket_address(local, source_port, interface_index).into()) {
                Ok(()) => return Ok(Self { socket, peer, source_port }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => refusal = error,
                Err(error) => {
                    refusal = error;
                    break;
                }
            }
        }
        Err(OpenError::Send { local, interface: interface.to_owned(), source: refusal })
    }

    fn prepare(interface: &str, v6: bool) -> io::Result<Socket> {
        let socket = open(interface, v6)?;
        // Nothing is read from it: the kernel's minimum is enough for what strangers send there.
        socket.set_recv_buffer_size(0)?;
        if v6 {
            socket.set_unicast_hops_v6(TIME_TO_LIVE.into())?;
            socket.set_tclass_v6(TRAFFIC_CLASS)?;
        } else {
            socket.set_ttl_v4(TIME_TO_LIVE.into())?;
            socket.set_tos_v4(TRAFFIC_CLASS)?;
        }
        socket.set_priority(PRIORITY)?; // behind the type of service, from which the kernel derives one
        Ok(socket)
    }

    /// Sends one packet.
    ///
    /// # Errors
    /// What the kernel says; a packet that is not sent is as good as lost, so the session goes on.
    pub(super) fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.socket.send_to(packet, &self.peer).map(drop)
    }

    /// The source port, unique to the session.
    pub(super) const fn source_port(&self) -> u16 {
        self.source_port
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, time::Duration};

    use super::*;
    use crate::namespace::{in_namespace, index_of, ip};

    /// What a session sends to `address` on the loopback, with the IP header in IPv4.
    fn sent_to(address: &str) -> (u32, [u8; 64], Option<i32>) {
        let address: IpAddr = address.parse().expect("an address");
        let domain = if address.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
        let listener = Socket::new(domain, Type::RAW, Some(Protocol::UDP)).expect("root");
        listener.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        if address.is_ipv6() {
            setsockopt(&listener, sockopt::Ipv6RecvTClass, &true).expect("set");
        }
        let sender =
            Sender::open("lo", index_of("lo"), address, address, SOURCE_PORTS).expect("a source port");
        sender.send(&[0; 24]).expect("sent");
        let mut buffer = [0; 64];
        let mut class = None;
        if address.is_ipv6() {
            let mut space = nix::cmsg_space!(libc::c_int);
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::empty();
            let message =
                recvmsg::<SockaddrStorage>(listener.as_raw_fd(), &mut parts, Some(&mut space), flags);
            class = message.expect("a packet").cmsgs().expect("whole").find_map(|control| match control {
                ControlMessageOwned::Ipv6TClass(class) => Some(class),
                _ => None,
            });
        } else {
            let mut reader = &listener;
            let _ = reader.read(&mut buffer).expect("a packet");
        }
        (sender.socket.priority().expect("read"), buffer, class)
    }

    #[test]
    fn control_packets_are_sent_as_network_control() {
        in_namespace(|| {
            ip("addr add fe80::1/64 dev lo nodad");
            let (priority, packet, _) = sent_to("127.0.0.1");
            assert_eq!((priority, u32::from(packet[1])), (PRIORITY, TRAFFIC_CLASS));
            let (priority, _, class) = sent_to("fe80::1");
            assert_eq!((priority, class), (PRIORITY, i32::try_from(TRAFFIC_CLASS).ok()));
        });
    }
}
