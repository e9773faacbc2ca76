//! Packets, byte by byte, by an encoder that shares no code with the parser under test.

use std::net::IpAddr;

/// The director's interface.
pub const OUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// The router in front of it.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];

pub const SYN: u8 = 0x02;
pub const FIN: u8 = 0x01;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;
pub const SYN_ACK: u8 = SYN | ACK;

/// An IP packet under construction; the family is that of its addresses.
#[derive(Clone, Debug)]
pub struct Packet {
    pub destination_mac: [u8; 6],
    pub vlan: Option<u16>,
    pub ethertype: u16,
    pub version: u8,
    /// Options of IPv4.
    pub options: Vec<u8>,
    /// Extension headers of IPv6: type, and the bytes behind its first.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub traffic_class: u8,
    pub ttl: u8,
    pub protocol: u8,
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The field of IPv4. In IPv6 a fragment header follows from it, if it is not 0.
    pub fragment: u16,
    pub identification: u32,
    pub payload: Vec<u8>,
    pub padding: usize,
}

impl Packet {
    pub fn new(protocol: u8, source: &str, destination: &str, payload: Vec<u8>) -> Self {
        let destination: IpAddr = destination.parse().expect("destination");
        Self {
            destination_mac: OUR_MAC,
            vlan: None,
            ethertype: if destination.is_ipv4() { 0x0800 } else { 0x86dd },
            version: if destination.is_ipv4() { 4 } else { 6 },
            options: Vec::new(),
            extensions: Vec::new(),
            traffic_class: 0,
            ttl: 64,
            protocol,
            source: source.parse().expect("source"),
            destination,
            fragment: 0,
            identification: 0x1234,
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

    /// The packet with the checksum of its TCP or UDP made right.
    pub fn summed(mut self) -> Self {
        let at = if self.protocol == 6 { 16 } else { 6 };
        self.payload[at..at + 2].fill(0);
        let mut summed = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
            (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
            mixed => panic!("{mixed:?}"),
        };
        summed.extend((self.payload.len() as u32).to_be_bytes());
        summed.extend([0, 0, 0, self.protocol]);
        summed.extend(&self.payload);
        if summed.len() % 2 == 1 {
            summed.push(0);
        }
        let sum = match checksum(&summed) {
            0 if self.protocol == 17 => 0xffff,
            sum => sum,
        };
        self.payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self
    }

    /// The packet with another source address and port.
    pub fn from(mut self, (address, port): (&str, u16)) -> Self {
        self.source = address.parse().expect("source");
        self.payload[..2].copy_from_slice(&port.to_be_bytes());
        self
    }

    /// The packet with another destination address and port.
    pub fn to(mut self, (address, port): (&str, u16)) -> Self {
        self.destination = address.parse().expect("destination");
        self.payload[2..4].copy_from_slice(&port.to_be_bytes());
        self
    }

    /// The checksum of an ICMP message whose own field is 0 (or 0 if it is right).
    pub fn icmp_checksum(&self) -> u16 {
        let mut summed = Vec::new();
        if let (IpAddr::V6(source), IpAddr::V6(destination)) = (self.source, self.destination) {
            // RFC 8200, section 8.1.
            summed.extend(source.octets());
            summed.extend(destination.octets());
            summed.extend((self.payload.len() as u32).to_be_bytes());
            summed.extend([0, 0, 0, self.protocol]);
        }
        summed.extend(&self.payload);
        if summed.len() % 2 == 1 {
            summed.push(0);
        }
        checksum(&summed)
    }

    /// The frame, with a right header checksum.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(self.destination_mac);
        frame.extend(ROUTER_MAC);
        if let Some(vlan) = self.vlan {
            frame.extend([0x81, 0x00]);
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend(self.ethertype.to_be_bytes());
        frame.extend(match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.header_v4(source.octets(), destination.octets())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.header_v6(source.octets(), destination.octets())
            }
            mixed => panic!("{mixed:?}"),
        });
        frame.extend(&self.payload);
        frame.extend(std::iter::repeat_n(0, self.padding));
        frame
    }

    fn header_v4(&self, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let total = (header_len + self.payload.len()) as u16;
        let mut header = vec![self.version << 4 | (header_len / 4) as u8, self.traffic_class];
        header.extend(total.to_be_bytes());
        header.extend((self.identification as u16).to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol, 0, 0]);
        header.extend(source);
        header.extend(destination);
        header.extend(&self.options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn header_v6(&self, source: [u8; 16], destination: [u8; 16]) -> Vec<u8> {
        let mut chain = self.extensions.clone();
        if self.fragment != 0 {
            // Offset and the flag for more change places (RFC 8200, section 4.5).
            let field = (self.fragment & 0x1fff) << 3 | self.fragment >> 13 & 1;
            let mut body = vec![0];
            body.extend(field.to_be_bytes());
            body.extend(self.identification.to_be_bytes());
            chain.push((44, body));
        }
        let mut extensions = Vec::new();
        for (at, (_, body)) in chain.iter().enumerate() {
            extensions.push(chain.get(at + 1).map_or(self.protocol, |(next, _)| *next));
            extensions.extend(body);
        }
        let first = u32::from(self.version) << 28 | u32::from(self.traffic_class) << 20;
        let mut header = first.to_be_bytes().to_vec();
        header.extend(((extensions.len() + self.payload.len()) as u16).to_be_bytes());
        header.extend([chain.first().map_or(self.protocol, |(kind, _)| *kind), self.ttl]);
        header.extend(source);
        header.extend(destination);
        header.extend(extensions);
        header
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

/// Makes the header checksum of an IPv4 packet right again, as far as the frame holds the header.
pub fn fix_checksum(frame: &mut [u8]) {
    if frame.len() < 34 || frame[12..14] != [0x08, 0x00] {
        return;
    }
    frame[24..26].fill(0);
    let end = (14 + usize::from(frame[14] & 15) * 4).clamp(34, frame.len());
    let sum = checksum(&frame[14..end / 2 * 2]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}
