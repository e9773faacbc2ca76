//! What replication shows of itself.

use std::net::{Ipv4Addr, SocketAddr};

use director_proto::sync::{BootId, Phase};
use director_proto::tables::{Digest, Epoch};
use serde::Serialize;

use crate::pins::PinStatus;
use crate::replica::Standing;

/// This director and what it knows of the others.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Identity in the cluster.
    pub router_id: Ipv4Addr,
    /// This run of the process.
    pub boot_id: BootId,
    /// How our tables relate to the cluster's.
    pub standing: Standing,
    /// Epoch of the tables in force here.
    pub epoch: Option<Epoch>,
    /// Their digest.
    pub digest: Option<Digest>,
    /// Where the epoch under way stands here.
    pub phase: Phase,
    /// Who leads.
    pub leader: Option<Ipv4Addr>,
    /// Configured peers in their order, then those that reached us without being configured.
    pub peers: Vec<PeerStatus>,
    /// Whether the connections of all live directors are known here, so that this one may serve.
    pub pins_whole: bool,
    /// Directors that dialled us and were refused, the latest last, at most eight.
    pub refused: Vec<RefusedPeer>,
}

/// Where we stand with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// Never heard.
    Connecting,
    /// It refused us, or we refused it.
    Refused,
    /// Its heartbeats arrive.
    Up,
    /// Its heartbeats have stopped.
    Down,
}

/// One other director.
#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    /// Configured address, or where it says it listens.
    pub address: Option<SocketAddr>,
    /// Its identity, once known.
    pub router_id: Option<Ipv4Addr>,
    /// Its run, once known.
    pub boot_id: Option<BootId>,
    /// Where we stand.
    pub state: PeerState,
    /// Epoch of the tables in force there.
    pub epoch: Option<Epoch>,
    /// Their digest.
    pub digest: Option<Digest>,
    /// Where the epoch under way stands there.
    pub phase: Option<Phase>,
    /// Whether they are ours.
    pub same_tables: bool,
    /// Whether its services are configured as ours.
    pub same_config: bool,
    /// Milliseconds since it was heard.
    pub last_heard_ms: Option<u64>,
    /// Round trip of the last heartbeat in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Its software version.
    pub version: Option<String>,
    /// Why one of us does not talk.
    pub refused: Option<String>,
    /// Why it could not be reached last time.
    pub error: Option<String>,
    /// Bytes received from it, framing and TLS not counted.
    pub bytes_in: u64,
    /// Bytes sent to it.
    pub bytes_out: u64,
    /// Messages received from it.
    pub messages_in: u64,
    /// Messages sent to it.
    pub messages_out: u64,
    /// Messages not sent because its queue was full; what matters is repeated.
    pub messages_dropped: u64,
    /// Steps of an epoch that it has yet to answer.
    pub unacked: u64,
    /// Bytes received from it per second, over some seconds.
    pub bytes_in_per_second: f64,
    /// Bytes sent to it per second.
    pub bytes_out_per_second: f64,
    /// Connections exchanged with it.
    pub pins: PinStatus,
}

/// A director that dialled us and was refused.
#[derive(Clone, Debug, Serialize)]
pub struct RefusedPeer {
    /// Where it came from.
    pub remote: Option<SocketAddr>,
    /// What it was told.
    pub reason: String,
    /// Milliseconds since then.
    pub ago_ms: u64,
}
