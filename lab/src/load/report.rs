//! What a load saw: per connection, and in sums.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Why a connection or request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[must_use]
pub enum Failure {
    /// The peer (or someone in between) sent RST, or refused.
    Reset,
    /// Nothing came for the time limit.
    TimedOut,
    /// The peer closed before the end.
    Closed,
    /// The network said that there is no way.
    Unreachable,
    /// A response that is not the one asked for.
    Wrong,
    /// The client's own machine failed (no ports, no descriptors).
    Local,
}

impl Failure {
    /// The failure that an I/O error means.
    pub fn of(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionReset | Kind::ConnectionAborted | Kind::ConnectionRefused | Kind::BrokenPipe => {
                Self::Reset
            }
            Kind::TimedOut => Self::TimedOut,
            Kind::UnexpectedEof => Self::Closed,
            Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown => Self::Unreachable,
            _ => Self::Local,
        }
    }
}

/// How many failed, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// [`Failure::Reset`].
    pub reset: u64,
    /// [`Failure::TimedOut`].
    pub timed_out: u64,
    /// [`Failure::Closed`].
    pub closed: u64,
    /// [`Failure::Unreachable`].
    pub unreachable: u64,
    /// [`Failure::Wrong`].
    pub wrong: u64,
    /// [`Failure::Local`].
    pub local: u64,
}

impl Failures {
    /// Counts one more.
    pub fn add(&mut self, failure: Failure) {
        let counter = match failure {
            Failure::Reset => &mut self.reset,
            Failure::TimedOut => &mut self.timed_out,
            Failure::Closed => &mut self.closed,
            Failure::Unreachable => &mut self.unreachable,
            Failure::Wrong => &mut self.wrong,
            Failure::Local => &mut self.local,
        };
        *counter += 1;
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.reset + self.timed_out + self.closed + self.unreachable + self.wrong + self.local
    }
}

/// Where a download stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Not started, or waiting for the connection or the first byte.
    Starting,
    /// Bytes have come.
    Alive,
    /// It failed.
    Failed(Failure),
    /// Stopped by the client, with nothing wrong.
    Done,
}

/// One download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Name of the service.
    pub service: String,
    /// Where the service is.
    pub target: SocketAddr,
    /// The client's address and port, by which, with `target`, directors know the flow; none before it connected.
    pub source: Option<SocketAddr>,
    /// The real server that answered; none before it did, or if it did not say.
    pub served_by: Option<String>,
    /// Where it stands.
    pub stage: Stage,
    /// How often it came to a good end on one connection and began anew on another.
    pub renewed: u64,
    /// Content bytes received and checked.
    pub bytes: u64,
    /// Of these, wrong ones.
    pub wrong_bytes: u64,
    /// Longest time that the client waited for bytes, milliseconds.
    pub longest_stall_ms: u64,
    /// The same since the last mark.
    pub stall_since_mark_ms: u64,
}

/// Short requests in sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Begun.
    pub started: u64,
    /// Answered completely and correctly.
    pub succeeded: u64,
    /// Failed, by reason.
    pub failures: Failures,
    /// Not begun because too many were under way.
    pub skipped: u64,
    /// Longest from connect to last byte, milliseconds.
    pub longest_ms: u64,
    /// The same for those that ended since the last mark.
    pub longest_since_mark_ms: u64,
}

/// What one real server does for a service, as its clients see it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealBook {
    /// Downloads that it serves now.
    pub held: u64,
    /// Connections that it answered since the start, downloads and requests.
    pub opened: u64,
}

/// The account of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// Name of the service.
    pub service: String,
    /// Downloads that have received bytes and not failed.
    pub alive: u64,
    /// Downloads that have not received bytes yet.
    pub starting: u64,
    /// Downloads that failed.
    pub failures: Failures,
    /// Content bytes received.
    pub bytes: u64,
    /// Content bytes that were wrong, of downloads and requests.
    pub wrong_bytes: u64,
    /// Longest wait for bytes that is going on now, milliseconds.
    pub current_stall_ms: u64,
    /// Longest wait for bytes since the last mark, milliseconds.
    pub stall_since_mark_ms: u64,
    /// Downloads that waited longer than a second since the last mark.
    pub stalled_since_mark: u64,
    /// Short requests.
    pub requests: Requests,
    /// By real server, under the name it gives itself.
    pub reals: BTreeMap<String, RealBook>,
}

impl Book {
    /// Downloads and requests that were reset.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.failures.reset + self.requests.failures.reset
    }

    /// Downloads and requests that failed in any other way.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.failures.total() + self.requests.failures.total() - self.resets()
    }
}

/// A load at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Milliseconds since the load started.
    pub at_ms: u64,
    /// An account for each service, in the plan's order.
    pub services: Vec<Book>,
}

impl Sample {
    /// One figure over all services.
    #[must_use]
    pub fn sum(&self, figure: impl Fn(&Book) -> u64) -> u64 {
        self.services.iter().map(figure).sum()
    }

    /// The longest wait for bytes that is going on now in any service, milliseconds.
    #[must_use]
    pub fn current_stall_ms(&self) -> u64 {
        self.services.iter().map(|book| book.current_stall_ms).max().unwrap_or(0)
    }

    /// What a real server does for all services together.
    #[must_use]
    pub fn real(&self, name: &str) -> RealBook {
        let of = |book: &Book| book.reals.get(name).copied().unwrap_or_default();
        RealBook { held: self.sum(|book| of(book).held), opened: self.sum(|book| of(book).opened) }
    }

    /// Whether nothing failed and no byte was wrong.
    #[must_use]
    pub fn clean(&self) -> bool {
        self.sum(|book| book.resets() + book.losses() + book.wrong_bytes) == 0
    }
}

/// A finished load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The sums.
    pub total: Sample,
    /// Every download.
    pub connections: Vec<Connection>,
}
