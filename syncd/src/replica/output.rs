//! What a replica wants done, and what it tells the node.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use director_proto::definitions::Definitions;
use director_proto::health::Health;
use director_proto::sync::{BootId, Message, Report};
use director_proto::tables::{TableSet, Version};
use director_proto::windows::Windows;

use super::{HealthView, Outcome, Saved};

/// Something to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send the heartbeat to every peer.
    Beat(Report),
    /// Send a message to a member. It may be lost: the replica repeats what matters.
    Send {
        /// To whom.
        to: Ipv4Addr,
        /// What.
        message: Message,
    },
    /// Keep the tables on disk, in place of older ones.
    Store(Saved),
    /// Tell the node.
    Event(Event),
}

/// How the tables of this director relate to the cluster's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It holds none yet: nothing may be announced.
    Joining,
    /// It holds the highest epoch known.
    Current,
    /// It does not follow what other directors do: withdraw.
    Behind,
    /// It has lost most of the others, which may be changing the tables: withdraw.
    Isolated,
    /// A live director holds other tables under the same epoch: withdraw.
    Diverged,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Joining => "joining",
            Self::Current => "current",
            Self::Behind => "behind",
            Self::Isolated => "isolated",
            Self::Diverged => "diverged",
        })
    }
}

/// What the node learns; `Display` gives the line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Load these tables beside those in force, and answer with
    /// [`Handle::loaded`](crate::Handle::loaded): connections in slots that change are looked up and pinned from now on.
    Prepare {
        /// What to load.
        tables: Arc<TableSet>,
        /// Its version.
        version: Version,
        /// Why the tables change.
        cause: String,
    },
    /// What was loaded will not come into force: back to the tables that are.
    RolledBack {
        /// What was loaded.
        version: Version,
        /// Why.
        reason: String,
    },
    /// Forward by these tables from now on, and answer with [`Handle::applied`](crate::Handle::applied).
    TablesInForce {
        /// What to forward by.
        tables: Arc<TableSet>,
        /// Its version.
        version: Version,
        /// The tables that these follow, in steps that this director took part in. Where the kernel holds others, how
        /// slots stand has to be learned: answer with [`Fed::Afresh`](super::Fed::Afresh).
        follows: Option<Version>,
        /// The same where they come into the kernel later than this.
        in_time: Instant,
        /// Why the tables change.
        cause: String,
    },
    /// Another director asks how slots stand: answer with [`Handle::give_windows`](crate::Handle::give_windows) if the
    /// kernel forwards by these tables.
    WindowsWanted {
        /// Which one.
        to: Ipv4Addr,
        /// Under which tables.
        version: Version,
    },
    /// How slots stand at a director that has missed nothing; `None` if none could be asked. The end of what
    /// [`Fed::Afresh`](super::Fed::Afresh) began.
    Windows {
        /// Under which tables.
        version: Version,
        /// What it says.
        windows: Option<Arc<Windows>>,
        /// What is put into the kernel later than this is out of date: answer with
        /// [`Fed::Afresh`](super::Fed::Afresh) once more.
        in_time: Instant,
    },
    /// The tables are in force wherever they will be, or others have overtaken them: windows of slots may close, unless
    /// a later epoch is prepared.
    Finished {
        /// Which tables.
        version: Version,
    },
    /// The cluster goes on without a director that has not answered in time; it does not serve until it has the tables.
    PassedOver {
        /// Which one.
        router_id: Ipv4Addr,
        /// Which tables it lacks.
        version: Version,
    },
    /// A director could not put tables in force: those from before come back.
    NotInForce {
        /// Which tables.
        version: Version,
        /// Who, and why.
        reason: String,
    },
    /// Deal tables and propose them: nobody has any (`None`), or old ones came back from disk and the
    /// configuration may ask for others since.
    NeedTables {
        /// Tables to start from, in force already.
        previous: Option<Arc<TableSet>>,
    },
    /// The live directors' health checks say this now.
    Health(Arc<HealthView>),
    /// The director stands elsewhere now.
    Standing(Standing),
    /// Another director leads now; `None` while nobody holds tables.
    Leader(Option<Ipv4Addr>),
    /// A director is heard, for the first time or again.
    PeerUp {
        /// Which one.
        router_id: Ipv4Addr,
        /// Which run of it.
        boot_id: BootId,
    },
    /// A director has been silent for the dead interval.
    PeerDown {
        /// Which one.
        router_id: Ipv4Addr,
    },
    /// A peer's services are configured differently from ours, or no longer.
    Configuration {
        /// Which peer.
        router_id: Ipv4Addr,
        /// Whether they are equal now.
        same: bool,
    },
    /// What a peer has configured, which differs from what is configured here.
    Definitions {
        /// Which peer.
        router_id: Ipv4Addr,
        /// What it has.
        definitions: Arc<Definitions>,
    },
    /// A director wishes these services in force in the whole cluster: propose them, and say with
    /// [`Handle::decide_wish`](crate::Handle::decide_wish) what has become of it.
    Wished {
        /// Which director; it may be this one.
        from: Ipv4Addr,
        /// Which of its wishes.
        id: u64,
        /// What it wishes.
        definitions: Arc<Definitions>,
    },
    /// What has become of this director's wish.
    WishDecided {
        /// Which one.
        id: u64,
        /// The tables that carry it, or why nothing has changed.
        outcome: Outcome,
    },
    /// A peer has held other tables than this director for the dead interval.
    TablesDiffer {
        /// Which peer.
        router_id: Ipv4Addr,
        /// What is in force here.
        ours: Version,
        /// What is in force there, if anything.
        theirs: Option<Version>,
    },
    /// A peer that differed holds our tables again.
    TablesAgree {
        /// Which peer.
        router_id: Ipv4Addr,
        /// What both hold.
        version: Version,
    },
    /// Something a peer sent cannot be used; a snapshot is asked for instead.
    TransferFailed {
        /// Which peer.
        router_id: Ipv4Addr,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepare { version, cause, .. } => write!(f, "epoch {version} is being prepared: {cause}"),
            Self::RolledBack { version, reason } => write!(f, "epoch {version} is rolled back: {reason}"),
            Self::TablesInForce { tables, version, cause, .. } => {
                write!(f, "tables of epoch {version} in force, {} services: {cause}", tables.services.len())
            }
            Self::WindowsWanted { to, version } => {
                write!(f, "peer {to} asks how slots stand under the tables of epoch {version}")
            }
            Self::Windows { version, windows: Some(windows), .. } => {
                let moving = windows.services.len();
                write!(
                    f,
                    "slots stand as at the others by the tables of epoch {version}, {moving} services in change"
                )
            }
            Self::Windows { version, windows: None, .. } => {
                write!(
                    f,
                    "no director says how slots stand under the tables of epoch {version}: they stay as they are"
                )
            }
            Self::Finished { version } => write!(f, "epoch {version} is finished"),
            Self::PassedOver { router_id, version } => {
                write!(f, "peer {router_id} has not answered in time: epoch {version} goes on without it")
            }
            Self::NotInForce { version, reason } => {
                write!(f, "epoch {version} could not be put in force everywhere: {reason}")
            }
            Self::NeedTables { previous: None } => write!(f, "no director has tables: dealing them"),
            Self::NeedTables { previous: Some(tables) } => {
                write!(f, "tables of epoch {} came back from disk", tables.epoch)
            }
            Self::Health(view) => {
                let dead = view.values().filter(|votes| votes.verdict() == Health::Down).count();
                write!(f, "real servers found live {}, not live {dead}", view.len().saturating_sub(dead))
            }
            Self::Standing(standing) => write!(f, "this director is {standing}"),
            Self::Leader(Some(leader)) => write!(f, "{leader} leads the cluster"),
            Self::Leader(None) => write!(f, "the cluster has no leader: no director has tables"),
            Self::PeerUp { router_id, boot_id } => write!(f, "peer {router_id} is up, boot {boot_id}"),
            Self::PeerDown { router_id } => write!(f, "peer {router_id} is silent, taken for dead"),
            Self::Configuration { router_id, same: true } => {
                write!(f, "peer {router_id} has the same services configured again")
            }
            Self::Configuration { router_id, same: false } => {
                write!(f, "peer {router_id} has other services configured; what the cluster agreed on counts")
            }
            Self::Definitions { router_id, definitions } => {
                write!(f, "peer {router_id} has told what it has configured, {} services", definitions.len())
            }
            Self::Wished { from, id, definitions } => {
                write!(f, "{from} wishes its {} services in force everywhere (wish {id})", definitions.len())
            }
            Self::WishDecided { outcome: Ok(version), .. } => {
                write!(f, "the services of this director's file are in force by epoch {version}")
            }
            Self::WishDecided { outcome: Err(reason), .. } => {
                write!(f, "the services of this director's file are not put in force: {reason}")
            }
            Self::TablesDiffer { router_id, ours, theirs: Some(theirs) } => {
                write!(f, "peer {router_id} forwards by other tables: {theirs}, here {ours}")
            }
            Self::TablesDiffer { router_id, ours, theirs: None } => {
                write!(f, "peer {router_id} has no tables yet, here {ours}")
            }
            Self::TablesAgree { router_id, version } => {
                write!(f, "peer {router_id} holds the same tables again: {version}")
            }
            Self::TransferFailed { router_id, reason } => {
                write!(f, "tables from peer {router_id} are not usable: {reason}")
            }
        }
    }
}
