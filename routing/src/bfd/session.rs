//! One session as a pure machine: packets and instants in, packets, instants and changes out.
//!
//! The variables are those of RFC 5880 section 6.8.1, the rules quoted (`//#`) those of section 6.8. The session
//! takes the active role, never asks for demand mode itself and neither sends nor returns Echo packets. A caller
//! hands in what happens and then calls [`Session::poll_transmit`] until it yields nothing; the session owns
//! neither clock nor socket nor random numbers.
//!
//! Two readings of the RFC are worth knowing:
//! - A Poll Sequence runs only while the session is Up. The rules that delay a change until its end name that state
//!   only, and each way into Up starts a Poll Sequence of its own, so the peer never keeps an old value.
//! - The last packets in AdminDown ([`Session::disable`]) leave at the old rate instead of the slow one, as one
//!   lost packet would otherwise turn the operator's will into a failure in the eyes of the peer.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::packet::{Diagnostic, Packet, State};
use super::parameters::{Parameters, SLOW, jittered};
use super::transition::{Cause, transition};

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod two_ends;

/// What is known of the path to the peer: what a client of BFD acts upon, by RFC 5882 sections 3.2 and 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// BFD says nothing: the session was never Up, or one end is administratively down.
    ///
    /// A client with a liveness detection of its own (OSPF and its hellos) relies on that and does not give up the
    /// neighbour; one without (a real server's health) treats this like [`Path::Down`].
    Unknown,
    /// Packets pass in both directions.
    Up,
    /// The path was up and failed.
    Down,
}

/// A change a client has to know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The state of this end from now on.
    pub state: State,
    /// What is known of the path from now on.
    pub path: Path,
    /// Why this end is in its state.
    pub diagnostic: Diagnostic,
    /// What the peer last said of its own state.
    pub remote_state: State,
    /// The reason the peer last gave.
    pub remote_diagnostic: Diagnostic,
}

/// What the peer last told; the initial values are those of RFC 5880 section 6.8.1.
#[derive(Debug, Clone, Copy)]
struct Remote {
    discriminator: u32,
    state: State,
    diagnostic: Diagnostic,
    desired_min_tx: Duration,
    required_min_rx: Duration,
    multiplier: u8,
    demand: bool,
}

impl Remote {
    const UNHEARD: Self = Self {
        discriminator: 0,
        state: State::Down,
        diagnostic: Diagnostic::NONE,
        desired_min_tx: Duration::ZERO,
        required_min_rx: Duration::from_micros(1),
        multiplier: 0,
        demand: false,
    };

    fn heard(packet: &Packet) -> Self {
        Self {
            discriminator: packet.my_discriminator.get(),
            state: packet.state,
            diagnostic: packet.diagnostic,
            desired_min_tx: Duration::from_micros(packet.desired_min_tx.into()),
            required_min_rx: Duration::from_micros(packet.required_min_rx.into()),
            multiplier: packet.multiplier.get(),
            demand: packet.demand,
        }
    }
}

/// Where the Poll Sequence stands (RFC 5880 sections 6.5 and 6.8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Poll {
    Idle,
    /// P is set in each packet until one with F comes.
    Active,
    /// F came; the next sequence waits for a packet without F, so that its own F is clear in meaning.
    Settling,
}

/// The last packets after [`Session::disable`].
#[derive(Debug, Clone, Copy)]
struct Farewell {
    interval: Duration,
    packets_left: u8,
}

/// One end of a BFD session.
#[derive(Debug, Clone)]
pub struct Session {
    discriminator: NonZeroU32,
    state: State,
    diagnostic: Diagnostic,
    path: Path,
    remote: Remote,

    /// What the packets say.
    parameters: Parameters,
    /// What the owner asked for during a Poll Sequence about something else.
    requested: Option<Parameters>,
    poll: Poll,
    /// The longer transmit interval is not used before the Poll Sequence ends; until then this one is.
    held_tx: Option<Duration>,
    /// The shorter receive interval is not relied upon before the Poll Sequence ends; until then this one is.
    held_rx: Option<Duration>,

    last_received: Option<Instant>,
    last_sent: Option<Instant>,
    /// The random number of the current transmit interval.
    jitter: u32,
    /// What the packets say has changed.
    send_now: bool,
    final_owed: bool,
    farewell: Option<Farewell>,
}

impl Session {
    /// A session in state Down, about to send its first packet. `discriminator` must be unique among the sessions
    /// of this system, and better not guessable.
    pub fn new(discriminator: NonZeroU32, parameters: Parameters) -> Self {
        Self {
            discriminator,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            path: Path::Unknown,
            remote: Remote::UNHEARD,
            parameters,
            requested: None,
            poll: Poll::Idle,
            held_tx: None,
            held_rx: None,
            last_received: None,
            last_sent: None,
            jitter: 0,
            send_now: true,
            final_owed: false,
            farewell: None,
        }
    }

    /// Takes a packet that was demultiplexed to this session. Returns what the client has to know.
    #[must_use]
    pub fn handle_packet(&mut self, now: Instant, packet: &Packet) -> Option<Change> {
        self.remote = Remote::heard(packet);
        // In AdminDown as well, for the sake of bfd.RemoteDiscr: see `handle_timeout`.
        self.last_received = Some(now);
        self.advance_poll(packet.final_);
        //# If bfd.SessionState is AdminDown, discard the packet.
        if self.state == State::AdminDown {
            return None;
        }
        //# If the Poll (P) bit is set, send a BFD Control packet to the remote system with the Poll (P) bit clear,
        //# and the Final (F) bit set.
        self.final_owed |= packet.poll;
        self.apply(Cause::Received(packet.state))
    }

    /// Lets the detection time pass; harmless before [`Session::detection_deadline`].
    #[must_use]
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Change> {
        if self.detection_deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        //# bfd.RemoteDiscr: if a period of a Detection Time passes without the receipt of a valid, authenticated
        //# BFD packet from the remote system, this variable MUST be set to zero.
        self.remote.discriminator = 0;
        self.apply(Cause::DetectionExpired)
    }

    /// Takes the session Down with the diagnostic "path down": its owner knows that the path is broken, or stops.
    #[must_use]
    pub fn handle_path_failure(&mut self) -> Option<Change> {
        self.apply(Cause::PathFailed)
    }

    /// Holds the session down by the operator's will. The peer is told at once, and `FAREWELLS` times in all within
    /// the detection time it now uses.
    #[must_use]
    pub fn disable(&mut self) -> Option<Change> {
        if self.state != State::AdminDown {
            let interval = self.transmit_interval();
            self.farewell = Some(Farewell { interval, packets_left: Self::FAREWELLS });
        }
        self.apply(Cause::Disabled)
    }

    /// Ends what [`Session::disable`] began.
    #[must_use]
    pub fn enable(&mut self) -> Option<Change> {
        self.farewell = None;
        self.apply(Cause::Enabled)
    }

    /// Asks for other intervals; while Up they are negotiated by a Poll Sequence. Returns at once, and the latest
    /// request wins.
    pub fn set_parameters(&mut self, parameters: Parameters) {
        if self.poll == Poll::Idle {
            self.adopt(parameters);
        } else {
            //# If multiple changes are made that require the use of a Poll Sequence ... an additional BFD Control
            //# packet with the Final (F) bit *clear* MUST be received after the Poll Sequence has completed prior
            //# to the initiation of another Poll Sequence.
            self.requested = Some(parameters);
        }
    }

    /// The packet to send now, if any; call again until there is none. `random` is uniform over its range.
    #[must_use]
    pub fn poll_transmit(&mut self, now: Instant, random: u32) -> Option<Packet> {
        if std::mem::take(&mut self.final_owed) {
            return Some(self.packet(false, true));
        }
        if !self.send_now && self.transmit_deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        self.send_now = false;
        self.last_sent = Some(now);
        self.jitter = random;
        self.farewell = self.farewell.and_then(|farewell| {
            let packets_left = farewell.packets_left.checked_sub(1)?;
            (packets_left > 0).then_some(Farewell { packets_left, ..farewell })
        });
        Some(self.packet(self.poll == Poll::Active, false))
    }

    /// The next instant at which [`Session::handle_timeout`] or [`Session::poll_transmit`] has something to do,
    /// provided that the latter yields nothing now.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.detection_deadline().into_iter().chain(self.transmit_deadline()).min()
    }

    /// When the peer is to be taken for gone, if it is heard at all.
    pub fn detection_deadline(&self) -> Option<Instant> {
        if self.remote.discriminator == 0 {
            return None;
        }
        Some(self.last_received? + self.detection_time())
    }

    pub(super) fn transmit_deadline(&self) -> Option<Instant> {
        //# A system MUST NOT periodically transmit BFD Control packets if bfd.RemoteMinRxInterval is zero.
        if self.remote.required_min_rx.is_zero() || (self.remote_demands() && self.poll != Poll::Active) {
            return None;
        }
        let interval = self.transmit_interval();
        Some(self.last_sent? + jittered(interval, self.parameters.multiplier, self.jitter))
    }

    /// RFC 5880 section 6.8.6: "If bfd.RemoteDemandMode is 1, bfd.SessionState is Up, and bfd.RemoteSessionState is
    /// Up, Demand mode is active on the remote system and the local system MUST cease the periodic transmission of
    /// BFD Control packets".
    fn remote_demands(&self) -> bool {
        self.remote.demand && self.state == State::Up && self.remote.state == State::Up
    }

    fn advance_poll(&mut self, final_: bool) {
        match (self.poll, final_) {
            //# If a Poll Sequence is being transmitted by the local system and the Final (F) bit in the received
            //# packet is set, the Poll Sequence MUST be terminated.
            (Poll::Active, true) => {
                self.poll = Poll::Settling;
                self.held_tx = None;
                self.held_rx = None;
            }
            (Poll::Settling, false) => {
                self.poll = Poll::Idle;
                if let Some(parameters) = self.requested.take() {
                    self.adopt(parameters);
                }
            }
            (Poll::Idle, true | false) | (Poll::Active, false) | (Poll::Settling, true) => {}
        }
    }

    fn adopt(&mut self, parameters: Parameters) {
        let old = std::mem::replace(&mut self.parameters, parameters);
        if old == parameters {
            return;
        }
        //# A BFD Control packet SHOULD be transmitted during the interval between periodic Control packet
        //# transmissions when the contents of that packet would differ from that in the previously transmitted
        //# packet.
        self.send_now = true;
        if self.state != State::Up {
            return;
        }
        //# If either bfd.DesiredMinTxInterval is changed or bfd.RequiredMinRxInterval is changed, a Poll Sequence
        //# MUST be initiated.
        if old.desired_min_tx != parameters.desired_min_tx
            || old.required_min_rx != parameters.required_min_rx
        {
            self.poll = Poll::Active;
        }
        //# If bfd.DesiredMinTxInterval is increased and bfd.SessionState is Up, the actual transmission interval
        //# used MUST NOT change until the Poll Sequence described above has terminated.
        self.held_tx = (parameters.desired_min_tx > old.desired_min_tx).then_some(old.desired_min_tx);
        //# If bfd.RequiredMinRxInterval is reduced and bfd.SessionState is Up, the previous value of
        //# bfd.RequiredMinRxInterval MUST be used when calculating the Detection Time for the remote system until
        //# the Poll Sequence described above has terminated.
        self.held_rx = (parameters.required_min_rx < old.required_min_rx).then_some(old.required_min_rx);
    }

    fn apply(&mut self, cause: Cause) -> Option<Change> {
        let (was, path) = (self.state, self.path);
        if let Some((state, diagnostic)) = transition(was, cause) {
            self.state = state;
            self.diagnostic = diagnostic;
            self.send_now = true;
            self.enter(was);
        }
        self.path = self.judge(was);
        ((self.state, self.path) != (was, path)).then(|| self.snapshot())
    }

    /// The intervals change on both sides of Up, as only there the owner's are used.
    fn enter(&mut self, was: State) {
        if was != State::Up && self.state != State::Up {
            return;
        }
        self.held_tx = None;
        self.held_rx = None;
        if let Some(parameters) = self.requested.take() {
            self.parameters = parameters;
        }
        self.poll = if self.state == State::Up { Poll::Active } else { Poll::Idle };
    }

    /// RFC 5882 section 3.2: "a system SHOULD NOT indicate a connectivity failure to a client if either the local
    /// session state or the remote session state (if known) transitions to AdminDown".
    fn judge(&self, was: State) -> Path {
        match self.state {
            State::Up => Path::Up,
            State::AdminDown => Path::Unknown,
            State::Down | State::Init if self.remote.state == State::AdminDown => Path::Unknown,
            State::Down | State::Init if was == State::Up => Path::Down,
            State::Down | State::Init => self.path,
        }
    }

    fn packet(&self, poll: bool, final_: bool) -> Packet {
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll,
            final_,
            control_plane_independent: false,
            demand: false,
            multiplier: self.parameters.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx: microseconds(self.advertised_min_tx()),
            required_min_rx: microseconds(self.parameters.required_min_rx),
            required_min_echo_rx: 0,
        }
    }

    fn advertised_min_tx(&self) -> Duration {
        //# When bfd.SessionState is not Up, the system MUST set bfd.DesiredMinTxInterval to a value of not less
        //# than one second (1,000,000 microseconds).
        match self.state {
            State::Up => self.parameters.desired_min_tx,
            State::AdminDown | State::Down | State::Init => self.parameters.desired_min_tx.max(SLOW),
        }
    }
}

/// What status output and the tests read.
impl Session {
    /// Packets sent after [`Session::disable`] at the rate used before.
    pub const FAREWELLS: u8 = 3;

    /// The discriminator of this end.
    pub const fn discriminator(&self) -> NonZeroU32 {
        self.discriminator
    }

    /// The discriminator of the peer; 0 while it is not heard.
    pub const fn remote_discriminator(&self) -> u32 {
        self.remote.discriminator
    }

    /// The current state and what follows from it.
    pub fn snapshot(&self) -> Change {
        Change {
            state: self.state,
            path: self.path,
            diagnostic: self.diagnostic,
            remote_state: self.remote.state,
            remote_diagnostic: self.remote.diagnostic,
        }
    }

    /// The parameters the packets advertise while Up.
    pub const fn parameters(&self) -> Parameters {
        self.parameters
    }

    /// Whether a Poll Sequence waits for its Final.
    pub fn is_polling(&self) -> bool {
        self.poll == Poll::Active
    }

    /// Whether packets of [`Session::disable`] are still to be sent.
    pub const fn is_taking_leave(&self) -> bool {
        self.farewell.is_some()
    }

    /// The interval of periodic packets before jitter: the greater of what this end desires and the peer requires
    /// (RFC 5880 section 6.8.7).
    pub fn transmit_interval(&self) -> Duration {
        let desired = match self.farewell {
            Some(farewell) => farewell.interval,
            None => self.held_tx.unwrap_or_else(|| self.advertised_min_tx()),
        };
        desired.max(self.remote.required_min_rx)
    }

    /// How long the peer may be silent: its multiplier times the greater of what this end requires and the peer
    /// desires (RFC 5880 section 6.8.4); zero while the peer was never heard.
    pub fn detection_time(&self) -> Duration {
        let required = self.held_rx.unwrap_or(self.parameters.required_min_rx);
        required.max(self.remote.desired_min_tx) * u32::from(self.remote.multiplier)
    }
}

/// The value of an interval field. [`Parameters::check`] keeps it in range.
fn microseconds(interval: Duration) -> u32 {
    u32::try_from(interval.as_micros()).unwrap_or(u32::MAX)
}
