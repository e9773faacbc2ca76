//! A packet to ask about: nobody sent it, and it is only ever shown to `decide`.

use std::net::{IpAddr, SocketAddr};

use director_common::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_TCP};

use super::Protocol;

/// TCP flags of a [`Probe`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcpFlags {
    /// SYN: it begins a connection.
    #[default]
    Syn,
    /// ACK: it belongs to a connection.
    Ack,
}

/// A packet from a client to a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The client.
    pub source: SocketAddr,
    /// The VIP.
    pub destination: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The flags, if it is TCP.
    pub flags: TcpFlags,
    /// Length of the IP packet in bytes; 0 for no payload at all.
    pub length: u16,
}

/// Why a [`Probe`] is no packet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The addresses are of two families.
    #[error("{source_address} and {destination} are not of the same family: a packet has one")]
    Families {
        /// The client.
        source_address: IpAddr,
        /// The VIP.
        destination: IpAddr,
    },
    /// An IPv6 address that maps an IPv4 address.
    #[error("{0} maps an IPv4 address, which never travels: write the IPv4 address")]
    Mapped(IpAddr),
    /// The length does not hold the headers.
    #[error("a packet of {length} bytes does not hold its headers, which take {headers}")]
    Length {
        /// What was asked for.
        length: u16,
        /// The least there can be.
        headers: u16,
    },
}

/// Length of a TCP header without options in bytes.
const TCP_LEN: u16 = 20;
/// Length of a UDP header in bytes.
const UDP_LEN: u16 = 8;
/// Hop limit of the packet: of no consequence as long as it is not spent.
const HOP_LIMIT: u8 = 64;

impl Probe {
    /// The Ethernet frame that brings the packet to the station `mac`. Like most packets of today it must not be
    /// fragmented on its way.
    ///
    /// # Errors
    /// [`ProbeError`] if there is no such packet.
    pub fn emit(&self, mac: [u8; 6]) -> Result<Vec<u8>, ProbeError> {
        for address in [self.source.ip(), self.destination.ip()] {
            if address.is_ipv6() && address.to_canonical().is_ipv4() {
                return Err(ProbeError::Mapped(address));
            }
        }
        let transport = if self.protocol.number() == PROTOCOL_TCP { TCP_LEN } else { UDP_LEN };
        let (ip_len, ethertype) = match self.source.ip() {
            IpAddr::V4(_) => (20, ETHERTYPE_IPV4),
            IpAddr::V6(_) => (40, ETHERTYPE_IPV6),
        };
        let headers = ip_len + transport;
        let length = if self.length == 0 { headers } else { self.length };
        if length < headers {
            return Err(ProbeError::Length { length, headers });
        }
        let mut frame = mac.to_vec();
        // A locally administered sender: who it is does not matter.
        frame.extend([2, 0, 0, 0, 0, 0]);
        frame.extend(ethertype.to_be_bytes());
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend(header_v4(
                    source.octets(),
                    destination.octets(),
                    self.protocol.number(),
                    length,
                ));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x60, 0, 0, 0]);
                frame.extend((length - ip_len).to_be_bytes());
                frame.extend([self.protocol.number(), HOP_LIMIT]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            (source_address, destination) => {
                return Err(ProbeError::Families { source_address, destination });
            }
        }
        frame.extend(self.source.port().to_be_bytes());
        frame.extend(self.destination.port().to_be_bytes());
        match self.protocol {
            Protocol::Tcp => {
                let flags = if self.flags == TcpFlags::Syn { 0x02 } else { 0x10 };
                frame.extend([0; 8]);
                frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            }
            Protocol::Udp => {
                frame.extend((length - ip_len).to_be_bytes());
                frame.extend([0, 0]);
            }
        }
        frame.resize(14 + usize::from(length), 0);
        Ok(frame)
    }
}

/// An IPv4 header (RFC 791, section 3.1) that forbids fragmentation.
fn header_v4(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u16) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[6] = 0x40;
    header[8..10].copy_from_slice(&[HOP_LIMIT, protocol]);
    header[12..16].copy_from_slice(&source);
    header[16..20].copy_from_slice(&destination);
    let words = header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    // Ten words carry at most once more (RFC 1071, section 4.1).
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use director_common::packet::{Buffer, Ethernet, Ip, check_transport};
    use director_common::tables::FlowKey;

    use super::*;
    use director_common::pin::signal;

    fn probe(source: &str, destination: &str, protocol: Protocol, length: u16) -> Probe {
        let (source, destination) =
            (source.parse().expect("source"), destination.parse().expect("destination"));
        Probe { source, destination, protocol, flags: TcpFlags::Syn, length }
    }

    #[test]
    fn every_probe_passes_every_check_of_a_packet() {
        for (source, destination) in
            [("198.51.100.7:40000", "203.0.113.10:80"), ("[2001:db8::7]:40000", "[2001:db8::10]:80")]
        {
            for (protocol, length) in
                [(Protocol::Tcp, 0), (Protocol::Tcp, 1_500), (Protocol::Udp, 0), (Protocol::Udp, 9_000)]
            {
                let mut bytes =
                    probe(source, destination, protocol, length).emit([2, 0, 0, 0, 0, 1]).expect("packet");
                let frame = Buffer(&mut bytes);
                let ethernet = Ethernet::parse(&frame).expect("ethernet");
                let ip = Ip::parse(&frame, &ethernet, &mut FlowKey::default()).expect("ip");
                assert!(ip.checksum_holds(&frame) && ip.length_holds(&frame) && ip.dont_fragment);
                let payload = ip.payload_len().expect("length");
                let signals = check_transport(&frame, &ip, payload).expect("a whole packet");
                assert_eq!(signals & signal::OPENS != 0, protocol == Protocol::Tcp);
                assert!(length == 0 || ip.total_len == usize::from(length));
            }
        }
    }

    #[test]
    fn what_cannot_be_a_packet_is_refused() {
        let emit = |source, destination, length| {
            probe(source, destination, Protocol::Tcp, length).emit([0; 6]).expect_err("no packet").to_string()
        };
        assert!(emit("198.51.100.7:1", "[2001:db8::1]:80", 0).contains("same family"));
        assert!(emit("[::ffff:1.2.3.4]:1", "[2001:db8::1]:80", 0).contains("IPv4 address"));
        assert!(emit("[2001:db8::2]:1", "[2001:db8::1]:80", 59).contains("take 60"));
    }
}
