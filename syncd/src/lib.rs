//! Replication: what directors tell each other so that every one forwards alike.
//!
//! | module | owns |
//! |---|---|
//! | [`pins`] | connections that do not follow from the tables, as a pure machine too |
//! | [`replica`] | the decisions, as a pure machine: no socket, no clock, no thread |
//! | `engine` | the one task that owns the replica, feeds it and carries out what it wants |
//! | `net` | gRPC: one connection for tables and one for heartbeats, each way with each peer; TLS |
//! | `store` | the tables on disk |
//!
//! [`spawn`] starts it; the node keeps the [`Handle`] and listens to the [`Event`]s. It announces its VIPs only
//! while [`Standing::Current`], loads what an epoch prepares ([`Event::Prepare`]), forwards by what it commits
//! ([`Event::TablesInForce`]), says each time whether it could, proposes tables when it is asked to ([`Event::NeedTables`]) and, as the leader
//! ([`Event::Leader`]), when its configuration asks for others than those in force.

pub mod pins;
pub mod replica;

mod certificates;
mod config;
mod engine;
mod net;
mod status;
mod store;

pub use certificates::Reloaded;
pub use config::{Config, StartError, TlsFiles};
pub use engine::{Handle, PinPort, Stopped, listen, spawn};
pub use replica::{Event, Fed, HealthView, Isolation, Outcome, ProposeError, Refusal, Standing, Votes};
pub use status::{PeerState, PeerStatus, RefusedPeer, Status};
