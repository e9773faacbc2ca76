//! NAT: requests, answers, and errors about both.

use director::dataplane::{
    Datagrams, Forwarding, HashInput, Ports, Protocol, RealSpec, ServiceAddress, ServiceSpec, Timeouts,
};
use director_common::verdict::{AnswerReason, DropReason, Outcome, PassReason, ReplyReason};

use super::{Family, MORE_FRAGMENTS, Row, V4, V6, ip};
use crate::dataplane_fixture::packets::{ACK, Packet, SYN};

/// The port of the services on the VIP, and the one that they become on the real server.
pub const PORT: u16 = 100;
pub const MAPPED: u16 = 8_100;
/// A port of a service whose real server is reached by another interface (IPv4 only), and keeps it.
const ELSEWHERE: u16 = 101;
/// Ports of a range, each of which is kept.
const RANGE: Ports = Ports { first: 110, last: 119 };

/// The services, whose slots all have the first real server.
pub fn services(slots: &[u16]) -> Vec<ServiceSpec<'_>> {
    let service = |name, vip, protocol, ports, real, port| ServiceSpec {
        name,
        addresses: vec![ServiceAddress { prefix: ip(vip).into(), protocol, ports }],
        hash: HashInput::Source,
        forwarding: Forwarding::Nat,
        reals: vec![RealSpec::new(ip(real), port)],
        slots,
        timeouts: Timeouts::default(),
        datagrams: Datagrams::default(),
        tracking: None,
    };
    use Protocol::{Tcp, Udp};
    let (one, same) = (Ports::one(PORT), Ports::one(ELSEWHERE));
    vec![
        service("nat", V4.vip, Tcp, one, V4.real, MAPPED),
        service("nat-6", V6.vip, Tcp, one, V6.real, MAPPED),
        service("nat-udp", V4.translated, Udp, one, V4.real, MAPPED),
        service("nat-udp-6", V6.translated, Udp, one, V6.real, MAPPED),
        service("nat-there", V4.vip, Tcp, same, "10.0.2.12", 0),
        service("nat-range", V4.vip, Tcp, RANGE, V4.real, 0),
        service("nat-range-6", V6.vip, Tcp, RANGE, V6.real, 0),
        service("nat-all", V4.translated, Tcp, Ports::ALL, V4.hidden, 0),
        service("nat-all-6", V6.translated, Tcp, Ports::ALL, V6.hidden, 0),
    ]
}

impl Family {
    /// A client's packet to a port.
    pub fn request(&self, port: u16) -> Packet {
        Packet::tcp((self.client, 40_000), (self.vip, port), ACK).summed()
    }

    /// The same in datagrams.
    pub fn request_udp(&self, data: &[u8]) -> Packet {
        Packet::udp((self.client, 40_000), (self.translated, PORT), data)
    }

    /// What the real server gets of it.
    pub fn received(&self, port: u16) -> Packet {
        Packet::tcp((self.client, 40_000), (self.real, port), ACK).summed()
    }

    /// What the real server answers from a port.
    pub fn given(&self, port: u16) -> Packet {
        Packet::tcp((self.real, port), (self.client, 40_000), ACK).summed()
    }

    /// The same in datagrams.
    pub fn given_udp(&self, port: u16, data: &[u8]) -> Packet {
        Packet::udp((self.real, port), (self.client, 40_000), data).summed()
    }

    /// A client by what becomes of packets to it.
    pub fn client_of(&self, way: Way) -> &'static str {
        match (self.icmp == 1, way) {
            (true, Way::Narrow) => "198.51.101.7",
            (true, Way::Unknown) => "198.51.102.7",
            (true, Way::Other) => "198.51.103.7",
            (true, Way::Refused) => "198.51.104.7",
            (true, Way::Here) => "198.51.105.7",
            (true, Way::Nowhere) => "198.51.106.7",
            (false, Way::Narrow) => "2001:db8:52::7",
            (false, Way::Unknown) => "2001:db8:53::7",
            (false, Way::Other) => "2001:db8:54::7",
            (false, Way::Refused) => "2001:db8:55::7",
            (false, Way::Here) => "2001:db8:56::7",
            (false, Way::Nowhere) => "2001:db8:57::7",
        }
    }
}

/// Ways to clients, as the routes have them.
#[derive(Clone, Copy)]
pub enum Way {
    Narrow,
    Unknown,
    Other,
    Refused,
    Here,
    Nowhere,
}

pub(super) fn requests(f: &Family) -> Vec<Row> {
    use Outcome::{Answered, Dropped, Redirected, Transmitted};
    let inside = |p: &mut Packet| p.source = ip(f.real);
    let udp = |data: &[u8]| f.request_udp(data);
    let fragment = |at| f.request(PORT).with(|p| (p.identification, p.fragment) = (0x71, at));
    let mut rows = vec![
        ("NAT, TCP", f.request(PORT).bytes(), Transmitted),
        (
            "NAT, a connection begins",
            Packet::tcp((f.client, 1), (f.vip, PORT), SYN).summed().bytes(),
            Transmitted,
        ),
        ("NAT, UDP", udp(b"odd").summed().bytes(), Transmitted),
        ("NAT, UDP without a checksum", udp(b"even").bytes(), Transmitted),
        ("NAT, tagged", f.request(PORT).with(|p| p.vlan = Some(7)).bytes(), Transmitted),
        ("NAT, of a range", f.request(115).bytes(), Transmitted),
        ("NAT, all ports", f.request(7_777).to((f.translated, 7_777)).summed().bytes(), Transmitted),
        ("NAT, first fragment", fragment(MORE_FRAGMENTS).bytes(), Transmitted),
        ("NAT, later fragment", fragment(100).bytes(), Transmitted),
        ("NAT, last hop", f.request(PORT).with(|p| p.ttl = 1).bytes(), Answered(AnswerReason::TimeExceeded)),
        ("NAT, from a real server", f.request(PORT).with(inside).bytes(), Answered(AnswerReason::Hairpin)),
        (
            "NAT, a later fragment from a real server",
            f.request(PORT).to((f.translated, 7)).with(inside).with(|p| p.fragment = 100).bytes(),
            Dropped(DropReason::Hairpin),
        ),
        ("from a real server of NAT to a service without", f.request(80).with(inside).bytes(), Transmitted),
    ];
    if f.icmp == 1 {
        rows.push(("NAT, by another interface", f.request(ELSEWHERE).bytes(), Redirected));
    }
    rows
}

pub(super) fn answers(f: &Family) -> Vec<Row> {
    use Outcome::{Answered, Dropped, Passed, Replied};
    use ReplyReason::{ByKernel, Redirected};
    let to = |way, p: Packet| p.with(|p| p.destination = ip(f.client_of(way)));
    let given = || f.given(MAPPED);
    let fragment = |id, at| given().with(|p| (p.identification, p.fragment) = (id, at));
    let large = |p: Packet| p.with(|p| p.payload.resize(1_400, 7));
    let whole = |p: Packet| large(p).with(|p| p.fragment = if p.version == 4 { 0x4000 } else { 0 });
    let hidden = |port| given().from((f.hidden, port)).summed();
    let cut = if f.icmp == 1 { Replied(ByKernel) } else { Answered(AnswerReason::TooBig) };
    vec![
        ("answer, TCP", given().bytes(), Replied(Redirected)),
        ("answer, UDP", f.given_udp(MAPPED, b"odd").bytes(), Replied(Redirected)),
        (
            "answer, UDP without a checksum",
            Packet::udp((f.real, MAPPED), (f.client, 4), b"even").bytes(),
            Replied(Redirected),
        ),
        ("answer, of a range", f.given(115).bytes(), Replied(Redirected)),
        ("answer, all ports", hidden(7_777).bytes(), Replied(Redirected)),
        ("answer, tagged", given().with(|p| p.vlan = Some(7)).bytes(), Replied(ByKernel)),
        ("answer, neighbour unknown", to(Way::Unknown, given()).summed().bytes(), Replied(ByKernel)),
        ("answer, other interface", to(Way::Other, given()).summed().bytes(), Replied(ByKernel)),
        ("answer, refused", to(Way::Refused, given()).summed().bytes(), Dropped(DropReason::ReplyRefused)),
        ("answer to the node itself", to(Way::Here, given()).summed().bytes(), Passed(PassReason::NoService)),
        ("answer without a route", to(Way::Nowhere, given()).summed().bytes(), Passed(PassReason::NoService)),
        ("answer too large", to(Way::Narrow, whole(given())).bytes(), Answered(AnswerReason::TooBig)),
        ("answer to be cut", to(Way::Narrow, large(given())).bytes(), cut),
        ("answer, last hop", given().with(|p| p.ttl = 1).bytes(), Answered(AnswerReason::TimeExceeded)),
        ("answer, first fragment", fragment(0x81, MORE_FRAGMENTS).bytes(), Replied(Redirected)),
        ("answer, later fragment", fragment(0x81, 100).bytes(), Replied(Redirected)),
        ("answer, overtaking fragment", fragment(0x82, 100).bytes(), Passed(PassReason::NoService)),
        ("answer, over the flags of TCP", fragment(0x81, 2).bytes(), Dropped(DropReason::FragmentOverlap)),
        (
            "answer, longer than its frame",
            super::ordinary::mistaken(&given(), 9),
            Dropped(DropReason::BadLength),
        ),
        (
            "answer to another station",
            given().with(|p| p.destination_mac = [2, 0, 0, 0, 0, 0x55]).bytes(),
            Passed(PassReason::NoService),
        ),
        ("from another port of a real server", f.given(MAPPED + 1).bytes(), Passed(PassReason::NoService)),
        ("from its port in another protocol", f.given_udp(115, b"").bytes(), Passed(PassReason::NoService)),
        (
            "from nobody's address",
            given().from((f.elsewhere, MAPPED)).summed().bytes(),
            Passed(PassReason::NoService),
        ),
    ]
}

pub(super) fn errors(f: &Family) -> Vec<Row> {
    use Outcome::{Passed, Replied, Transmitted};
    use ReplyReason::Redirected;
    let unreachable = if f.icmp == 1 { (3, 3) } else { (1, 4) };
    // What the client got, and what the real server did.
    let (sent, got) = (f.answer(PORT).summed(), f.received(MAPPED));
    let other = f.received(MAPPED + 1);
    let about = |p: &Packet, bytes| f.shown(p, bytes);
    let towards_client = |from, shown: &[u8]| {
        let message = [&[unreachable.0, unreachable.1, 0, 0, 0, 0, 0, 0], shown].concat();
        f.message(from, f.client, &message)
    };
    vec![
        ("NAT, error about an answer", f.error(unreachable, &about(&sent, 25)).bytes(), Transmitted),
        ("NAT, short error about an answer", f.error(unreachable, &about(&sent, 8)).bytes(), Transmitted),
        ("real server's error", towards_client(f.real, &about(&got, 25)).bytes(), Replied(Redirected)),
        ("real server's short error", towards_client(f.real, &about(&got, 8)).bytes(), Replied(Redirected)),
        ("router's error", towards_client(f.router, &about(&got, 25)).bytes(), Replied(Redirected)),
        (
            "error about another port",
            towards_client(f.real, &about(&other, 8)).bytes(),
            Passed(PassReason::NoService),
        ),
        (
            "error to somebody else",
            towards_client(f.real, &about(&got, 8)).with(|p| p.destination = ip(f.elsewhere)).bytes(),
            Passed(PassReason::NoService),
        ),
        (
            "echo request of a real server",
            f.echo(f.client).with(|p| p.source = ip(f.real)).bytes(),
            Passed(PassReason::NoService),
        ),
    ]
}
