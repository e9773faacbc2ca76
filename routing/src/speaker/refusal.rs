//! Every reason why a packet, or something in it, is not taken: the names of the counters, and the pacing
//! of the log lines that go with them.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{InterfaceId, Time};
use crate::packet::ParseError;

/// One interface says the same thing in the log at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Why something received was refused. Each is a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Shorter than its structure.
    Short,
    /// Another protocol version.
    Version,
    /// A length field that does not fit what came.
    Length,
    /// Wrong packet checksum.
    Checksum,
    /// Unknown packet type.
    PacketType,
    /// Another authentication type, or none.
    Authentication,
    /// A key id that is not configured.
    AuthenticationKey,
    /// A key outside the time in which it is accepted.
    AuthenticationExpired,
    /// A wrong digest or password.
    AuthenticationDigest,
    /// A cryptographic sequence number that was passed already.
    AuthenticationSequence,
    /// An IP TTL or hop limit below 255: the packet came through a router (RFC 5082).
    Ttl,
    /// Sent by ourselves and looped back.
    OwnPacket,
    /// A neighbour with our own router id.
    DuplicateRouterId,
    /// Router id zero.
    RouterIdZero,
    /// Another instance id than the interface's (RFC 5340 section 2.4).
    Instance,
    /// Another area than the interface's.
    Area,
    /// Source address that cannot be on the link: outside its subnet, or not link-local.
    Source,
    /// Addressed to somebody else.
    Destination,
    /// Received on an interface that is passive, down or unknown.
    InterfaceInactive,
    /// Hello with another network mask.
    HelloMask,
    /// Hello with another hello interval.
    HelloInterval,
    /// Hello with another dead interval.
    DeadInterval,
    /// Hello that disagrees about the area being a stub (E bit).
    ExternalCapability,
    /// Hello from an NSSA (N bit) in an area that is none.
    NssaCapability,
    /// Packet other than a Hello from a router that sent no Hello.
    UnknownNeighbor,
    /// Packet that does not fit the neighbour's state.
    NeighborState,
    /// Database description with a larger MTU than ours.
    Mtu,
    /// Database description out of sequence; the exchange starts again.
    DescriptionSequence,
    /// Database description that lists what cannot be in this area.
    DescriptionContent,
    /// Request for an LSA we do not hold; the exchange starts again.
    BadRequest,
    /// Acknowledgement of another instance than the one sent.
    StrayAck,
    /// LSA with a wrong checksum.
    LsaChecksum,
    /// LSA of unknown type.
    LsaType,
    /// LSA that may not be in this area.
    LsaScope,
    /// LSA whose body is malformed.
    LsaBody,
    /// LSA with the reserved sequence number, or a Router-LSA whose id is not its originator.
    LsaHeader,
    /// LSA instance that came within a second of the last one (MinLSArrival).
    LsaTooSoon,
    /// Own LSA in a newer instance than ours, superseded.
    LsaOwnNewer,
    /// LSA that was in order when it came, and whose checksum no longer holds: memory is failing, or a program writes
    /// where it should not. Forgotten, and asked for again.
    LsaDamaged,
    /// Grace-LSA that is malformed, or of a neighbour that cannot be helped.
    Grace,
}

impl From<&ParseError> for Refusal {
    fn from(error: &ParseError) -> Self {
        match error {
            ParseError::Short { .. } => Self::Short,
            ParseError::Version { .. } => Self::Version,
            ParseError::Length { .. } | ParseError::LsaLength { .. } => Self::Length,
            ParseError::Checksum => Self::Checksum,
            ParseError::Type { .. } => Self::PacketType,
            ParseError::Authentication { .. } => Self::Authentication,
            ParseError::LsaType { .. } => Self::LsaType,
            ParseError::PrefixLength { .. } => Self::LsaBody,
        }
    }
}

/// The counters, and when each was last said aloud.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Refusals {
    counts: BTreeMap<InterfaceId, BTreeMap<Refusal, u64>>,
    #[serde(with = "crate::serial::pairs")]
    said: BTreeMap<(InterfaceId, Refusal), Time>,
}

impl Refusals {
    /// Counts `reason`; true if it is time to say so in the log.
    pub(super) fn count(&mut self, now: Time, interface: InterfaceId, reason: Refusal) -> bool {
        *self.counts.entry(interface).or_default().entry(reason).or_default() += 1;
        let said = self.said.get(&(interface, reason));
        let due = said.is_none_or(|said| now.since(*said) >= LOG_INTERVAL);
        if due {
            self.said.insert((interface, reason), now);
        }
        due
    }

    /// All counters that are not zero, of all interfaces together.
    pub(super) fn counts(&self) -> BTreeMap<Refusal, u64> {
        let mut all = BTreeMap::new();
        for (reason, count) in self.counts.values().flatten() {
            *all.entry(*reason).or_default() += count;
        }
        all
    }

    /// Those of one interface.
    pub(super) fn counts_on(&self, interface: InterfaceId) -> BTreeMap<Refusal, u64> {
        self.counts.get(&interface).cloned().unwrap_or_default()
    }
}
