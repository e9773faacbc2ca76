//! What a speaker tells of itself while it runs.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{HelpEnd, InterfaceState, NeighborEvent, NeighborState, Refusal, RestartEnd};

/// News for logs and for those who wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A neighbour changed its state.
    Neighbor {
        /// Name of the interface.
        interface: String,
        /// Router id of the neighbour.
        router: Ipv4Addr,
        /// Its address.
        address: IpAddr,
        /// State before.
        from: NeighborState,
        /// State now.
        to: NeighborState,
        /// What happened.
        event: NeighborEvent,
    },
    /// An interface changed its state.
    Interface {
        /// Name of the interface.
        interface: String,
        /// State before.
        from: InterfaceState,
        /// State now.
        to: InterfaceState,
    },
    /// Something received was refused; paced per interface and reason.
    Refused {
        /// Name of the interface.
        interface: String,
        /// IP source.
        source: IpAddr,
        /// Why.
        reason: Refusal,
        /// What each side says.
        detail: String,
    },
    /// A neighbour restarts gracefully: its adjacency is kept (RFC 3623).
    Helping {
        /// Name of the interface.
        interface: String,
        /// Router id of the neighbour.
        router: Ipv4Addr,
        /// For how long at most.
        seconds: u64,
    },
    /// From now on its adjacency is what its state says.
    HelpEnded {
        /// Name of the interface.
        interface: String,
        /// Router id of the neighbour.
        router: Ipv4Addr,
        /// Why.
        reason: HelpEnd,
    },
    /// We have restarted, and the neighbours have not noticed: nothing is originated until that is over (RFC 3623).
    Resuming {
        /// At most for so long.
        seconds: u64,
    },
    /// Our graceful restart is over.
    Resumed {
        /// Why.
        reason: RestartEnd,
    },
    /// A neighbour says nothing new since the adjacency became full: our Router-LSA goes out again, with its links in
    /// another order, so that the neighbour calculates its routes.
    Reminded {
        /// Name of the interface.
        interface: String,
        /// Router id of the neighbour.
        router: Ipv4Addr,
    },
    /// An interface sends with another key than before, or with one that has expired because there is no
    /// other (RFC 2328 section D.3).
    SendingKey {
        /// Name of the interface.
        interface: String,
        /// The id of the key.
        key: u8,
        /// The name of its algorithm.
        algorithm: String,
        /// Its time is over, or has not come.
        expired: bool,
    },
    /// An own LSA was sent out in a new instance, or flushed.
    Originated {
        /// Which.
        lsa: String,
        /// Sequence number.
        sequence: i32,
        /// Flushed rather than changed.
        flushed: bool,
    },
    /// The checksum of an LSA in the database no longer holds, though it did when the LSA came (RFC 2328 section 14).
    Damaged {
        /// Which; it is forgotten, and replaced.
        lsa: String,
    },
    /// Another router seems to originate LSAs under our router id.
    RouterIdContested {
        /// The LSA that keeps coming back newer.
        lsa: String,
    },
}
