//! Packet scripts: what one end does with a hand-written peer.

use std::num::{NonZeroU8, NonZeroU32};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Path, Session};
use crate::bfd::packet::{Diagnostic, Packet, State};
use crate::bfd::parameters::Parameters;

const MINE: u32 = 0x1111;
const THEIRS: u32 = 0x2222;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn parameters(tx: u64, rx: u64, multiplier: u8) -> Parameters {
    Parameters {
        desired_min_tx: ms(tx),
        required_min_rx: ms(rx),
        multiplier: NonZeroU8::new(multiplier).unwrap(),
    }
}

/// A packet of a peer that asks for 50 ms x 3.
fn from_peer(state: State) -> Packet {
    Packet {
        diagnostic: Diagnostic::NONE,
        state,
        poll: false,
        final_: false,
        control_plane_independent: false,
        demand: false,
        multiplier: NonZeroU8::new(3).unwrap(),
        my_discriminator: NonZeroU32::new(THEIRS).unwrap(),
        your_discriminator: MINE,
        desired_min_tx: 50_000,
        required_min_rx: 50_000,
        required_min_echo_rx: 0,
    }
}

fn session(parameters: Parameters) -> Session {
    Session::new(NonZeroU32::new(MINE).unwrap(), parameters)
}

/// Everything the session sends at `now`.
fn sent(session: &mut Session, now: Instant) -> Vec<Packet> {
    std::iter::from_fn(|| session.poll_transmit(now, 0)).collect()
}

/// A session that is Up, with nothing left to send and no Poll Sequence.
fn up(parameters: Parameters, now: Instant) -> Session {
    let mut session = session(parameters);
    assert!(session.handle_packet(now, &from_peer(State::Init)).is_some_and(|c| c.path == Path::Up));
    assert!(session.handle_packet(now, &Packet { final_: true, ..from_peer(State::Up) }).is_none());
    assert!(session.handle_packet(now, &from_peer(State::Up)).is_none());
    sent(&mut session, now);
    session
}

/// "When bfd.SessionState is not Up, the system MUST set bfd.DesiredMinTxInterval to a value of not less than one
/// second (1,000,000 microseconds)." (RFC 5880 section 6.8.3)
#[test]
fn slow_start_sends_once_a_second_until_up() {
    let start = Instant::now();
    let mut session = session(parameters(50, 50, 3));
    let first = sent(&mut session, start);
    assert_eq!(first.len(), 1);
    assert_eq!((first[0].state, first[0].desired_min_tx), (State::Down, 1_000_000));
    assert_eq!((first[0].my_discriminator.get(), first[0].your_discriminator), (MINE, 0));
    // Jitter 0 here: the longest interval.
    assert_eq!(session.next_deadline(), Some(start + ms(1000)));
    assert!(sent(&mut session, start + ms(999)).is_empty());
    assert_eq!(sent(&mut session, start + ms(1000)).len(), 1);
}

/// "If bfd.SessionState is Down, if received State is Down, set bfd.SessionState to Init" (RFC 5880 section 6.8.6);
/// and "a Poll Sequence MUST be initiated" once the interval changes (section 6.8.3).
#[test]
fn three_way_handshake_ends_in_a_poll_with_the_fast_interval() {
    let now = Instant::now();
    let mut session = session(parameters(50, 50, 3));
    sent(&mut session, now);
    let change = session.handle_packet(now, &from_peer(State::Down)).unwrap();
    assert_eq!((change.state, change.path), (State::Init, Path::Unknown));
    let init = sent(&mut session, now);
    assert_eq!((init.len(), init[0].state, init[0].your_discriminator), (1, State::Init, THEIRS));
    let change = session.handle_packet(now, &from_peer(State::Up)).unwrap();
    assert_eq!((change.state, change.path, change.remote_state), (State::Up, Path::Up, State::Up));
    let up = sent(&mut session, now);
    assert_eq!((up.len(), up[0].state, up[0].poll, up[0].desired_min_tx), (1, State::Up, true, 50_000));
    assert_eq!(session.transmit_interval(), ms(50));
}

/// "If the Poll (P) bit is set, send a BFD Control packet to the remote system with the Poll (P) bit clear, and the
/// Final (F) bit set" (RFC 5880 section 6.8.6).
#[test]
fn poll_is_answered_at_once_and_beside_the_periodic_packets() {
    let now = Instant::now();
    let mut session = up(parameters(50, 50, 3), now);
    let periodic = session.transmit_deadline();
    assert!(session.handle_packet(now, &Packet { poll: true, ..from_peer(State::Up) }).is_none());
    let answer = sent(&mut session, now);
    assert_eq!((answer.len(), answer[0].final_, answer[0].poll), (1, true, false));
    assert_eq!(session.transmit_deadline(), periodic);
}

/// "In Asynchronous mode, the Detection Time calculated in the local system is equal to the value of Detect Mult
/// received from the remote system, multiplied by the agreed transmit interval of the remote system (the greater of
/// bfd.RequiredMinRxInterval and the last received Desired Min TX Interval)." (RFC 5880 section 6.8.4)
#[test]
fn detection_time_uses_the_multiplier_and_interval_of_the_peer() {
    let now = Instant::now();
    let mut session = up(parameters(20, 30, 7), now);
    let peer = Packet {
        multiplier: NonZeroU8::new(4).unwrap(),
        desired_min_tx: 40_000,
        required_min_rx: 60_000,
        ..from_peer(State::Up)
    };
    assert!(session.handle_packet(now, &peer).is_none());
    assert_eq!(session.detection_time(), ms(160));
    assert_eq!(session.transmit_interval(), ms(60));
    assert!(session.handle_timeout(now + ms(159)).is_none());
    let change = session.handle_timeout(now + ms(160)).unwrap();
    assert_eq!((change.state, change.path), (State::Down, Path::Down));
    assert_eq!(change.diagnostic, Diagnostic::DETECTION_TIME_EXPIRED);
    let down = sent(&mut session, now + ms(160));
    assert_eq!(
        (down[0].state, down[0].your_discriminator, down[0].desired_min_tx),
        (State::Down, 0, 1_000_000)
    );
}

/// "If bfd.DesiredMinTxInterval is increased and bfd.SessionState is Up, the actual transmission interval used MUST
/// NOT change until the Poll Sequence described above has terminated." (RFC 5880 section 6.8.3)
#[test]
fn longer_transmit_interval_waits_for_the_final() {
    let now = Instant::now();
    let mut session = up(parameters(50, 50, 3), now);
    session.set_parameters(parameters(400, 50, 3));
    let poll = sent(&mut session, now);
    assert_eq!((poll.len(), poll[0].poll, poll[0].desired_min_tx), (1, true, 400_000));
    assert_eq!(session.transmit_interval(), ms(50));
    assert!(session.handle_packet(now, &from_peer(State::Up)).is_none());
    assert_eq!(session.transmit_interval(), ms(50), "a packet without F ends no Poll Sequence");
    assert!(session.handle_packet(now, &Packet { final_: true, ..from_peer(State::Up) }).is_none());
    assert_eq!(session.transmit_interval(), ms(400));
}

/// "If either bfd.DesiredMinTxInterval is changed or bfd.RequiredMinRxInterval is changed, a Poll Sequence MUST be
/// initiated" (RFC 5880 section 6.8.3); only where the transmit interval "is increased" does its use wait for the end.
#[test]
fn shorter_transmit_interval_is_used_at_once() {
    let now = Instant::now();
    let mut session = up(parameters(400, 50, 3), now);
    session.set_parameters(parameters(50, 50, 3));
    assert_eq!(session.transmit_interval(), ms(50));
    assert!(session.is_polling());
}

/// "If bfd.RequiredMinRxInterval is reduced and bfd.SessionState is Up, the previous value of
/// bfd.RequiredMinRxInterval MUST be used when calculating the Detection Time for the remote system until the Poll
/// Sequence described above has terminated." (RFC 5880 section 6.8.3)
#[test]
fn shorter_receive_interval_waits_for_the_final_and_a_longer_one_does_not() {
    let now = Instant::now();
    let mut session = up(parameters(50, 400, 3), now);
    assert_eq!(session.detection_time(), ms(1200));
    session.set_parameters(parameters(50, 100, 3));
    assert_eq!(session.detection_time(), ms(1200));
    assert!(session.handle_packet(now, &Packet { final_: true, ..from_peer(State::Up) }).is_none());
    assert_eq!(session.detection_time(), ms(300));
    assert!(session.handle_packet(now, &from_peer(State::Up)).is_none());
    session.set_parameters(parameters(50, 200, 3));
    assert_eq!(session.detection_time(), ms(600));
}

/// "When the system sending the Poll sequence receives a packet with Final, the Poll Sequence is terminated, and any
/// subsequent BFD Control packets are sent with the P bit cleared." (RFC 5880 section 6.5)
#[test]
fn second_change_waits_until_a_final_could_only_mean_it() {
    let now = Instant::now();
    let mut session = up(parameters(50, 50, 3), now);
    session.set_parameters(parameters(100, 50, 3));
    session.set_parameters(parameters(200, 50, 3));
    assert_eq!(sent(&mut session, now)[0].desired_min_tx, 100_000);
    assert!(session.handle_packet(now, &Packet { final_: true, ..from_peer(State::Up) }).is_none());
    // A duplicate of the first Final must not end the second sequence.
    assert!(session.handle_packet(now, &Packet { final_: true, ..from_peer(State::Up) }).is_none());
    assert_eq!((session.is_polling(), session.transmit_interval()), (false, ms(100)));
    assert!(session.handle_packet(now, &from_peer(State::Up)).is_none());
    let poll = sent(&mut session, now);
    assert_eq!((poll[0].poll, poll[0].desired_min_tx), (true, 200_000));
    assert_eq!(session.transmit_interval(), ms(100));
}

/// "When it is desired to change the detect multiplier, the value of bfd.DetectMult can be changed to any nonzero value.
/// The new value will be transmitted with the next BFD Control packet, and the use of a Poll Sequence is not necessary."
/// (RFC 5880 section 6.8.12)
#[test]
fn multiplier_alone_needs_no_poll() {
    let now = Instant::now();
    let mut session = up(parameters(50, 50, 3), now);
    session.set_parameters(parameters(50, 50, 5));
    let packet = sent(&mut session, now);
    assert_eq!((packet.len(), packet[0].poll, packet[0].multiplier.get()), (1, false, 5));
}

/// "If the local system reduces its transmit interval due to bfd.RemoteMinRxInterval being reduced …, and the remote system
/// is not in Demand mode, the local system MUST honor the new interval immediately. In other words, the local system cannot
/// wait longer than the new interval between the previous packet transmission and the next one." (RFC 5880 section 6.8.3)
#[test]
fn remote_interval_that_shrinks_is_honoured_from_the_last_packet_on() {
    let now = Instant::now();
    let mut session = up(parameters(50, 50, 3), now);
    let slow = Packet { required_min_rx: 1_000_000, ..from_peer(State::Up) };
    assert!(session.handle_packet(now, &slow).is_none());
    assert!(sent(&mut session, now + ms(500)).is_empty());
    assert!(session.handle_packet(now + ms(500), &from_peer(State::Up)).is_none());
    assert_eq!(sent(&mut session, now + ms(500)).len(), 1);
}

/// "If received state is AdminDown, if bfd.SessionState is not Down, set bfd.LocalDiag to 3 (Neighbor signaled session
/// down), set bfd.SessionState to Down" (RFC 5880 section 6.8.6); "AdminDown state has no semantic implications for the
/// availability of the forwarding path." (section 6.2)
#[test]
fn remote_admin_down_is_no_failure_of_the_path() {
    let now = Instant::now();
    let mut session = up(parameters(50, 50, 3), now);
    let change = session.handle_packet(now, &from_peer(State::AdminDown)).unwrap();
    assert_eq!((change.state, change.path), (State::Down, Path::Unknown));
    assert_eq!(change.diagnostic, Diagnostic::NEIGHBOR_SIGNALED_DOWN);
    // Neither its silence afterwards nor its return in Down says anything new.
    assert!(session.handle_timeout(now + ms(5000)).is_none());
    let change = session.handle_packet(now, &from_peer(State::Down)).unwrap();
    assert_eq!((change.state, change.path), (State::Init, Path::Unknown));
    assert_eq!(session.handle_packet(now, &from_peer(State::Up)).unwrap().path, Path::Up);
}

/// "AdminDown state means that the session is being held administratively down. This causes the remote system to enter Down
/// state, and remain there until the local system exits AdminDown state." (RFC 5880 section 6.2) From then on nothing is
/// known of the path.
#[test]
fn admin_down_after_a_failure_withdraws_the_verdict() {
    let now = Instant::now();
    let mut session = up(parameters(50, 50, 3), now);
    assert_eq!(session.handle_timeout(now + ms(150)).unwrap().path, Path::Down);
    let change = session.handle_packet(now + ms(200), &from_peer(State::AdminDown)).unwrap();
    assert_eq!((change.state, change.path), (State::Down, Path::Unknown));
}

/// In Up: "If received State is Down, set bfd.LocalDiag to 3 (Neighbor signaled session down), set bfd.SessionState to Down"
/// (RFC 5880 section 6.8.6). Init says that the two hear each other again, Up that both know.
#[test]
fn failure_lasts_until_up_again() {
    let now = Instant::now();
    let mut session = up(parameters(50, 50, 3), now);
    let change = session.handle_packet(now, &from_peer(State::Down)).unwrap();
    assert_eq!((change.path, change.diagnostic), (Path::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN));
    assert_eq!(session.handle_packet(now, &from_peer(State::Down)).unwrap().path, Path::Down);
    assert_eq!(session.handle_packet(now, &from_peer(State::Init)).unwrap().path, Path::Up);
}

/// "If bfd.SessionState is AdminDown, discard the packet" (RFC 5880 section 6.8.6); "BFD Control packets SHOULD be
/// transmitted for at least a Detection Time after transitioning to AdminDown state" (section 6.8.16).
#[test]
fn disabled_session_says_so_three_times_and_hears_nothing() {
    let now = Instant::now();
    let mut session = up(parameters(50, 50, 3), now);
    let change = session.disable().unwrap();
    assert_eq!((change.state, change.path), (State::AdminDown, Path::Unknown));
    for at in [0, 50, 100] {
        assert!(session.is_taking_leave());
        let packets = sent(&mut session, now + ms(at));
        assert_eq!(packets.len(), 1, "at {at} ms");
        assert_eq!(packets[0].state, State::AdminDown);
        assert_eq!(packets[0].diagnostic, Diagnostic::ADMINISTRATIVELY_DOWN);
    }
    assert!(!session.is_taking_leave());
    assert_eq!(session.transmit_interval(), ms(1000));
    let poll = Packet { poll: true, ..from_peer(State::Init) };
    assert!(session.handle_packet(now + ms(110), &poll).is_none());
    assert!(sent(&mut session, now + ms(110)).is_empty());
    assert_eq!(session.enable().unwrap().state, State::Down);
    assert_eq!(session.handle_packet(now + ms(120), &from_peer(State::Init)).unwrap().path, Path::Up);
}

/// "A BFD Control packet SHOULD be transmitted during the interval between periodic Control packet transmissions when the
/// contents of that packet would differ from that in the previously transmitted packet (other than the Poll and Final bits)
/// in order to more rapidly communicate a change in state." (RFC 5880 section 6.8.7)
#[test]
fn path_failure_is_told_to_the_peer_at_once() {
    let now = Instant::now();
    let mut session = up(parameters(50, 50, 3), now);
    assert_eq!(session.handle_path_failure().unwrap().path, Path::Down);
    let packets = sent(&mut session, now);
    assert_eq!((packets[0].state, packets[0].diagnostic), (State::Down, Diagnostic::PATH_DOWN));
}

/// "A system MUST NOT periodically transmit BFD Control packets if Demand mode is active on the remote system … and a
/// Poll Sequence is not being transmitted." (RFC 5880 section 6.8.7)
#[test]
fn remote_demand_mode_stops_periodic_packets_but_not_polls() {
    let now = Instant::now();
    let mut session = up(parameters(50, 50, 3), now);
    let demand = Packet { demand: true, ..from_peer(State::Up) };
    assert!(session.handle_packet(now, &demand).is_none());
    assert!(sent(&mut session, now + ms(5000)).is_empty());
    assert!(session.handle_packet(now, &Packet { poll: true, ..demand }).is_none());
    assert!(sent(&mut session, now + ms(5000))[0].final_);
    session.set_parameters(parameters(50, 60, 3));
    assert_eq!(sent(&mut session, now + ms(5000)).len(), 1);
    assert_eq!(sent(&mut session, now + ms(5050)).len(), 1);
    assert!(session.handle_packet(now, &Packet { final_: true, ..demand }).is_none());
    assert!(sent(&mut session, now + ms(9000)).is_empty());
}

/// "A system MUST NOT periodically transmit BFD Control packets if bfd.RemoteMinRxInterval is zero." (RFC 5880 section
/// 6.8.7)
#[test]
fn nothing_periodic_to_a_peer_that_wants_nothing() {
    let now = Instant::now();
    let mut session = up(parameters(50, 50, 3), now);
    assert!(session.handle_packet(now, &Packet { required_min_rx: 0, ..from_peer(State::Up) }).is_none());
    assert!(sent(&mut session, now + ms(60_000)).is_empty());
    assert_eq!(session.next_deadline(), session.detection_deadline());
}

/// What the world may do to a session.
#[derive(Debug, Clone)]
enum Operation {
    Receive { state: u8, poll: bool, final_: bool, demand: bool, multiplier: u8, tx: u32, rx: u32 },
    Wait(u64),
    Set { tx: u64, rx: u64, multiplier: u8 },
    Disable,
    Enable,
    PathFails,
}

fn operation() -> impl Strategy<Value = Operation> {
    let interval = prop_oneof![Just(0), Just(50_000), Just(u32::MAX), any::<u32>()];
    prop_oneof![
        6 => (0u8..4, any::<[bool; 3]>(), 1u8.., interval.clone(), interval).prop_map(
            |(state, [poll, final_, demand], multiplier, tx, rx)| {
                Operation::Receive { state, poll, final_, demand, multiplier, tx, rx }
            },
        ),
        4 => (0u64..3_000).prop_map(Operation::Wait),
        2 => (10u64..2_000, 10u64..2_000, 1u8..).prop_map(
            |(tx, rx, multiplier)| Operation::Set { tx, rx, multiplier },
        ),
        1 => Just(Operation::Disable),
        1 => Just(Operation::Enable),
        1 => Just(Operation::PathFails),
    ]
}

/// Does one thing, and says whether it was a packet with P that must be answered.
fn perform(session: &mut Session, now: &mut Instant, operation: Operation) -> bool {
    let enabled = session.snapshot().state != State::AdminDown;
    match operation {
        Operation::Receive { state, poll, final_, demand, multiplier, tx, rx } => {
            let packet = Packet {
                poll,
                final_,
                demand,
                multiplier: NonZeroU8::new(multiplier).unwrap(),
                desired_min_tx: tx,
                required_min_rx: rx,
                ..from_peer(State::from_bits(state))
            };
            let _change = session.handle_packet(*now, &packet);
            return poll && enabled;
        }
        Operation::Wait(time) => {
            *now += ms(time);
            let _change = session.handle_timeout(*now);
        }
        Operation::Set { tx, rx, multiplier } => session.set_parameters(parameters(tx, rx, multiplier)),
        Operation::Disable => drop(session.disable()),
        Operation::Enable => drop(session.enable()),
        Operation::PathFails => drop(session.handle_path_failure()),
    }
    false
}

proptest! {
    #[test]
    fn invariants_hold_whatever_happens(operations in prop::collection::vec(operation(), 1..80)) {
        let mut now = Instant::now();
        let mut session = session(parameters(50, 50, 3));
        for operation in operations {
            let owed = perform(&mut session, &mut now, operation);
            let packets = sent(&mut session, now);
            prop_assert!(packets.len() <= 2, "a final and one more at most");
            prop_assert_eq!(owed, packets.iter().any(|p| p.final_), "one final for each poll, none without");
            let change = session.snapshot();
            for packet in &packets {
                prop_assert_eq!(Packet::parse(&packet.emit()), Ok(*packet));
                prop_assert_eq!(packet.state, change.state);
                prop_assert!(!(packet.poll && packet.final_));
                prop_assert!(packet.state == State::Up || packet.desired_min_tx >= 1_000_000);
            }
            prop_assert_eq!(change.state == State::Up, change.path == Path::Up);
            prop_assert!(change.state != State::AdminDown || change.path == Path::Unknown);
            prop_assert!(!session.is_polling() || change.state == State::Up);
            // What is due was done: the next deadline lies ahead, except for detection, which only waiting evaluates.
            prop_assert!(session.transmit_deadline().is_none_or(|deadline| deadline > now));
            let _change = session.handle_timeout(now);
            prop_assert!(session.detection_deadline().is_none_or(|deadline| deadline > now));
        }
    }
}
