//! Packets, byte by byte, by an encoder that shares no code with the parser under test.

use std::net::Ipv4Addr;

/// The director's interface.
pub const OUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// The router in front of it.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
pub const SYN_ACK: u8 = SYN | ACK;

/// An IPv4 packet under construction.
#[derive(Clone, Debug)]
pub struct Packet {
    pub destination_mac: [u8; 6],
    pub ethertype: u16,
    pub version: u8,
    pub options: Vec<u8>,
    pub ttl: u8,
    pub protocol: u8,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub fragment: u16,
    pub payload: Vec<u8>,
    pub padding: usize,
}

impl Packet {
    pub fn new(protocol: u8, source: &str, destination: &str, payload: Vec<u8>) -> Self {
        Self {
            destination_mac: OUR_MAC,
            ethertype: 0x0800,
            version: 4,
            options: Vec::new(),
            ttl: 64,
            protocol,
            source: source.parse().expect("source"),
            destination: destination.parse().expect("destination"),
            fragment: 0,
            payload,
            padding: 0,
        }
    }

    pub fn tcp(source: (&str, u16), destination: (&str, u16), flags: u8) -> Self {
        let mut tcp = Vec::new();
        tcp.extend(source.1.to_be_bytes());
        tcp.extend(destination.1.to_be_bytes());
        tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(b"hello");
        Self::new(6, source.0, destination.0, tcp)
    }

    pub fn udp(source: (&str, u16), destination: (&str, u16), data: &[u8]) -> Self {
        let mut udp = Vec::new();
        udp.extend(source.1.to_be_bytes());
        udp.extend(destination.1.to_be_bytes());
        udp.extend((8 + data.len() as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(data);
        Self::new(17, source.0, destination.0, udp)
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The frame, with a right header checksum.
    pub fn bytes(&self) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let total = (header_len + self.payload.len()) as u16;
        let mut header = vec![self.version << 4 | (header_len / 4) as u8, 0];
        header.extend(total.to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol, 0, 0]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        header.extend(&self.options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = Vec::new();
        frame.extend(self.destination_mac);
        frame.extend(ROUTER_MAC);
        frame.extend(self.ethertype.to_be_bytes());
        frame.extend(header);
        frame.extend(&self.payload);
        frame.extend(std::iter::repeat_n(0, self.padding));
        frame
    }
}

/// RFC 1071, section 4.1.
pub fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
