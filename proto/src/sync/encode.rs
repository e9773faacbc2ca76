//! Domain to wire: total, nothing can fail.

use std::net::{IpAddr, Ipv4Addr};

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use super::wire::{self, frame::Body};
use super::{Chunk, Frame, Hello, Message, Phase, Prepare, Report, Request};
use crate::health::{Health, Observations, RealId};
use crate::tables::{Delta, ServicePatch, ServiceTable, TableReal, TableSet, Version};

/// Encodes tables canonically: equal tables give equal bytes.
pub fn encode_tables(tables: &TableSet) -> Bytes {
    let message = wire::TableSet {
        number: tables.epoch.number,
        leader: tables.epoch.leader.to_bits(),
        hash_key: Bytes::copy_from_slice(&tables.hash_key),
        services: tables.services.iter().map(|(name, table)| service(name, table)).collect(),
    };
    message.encode_to_vec().into()
}

/// Bytes of a delta on the wire, to compare with [`super::MAX_FRAME`].
pub fn encoded_delta_size(delta: &Delta) -> usize {
    wire::Delta::from(delta).encoded_len()
}

impl From<&Frame> for wire::Frame {
    fn from(frame: &Frame) -> Self {
        let body = match frame {
            Frame::Hello(hello) => Body::Hello(hello.into()),
            Frame::Refusal(reason) => Body::Refusal(wire::Refusal { reason: reason.clone() }),
            Frame::Report(report, sent_at_us) => Body::Report(self::report(report, *sent_at_us)),
            Frame::Echo(sent_at_us) => Body::Echo(*sent_at_us),
            Frame::Message(Message::Request(request)) => Body::Request((*request).into()),
            Frame::Message(Message::Chunk(chunk)) => Body::Chunk(chunk.into()),
            Frame::Message(Message::Prepare(prepare)) => Body::Prepare((&**prepare).into()),
            Frame::Message(Message::Prepared(version)) => Body::Prepared((*version).into()),
            Frame::Message(Message::Refused { version, reason }) => {
                Body::Refused(wire::Refused { version: Some((*version).into()), reason: reason.clone() })
            }
            Frame::Message(Message::Commit(version)) => Body::Commit((*version).into()),
            Frame::Message(Message::Finish(version)) => Body::Finish((*version).into()),
            Frame::Message(Message::Abort(version)) => Body::Abort((*version).into()),
            Frame::Message(Message::Acknowledge(version)) => Body::Acknowledge((*version).into()),
            Frame::Message(Message::Observations(observations)) => {
                Body::Observations((&**observations).into())
            }
            Frame::Message(Message::ObservationsSince(edition)) => Body::ObservationsSince(*edition),
            Frame::Message(Message::WindowsRequest(request)) => Body::WindowsRequest((*request).into()),
            Frame::Message(Message::Windows(chunk)) => Body::Windows(chunk.into()),
            Frame::Message(Message::DefinitionsRequest { digest, offset }) => {
                let digest = Bytes::copy_from_slice(&digest.0);
                Body::DefinitionsRequest(wire::DefinitionsRequest { digest, offset: *offset })
            }
            Frame::Message(Message::Definitions(piece)) => Body::Definitions(wire::DefinitionsPiece {
                digest: Bytes::copy_from_slice(&piece.digest.0),
                offset: piece.offset,
                total: piece.total,
                data: piece.data.clone(),
            }),
            Frame::Message(Message::Wish { id, digest }) => {
                Body::Wish(wire::Wish { id: *id, digest: Bytes::copy_from_slice(&digest.0) })
            }
            Frame::Message(Message::WishOutcome { id, outcome }) => Body::WishOutcome(wire::WishOutcome {
                id: *id,
                version: outcome.as_ref().ok().map(|version| (*version).into()),
                reason: outcome.as_ref().err().cloned().unwrap_or_default(),
            }),
            Frame::Pins(message) => message.into(),
        };
        Self { body: Some(body) }
    }
}

impl From<&Hello> for wire::Hello {
    fn from(hello: &Hello) -> Self {
        Self {
            protocol: hello.protocol,
            cluster: hello.cluster.clone(),
            router_id: hello.router_id.to_bits(),
            boot_id: hello.boot_id.0,
            endpoint: hello.endpoint.clone(),
            software: hello.software.clone(),
        }
    }
}

fn report(report: &Report, sent_at_us: u64) -> wire::Report {
    wire::Report {
        tables: report.tables.map(Into::into),
        candidate: report.candidate.map(Into::into),
        config_digest: Bytes::copy_from_slice(&report.config_digest.0),
        software: report.software.clone(),
        sent_at_us,
        observations: report.observations,
        sequence: report.sequence,
        prepared: report.prepared.map(Into::into),
        phase: phase(report.phase).into(),
        leads: report.leader.map_or(0, Ipv4Addr::to_bits),
        hears: report.hears.iter().map(|heard| heard.to_bits()).collect(),
        serves: report.serves,
        floor: report.floor,
    }
}

fn phase(phase: Phase) -> wire::Phase {
    match phase {
        Phase::Settled => wire::Phase::Settled,
        Phase::Preparing => wire::Phase::Preparing,
        Phase::Prepared => wire::Phase::Prepared,
        Phase::Committed => wire::Phase::Committed,
    }
}

impl From<&Prepare> for wire::Prepare {
    fn from(prepare: &Prepare) -> Self {
        Self {
            from: Some(prepare.from.into()),
            to: Some(prepare.to.into()),
            cause: prepare.cause.clone(),
            delta: prepare.delta.as_ref().map(Into::into),
        }
    }
}

impl From<Version> for wire::Version {
    fn from(version: Version) -> Self {
        Self {
            number: version.epoch.number,
            leader: version.epoch.leader.to_bits(),
            digest: Bytes::copy_from_slice(&version.digest.0),
        }
    }
}

impl From<Request> for wire::Request {
    fn from(request: Request) -> Self {
        Self { version: request.version.map(Into::into), offset: request.offset }
    }
}

impl From<&Chunk> for wire::Chunk {
    fn from(chunk: &Chunk) -> Self {
        Self {
            version: Some(chunk.version.into()),
            offset: chunk.offset,
            total: chunk.total,
            data: chunk.data.clone(),
        }
    }
}

impl From<&Delta> for wire::Delta {
    fn from(delta: &Delta) -> Self {
        Self {
            from: Some(delta.from.into()),
            to: Some(delta.to.into()),
            replaced: delta.replaced.iter().map(|(name, table)| service(name, table)).collect(),
            patched: delta.patched.iter().map(|(name, change)| patch(name, change)).collect(),
            removed: delta.removed.iter().cloned().collect(),
        }
    }
}

fn service(name: &str, table: &ServiceTable) -> wire::Service {
    let mut slots = BytesMut::with_capacity(table.slots.len().saturating_mul(2));
    table.slots.iter().for_each(|slot| slots.put_u16_le(*slot));
    wire::Service {
        name: name.to_owned(),
        scheduler: table.scheduler.clone(),
        reals: table.reals.iter().map(real).collect(),
        slots: slots.freeze(),
        definition: table.definition.to_string(),
    }
}

fn patch(name: &str, patch: &ServicePatch) -> wire::Patch {
    let mut slots = BytesMut::with_capacity(patch.slots.len().saturating_mul(6));
    for &(index, position) in &patch.slots {
        slots.put_u32_le(index);
        slots.put_u16_le(position);
    }
    wire::Patch {
        name: name.to_owned(),
        scheduler: patch.scheduler.clone(),
        reals: patch.reals.iter().map(real).collect(),
        slots: slots.freeze(),
        definition: patch.definition.as_deref().map(ToOwned::to_owned),
    }
}

impl From<&Observations> for wire::Observations {
    fn from(observations: &Observations) -> Self {
        Self {
            from: observations.from,
            to: observations.to,
            observed: observations.observed.iter().map(|(real, health)| observed(real, *health)).collect(),
        }
    }
}

fn observed(real: &RealId, health: Health) -> wire::Observed {
    let health = match health {
        Health::Unknown => wire::Health::Unknown,
        Health::Up => wire::Health::Up,
        Health::Down => wire::Health::Down,
    };
    wire::Observed {
        service: real.service.clone(),
        address: address(real.address),
        port: u32::from(real.port),
        health: health.into(),
    }
}

fn real(real: &TableReal) -> wire::Real {
    wire::Real {
        address: address(real.address),
        port: u32::from(real.port),
        weight: real.weight,
        dead: real.dead,
    }
}

pub(crate) fn address(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
        IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
    }
}
