//! One raw socket per interface, and the task that reads it.

use std::{io, sync::Arc};

use socket2::SockRef;
use tokio::{io::Interest, net::UdpSocket, sync::mpsc, task::JoinHandle};

use super::transport::{Device, Received, SECURE_HOPS, Transport, raw_socket};
use crate::speaker::{Input, InterfaceId, Refusal};

/// Bytes of the largest IP datagram.
const DATAGRAM: usize = 65_535;

/// An open socket and the task that reads it.
#[derive(Debug)]
pub(super) struct Port<V: Transport> {
    /// A raw socket. tokio has no type for those; the calls that we use are the same for both.
    socket: Arc<UdpSocket>,
    index: u32,
    attached: V::Attached,
    reader: JoinHandle<()>,
}

impl<V: Transport> Port<V> {
    /// Opens the socket of an interface. What comes in goes to `packets`.
    ///
    /// # Errors
    /// Those of the socket calls: no permission, or the device or the address is gone.
    pub(super) fn open(
        interface: InterfaceId,
        device: Device,
        attached: &V::Attached,
        packets: mpsc::Sender<Input<V>>,
    ) -> io::Result<Self> {
        let socket = raw_socket::<V>()?;
        let Device { index, ttl_security } = device;
        V::set_up(&socket, device, attached)?;
        V::membership(&SockRef::from(&socket), index, V::ALL_SPF_ROUTERS, true)?;
        let socket = Arc::new(UdpSocket::from_std(socket.into())?);
        let reader = tokio::spawn(read(Arc::clone(&socket), interface, ttl_security, packets));
        Ok(Self { socket, index, attached: attached.clone(), reader })
    }

    /// Sends a packet. A full send buffer counts as loss: OSPF repeats what matters.
    pub(super) fn send(&self, destination: V::Address, payload: &[u8]) -> io::Result<()> {
        V::send(&self.socket, self.index, &self.attached, destination, payload)
    }

    /// Joins or leaves the group of the designated routers.
    pub(super) fn designated_group(&self, join: bool) -> io::Result<()> {
        V::membership(&SockRef::from(&*self.socket), self.index, V::ALL_D_ROUTERS, join)
    }
}

impl<V: Transport> Drop for Port<V> {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read<V: Transport>(
    socket: Arc<UdpSocket>,
    interface: InterfaceId,
    ttl_security: bool,
    packets: mpsc::Sender<Input<V>>,
) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let received = socket.async_io(Interest::READABLE, || V::receive(&socket, &mut buffer)).await;
        // Errors are those of the link (ENETDOWN): each comes once, and a link event follows.
        let Ok(Some(Received { source, destination, hops, payload })) = received else { continue };
        let input = if ttl_security && hops != SECURE_HOPS {
            let detail =
                format!("TTL {hops} instead of 255: from beyond the link, or sent without TTL security");
            Input::Refused { interface, source, reason: Refusal::Ttl, detail }
        } else {
            Input::Packet { interface, source, destination, payload: buffer[payload].to_vec() }
        };
        if packets.send(input).await.is_err() {
            return;
        }
    }
}
