//! The way of the packets there are most of, in as few steps as there can be.
//!
//! A whole TCP segment or UDP datagram without options, of a service found by its exact key, whose slot is settled or
//! whose connection has its pin, to a real server by link address or IPIP over IPv4: [`forward`] does what
//! [`decide()`](crate::decide()) and
//! [`rewrite`](crate::decide::rewrite) do, byte for byte. It has no outcome of its own: whatever is anything else, or
//! wrong in any way, it leaves untouched for those two. Headers are at fixed offsets here, so that a frame's length is
//! compared once for each, and what is known of the packet stays in registers: the kernel's program spends more on the
//! stack than on tables otherwise.

use crate::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use crate::packet::{
    Ethernet, Frame, Ip, OUTER_V4_LEN, Outer, PROTOCOL_TCP, PROTOCOL_UDP, TCP_MIN_LEN, TCP_OFFSET_FLAGS,
    UDP_LEN, UDP_LENGTH, checksum_for_ttl, folded, tcp_header_len, tcp_opens, tcp_signals,
};
use crate::pin::{PinCell, signal};
use crate::slot::{entropy_of, slot_of};
use crate::tables::{
    Address, Config, Encapsulation, FlowKey, RealEntry, ServiceEntry, ServiceKey, ServiceKeyV4, Tables,
    table_slots,
};

/// Where the IP header begins.
const START: usize = Ethernet::LEN;
/// Length of an IPv4 header without options in bytes.
const LEN_V4: usize = 20;
/// Length of an IPv6 header without extensions in bytes.
const LEN_V6: usize = 40;
/// What a frame must hold: the larger of both transport headers.
const HELD_V4: usize = START + LEN_V4 + TCP_MIN_LEN;
const HELD_V6: usize = START + LEN_V6 + TCP_MIN_LEN;

/// A packet that was forwarded, and what it is accounted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Forwarded {
    /// Real server's index in the real-server map.
    pub real: u32,
    /// Length of the IP packet in bytes.
    pub bytes: u32,
    /// 1 if it begins a connection, else 0.
    pub opens: u32,
    /// Interface to leave by.
    pub ifindex: u32,
}

/// What of a packet the tables are asked by.
struct Packet {
    source: Address,
    destination: Address,
    source_port: u16,
    destination_port: u16,
    protocol: u8,
    bytes: u32,
    segment: Segment,
}

/// What a TCP segment says about its connection; a datagram says nothing.
struct Segment {
    flags: u8,
    data: bool,
}

/// Where a packet goes.
struct Way<'a> {
    real: &'a RealEntry,
    index: u32,
    /// Our address, if it goes through a tunnel.
    tunnel: Option<&'a Address>,
    entropy: u32,
}

/// Forwards the packet in `frame`, which came in by the interface `ifindex`, if it is of those; else changes nothing.
#[inline(always)]
pub fn forward(frame: &mut impl Frame, ifindex: u32, tables: &impl Tables) -> Option<Forwarded> {
    let config = tables.config()?;
    if config.flags & (Config::CAPTURE_FLAGS | Config::FLAG_FLOW_ACCOUNTING) != 0 || !frame.holds::<HELD_V4>()
    {
        return None;
    }
    match u16::from_be_bytes(frame.peek::<{ START - 2 }, 2>()) {
        ETHERTYPE_IPV4 => forward_v4(frame, ifindex, config, tables),
        ETHERTYPE_IPV6 => forward_v6(frame, ifindex, config, tables),
        _ => None,
    }
}

#[inline(always)]
fn forward_v4(
    frame: &mut impl Frame,
    ifindex: u32,
    config: &Config,
    tables: &impl Tables,
) -> Option<Forwarded> {
    let [version_ihl, tos, l0, l1] = frame.peek::<START, 4>();
    let [i0, i1, f0, f1] = frame.peek::<{ START + 4 }, 4>();
    let [ttl, protocol, c0, c1] = frame.peek::<{ START + 8 }, 4>();
    // No options, neither a fragment nor the first of some, and not at the end of its life.
    if version_ihl != 0x45 || f0 & 0x3f | f1 != 0 || ttl <= 1 {
        return None;
    }
    let (source, destination) = (frame.peek::<{ START + 12 }, 4>(), frame.peek::<{ START + 16 }, 4>());
    let mut sum = 0_u64;
    for word in [[version_ihl, tos, l0, l1], [i0, i1, f0, f1], [ttl, protocol, c0, c1], source, destination] {
        sum = sum.wrapping_add(u64::from(u32::from_ne_bytes(word)));
    }
    let bytes = usize::from(u16::from_be_bytes([l0, l1]));
    if folded(sum) != 0xffff || bytes.wrapping_add(START) > frame.len() {
        return None;
    }
    let segment = check::<{ START + LEN_V4 + TCP_OFFSET_FLAGS }, { START + LEN_V4 + UDP_LENGTH }>(
        frame,
        protocol,
        bytes.checked_sub(LEN_V4)?,
    )?;
    let [p0, p1, p2, p3] = frame.peek::<{ START + LEN_V4 }, 4>();
    let packet = Packet {
        source: Address::from_ipv4(source),
        destination: Address::from_ipv4(destination),
        source_port: u16::from_be_bytes([p0, p1]),
        destination_port: u16::from_be_bytes([p2, p3]),
        protocol,
        bytes: bytes as u32,
        segment,
    };
    is_for_us(frame, ifindex, tables)?;
    let service =
        tables.service_v4(&ServiceKeyV4 { address: destination, port: [p2, p3], protocol, reserved: 0 })?;
    let way = find(service, &packet, config, tables)?;
    // Made before the frame grows, since what is written then lies elsewhere.
    let ip = Ip {
        version: 4,
        start: START,
        total_len: bytes,
        traffic_class: tos,
        dont_fragment: f0 & 0x40 != 0,
        identification: u32::from(u16::from_be_bytes([i0, i1])),
        ..Ip::default()
    };
    let less = ttl.wrapping_sub(1);
    let [c0, c1] = checksum_for_ttl(u16::from_be_bytes([c0, c1]), ttl, less).to_be_bytes();
    let life = [less, protocol, c0, c1];
    match way.tunnel {
        None => frame.poke::<{ START + 8 }, 4>(life),
        Some(source) => enter(frame, &way, source, &ip, life)?,
    }
    Some(finish(frame, &way, &packet))
}

/// Puts an IPv4 packet, with what its life has become, into a tunnel; nothing changes where there is no room.
#[inline(always)]
fn enter(frame: &mut impl Frame, way: &Way<'_>, source: &Address, ip: &Ip, life: [u8; 4]) -> Option<()> {
    let outer = Outer {
        encapsulation: Encapsulation::Ipip,
        port: 0,
        source,
        destination: &way.real.address,
        entropy: way.entropy,
    };
    let header = outer.header_v4(ip, ip.total_len);
    frame.grow::<OUTER_V4_LEN>()?;
    // It held as much before.
    if !frame.holds::<{ HELD_V4 + OUTER_V4_LEN }>() {
        return None;
    }
    frame.poke::<{ START - 2 }, 2>(ETHERTYPE_IPV4.to_be_bytes());
    frame.poke::<START, OUTER_V4_LEN>(header);
    frame.poke::<{ START + OUTER_V4_LEN + 8 }, 4>(life);
    Some(())
}

#[inline(always)]
fn forward_v6(
    frame: &mut impl Frame,
    ifindex: u32,
    config: &Config,
    tables: &impl Tables,
) -> Option<Forwarded> {
    if !frame.holds::<HELD_V6>() {
        return None;
    }
    let [version] = frame.peek::<START, 1>();
    let [l0, l1, protocol, hop_limit] = frame.peek::<{ START + 4 }, 4>();
    if version >> 4 != 6 || hop_limit <= 1 {
        return None;
    }
    let payload = usize::from(u16::from_be_bytes([l0, l1]));
    let bytes = payload.wrapping_add(LEN_V6);
    if bytes.wrapping_add(START) > frame.len() {
        return None;
    }
    let segment = check::<{ START + LEN_V6 + TCP_OFFSET_FLAGS }, { START + LEN_V6 + UDP_LENGTH }>(
        frame, protocol, payload,
    )?;
    let [p0, p1, p2, p3] = frame.peek::<{ START + LEN_V6 }, 4>();
    let packet = Packet {
        source: Address(frame.peek::<{ START + 8 }, 16>()),
        destination: Address(frame.peek::<{ START + 24 }, 16>()),
        source_port: u16::from_be_bytes([p0, p1]),
        destination_port: u16::from_be_bytes([p2, p3]),
        protocol,
        bytes: bytes as u32,
        segment,
    };
    // Such a source does not travel, and such a destination has the key of an IPv4 service.
    if packet.source.is_v4() || packet.destination.is_v4() {
        return None;
    }
    is_for_us(frame, ifindex, tables)?;
    let key = ServiceKey::service(packet.destination, packet.protocol, packet.destination_port);
    let way = find(tables.service(&key)?, &packet, config, tables)?;
    if way.tunnel.is_some() {
        return None;
    }
    frame.poke::<{ START + 7 }, 1>([hop_limit.wrapping_sub(1)]);
    Some(finish(frame, &way, &packet))
}

/// What the transport header says, if it is right, which has `payload` bytes within the frame, data offset and flags of
/// TCP at `FLAGS` and the length of UDP at `LENGTH`; `None` if it is wrong or another protocol's.
#[inline(always)]
fn check<const FLAGS: usize, const LENGTH: usize>(
    frame: &impl Frame,
    protocol: u8,
    payload: usize,
) -> Option<Segment> {
    match protocol {
        PROTOCOL_TCP => {
            let [offset, flags] = frame.peek::<FLAGS, 2>();
            let header = tcp_header_len(offset);
            if header < TCP_MIN_LEN || header > payload {
                return None;
            }
            Some(Segment { flags, data: payload > header })
        }
        PROTOCOL_UDP => {
            let length = usize::from(u16::from_be_bytes(frame.peek::<LENGTH, 2>()));
            if length < UDP_LEN || length > payload {
                return None;
            }
            Some(Segment { flags: 0, data: false })
        }
        _ => None,
    }
}

/// `Some` if the frame is for the interface it came in by.
#[inline(always)]
fn is_for_us(frame: &impl Frame, ifindex: u32, tables: &impl Tables) -> Option<()> {
    tables.interface(ifindex)?.has(&frame.peek::<{ Ethernet::ADDRESSES }, 6>()).then_some(())
}

/// Where a packet goes, whose service is found by its exact key, if its slot is settled and the way is known and wide
/// enough.
#[inline(always)]
fn find<'a>(
    service: &'a ServiceEntry,
    packet: &Packet,
    config: &'a Config,
    tables: &'a impl Tables,
) -> Option<Way<'a>> {
    let one_packet = service.has(ServiceEntry::FLAG_ONE_PACKET) && packet.protocol == PROTOCOL_UDP;
    let hash = config.hash.of(packet.source, packet.source_port, service.hash_input());
    let slot = tables.slot(service.table, slot_of(hash, table_slots(service.table)))?;
    if service.has(ServiceEntry::FLAG_QUIC) {
        return None;
    }
    let (mut position, mut pin) = (slot.raw_current(), None);
    if (service.is_tracked() || !slot.is_settled()) && !one_packet {
        let cell = find_pin(packet, tables)?;
        position = cell.load().server().position();
        pin = Some(cell);
    }
    // The position that names nobody is above every count.
    let position = u32::from(position);
    if position >= service.real_count {
        return None;
    }
    let index = service.real_base.wrapping_add(position);
    let real = tables.real(index)?;
    let (mut tunnel, mut bytes) = (None, packet.bytes);
    match service.forwarding {
        ServiceEntry::FORWARD_DIRECT => {}
        ServiceEntry::FORWARD_IPIP if real.address.is_v4() => {
            tunnel = Some(config.tunnel_source(true)?);
            bytes = bytes.wrapping_add(OUTER_V4_LEN as u32);
        }
        _ => return None,
    }
    // On an interface that is not native a larger one may go: not here.
    let widest = if real.mtu == 0 { u16::MAX } else { real.mtu };
    if real.ifindex == 0 || bytes > u32::from(widest) {
        return None;
    }
    // Last: what is not forwarded here leaves no trace.
    if let Some(cell) = pin {
        follow(cell, real, packet, service.is_tracked(), tables)?;
    }
    Some(Way { real, index, tunnel, entropy: entropy_of(hash, packet.source_port) })
}

/// The pin of the packet's connection.
#[inline(always)]
fn find_pin<'a>(packet: &Packet, tables: &'a impl Tables) -> Option<&'a PinCell> {
    // No connection has port 0 at both ends.
    if packet.source_port == 0 && packet.destination_port == 0 {
        return None;
    }
    tables.pin(&FlowKey {
        source: packet.source,
        destination: packet.destination,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        protocol: packet.protocol,
        reserved: [0; 3],
    })
}

/// Notes the packet in its connection's pin; `None` if that is to somebody else than `real`, or the packet begins
/// another
/// connection.
#[inline(always)]
fn follow(
    cell: &PinCell,
    real: &RealEntry,
    packet: &Packet,
    is_tracked: bool,
    tables: &impl Tables,
) -> Option<()> {
    let pin = cell.load();
    let signals = tcp_signals(packet.segment.flags, packet.segment.data);
    let ended = signals & signal::OPENS != 0 && pin.state().is_closing();
    if ended || !pin.server().is(real) {
        return None;
    }
    // What changes the state of a tracked connection is counted: not here.
    if is_tracked && pin.state().after(signals) as u8 != pin.state() as u8 {
        return None;
    }
    cell.note(&pin, signals, tables.now(), tables);
    Some(())
}

/// Writes the link addresses, which are at the front by now.
#[inline(always)]
fn finish(frame: &mut impl Frame, way: &Way<'_>, packet: &Packet) -> Forwarded {
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (way.real.destination_mac, way.real.source_mac);
    frame.poke::<{ Ethernet::ADDRESSES }, 12>([a, b, c, d, e, f, g, h, i, j, k, l]);
    Forwarded {
        real: way.index,
        bytes: packet.bytes,
        opens: u32::from(tcp_opens(packet.segment.flags)),
        ifindex: way.real.ifindex,
    }
}
