//! What a replica is told: what it is, what has happened, and what there was before.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use director_proto::definitions::Definitions;
use director_proto::health::{Health, RealId};
use director_proto::sync::{BootId, Message, Report};
use director_proto::tables::{Digest, Epoch, TableError, TableSet, Version};

use super::Outcome;

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

impl Settings {
    /// How long PREPARE may last. Until it is over a member that did not answer has withdrawn its VIPs: it misses the
    /// others within one dead interval and acts within the patience for reports, and the rest is for its switches.
    pub fn prepare_time(&self) -> Duration {
        prepare_time(self.heartbeat, self.dead)
    }

    /// How long COMMIT may last until the epoch is finished without those that did not answer.
    pub fn commit_time(&self) -> Duration {
        commit_time(self.dead)
    }

    /// How long two directors that serve may be apart in the steps of an epoch: the margin for which a slot is held after
    /// its window.
    pub fn skew(&self) -> Duration {
        skew(self.heartbeat, self.dead)
    }

    /// Time for reports under way to arrive before acting on what they say.
    pub(super) fn patience(&self) -> Duration {
        self.heartbeat * 2
    }
}

/// How long two directors that serve may be apart in the steps of an epoch, by their intervals of heartbeats and of
/// death: the margin for which a slot is held after its window.
pub fn skew(heartbeat: Duration, dead: Duration) -> Duration {
    prepare_time(heartbeat, dead) + commit_time(dead) + dead
}

fn prepare_time(heartbeat: Duration, dead: Duration) -> Duration {
    dead * 2 + heartbeat * 2
}

fn commit_time(dead: Duration) -> Duration {
    dead * 2
}

/// What a director does that hears no majority of the directors that were there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// It goes on serving, and changes its tables as it sees fit, as the survivor it probably is: the loss of all others
    /// must not stop the service. Only if one that it hears hears more of them does it know better, and withdraws. Where
    /// it was the network between the directors that failed, connections opened meanwhile are lost if they come to a
    /// director of another side.
    #[default]
    Serve,
    /// It does not serve and changes nothing: the others may have changed the tables. Nothing is ever misrouted, and a
    /// cluster that loses most of its directors at once stops serving until somebody starts them again.
    Withdraw,
}

/// How tables came into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fed {
    /// In place of those that they follow, or once more: slots stand as everywhere else.
    Onward,
    /// In place of others, or of none: how slots stand is to be learned from a director that has missed nothing.
    Afresh,
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
    Configured {
        /// What the peers compare.
        digest: Digest,
        /// What they may ask for.
        definitions: Arc<Definitions>,
    },
    /// The node wishes what it has configured in force in the whole cluster, by a number of its own, or does not any more.
    Wish(Option<u64>),
    /// What has become of a wish: the answer to [`Event::Wished`](super::Event::Wished).
    WishDecided {
        /// Whose it was.
        from: Ipv4Addr,
        /// Which of its wishes.
        id: u64,
        /// The tables that carry it, or why nothing has changed.
        outcome: Outcome,
    },
    /// The node has loaded tables beside those in force, or why it cannot: the answer to [`Event::Prepare`](super::Event::Prepare).
    Loaded {
        /// Which tables.
        version: Version,
        /// Why not.
        result: Result<(), String>,
    },
    /// The node has put tables in force in the kernel, or why it could not: the answer to
    /// [`Event::TablesInForce`](super::Event::TablesInForce).
    Applied {
        /// Which tables.
        version: Version,
        /// What they were put in place of, or why they were not.
        result: Result<Fed, String>,
    },
    /// How slots stand: the answer to [`Event::WindowsWanted`](super::Event::WindowsWanted).
    Windows {
        /// Who asked.
        to: Ipv4Addr,
        /// Under which tables.
        version: Version,
        /// [`Windows`](director_proto::windows::Windows), encoded.
        windows: Bytes,
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
