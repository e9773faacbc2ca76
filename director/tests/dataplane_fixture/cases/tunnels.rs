//! VLAN tags and tunnels.

use director_common::verdict::{DropReason, Outcome, PassReason};

use super::{Family, GUE_PORT, HERE, MORE_FRAGMENTS, REAL_V4, REAL_V6, Row, TUNNEL_V4, TUNNEL_V6};
use crate::dataplane_fixture::packets::Packet;

pub(super) fn tagged(f: &Family) -> Vec<Row> {
    use Outcome::{Dropped, Passed, Transmitted};
    let tagged = |port| f.tcp(port).with(|p| p.vlan = Some(0x6064));
    let twice = |mut frame: Vec<u8>| {
        frame.splice(12..12, [0x81, 0, 0, 7]);
        frame
    };
    vec![
        ("tagged: the tag stays on the same link", tagged(80).bytes(), Transmitted),
        ("tagged: not to another link", tagged(81).bytes(), Dropped(DropReason::VlanRedirect)),
        ("tagged: no service", tagged(443).bytes(), Passed(PassReason::NoService)),
        ("tagged: ends within the tag", tagged(80).bytes()[..17].to_vec(), Passed(PassReason::ShortFrame)),
        ("tagged twice", twice(tagged(80).bytes()), Passed(PassReason::NotIp)),
    ]
}

pub(super) fn tunnels(f: &Family) -> Vec<Row> {
    use Outcome::Transmitted;
    let tcp = |port| f.tcp(port);
    let sized =
        |port, total: usize| tcp(port).with(|p| p.payload.resize(total - (f.headers - 14), 7)).bytes();
    let too_big = f.too_big();
    vec![
        ("IP in IPv4", tcp(90).bytes(), Transmitted),
        ("IP in IPv6", tcp(91).bytes(), Transmitted),
        ("GRE over IPv4", tcp(92).bytes(), Transmitted),
        ("GRE over IPv6", tcp(93).bytes(), Transmitted),
        ("GUE over IPv4", tcp(94).bytes(), Transmitted),
        ("GUE over IPv6", tcp(95).bytes(), Transmitted),
        (
            "tunnel: DSCP and congestion experienced",
            tcp(90).with(|p| p.traffic_class = 0xbb).bytes(),
            Transmitted,
        ),
        ("tunnel: DSCP and ECT(0) over IPv6", tcp(91).with(|p| p.traffic_class = 0x2a).bytes(), Transmitted),
        ("tunnel: padding", tcp(94).with(|p| p.padding = 9).bytes(), Transmitted),
        ("tunnel: tagged", tcp(90).with(|p| p.vlan = Some(7)).bytes(), Transmitted),
        ("tunnel: tagged, over IPv6", tcp(95).with(|p| p.vlan = Some(7)).bytes(), Transmitted),
        ("tunnel: first fragment", tcp(90).with(|p| p.fragment = MORE_FRAGMENTS).bytes(), Transmitted),
        ("IP in IPv4, largest", sized(90, 1500 - 20), Transmitted),
        ("IP in IPv4, too large", sized(90, 1500 - 19), too_big),
        ("IP in IPv6, largest", sized(91, 1500 - 40), Transmitted),
        ("IP in IPv6, too large", sized(91, 1500 - 39), too_big),
        ("GRE over IPv4, largest", sized(92, 1500 - 24), Transmitted),
        ("GRE over IPv4, too large", sized(92, 1500 - 23), too_big),
        ("GUE over IPv6, largest", sized(95, 1500 - 52), Transmitted),
        ("GUE over IPv6, too large", sized(95, 1500 - 51), too_big),
    ]
}

/// The frame that shall come of `inner` (the packet in a frame without tag) in the tunnel of service port `port`,
/// and the bits in it that only have to be the same for one flow.
pub fn tunnelled(port: u16, inner: &Packet) -> (Vec<u8>, Vec<(usize, u8)>) {
    let over_v6 = port % 2 == 1;
    let (source, real) = if over_v6 { (TUNNEL_V6, REAL_V6) } else { (TUNNEL_V4, REAL_V4) };
    let (ethertype, number) = if inner.version == 4 { ([0x08, 0x00], 4) } else { ([0x86, 0xdd], 41) };
    let packet = inner.clone().with(|p| (p.vlan, p.padding) = (None, 0)).bytes()[14..].to_vec();
    let (protocol, shim) = match port {
        90 | 91 => (number, vec![]),
        92 | 93 => (47, [vec![0, 0], ethertype.to_vec()].concat()),
        _ => {
            let length = (12 + packet.len()) as u16;
            let udp = [vec![0xc0, 0], GUE_PORT.to_be_bytes().to_vec(), length.to_be_bytes().to_vec()];
            (17, [udp.concat(), vec![0, 0, 0, number, 0, 0]].concat())
        }
    };
    let mut free = Vec::new();
    let start = if inner.vlan.is_some() { 18 } else { 14 };
    if over_v6 {
        free.extend([(start + 1, 0x0f), (start + 2, 0xff), (start + 3, 0xff)]);
    }
    if port >= 94 {
        let udp = start + if over_v6 { 40 } else { 20 };
        free.extend([(udp, 0x3f), (udp + 1, 0xff)]);
    }
    let outer = Packet::new(protocol, &source.to_string(), real, [shim, packet].concat()).with(|p| {
        p.traffic_class = inner.traffic_class;
        p.vlan = inner.vlan;
        p.padding = inner.padding;
        // Atomic where the inner one may not be fragmented; these cases have no flag to say so in IPv4.
        p.fragment = if inner.version == 6 { 0x4000 } else { 0 };
        p.identification = 0;
    });
    let mut frame = if over_v6 { outer.with(|p| p.fragment = 0).bytes() } else { outer.bytes() };
    frame[..6].copy_from_slice(&HERE.destination_mac);
    frame[6..12].copy_from_slice(&HERE.source_mac);
    (frame, free)
}
