//! What directors tell each other of their health checks.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Names one real server of one service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct RealId {
    /// Name of the service.
    pub service: String,
    /// Address of the real server.
    pub address: IpAddr,
    /// Its port; 0 where the service takes all ports.
    pub port: u16,
}

impl fmt::Display for RealId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of service {}", SocketAddr::new(self.address, self.port), self.service)
    }
}

/// What one director's checks say of a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing: it is not checked, or not decided yet.
    Unknown,
    /// It is live.
    Up,
    /// It is not.
    Down,
}

/// Most entries of one [`Observations`]; with the longest names they still fit in a frame.
pub const MAX_OBSERVED: usize = 512;

/// A piece of a director's observations.
///
/// Every change of one real server's state gives them the next edition. A piece lists the real servers that changed
/// after `from` and up to `to`, as they stand when it is sent: so a change, a repetition and the whole are one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observations {
    /// Edition it builds on.
    pub from: u64,
    /// Edition it leads to, above `from`.
    pub to: u64,
    /// At most [`MAX_OBSERVED`] real servers.
    pub observed: Vec<(RealId, Health)>,
}
