//! `ping`: ICMP echo (RFC 792) or ICMPv6 echo (RFC 4443, section 4).
//!
//! An unprivileged ping socket is used where `net.ipv4.ping_group_range` admits it, a raw one otherwise.

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::probe::ProbeError;

/// Type, code, checksum, identifier and sequence, then the token.
const HEADER: usize = 8;
const TOKEN: usize = 8;

pub(super) async fn probe(to: IpAddr) -> Result<Cow<'static, str>, ProbeError> {
    let (socket, kind) = open(to)?;
    // Random: raw sockets see the answers to everybody's requests, and a token tells ours in either kind of socket.
    let token = RandomState::new().hash_one(to).to_be_bytes();
    socket.send(&request(to, token)).await?;
    let mut buffer = [0; 256];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let packet = buffer.get(..length).unwrap_or_default();
        if answers(to, kind, packet, token) {
            return Ok("answered".into());
        }
    }
}

fn open(to: IpAddr) -> io::Result<(UdpSocket, Type)> {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let (socket, kind) = match Socket::new(domain, Type::DGRAM, Some(protocol)) {
        Ok(socket) => (socket, Type::DGRAM),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            (Socket::new(domain, Type::RAW, Some(protocol))?, Type::RAW)
        }
        Err(error) => return Err(error),
    };
    socket.set_nonblocking(true)?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    // Only `send` and `recv` are used of it, which any datagram socket has.
    Ok((UdpSocket::from_std(socket.into())?, kind))
}

/// An echo request. A ping socket puts in an identifier of its own; the kernel computes the checksum of ICMPv6.
fn request(to: IpAddr, token: [u8; TOKEN]) -> [u8; HEADER + TOKEN] {
    let mut packet = [0; HEADER + TOKEN];
    packet[0] = if to.is_ipv4() { 8 } else { 128 };
    packet[4..6].copy_from_slice(&token[..2]);
    packet[HEADER..].copy_from_slice(&token);
    let sum: u32 = packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    // Eight words: two folds take in every carry.
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}

/// Whether `packet`, as a socket of that kind delivers it, is the echo reply that carries `token`.
fn answers(to: IpAddr, kind: Type, packet: &[u8], token: [u8; TOKEN]) -> bool {
    let header = match packet.first() {
        Some(first) if to.is_ipv4() && kind == Type::RAW => usize::from(first & 0x0f) * 4,
        _ => 0,
    };
    let reply = if to.is_ipv4() { 0 } else { 129 };
    let Some(message) = packet.get(header..) else { return false };
    message.first() == Some(&reply) && message.get(HEADER..) == Some(&token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: [u8; super::TOKEN] = *b"\xff\xff\xff\xff\xff\xff\xff\xfe";

    #[test]
    fn the_checksum_of_a_request_verifies() {
        let packet = request(IpAddr::from([127, 0, 0, 1]), TOKEN);
        let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        assert_eq!(sum % 0xffff, 0, "one's complement sum of a right packet is 0xffff");
    }

    #[test]
    fn only_the_reply_to_ones_own_request_counts() {
        let to = IpAddr::from([127, 0, 0, 1]);
        let own = request(to, TOKEN);
        let mut reply = own;
        reply[0] = 0;
        assert!(answers(to, Type::DGRAM, &reply, TOKEN));
        assert!(!answers(to, Type::DGRAM, &own, TOKEN), "a request seen on loopback");
        assert!(!answers(to, Type::DGRAM, &reply, [0; 8]));
        let raw = [&[0x45][..], &[0; 19], &reply].concat();
        assert!(answers(to, Type::RAW, &raw, TOKEN));
        for length in 0..raw.len() {
            assert!(!answers(to, Type::RAW, &raw[..length], TOKEN));
        }
    }
}
