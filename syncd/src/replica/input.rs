//! What a replica is told: what it is, what has happened, and what there was before.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use director_proto::health::{Health, RealId};
use director_proto::sync::{BootId, Message, Report};
use director_proto::tables::{Digest, Epoch, TableError, TableSet, Version};

/// What a replica is and how patient it is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the cluster.
    pub cluster: String,
    /// Identity in the cluster.
    pub router_id: Ipv4Addr,
    /// This run of the process.
    pub boot_id: BootId,
    /// Where the director listens, empty when it does not; tells a restart from a duplicate.
    pub endpoint: String,
    /// Software version.
    pub software: String,
    /// Other directors there should be.
    pub expected_peers: usize,
    /// How long to wait for them before seeding without them.
    pub grace: Duration,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// Silence after which a member counts as dead.
    pub dead: Duration,
    /// What a director does that has lost most of the others.
    pub isolation: Isolation,
}

/// What a director does that hears no majority of the directors that were there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// It does not serve and changes nothing: the others may have changed the tables. For directors that talk with each
    /// other over the networks that bring the packets.
    #[default]
    Withdraw,
    /// It goes on serving, and changes its tables as it sees fit: where directors talk over a network of its own, whose
    /// failure must not stop the service. Connections opened meanwhile are lost if they come to a director of another side.
    Serve,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Nothing but time.
    Tick,
    /// A heartbeat of an admitted member.
    Report {
        /// Who sent it.
        from: Ipv4Addr,
        /// Which run of it.
        boot_id: BootId,
        /// What it holds.
        report: Report,
    },
    /// A message of an admitted member.
    Message {
        /// Who sent it.
        from: Ipv4Addr,
        /// Which run of it.
        boot_id: BootId,
        /// What it says.
        message: Message,
    },
    /// The node's services have changed.
    ConfigDigest(Digest),
    /// The node has loaded tables beside those in force, or why it cannot: the answer to [`Event::Prepare`](super::Event::Prepare).
    Loaded {
        /// Which tables.
        version: Version,
        /// Why not.
        result: Result<(), String>,
    },
    /// The node has put tables in force in the kernel, or why it could not: the answer to [`Event::TablesInForce`](super::Event::TablesInForce).
    Applied {
        /// Which tables.
        version: Version,
        /// Why not.
        result: Result<(), String>,
    },
    /// Whether a configured peer that can be reached does not talk with this director.
    Refused(bool),
    /// The whole of what the node's health checks say now.
    Observed(BTreeMap<RealId, Health>),
}

/// Why tables were not put in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Only the leader decides.
    #[error("the cluster's leader is {leader}; propose there")]
    NotLeader {
        /// Who that is.
        leader: Ipv4Addr,
    },
    /// The director holds no tables yet and may not seed.
    #[error("the director has not joined the cluster yet")]
    Joining,
    /// One epoch at a time.
    #[error("epoch {epoch} is under way; propose again when it is over")]
    Busy {
        /// Which one.
        epoch: Epoch,
    },
    /// The others may be changing the tables.
    #[error("the director has lost most of the others: it changes nothing until it hears them again")]
    Isolated,
    /// The cluster has just refused the same tables.
    #[error("the cluster has just refused these tables: {reason}")]
    Rejected {
        /// Who refused, and why.
        reason: String,
    },
    /// Tables that nobody can use.
    #[error("unusable tables: {0}")]
    Tables(#[from] TableError),
    /// The replication has ended.
    #[error("replication has stopped")]
    Stopped,
}

/// What a director keeps on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Tables that were in force last.
    pub tables: Arc<TableSet>,
    /// Highest epoch number met until then, possibly above the tables' own.
    pub floor: u64,
}
