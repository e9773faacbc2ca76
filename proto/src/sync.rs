//! The sync protocol: domain types of what directors tell each other, and their frames.
//!
//! [`Frame`] is what the rest of the program handles. [`wire`] is the generated form; a frame becomes one by
//! `From` and comes back by `TryFrom`, which checks every length and value: what passes is well-formed, though
//! not necessarily true.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;

use crate::health::Observations;
use crate::pins::PinMessage;
use crate::tables::{Delta, Digest, TableError, Version};

pub(crate) mod decode;
pub(crate) mod encode;

pub use decode::decode_tables;
pub use encode::{encode_tables, encoded_delta_size};

/// The protocol as generated from `proto/sync.proto`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the .proto file is the documentation"
)]
pub mod wire {
    tonic::include_proto!("director.sync.v1");
}

/// Version of the protocol; directors of different ones refuse each other.
/// 2: tables of two sizes, digests made of the digests of tables, and observations of health.
/// 3: pins of connections, on a stream of their own.
/// 4: epochs in three steps. A director of version 3 would put tables in force that others have only prepared.
/// 5: tables carry the definitions of their services, and their digests do.
/// 6: pins carry the local address and port of full NAT.
/// 7: and for how long a connection has had them.
pub const PROTOCOL: u32 = 7;

/// Largest frame on a stream, in bytes.
pub const MAX_FRAME: usize = 256 * 1024;

/// Most bytes of a snapshot in one [`Chunk`]; leaves room in a frame for the rest.
pub const MAX_CHUNK: usize = 192 * 1024;

/// Largest encoded table set a director accepts, in bytes: more than the limits of [`crate::tables`] allow.
pub const MAX_SNAPSHOT: usize = 224 * 1024 * 1024;

/// Longest text in a frame (versions, endpoints, reasons), in bytes.
pub const MAX_TEXT: usize = 1024;

/// Names one run of a director's process; drawn at random when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub u64);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl serde::Serialize for BootId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Who is speaking: the first frame each way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL`] of the sender.
    pub protocol: u32,
    /// Name of the sender's cluster.
    pub cluster: String,
    /// Router id of the sender.
    pub router_id: Ipv4Addr,
    /// This run of the sender.
    pub boot_id: BootId,
    /// Where the sender listens, empty when it does not.
    pub endpoint: String,
    /// Software version of the sender.
    pub software: String,
}

/// A heartbeat: what the sender holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Tables in force.
    pub tables: Option<Version>,
    /// Tables from disk that are not in force.
    pub candidate: Option<Version>,
    /// Digest of the sender's configured services, by its own file: what is in force may be others.
    pub config_digest: Digest,
    /// Software version of the sender.
    pub software: String,
    /// Edition of the sender's [`Observations`]; 0 while it has none.
    pub observations: u64,
    /// Counts the reports of one run of the sender.
    pub sequence: u64,
    /// Tables loaded beside those in force.
    pub prepared: Option<Version>,
    /// Where the epoch under way stands at the sender.
    pub phase: Phase,
    /// Whom the sender takes for the leader.
    pub leader: Option<Ipv4Addr>,
    /// The directors whose heartbeats the sender hears, at most [`MAX_HEARD`].
    pub hears: Vec<Ipv4Addr>,
    /// The sender serves, and can say how its slots stand.
    pub serves: bool,
    /// Highest epoch number that the sender has met, in force anywhere or only prepared: what anybody decides is above it.
    pub floor: u64,
}

/// Most directors in [`Report::hears`].
pub const MAX_HEARD: usize = 256;

/// Where an epoch stands at one director.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing is under way.
    #[default]
    Settled,
    /// New tables are being loaded.
    Preparing,
    /// New tables are loaded: every connection in a slot that changes is looked up and pinned.
    Prepared,
    /// New tables are in force here, and not yet everywhere.
    Committed,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Settled => "settled",
            Self::Preparing => "preparing",
            Self::Prepared => "prepared",
            Self::Committed => "committed",
        })
    }
}

/// Asks to load tables beside those in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// Tables it starts from.
    pub from: Version,
    /// Tables to load.
    pub to: Version,
    /// Why, for people; at most [`MAX_TEXT`] bytes.
    pub cause: String,
    /// What leads from one to the other; absent where it would not fit into a frame.
    pub delta: Option<Delta>,
}

/// What replicas send to one another, besides heartbeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Send a snapshot, from an offset on.
    Request(Request),
    /// A piece of a snapshot.
    Chunk(Chunk),
    /// Load tables beside those in force.
    Prepare(Arc<Prepare>),
    /// These tables are loaded here.
    Prepared(Version),
    /// These tables cannot be loaded here, or could not be put in force.
    Refused {
        /// Which tables.
        version: Version,
        /// Why not; at most [`MAX_TEXT`] bytes.
        reason: String,
    },
    /// Put what is loaded in force.
    Commit(Version),
    /// These tables are in force here, and in the kernel.
    Acknowledge(Version),
    /// These tables are in force wherever they will be.
    Finish(Version),
    /// Forget what was loaded.
    Abort(Version),
    /// What the sender's health checks say.
    Observations(Arc<Observations>),
    /// Send observations made after this edition.
    ObservationsSince(u64),
    /// Say how the slots stand under the tables of this version, from an offset on.
    WindowsRequest(Request),
    /// A piece of encoded [`Windows`](crate::windows::Windows).
    Windows(Chunk),
    /// Send the definitions of this digest, from an offset on.
    DefinitionsRequest {
        /// [`Report::config_digest`] of whom this is sent to.
        digest: Digest,
        /// First byte wanted.
        offset: u64,
    },
    /// A piece of what the sender has configured.
    Definitions(DefinitionsPiece),
    /// To the leader: put what the sender has configured in force everywhere.
    Wish {
        /// Tells it from the sender's other wishes.
        id: u64,
        /// [`Report::config_digest`] of the sender.
        digest: Digest,
    },
    /// What has become of a wish.
    WishOutcome {
        /// Which one.
        id: u64,
        /// The tables that carry it, or why nothing has changed; at most [`MAX_TEXT`] bytes.
        outcome: Result<Version, String>,
    },
}

/// A piece of encoded [`Definitions`](crate::definitions::Definitions).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefinitionsPiece {
    /// [`Report::config_digest`] of the sender.
    pub digest: Digest,
    /// Position of the first byte of `data`.
    pub offset: u64,
    /// Size of the whole in bytes, at most [`MAX_ENCODED`](crate::definitions::MAX_ENCODED).
    pub total: u64,
    /// At most [`MAX_CHUNK`] bytes.
    pub data: Bytes,
}

/// Asks for a snapshot, or for how slots stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Version whose transfer goes on; `None` at its start.
    pub version: Option<Version>,
    /// First byte wanted.
    pub offset: u64,
}

/// A piece of an encoded table set, or of how its slots stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Version the snapshot has.
    pub version: Version,
    /// Position of the first byte of `data`.
    pub offset: u64,
    /// Size of the whole snapshot in bytes, at most [`MAX_SNAPSHOT`].
    pub total: u64,
    /// At most [`MAX_CHUNK`] bytes.
    pub data: Bytes,
}

/// One message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// First frame: who is speaking.
    Hello(Hello),
    /// Last frame: why the sender will not talk.
    Refusal(String),
    /// Heartbeat, and the sender's clock in microseconds (0: no echo wanted).
    Report(Report, u64),
    /// Answer to a heartbeat: its clock.
    Echo(u64),
    /// Between replicas.
    Message(Message),
    /// About connections.
    Pins(PinMessage),
}

/// Why a frame is not well-formed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A body of a kind this version does not know, or none.
    #[error("frame without a known body")]
    Empty,
    /// A required message is absent.
    #[error("{field} is missing")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
    /// A field has a length it cannot have.
    #[error("{field} has {length} bytes")]
    Length {
        /// Name of the field.
        field: &'static str,
        /// Bytes found.
        length: usize,
    },
    /// A number is out of its range.
    #[error("{field} is {value}, out of range")]
    Range {
        /// Name of the field.
        field: &'static str,
        /// Value found.
        value: u64,
    },
    /// A name occurs twice.
    #[error("service {name} occurs twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// An address that no single node can have.
    #[error("{address} is no node's address")]
    Address {
        /// The address.
        address: std::net::IpAddr,
    },
    /// Tables that nobody can use.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Not the encoding of a message.
    #[error("not decodable: {0}")]
    Encoding(String),
}

#[cfg(test)]
mod tests;
