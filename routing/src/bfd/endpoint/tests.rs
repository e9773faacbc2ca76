//! Which session a packet belongs to. The sessions have sockets on the loopback, over which nothing is sent.

use std::num::{NonZeroU8, NonZeroU32};

use super::*;
use crate::bfd::packet::{Diagnostic, State};
use crate::bfd::parameters::Parameters;
use crate::bfd::session::Session;
use crate::bfd::socket::{SOURCE_PORTS, Sender, interface_index};
use crate::bfd::status::SessionKey;

/// Discriminators and peers of the two sessions.
const SESSIONS: [(u32, &str); 2] = [(0x1111, "127.0.0.2"), (0x2222, "127.0.0.3")];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn sessions(loopback: u32) -> (BTreeMap<u32, Entry>, HashMap<(u32, IpAddr), u32>) {
    let (mut sessions, mut by_peer) = (BTreeMap::new(), HashMap::new());
    for (discriminator, peer) in SESSIONS {
        let (local, peer) = (ip("127.0.0.1"), ip(peer));
        let sender =
            Sender::open("lo", loopback, local, peer, SOURCE_PORTS).expect("a socket on the loopback");
        let number = NonZeroU32::new(discriminator).expect("not zero");
        let key = SessionKey { interface: "lo".into(), local, peer };
        let session = Session::new(number, Parameters::default());
        sessions.insert(discriminator, Entry::new(key, loopback, session, sender, Instant::now()));
        by_peer.insert((loopback, peer), discriminator);
    }
    (sessions, by_peer)
}

fn packet(your_discriminator: u32) -> Packet {
    Packet {
        diagnostic: Diagnostic::NONE,
        state: State::Down,
        poll: false,
        final_: false,
        control_plane_independent: false,
        demand: false,
        multiplier: NonZeroU8::new(3).expect("not zero"),
        my_discriminator: NonZeroU32::new(0x9999).expect("not zero"),
        your_discriminator,
        desired_min_tx: 1_000_000,
        required_min_rx: 1_000_000,
        required_min_echo_rx: 0,
    }
}

/// "If the Your Discriminator field is nonzero, it MUST be used to select the session with which this BFD packet is
/// associated. If no session is found, the packet MUST be discarded. If the Your Discriminator field is zero, the session MUST
/// be selected based on some combination of other fields, possibly including source addressing information, the My
/// Discriminator field, and the interface over which the packet was received. … If a matching session is not found, a new
/// session MAY be created, or the packet MAY be discarded." (RFC 5880 section 6.8.6)
#[test]
fn packet_finds_its_session_or_is_discarded() {
    let loopback = interface_index("lo").expect("there");
    let (mut sessions, by_peer) = sessions(loopback);
    let elsewhere = loopback + 1;
    let [(one, first), (two, second)] = SESSIONS;
    let none = Err(Discard::NoSession);
    let rows = [
        ("by its source", 0, loopback, first, Ok(one)),
        ("by its source", 0, loopback, second, Ok(two)),
        ("from a stranger", 0, loopback, "127.0.0.4", none),
        ("from a peer on another interface", 0, elsewhere, first, none),
        ("by its number", one, loopback, first, Ok(one)),
        ("by its number, from another source", two, loopback, first, Ok(two)),
        ("by its number, from a stranger", two, loopback, "127.0.0.4", Ok(two)),
        ("by a number nobody has, from a peer", 0x3333, loopback, first, none),
        ("by a number of another interface", one, elsewhere, first, none),
    ];
    for (what, yours, interface, source, expected) in rows {
        let found = select(&mut sessions, &by_peer, interface, ip(source), &packet(yours));
        assert_eq!(found.map(|entry| entry.session.discriminator().get()), expected, "{what}");
    }
}

/// "all received BFD Control packets that are demultiplexed to the session MUST be discarded if the received TTL or Hop Limit
/// is not equal to 255" (RFC 5881 section 5), or if the kernel does not say what it was.
#[test]
fn packet_that_came_through_a_router_is_discarded() {
    let octets = packet(0).emit();
    for (time_to_live, passes) in [(Some(255), true), (Some(254), false), (Some(0), false), (None, false)] {
        let outcome = accept(&Datagram { source: ip("127.0.0.2"), time_to_live, payload: &octets });
        assert_eq!(
            outcome,
            if passes { Ok(packet(0)) } else { Err(Discard::TimeToLive) },
            "{time_to_live:?}"
        );
    }
}
