//! One raw socket per interface: IP protocol 89 with what OSPF asks of the IP header (RFC 2328 section
//! A.1).

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    num::NonZeroU32,
    sync::Arc,
};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use tokio::{net::UdpSocket, sync::mpsc, task::JoinHandle};

use crate::speaker::{ALL_D_ROUTERS, ALL_SPF_ROUTERS, Input, InterfaceId};

/// IP protocol number of OSPF.
const PROTOCOL: i32 = 89;
/// Class selector 6, internetwork control, in the place of the type of service.
const TOS: u32 = 0xc0;
/// Bytes of the largest IP datagram.
const DATAGRAM: usize = 65_535;
/// Receive buffer asked for, in bytes: a neighbour may send its whole database at once.
const RECEIVE_BUFFER: usize = 2 << 20;

/// An open socket and the task that reads it.
#[derive(Debug)]
pub(super) struct Port {
    /// A raw socket. tokio has no type for those; the calls that we use are the same for both.
    socket: Arc<UdpSocket>,
    index: u32,
    reader: JoinHandle<()>,
}

impl Port {
    /// Opens the socket of an interface. What comes in goes to `packets`.
    ///
    /// # Errors
    /// Those of the socket calls: no permission, or the device or the address is gone.
    pub(super) fn open(
        interface: InterfaceId,
        index: u32,
        address: Ipv4Addr,
        packets: mpsc::Sender<Input>,
    ) -> io::Result<Self> {
        let socket = raw_socket()?;
        socket.bind_device_by_index_v4(NonZeroU32::new(index))?;
        socket.set_multicast_all_v4(false)?;
        socket.set_multicast_loop_v4(false)?;
        socket.set_multicast_ttl_v4(1)?;
        socket.set_multicast_if_v4(&address)?;
        socket.set_ttl_v4(1)?;
        socket.set_tos_v4(TOS)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.join_multicast_v4_n(&ALL_SPF_ROUTERS, &InterfaceIndexOrAddress::Index(index))?;
        let socket = Arc::new(UdpSocket::from_std(socket.into())?);
        let reader = tokio::spawn(read(Arc::clone(&socket), interface, packets));
        Ok(Self { socket, index, reader })
    }

    /// Sends a packet. A full send buffer counts as loss: OSPF repeats what matters.
    pub(super) fn send(&self, destination: Ipv4Addr, payload: &[u8]) -> io::Result<()> {
        let to = SocketAddrV4::new(destination, 0).into();
        SockRef::from(&*self.socket).send_to(payload, &to).map(drop)
    }

    /// Joins or leaves the group of the designated routers.
    pub(super) fn designated_group(&self, join: bool) -> io::Result<()> {
        let (socket, on) = (SockRef::from(&*self.socket), InterfaceIndexOrAddress::Index(self.index));
        if join {
            socket.join_multicast_v4_n(&ALL_D_ROUTERS, &on)
        } else {
            socket.leave_multicast_v4_n(&ALL_D_ROUTERS, &on)
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A raw socket for OSPF, not bound to anything.
pub(super) fn raw_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(PROTOCOL)))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

async fn read(socket: Arc<UdpSocket>, interface: InterfaceId, packets: mpsc::Sender<Input>) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // Errors are those of the link (ENETDOWN): each comes once, and a link event follows.
        let Ok(length) = socket.recv(&mut buffer).await else { continue };
        if let Some(input) = datagram(interface, &buffer[..length])
            && packets.send(input).await.is_err()
        {
            return;
        }
    }
}

/// Takes the IP header off; none if it is not one. The kernel has verified its checksum.
fn datagram(interface: InterfaceId, bytes: &[u8]) -> Option<Input> {
    let header = usize::from(bytes.first()? & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]));
    let address = |at: usize| {
        let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    let is_ospf = bytes[0] >> 4 == 4 && header >= 20 && i32::from(*bytes.get(9)?) == PROTOCOL;
    let payload = bytes.get(header..total).filter(|_| is_ospf)?.to_vec();
    Some(Input::Packet { interface, source: address(12)?, destination: address(16)?, payload })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn payload_ends_where_the_ip_header_says() {
        let mut bytes = vec![0; 30];
        bytes[0] = 0x45;
        bytes[3] = 26;
        bytes[9] = 89;
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 224, 0, 0, 5]);
        let Some(Input::Packet { source, destination, payload, .. }) = datagram(InterfaceId(0), &bytes)
        else {
            panic!("not taken");
        };
        assert_eq!((source, destination, payload.len()), ([10, 0, 0, 1].into(), ALL_SPF_ROUTERS, 6));
        bytes[9] = 17;
        assert!(datagram(InterfaceId(0), &bytes).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = datagram(InterfaceId(0), &bytes);
        }
    }
}
