//! Wire to domain: every length, range and name checked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use prost::Message as _;

use super::wire::{self, frame::Body};
use super::{
    BootId, Chunk, DefinitionsPiece, Frame, FrameError, Hello, MAX_CHUNK, MAX_HEARD, MAX_SNAPSHOT, MAX_TEXT,
    Message, Phase, Prepare, Report, Request,
};
use crate::definitions::MAX_ENCODED;
use crate::health::{Health, MAX_OBSERVED, Observations, RealId};
use crate::pins::PinMessage;
use crate::tables::{
    Delta, Digest, Epoch, MAX_DEFINITION, MAX_NAME, MAX_REALS, MAX_SERVICES, SLOTS, ServicePatch,
    ServiceTable, TableError, TableReal, TableSet, Version, is_table_size,
};

/// Decodes what [`super::encode_tables`] gave, and checks that the tables are usable.
pub fn decode_tables(bytes: Bytes) -> Result<TableSet, FrameError> {
    let message = wire::TableSet::decode(bytes).map_err(|error| FrameError::Encoding(error.to_string()))?;
    let hash_key = array("hash_key", &message.hash_key)?;
    let epoch = epoch(message.number, message.leader)?;
    let tables = TableSet { epoch, hash_key, services: services(message.services)? };
    tables.check()?;
    Ok(tables)
}

impl TryFrom<wire::Frame> for Frame {
    type Error = FrameError;

    fn try_from(frame: wire::Frame) -> Result<Self, FrameError> {
        Ok(match frame.body.ok_or(FrameError::Empty)? {
            Body::Hello(hello) => Self::Hello(hello.try_into()?),
            Body::Refusal(refusal) => Self::Refusal(text("reason", refusal.reason)?),
            Body::Report(report) => {
                let sent_at_us = report.sent_at_us;
                Self::Report(report.try_into()?, sent_at_us)
            }
            Body::Echo(sent_at_us) => Self::Echo(sent_at_us),
            Body::Request(request) => Self::Message(Message::Request(request.try_into()?)),
            Body::Chunk(chunk) => Self::Message(Message::Chunk(chunk.try_into()?)),
            Body::Prepare(prepare) => Self::Message(Message::Prepare(Arc::new(prepare.try_into()?))),
            Body::Prepared(version) => Self::Message(Message::Prepared(version.try_into()?)),
            Body::Refused(refused) => Self::Message(Message::Refused {
                version: required("version", refused.version)?.try_into()?,
                reason: text("reason", refused.reason)?,
            }),
            Body::Commit(version) => Self::Message(Message::Commit(version.try_into()?)),
            Body::Finish(version) => Self::Message(Message::Finish(version.try_into()?)),
            Body::Abort(version) => Self::Message(Message::Abort(version.try_into()?)),
            Body::Acknowledge(version) => Self::Message(Message::Acknowledge(version.try_into()?)),
            Body::Observations(observations) => {
                Self::Message(Message::Observations(Arc::new(observations.try_into()?)))
            }
            Body::ObservationsSince(edition) => Self::Message(Message::ObservationsSince(edition)),
            Body::WindowsRequest(request) => Self::Message(Message::WindowsRequest(request.try_into()?)),
            Body::Windows(chunk) => Self::Message(Message::Windows(chunk.try_into()?)),
            Body::DefinitionsRequest(request) => Self::Message(Message::DefinitionsRequest {
                digest: digest("digest", &request.digest)?,
                offset: within("offset", request.offset, MAX_ENCODED)?,
            }),
            Body::Definitions(piece) => Self::Message(Message::Definitions(piece.try_into()?)),
            Body::Wish(wish) => {
                Self::Message(Message::Wish { id: wish.id, digest: digest("digest", &wish.digest)? })
            }
            Body::WishOutcome(outcome) => Self::Message(Message::WishOutcome {
                id: outcome.id,
                outcome: match outcome.version {
                    Some(version) => Ok(version.try_into()?),
                    None => Err(text("reason", outcome.reason)?),
                },
            }),
            Body::PinSubscription(subscription) => Self::Pins(subscription.into()),
            Body::PinBatch(batch) => Self::Pins(PinMessage::Batch(Box::new(batch.try_into()?))),
            Body::PinAcknowledgement(acknowledgement) => Self::Pins(acknowledgement.into()),
        })
    }
}

impl TryFrom<wire::Hello> for Hello {
    type Error = FrameError;

    fn try_from(hello: wire::Hello) -> Result<Self, FrameError> {
        Ok(Self {
            protocol: hello.protocol,
            cluster: text("cluster", hello.cluster)?,
            router_id: Ipv4Addr::from_bits(hello.router_id),
            boot_id: BootId(hello.boot_id),
            endpoint: text("endpoint", hello.endpoint)?,
            software: text("software", hello.software)?,
        })
    }
}

impl TryFrom<wire::Report> for Report {
    type Error = FrameError;

    fn try_from(report: wire::Report) -> Result<Self, FrameError> {
        let length = report.hears.len();
        if length > MAX_HEARD {
            return Err(FrameError::Length { field: "hears", length });
        }
        let phase = match report.phase() {
            wire::Phase::Settled => Phase::Settled,
            wire::Phase::Preparing => Phase::Preparing,
            wire::Phase::Prepared => Phase::Prepared,
            wire::Phase::Committed => Phase::Committed,
        };
        Ok(Self {
            phase,
            tables: report.tables.map(TryInto::try_into).transpose()?,
            candidate: report.candidate.map(TryInto::try_into).transpose()?,
            config_digest: Digest(array("config_digest", &report.config_digest)?),
            software: text("software", report.software)?,
            observations: report.observations,
            sequence: report.sequence,
            prepared: report.prepared.map(TryInto::try_into).transpose()?,
            leader: Some(Ipv4Addr::from_bits(report.leads)).filter(|leader| !leader.is_unspecified()),
            hears: report.hears.into_iter().map(Ipv4Addr::from_bits).collect(),
            serves: report.serves,
            floor: report.floor,
        })
    }
}

impl TryFrom<wire::Prepare> for Prepare {
    type Error = FrameError;

    fn try_from(prepare: wire::Prepare) -> Result<Self, FrameError> {
        let (from, to) =
            (required("from", prepare.from)?.try_into()?, required("to", prepare.to)?.try_into()?);
        let delta: Option<Delta> = prepare.delta.map(TryInto::try_into).transpose()?;
        Ok(Self { from, to, cause: text("cause", prepare.cause)?, delta })
    }
}

impl TryFrom<wire::Version> for Version {
    type Error = FrameError;

    fn try_from(version: wire::Version) -> Result<Self, FrameError> {
        let epoch = epoch(version.number, version.leader)?;
        Ok(Self { epoch, digest: Digest(array("digest", &version.digest)?) })
    }
}

impl TryFrom<wire::Request> for Request {
    type Error = FrameError;

    fn try_from(request: wire::Request) -> Result<Self, FrameError> {
        let version = request.version.map(TryInto::try_into).transpose()?;
        Ok(Self { version, offset: within("offset", request.offset, MAX_SNAPSHOT)? })
    }
}

impl TryFrom<wire::Chunk> for Chunk {
    type Error = FrameError;

    fn try_from(chunk: wire::Chunk) -> Result<Self, FrameError> {
        let length = chunk.data.len();
        if length == 0 || length > MAX_CHUNK {
            return Err(FrameError::Length { field: "data", length });
        }
        let total = within("total", chunk.total, MAX_SNAPSHOT)?;
        let end = chunk.offset.saturating_add(length as u64);
        if end > total {
            return Err(FrameError::Range { field: "offset", value: chunk.offset });
        }
        let version = required("version", chunk.version)?.try_into()?;
        Ok(Self { version, offset: chunk.offset, total, data: chunk.data })
    }
}

impl TryFrom<wire::DefinitionsPiece> for DefinitionsPiece {
    type Error = FrameError;

    fn try_from(piece: wire::DefinitionsPiece) -> Result<Self, FrameError> {
        let length = piece.data.len();
        if length == 0 || length > MAX_CHUNK {
            return Err(FrameError::Length { field: "data", length });
        }
        let total = within("total", piece.total, MAX_ENCODED)?;
        if piece.offset.saturating_add(length as u64) > total {
            return Err(FrameError::Range { field: "offset", value: piece.offset });
        }
        let digest = digest("digest", &piece.digest)?;
        Ok(Self { digest, offset: piece.offset, total, data: piece.data })
    }
}

impl TryFrom<wire::Delta> for Delta {
    type Error = FrameError;

    fn try_from(delta: wire::Delta) -> Result<Self, FrameError> {
        let count = delta.replaced.len().max(delta.patched.len()).max(delta.removed.len());
        if count > MAX_SERVICES {
            return Err(TableError::TooManyServices { count }.into());
        }
        let mut patched = BTreeMap::new();
        for change in delta.patched {
            let name = name(change.name.clone())?;
            if patched.insert(name.clone(), patch(change)?).is_some() {
                return Err(FrameError::Twice { name });
            }
        }
        let replaced = services(delta.replaced)?;
        replaced.iter().try_for_each(|(name, table)| table.check(name))?;
        Ok(Self {
            from: required("from", delta.from)?.try_into()?,
            to: required("to", delta.to)?.try_into()?,
            replaced,
            patched,
            removed: delta.removed.into_iter().map(name).collect::<Result<BTreeSet<_>, _>>()?,
        })
    }
}

impl TryFrom<wire::Observations> for Observations {
    type Error = FrameError;

    fn try_from(observations: wire::Observations) -> Result<Self, FrameError> {
        let (from, to) = (observations.from, observations.to);
        if to <= from {
            return Err(FrameError::Range { field: "to", value: to });
        }
        let length = observations.observed.len();
        if length > MAX_OBSERVED {
            return Err(FrameError::Length { field: "observed", length });
        }
        let observed = observations.observed.into_iter().map(observed).collect::<Result<_, _>>()?;
        Ok(Self { from, to, observed })
    }
}

fn observed(observed: wire::Observed) -> Result<(RealId, Health), FrameError> {
    let health = match observed.health() {
        wire::Health::Unknown => Health::Unknown,
        wire::Health::Up => Health::Up,
        wire::Health::Down => Health::Down,
    };
    let service = name(observed.service)?;
    let real = RealId { service, address: address(&observed.address)?, port: port(observed.port)? };
    Ok((real, health))
}

fn services(services: Vec<wire::Service>) -> Result<BTreeMap<String, ServiceTable>, FrameError> {
    if services.len() > MAX_SERVICES {
        return Err(TableError::TooManyServices { count: services.len() }.into());
    }
    let mut tables = BTreeMap::new();
    for service in services {
        let name = name(service.name)?;
        let count = service.slots.len() / 2;
        if !service.slots.len().is_multiple_of(2) || !is_table_size(count) {
            return Err(TableError::SlotCount { service: name, count }.into());
        }
        let slots: Vec<u16> = service.slots.chunks_exact(2).map(|mut slot| slot.get_u16_le()).collect();
        let scheduler = self::name(service.scheduler)?;
        let reals = reals(&name, service.reals)?;
        let definition = definition(&name, service.definition)?;
        let table = ServiceTable { scheduler, reals, slots: slots.into(), definition };
        if tables.insert(name.clone(), table).is_some() {
            return Err(FrameError::Twice { name });
        }
    }
    Ok(tables)
}

fn patch(patch: wire::Patch) -> Result<ServicePatch, FrameError> {
    let length = patch.slots.len();
    if !length.is_multiple_of(6) || length > SLOTS * 6 {
        return Err(FrameError::Length { field: "slots", length });
    }
    let slots = patch.slots.chunks_exact(6).map(|mut slot| (slot.get_u32_le(), slot.get_u16_le())).collect();
    let reals = reals(&patch.name, patch.reals)?;
    let definition = patch.definition.map(|text| definition(&patch.name, text)).transpose()?;
    Ok(ServicePatch { scheduler: name(patch.scheduler)?, reals, slots, definition })
}

pub(crate) fn definition(service: &str, text: String) -> Result<Arc<str>, FrameError> {
    match text.len() {
        0..=MAX_DEFINITION => Ok(text.into()),
        length => Err(TableError::DefinitionLength { service: service.to_owned(), length }.into()),
    }
}

fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, FrameError> {
    Ok(Digest(array(field, bytes)?))
}

fn reals(service: &str, reals: Vec<wire::Real>) -> Result<Vec<TableReal>, FrameError> {
    if reals.len() > MAX_REALS {
        return Err(TableError::TooManyReals { service: service.to_owned(), count: reals.len() }.into());
    }
    reals.into_iter().map(real).collect()
}

fn real(real: wire::Real) -> Result<TableReal, FrameError> {
    let (address, port) = (address(&real.address)?, port(real.port)?);
    Ok(TableReal { address, port, weight: real.weight, dead: real.dead })
}

pub(crate) fn address(address: &[u8]) -> Result<IpAddr, FrameError> {
    match address.len() {
        4 => Ok(array::<4>("address", address)?.into()),
        _ => Ok(array::<16>("address", address)?.into()),
    }
}

pub(crate) fn port(port: u32) -> Result<u16, FrameError> {
    u16::try_from(port).map_err(|_| FrameError::Range { field: "port", value: port.into() })
}

/// Epoch 0 is never in force.
fn epoch(number: u64, leader: u32) -> Result<Epoch, FrameError> {
    match number {
        0 => Err(FrameError::Range { field: "number", value: 0 }),
        _ => Ok(Epoch { number, leader: Ipv4Addr::from_bits(leader) }),
    }
}

pub(crate) fn name(name: String) -> Result<String, FrameError> {
    match name.len() {
        1..=MAX_NAME => Ok(name),
        length => Err(FrameError::Length { field: "name", length }),
    }
}

fn text(field: &'static str, text: String) -> Result<String, FrameError> {
    match text.len() {
        0..=MAX_TEXT => Ok(text),
        length => Err(FrameError::Length { field, length }),
    }
}

fn array<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], FrameError> {
    bytes.try_into().map_err(|_| FrameError::Length { field, length: bytes.len() })
}

fn within(field: &'static str, value: u64, most: usize) -> Result<u64, FrameError> {
    if value > most as u64 { Err(FrameError::Range { field, value }) } else { Ok(value) }
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, FrameError> {
    value.ok_or(FrameError::Missing { field })
}
