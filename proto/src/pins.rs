//! Pins as directors tell each other of them: connections that are at a real server which does not follow from the
//! tables.
//!
//! A record names nothing by a position or a clock of one machine. What its packets are addressed to and where they go
//! are numbers that the stream itself defines ([`Batch::targets`], [`Batch::servers`]), and its end is told in seconds
//! left, as its beginning is in seconds since. That makes 13 bytes of an IPv4 connection, 16 of a new one with full NAT
//! and 19 of one that is told again, and 8 of its removal.

use std::net::IpAddr;

use director_common::pin::PinState;
use director_common::tables::{Address, Lease};

use crate::sync::BootId;

mod wire;

/// Most records of all kinds in one [`Batch`].
pub const MAX_RECORDS: usize = 4_096;

/// Most batches on their way to one director that it has not acknowledged. Whoever sends more is not heard.
pub const MAX_UNACKNOWLEDGED: usize = 64;

/// Longest remaining time in seconds: ten days, more than any timeout that can be configured.
pub const MAX_REMAINING: u32 = 10 * 86_400;

/// Bytes of the record of an IPv4 and of an IPv6 client's pin.
pub const RECORD_SIZE: (usize, usize) = (13, 25);

/// The same where the connection has a lease.
pub const LEASED_SIZE: (usize, usize) = (16, 28);

/// The same where it has had it for longer than [`NEW`].
pub const AGED_SIZE: (usize, usize) = (19, 31);

/// Seconds for which a lease counts as taken just now.
pub const NEW: u32 = 1;

/// Longest time in seconds since a lease was taken that is told: half a year, and all that is longer is the same.
pub const MAX_AGE: u32 = (1 << 24) - 1;

/// Bytes of the record of a removal, likewise.
pub const REMOVAL_SIZE: (usize, usize) = (8, 20);

/// What directors tell each other about pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinMessage {
    /// Send your pins.
    Subscribe(Subscription),
    /// Some of the sender's pins.
    Batch(Box<Batch>),
    /// A batch is in force, and with it all before it in its session.
    Acknowledge(Position),
}

/// A place in a stream of batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The session, counting up in one run of the sender; 0 for none.
    pub session: u64,
    /// The batch in it, from 1.
    pub sequence: u64,
}

/// The last batch that whoever subscribes has put in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Run of the other director that sent it; 0 for none.
    pub boot_id: BootId,
    /// Which batch.
    pub position: Position,
}

/// How a session begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// With all pins there are, until [`Batch::ends_snapshot`].
    Snapshot,
    /// With what has changed since the subscription's position.
    Changes,
}

/// What a client's packets are addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// IP protocol number.
    pub protocol: u8,
    /// The VIP.
    pub address: Address,
    /// Its port.
    pub port: u16,
}

/// A real server of a service, as every director knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Server {
    /// Name of the service.
    pub service: String,
    /// Address of the real server.
    pub address: IpAddr,
    /// Its port, 0 where packets keep theirs.
    pub port: u16,
}

/// A pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The client's address.
    pub client: Address,
    /// Its port.
    pub port: u16,
    /// Number of the target.
    pub target: u16,
    /// Number of the real server.
    pub server: u16,
    /// What the connection was last seen to do.
    pub state: PinState,
    /// Seconds until it expires, if no packet comes; at most [`MAX_REMAINING`].
    pub remaining: u32,
    /// What stands for the client, by full NAT: the number is one of [`Batch::locals`].
    pub lease: Lease,
    /// Seconds since the lease was taken, where there is one; at most [`MAX_AGE`], and 0 for all up to [`NEW`].
    pub age: u32,
}

/// A local address: what stands for clients, by full NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Local {
    /// The address.
    pub address: Address,
    /// It is the sender's own, which takes ports of it. Of another director's the sender only knows connections.
    pub is_own: bool,
}

/// A pin that is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The client's address.
    pub client: Address,
    /// Its port.
    pub port: u16,
    /// Number of the target.
    pub target: u16,
}

/// Some of a director's pins, as they stood when this was made. No connection is in it twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Where in the sender's stream it is.
    pub position: Position,
    /// What begins with it, if it is the first of its session.
    pub begins: Option<Begin>,
    /// A snapshot is whole with it.
    pub ends_snapshot: bool,
    /// Meaning of targets' numbers from here on.
    pub targets: Vec<(u16, Target)>,
    /// Meaning of servers' numbers from here on.
    pub servers: Vec<(u16, Server)>,
    /// Meaning of local addresses' numbers from here on; in the first batch of a session all that are the sender's own.
    pub locals: Vec<(u8, Local)>,
    /// Pins.
    pub records: Vec<Record>,
    /// Pins that are no more.
    pub removals: Vec<Removal>,
}

#[cfg(test)]
mod tests;
