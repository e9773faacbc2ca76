//! gRPC between directors.
//!
//! Every director dials every configured peer three times: one connection carries tables (`Exchange`), one heartbeats
//! (`Beat`), one connections' pins (`Pins`). A connection begins with a greeting each way; what the greeting says is
//! judged by the replica, what
//! the certificate says here. After that a connection is a link of the engine, the only reader and writer of it.
//!
//! Nothing here decides, and nothing waits for a peer: a full queue drops, and the replica repeats.

pub(crate) mod dialer;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod tls;

use std::net::SocketAddr;

use director_proto::pins::MAX_UNACKNOWLEDGED;
use director_proto::sync::{Frame, Hello, wire};
use tokio::sync::{mpsc, oneshot};

use crate::replica::Refusal;

/// Frames that wait on one connection for tables, at most 256 KiB each.
const EXCHANGE_QUEUE: usize = 64;

/// Heartbeats that wait on one connection.
const BEAT_QUEUE: usize = 8;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Exchange,
    Beat,
    Pins,
}

/// Batches of pins that wait on one connection, and what answers them: more than are ever unacknowledged.
const PIN_QUEUE: usize = 2 * MAX_UNACKNOWLEDGED;

impl Kind {
    pub(crate) fn queue(self) -> usize {
        match self {
            Self::Exchange => EXCHANGE_QUEUE,
            Self::Beat => BEAT_QUEUE,
            Self::Pins => PIN_QUEUE,
        }
    }

    /// Whether a frame belongs on such a connection.
    fn carries(self, frame: &Frame) -> bool {
        matches!(
            (self, frame),
            (Self::Exchange, Frame::Message(_))
                | (Self::Beat, Frame::Report(..) | Frame::Echo(_))
                | (Self::Pins, Frame::Pins(_))
                | (_, Frame::Refusal(_))
        )
    }
}

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// We did, to the configured peer of this index.
    Dialled(usize),
    /// The peer did, from this address.
    Accepted(Option<SocketAddr>),
}

/// A connection the engine has taken.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) link: u64,
    /// Ends when the engine gives the connection up.
    pub(crate) given_up: oneshot::Receiver<()>,
}

/// What the network tells the engine.
#[derive(Debug)]
pub(crate) enum NetEvent {
    /// A peer has introduced itself.
    Greeting {
        hello: Hello,
        kind: Kind,
        origin: Origin,
        /// Our own greeting, where the peer greeted first: it goes out before anything else does.
        answer: Option<Box<wire::Frame>>,
        outgoing: mpsc::Sender<wire::Frame>,
        reply: oneshot::Sender<Result<Taken, Refusal>>,
    },
    /// A frame of a link, and its size in bytes.
    Frame { link: u64, frame: Frame, size: usize },
    /// A link has ended.
    Closed { link: u64 },
    /// A peer was refused before it could become a link, or refused us.
    Refused { origin: Origin, reason: String },
    /// A configured peer could not be reached.
    Unreachable { peer: usize, reason: String },
}
