//! What the BFD thread tells about itself and its sessions.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::discard::Discards;
use super::packet::{Diagnostic, State};
use super::parameters::Parameters;
use super::scheduling::Grant;
use super::session::Path;

/// What names a session. For one pair of interface and peer there can be only one (RFC 5881 section 2).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SessionKey {
    /// The name of the interface.
    pub interface: String,
    /// The address of this end, configured on the interface.
    pub local: IpAddr,
    /// The address of the peer, on the same link.
    pub peer: IpAddr,
}

/// A change of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The session.
    pub key: SessionKey,
    /// When the change was decided.
    pub at: Instant,
    /// The state of this end from then on.
    pub state: State,
    /// What is known of the path: this is what a client acts upon.
    pub path: Path,
    /// Why this end is in its state.
    pub diagnostic: Diagnostic,
    /// What the peer last said of its own state.
    pub remote_state: State,
    /// The reason the peer last gave.
    pub remote_diagnostic: Diagnostic,
}

/// Everything that [`super::Handle::status`] reports.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The thread and its sockets.
    pub endpoint: EndpointStatus,
    /// The sessions, by interface and peer.
    pub sessions: Vec<SessionStatus>,
}

/// The thread and its sockets.
#[derive(Debug, Clone, Serialize)]
pub struct EndpointStatus {
    /// Whether the thread runs in the real-time class.
    pub realtime: Grant,
    /// Whether its memory is locked.
    pub memory_locked: Grant,
    /// By how much the thread was late at most for one of its own deadlines, in microseconds.
    pub late_by_max_us: u64,
    /// How often it was so late that detection waited for the receive queue to settle.
    pub late_wakeups: u64,
    /// Packets that reached no session, by reason.
    pub discards: Discards,
    /// Errors of the listening sockets.
    pub receive_errors: u64,
}

/// When and why a session last left Up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastDown {
    /// Milliseconds since then.
    pub ago_ms: u64,
    /// This end's reason.
    pub diagnostic: Diagnostic,
    /// The peer's state at that time, as far as known.
    pub remote_state: State,
    /// The peer's reason at that time.
    pub remote_diagnostic: Diagnostic,
}

/// What a session counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Packets received.
    pub received: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets the kernel refused to send.
    pub send_errors: u64,
    /// Times the session came Up.
    pub ups: u64,
    /// Times it left Up, for whatever reason.
    pub downs: u64,
}

/// One session.
#[derive(Debug, Clone, Serialize)]
pub struct SessionStatus {
    /// Its name.
    #[serde(flatten)]
    pub key: SessionKey,
    /// This end's state.
    pub state: State,
    /// What is known of the path.
    pub path: Path,
    /// Milliseconds in this state.
    pub since_ms: u64,
    /// Why this end is in its state.
    pub diagnostic: Diagnostic,
    /// What the peer last said of its own state.
    pub remote_state: State,
    /// The reason the peer last gave.
    pub remote_diagnostic: Diagnostic,
    /// This end's discriminator.
    pub discriminator: u32,
    /// The peer's; 0 while it is not heard.
    pub remote_discriminator: u32,
    /// The UDP source port of this end's packets.
    pub source_port: u16,
    /// What this end asks for.
    pub parameters: Parameters,
    /// The negotiated interval of this end's packets, before jitter.
    pub transmit_interval: Duration,
    /// How long the peer may be silent.
    pub detection_time: Duration,
    /// Whether a Poll Sequence is under way.
    pub polling: bool,
    /// When and why the session last left Up.
    pub last_down: Option<LastDown>,
    /// What the kernel last said when it refused to send.
    pub last_send_error: Option<String>,
    /// What was counted.
    pub counters: Counters,
}
