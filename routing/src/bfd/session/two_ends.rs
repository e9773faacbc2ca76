//! Two sessions on one virtual clock, with a network between them that loses and delays.

use std::collections::VecDeque;
use std::num::{NonZeroU8, NonZeroU32};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Change, Path, Session};
use crate::bfd::packet::{Diagnostic, LENGTH, Packet, State};
use crate::bfd::parameters::Parameters;

const DELAY: Duration = Duration::from_millis(1);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn symmetric(milliseconds: u64, multiplier: u8) -> Parameters {
    Parameters::symmetric(ms(milliseconds), NonZeroU8::new(multiplier).unwrap())
}

/// One end, what is on its way to it, and what happened to it.
struct End {
    session: Session,
    inbound: VecDeque<(Instant, [u8; LENGTH])>,
    changes: Vec<(Instant, Change)>,
    sent_at: Vec<Instant>,
    /// Packets in 1000 that do not reach this end.
    inbound_loss: u32,
    alive: bool,
}

impl End {
    fn new(discriminator: u32, parameters: Parameters) -> Self {
        Self {
            session: Session::new(NonZeroU32::new(discriminator).unwrap(), parameters),
            inbound: VecDeque::new(),
            changes: Vec::new(),
            sent_at: Vec::new(),
            inbound_loss: 0,
            alive: true,
        }
    }

    fn state(&self) -> State {
        self.session.snapshot().state
    }

    fn next(&self) -> Option<Instant> {
        let arrival = self.inbound.front().map(|(at, _)| *at);
        self.alive.then(|| self.session.next_deadline().into_iter().chain(arrival).min()).flatten()
    }
}

struct Pair {
    now: Instant,
    ends: [End; 2],
    random: u32,
}

impl Pair {
    fn new(left: Parameters, right: Parameters) -> Self {
        Self { now: Instant::now(), ends: [End::new(1, left), End::new(2, right)], random: 1 }
    }

    /// xorshift32: the same run each time.
    fn random(&mut self) -> u32 {
        for shift in [13, -17_i32, 5] {
            self.random ^= if shift > 0 { self.random << shift } else { self.random >> -shift };
        }
        self.random
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.transmit();
        while let Some(next) = self.ends.iter().filter_map(End::next).min().filter(|next| *next <= end) {
            self.now = next.max(self.now);
            self.receive();
            self.transmit();
        }
        self.now = end;
    }

    fn receive(&mut self) {
        for end in self.ends.iter_mut().filter(|end| end.alive) {
            while end.inbound.front().is_some_and(|(at, _)| *at <= self.now) {
                let (_, octets) = end.inbound.pop_front().unwrap();
                let change = end.session.handle_packet(self.now, &Packet::parse(&octets).unwrap());
                end.changes.extend(change.map(|change| (self.now, change)));
            }
            end.changes.extend(end.session.handle_timeout(self.now).map(|change| (self.now, change)));
        }
    }

    fn transmit(&mut self) {
        for (from, to) in [(0, 1), (1, 0)] {
            while self.ends[from].alive {
                let random = self.random();
                let Some(packet) = self.ends[from].session.poll_transmit(self.now, random) else { break };
                if !packet.final_ {
                    self.ends[from].sent_at.push(self.now);
                }
                if self.random() % 1000 >= self.ends[to].inbound_loss {
                    self.ends[to].inbound.push_back((self.now + DELAY, packet.emit()));
                }
            }
        }
    }

    fn states(&self) -> [State; 2] {
        [self.ends[0].state(), self.ends[1].state()]
    }

    /// Both Up and their first Poll Sequences over; the past is forgotten.
    fn established(left: Parameters, right: Parameters) -> Self {
        let mut pair = Self::new(left, right);
        pair.run_for(ms(5000));
        assert_eq!(pair.states(), [State::Up; 2]);
        for end in &mut pair.ends {
            end.changes.clear();
            end.sent_at.clear();
        }
        pair
    }
}

#[test]
fn both_come_up_within_two_slow_intervals() {
    let mut pair = Pair::new(symmetric(50, 3), symmetric(50, 3));
    pair.run_for(ms(2000));
    assert_eq!(pair.states(), [State::Up; 2]);
    assert!(pair.ends.iter().all(|end| !end.session.is_polling()));
}

/// "In other words, the system reporting the slower rate determines the transmission rate." (RFC 5880 section 6.8.2)
#[test]
fn intervals_are_negotiated_each_way() {
    let left = Parameters { desired_min_tx: ms(20), required_min_rx: ms(300), ..symmetric(50, 3) };
    let right = Parameters { desired_min_tx: ms(100), required_min_rx: ms(60), ..symmetric(50, 5) };
    let pair = Pair::established(left, right);
    let [left, right] = &pair.ends;
    assert_eq!((left.session.transmit_interval(), right.session.transmit_interval()), (ms(60), ms(300)));
    assert_eq!((left.session.detection_time(), right.session.detection_time()), (ms(1500), ms(180)));
}

/// "The periodic transmission of BFD Control packets MUST be jittered on a per-packet basis by up to 25%, that is, the
/// interval MUST be reduced by a random value of 0 to 25%" (RFC 5880 section 6.8.7).
#[test]
fn intervals_between_packets_keep_the_bounds_of_jitter() {
    for (multiplier, longest) in [(1, 90), (3, 100)] {
        let mut pair = Pair::established(symmetric(100, multiplier), symmetric(100, multiplier));
        pair.run_for(ms(60_000));
        let gaps: Vec<Duration> = pair.ends[0].sent_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.len() > 600);
        assert!(gaps.iter().all(|gap| (ms(75)..=ms(longest)).contains(gap)));
        let spread = *gaps.iter().max().unwrap() - *gaps.iter().min().unwrap();
        assert!(spread > ms(longest - 75) * 9 / 10, "jitter is used: {spread:?}");
    }
}

/// "If a period of time equal to the Detection Time passes without receiving a BFD Control packet from the remote
/// system, and bfd.SessionState is Init or Up, the session has gone down" (RFC 5880 section 6.8.4).
#[test]
fn death_is_noticed_after_the_detection_time_and_not_before() {
    let mut pair = Pair::established(symmetric(50, 3), symmetric(50, 3));
    pair.ends[1].alive = false;
    let died = pair.now;
    pair.run_for(ms(1000));
    let (at, change) = pair.ends[0].changes[0];
    assert_eq!((change.path, change.diagnostic), (Path::Down, Diagnostic::DETECTION_TIME_EXPIRED));
    // The last packet was sent 0 to 50 ms before the death.
    assert!((ms(100)..=ms(151)).contains(&(at - died)), "{:?}", at - died);
    assert_eq!(pair.ends[0].changes.len(), 1);
}

#[test]
fn one_way_loss_takes_both_ends_down() {
    let mut pair = Pair::established(symmetric(50, 3), symmetric(50, 3));
    pair.ends[1].inbound_loss = 1000;
    pair.run_for(ms(300));
    let changes = [pair.ends[0].changes[0].1, pair.ends[1].changes[0].1];
    assert_eq!(changes.map(|change| change.path), [Path::Down; 2]);
    let reasons = [Diagnostic::NEIGHBOR_SIGNALED_DOWN, Diagnostic::DETECTION_TIME_EXPIRED];
    assert_eq!(changes.map(|change| change.diagnostic), reasons);
    pair.run_for(ms(10_000));
    assert!(pair.states().iter().all(|state| *state != State::Up));
    pair.ends[1].inbound_loss = 0;
    pair.run_for(ms(4000));
    assert_eq!(pair.states(), [State::Up; 2]);
}

#[test]
fn restart_with_a_new_discriminator_is_a_failure_and_heals() {
    let mut pair = Pair::established(symmetric(50, 3), symmetric(50, 3));
    pair.ends[1] = End::new(3, symmetric(50, 3));
    pair.run_for(ms(4000));
    let seen: Vec<(State, Path)> = pair.ends[0].changes.iter().map(|(_, c)| (c.state, c.path)).collect();
    assert_eq!(seen[0], (State::Down, Path::Down));
    assert_eq!(seen.last(), Some(&(State::Up, Path::Up)));
    assert_eq!(pair.states(), [State::Up; 2]);
    assert_eq!(pair.ends[0].session.remote_discriminator(), 3);
}

#[test]
fn intervals_change_while_up_without_a_flap() {
    let mut pair = Pair::established(symmetric(50, 3), symmetric(50, 3));
    for (left, right) in [(1000, 50), (10, 300), (50, 50), (10, 10), (4000, 10)] {
        pair.ends[0].session.set_parameters(symmetric(left, 3));
        pair.ends[1].session.set_parameters(symmetric(right, 3));
        pair.run_for(ms(30_000));
        let agreed = ms(left.max(right));
        for end in &pair.ends {
            assert_eq!((end.session.transmit_interval(), end.session.detection_time()), (agreed, agreed * 3));
            assert!(!end.session.is_polling());
        }
    }
    assert!(pair.ends.iter().all(|end| end.changes.is_empty()));
}

#[test]
fn admin_down_survives_the_loss_of_a_packet() {
    // Seeds differ in which packets are lost; with three farewells a third lost each is rarely all of them.
    let mut told = 0;
    for seed in 1..=100 {
        let mut pair = Pair::established(symmetric(50, 3), symmetric(50, 3));
        pair.random = seed * 7919;
        pair.ends[1].inbound_loss = 333;
        assert!(pair.ends[0].session.disable().is_some());
        pair.run_for(ms(5000));
        told += u32::from(pair.ends[1].changes[0].1.path == Path::Unknown);
    }
    assert!(told >= 90, "{told} of 100 heard it");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn loss_below_the_multiplier_never_flaps_and_any_loss_heals(
        seed in 1u32.., loss in 0u32..700, multiplier in 2u8..6,
    ) {
        let mut pair = Pair::established(symmetric(50, multiplier), symmetric(50, multiplier));
        pair.random = seed;
        for end in &mut pair.ends {
            end.inbound_loss = loss;
        }
        pair.run_for(ms(20_000));
        if loss == 0 {
            prop_assert!(pair.ends.iter().all(|end| end.changes.is_empty()));
        }
        for end in &mut pair.ends {
            end.inbound_loss = 0;
        }
        pair.run_for(ms(8_000));
        prop_assert_eq!(pair.states(), [State::Up; 2]);
        for end in &pair.ends {
            prop_assert!(!end.session.is_polling());
            prop_assert_eq!(end.session.transmit_interval(), ms(50));
        }
    }
}
