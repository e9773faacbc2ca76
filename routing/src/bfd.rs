//! Bidirectional Forwarding Detection: notices within milliseconds that a neighbour on the same link is gone
//! (RFC 5880 asynchronous mode, RFC 5881 single hop), and tells its clients (RFC 5882), the OSPF neighbours first.
//!
//! | file | owns |
//! |---|---|
//! | `packet` | the Control packet, and the rules for a received one that need no session |
//! | `discard` | the names of those rules, and their counters |
//! | `transition` | the state machine, as a table |
//! | `parameters` | what a session may be asked for; jitter |
//! | `session` | one session: negotiation, Poll Sequences, detection; no clock, no socket |
//! | `socket` | UDP port 3784, TTL 255, bound to the interface |
//! | `entry`, `endpoint` | the thread, and a session with its socket and books there |
//! | `scheduling` | real-time class and locked memory |
//! | `handle`, `status` | what the rest of the program sees |
//!
//! The thread is not one of the async runtime's: load elsewhere in the process must not delay it. A session that is
//! Up says that this process's BFD thread and the path live, and no more; that OSPF lives is for OSPF's own hellos.
//!
//! Absent on purpose: Echo, asking for demand mode (a peer that asks is obeyed), authentication (a packet that
//! carries it is refused and counted), multihop.
//!
//! ```no_run
//! use routing::bfd::{Bfd, Config, Parameters, SessionKey};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (bfd, mut events) = Bfd::spawn(Config::default())?;
//! let key = SessionKey {
//!     interface: "eth1".into(),
//!     local: "192.0.2.1".parse()?,
//!     peer: "192.0.2.2".parse()?,
//! };
//! bfd.add(key, Parameters::default())?;
//! while let Some(event) = events.blocking_recv() {
//!     println!("{}: {:?}", event.key.peer, event.path);
//! }
//! # Ok(())
//! # }
//! ```

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

mod discard;
mod endpoint;
mod entry;
mod handle;
pub mod packet;
mod parameters;
mod scheduling;
pub mod session;
mod socket;
mod status;
mod transition;

pub use discard::{Discard, Discards};
pub use handle::{AddError, Handle, Stopped, UpdateError};
pub use packet::{Diagnostic, State};
pub use parameters::{Parameters, ParametersError};
pub use scheduling::Grant;
pub use session::Path;
pub use socket::{OpenError, PORT};
pub use status::{Counters, EndpointStatus, Event, LastDown, SessionKey, SessionStatus, Status};

use endpoint::Endpoint;

/// How the BFD thread runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Sessions at most.
    pub max_sessions: usize,
    /// The `SCHED_FIFO` priority to try, 1 to 99; `None`: the ordinary class.
    pub realtime_priority: Option<u8>,
    /// Whether to try to keep the pages of the process in memory.
    pub lock_memory: bool,
    /// Events that may wait for the client. With more, the latest of each session is kept until there is room.
    pub event_capacity: usize,
}

impl Default for Config {
    /// 1024 sessions, the lowest real-time priorities, locked memory.
    fn default() -> Self {
        Self { max_sessions: 1024, realtime_priority: Some(10), lock_memory: true, event_capacity: 4096 }
    }
}

/// The reason why the thread could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A priority outside 1 to 99.
    #[error("realtime_priority of {0} is out of range: write 1 to 99")]
    Priority(u8),
    /// No room for a single event.
    #[error("event_capacity must be at least 1")]
    EventCapacity,
    /// The socket pair that wakes the thread.
    #[error("cannot create the BFD thread's wake-up socket")]
    Wake(#[source] io::Error),
    /// The thread itself.
    #[error("cannot start the BFD thread")]
    Thread(#[source] io::Error),
}

/// The BFD speaker.
#[derive(Debug)]
pub struct Bfd;

impl Bfd {
    /// Starts the thread, in the network namespace of the caller, with no session.
    ///
    /// What it could not get of [`Config`] for want of a privilege is no error, but said in the log and in
    /// [`Handle::status`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn spawn(config: Config) -> Result<(Handle, tokio::sync::mpsc::Receiver<Event>), StartError> {
        if let Some(priority) = config.realtime_priority.filter(|priority| !(1..=99).contains(priority)) {
            return Err(StartError::Priority(priority));
        }
        if config.event_capacity == 0 {
            return Err(StartError::EventCapacity);
        }
        let (wake, woken) = UnixStream::pair().map_err(StartError::Wake)?;
        wake.set_nonblocking(true).map_err(StartError::Wake)?;
        woken.set_nonblocking(true).map_err(StartError::Wake)?;
        let (commands, requests) = mpsc::channel();
        let (events, receiver) = tokio::sync::mpsc::channel(config.event_capacity);
        let endpoint = Endpoint::new(config, requests, woken, events);
        let thread = std::thread::Builder::new()
            .name("bfd".to_owned())
            .spawn(move || endpoint.run())
            .map_err(StartError::Thread)?;
        Ok((Handle::new(commands, wake, thread), receiver))
    }
}
