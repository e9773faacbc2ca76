//! Pins on the wire: fixed records in one field, since a message for each would take three times the room and a
//! hundred times the time.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use director_common::pin::PinState;
use director_common::tables::{Address, Lease};

use super::{
    AGED_SIZE, Batch, Begin, LEASED_SIZE, Local, MAX_AGE, MAX_RECORDS, MAX_REMAINING, NEW, PinMessage,
    Position, RECORD_SIZE, REMOVAL_SIZE, Record, Removal, Server, Subscription, Target,
};
use crate::sync::decode::{address, name, port};
use crate::sync::wire::{self, frame::Body};
use crate::sync::{BootId, FrameError, encode};

/// First bit of the state in a record's expiry.
const STATE_SHIFT: u32 = 22;

impl From<&PinMessage> for Body {
    fn from(message: &PinMessage) -> Self {
        match message {
            PinMessage::Subscribe(Subscription { boot_id, position }) => {
                Self::PinSubscription(wire::PinSubscription {
                    boot_id: boot_id.0,
                    session: position.session,
                    sequence: position.sequence,
                })
            }
            PinMessage::Batch(batch) => Self::PinBatch((&**batch).into()),
            PinMessage::Acknowledge(Position { session, sequence }) => {
                Self::PinAcknowledgement(wire::PinAcknowledgement { session: *session, sequence: *sequence })
            }
        }
    }
}

impl From<wire::PinSubscription> for PinMessage {
    fn from(subscription: wire::PinSubscription) -> Self {
        let wire::PinSubscription { boot_id, session, sequence } = subscription;
        Self::Subscribe(Subscription { boot_id: BootId(boot_id), position: Position { session, sequence } })
    }
}

impl From<wire::PinAcknowledgement> for PinMessage {
    fn from(acknowledgement: wire::PinAcknowledgement) -> Self {
        let wire::PinAcknowledgement { session, sequence } = acknowledgement;
        Self::Acknowledge(Position { session, sequence })
    }
}

impl From<&Batch> for wire::PinBatch {
    fn from(batch: &Batch) -> Self {
        let (mut v4, mut v6) = (BytesMut::new(), BytesMut::new());
        let (mut leased_v4, mut leased_v6) = (BytesMut::new(), BytesMut::new());
        let (mut aged_v4, mut aged_v6) = (BytesMut::new(), BytesMut::new());
        for record in &batch.records {
            let Record { client, port, target, lease, age, .. } = *record;
            let is_aged = lease.is_some() && age > NEW;
            let (short, long) = match (lease.is_some(), is_aged) {
                (false, _) => (&mut v4, &mut v6),
                (true, false) => (&mut leased_v4, &mut leased_v6),
                (true, true) => (&mut aged_v4, &mut aged_v6),
            };
            let out = emit_client(short, long, client, port, target);
            out.put_u16_le(record.server);
            let expiry = record.remaining.min(MAX_REMAINING) | (record.state as u32) << STATE_SHIFT;
            out.put_uint_le(expiry.into(), 3);
            if lease.is_some() {
                out.put_u8(lease.number);
                out.put_u16_le(lease.port);
            }
            if is_aged {
                out.put_uint_le(age.min(MAX_AGE).into(), 3);
            }
        }
        let (mut removed_v4, mut removed_v6) = (BytesMut::new(), BytesMut::new());
        for Removal { client, port, target } in &batch.removals {
            emit_client(&mut removed_v4, &mut removed_v6, *client, *port, *target);
        }
        let begins = match batch.begins {
            None => wire::PinBegin::Not,
            Some(Begin::Snapshot) => wire::PinBegin::Snapshot,
            Some(Begin::Changes) => wire::PinBegin::Changes,
        };
        Self {
            session: batch.position.session,
            sequence: batch.position.sequence,
            begins: begins.into(),
            ends_snapshot: batch.ends_snapshot,
            targets: batch.targets.iter().map(target).collect(),
            servers: batch.servers.iter().map(server).collect(),
            size_v4: RECORD_SIZE.0 as u32,
            v4: v4.freeze(),
            size_v6: RECORD_SIZE.1 as u32,
            v6: v6.freeze(),
            removed_v4: removed_v4.freeze(),
            removed_v6: removed_v6.freeze(),
            locals: batch.locals.iter().map(local).collect(),
            size_leased_v4: LEASED_SIZE.0 as u32,
            leased_v4: leased_v4.freeze(),
            size_leased_v6: LEASED_SIZE.1 as u32,
            leased_v6: leased_v6.freeze(),
            size_aged_v4: AGED_SIZE.0 as u32,
            aged_v4: aged_v4.freeze(),
            size_aged_v6: AGED_SIZE.1 as u32,
            aged_v6: aged_v6.freeze(),
        }
    }
}

fn emit_client<'a>(
    v4: &'a mut BytesMut,
    v6: &'a mut BytesMut,
    client: Address,
    port: u16,
    target: u16,
) -> &'a mut BytesMut {
    let out = match client.ipv4() {
        Some(octets) => {
            v4.put_slice(&octets);
            v4
        }
        None => {
            v6.put_slice(&client.0);
            v6
        }
    };
    out.put_u16_le(port);
    out.put_u16_le(target);
    out
}

fn target((number, target): &(u16, Target)) -> wire::PinTarget {
    wire::PinTarget {
        number: u32::from(*number),
        protocol: u32::from(target.protocol),
        address: octets(target.address),
        port: u32::from(target.port),
    }
}

fn local((number, local): &(u8, Local)) -> wire::PinLocal {
    wire::PinLocal { number: u32::from(*number), address: octets(local.address), own: local.is_own }
}

fn octets(address: Address) -> Bytes {
    match address.ipv4() {
        Some(octets) => Bytes::copy_from_slice(&octets),
        None => Bytes::copy_from_slice(&address.0),
    }
}

fn server((number, server): &(u16, Server)) -> wire::PinServer {
    wire::PinServer {
        number: u32::from(*number),
        service: server.service.clone(),
        address: encode::address(server.address),
        port: u32::from(server.port),
    }
}

impl TryFrom<wire::PinBatch> for Batch {
    type Error = FrameError;

    fn try_from(batch: wire::PinBatch) -> Result<Self, FrameError> {
        let begins = match batch.begins() {
            wire::PinBegin::Not => None,
            wire::PinBegin::Snapshot => Some(Begin::Snapshot),
            wire::PinBegin::Changes => Some(Begin::Changes),
        };
        let position = Position { session: batch.session, sequence: batch.sequence };
        if position.session == 0 || position.sequence == 0 {
            return Err(FrameError::Range { field: "sequence", value: 0 });
        }
        let defined = [
            ("targets", batch.targets.len()),
            ("servers", batch.servers.len()),
            ("locals", batch.locals.len()),
        ];
        for (field, length) in defined {
            if length > MAX_RECORDS {
                return Err(FrameError::Length { field, length });
            }
        }
        let v4 = pieces("v4", &batch.v4, batch.size_v4, RECORD_SIZE.0)?;
        let v6 = pieces("v6", &batch.v6, batch.size_v6, RECORD_SIZE.1)?;
        let removed_v4 = pieces("removed_v4", &batch.removed_v4, REMOVAL_SIZE.0 as u32, REMOVAL_SIZE.0)?;
        let removed_v6 = pieces("removed_v6", &batch.removed_v6, REMOVAL_SIZE.1 as u32, REMOVAL_SIZE.1)?;
        let leased_v4 = pieces("leased_v4", &batch.leased_v4, batch.size_leased_v4, LEASED_SIZE.0)?;
        let leased_v6 = pieces("leased_v6", &batch.leased_v6, batch.size_leased_v6, LEASED_SIZE.1)?;
        let aged_v4 = pieces("aged_v4", &batch.aged_v4, batch.size_aged_v4, AGED_SIZE.0)?;
        let aged_v6 = pieces("aged_v6", &batch.aged_v6, batch.size_aged_v6, AGED_SIZE.1)?;
        let leased = leased_v4.len() + leased_v6.len() + aged_v4.len() + aged_v6.len();
        let pins = v4.len() + v6.len() + leased;
        let length = pins + removed_v4.len() + removed_v6.len();
        if length > MAX_RECORDS {
            return Err(FrameError::Length { field: "records", length });
        }
        let mut records = Vec::with_capacity(pins);
        for (pieces, length, has) in [
            (v4, 4, Has::Nothing),
            (v6, 16, Has::Nothing),
            (leased_v4, 4, Has::Lease),
            (leased_v6, 16, Has::Lease),
            (aged_v4, 4, Has::LeaseAndAge),
            (aged_v6, 16, Has::LeaseAndAge),
        ] {
            for bytes in pieces {
                records.push(record(bytes, length, has)?);
            }
        }
        let removal = |bytes, length| {
            let (client, port, target, _) = client(bytes, length);
            Removal { client, port, target }
        };
        Ok(Self {
            position,
            begins,
            ends_snapshot: batch.ends_snapshot,
            targets: batch.targets.into_iter().map(parse_target).collect::<Result<_, _>>()?,
            servers: batch.servers.into_iter().map(parse_server).collect::<Result<_, _>>()?,
            locals: batch.locals.iter().map(parse_local).collect::<Result<_, _>>()?,
            records,
            removals: removed_v4
                .map(|bytes| removal(bytes, 4))
                .chain(removed_v6.map(|bytes| removal(bytes, 16)))
                .collect(),
        })
    }
}

/// Records of `size` bytes, of which at least those that are known.
fn pieces<'a>(
    field: &'static str,
    bytes: &'a Bytes,
    size: u32,
    known: usize,
) -> Result<std::slice::ChunksExact<'a, u8>, FrameError> {
    // A field that is not there needs no size.
    let size = if bytes.is_empty() { known } else { size as usize };
    if size < known {
        return Err(FrameError::Range { field: "size", value: size as u64 });
    }
    if !bytes.len().is_multiple_of(size) {
        return Err(FrameError::Length { field, length: bytes.len() });
    }
    Ok(bytes.chunks_exact(size))
}

/// The beginning of a record whose address has `length` bytes, and what follows.
fn client(mut bytes: &[u8], length: usize) -> (Address, u16, u16, &[u8]) {
    let client = if length == 4 {
        Address::from_ipv4(bytes.get_u32().to_be_bytes())
    } else {
        Address(bytes.get_u128().to_be_bytes())
    };
    let (port, target) = (bytes.get_u16_le(), bytes.get_u16_le());
    (client, port, target, bytes)
}

/// What follows in a record after what all have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Has {
    Nothing,
    Lease,
    LeaseAndAge,
}

fn record(bytes: &[u8], length: usize, has: Has) -> Result<Record, FrameError> {
    let (client, port, target, mut rest) = client(bytes, length);
    let server = rest.get_u16_le();
    let expiry = rest.get_uint_le(3) as u32;
    let remaining = expiry & ((1 << STATE_SHIFT) - 1);
    if remaining > MAX_REMAINING {
        return Err(FrameError::Range { field: "expiry", value: remaining.into() });
    }
    let state = match expiry >> STATE_SHIFT {
        0 => PinState::Opening,
        1 => PinState::Open,
        2 => PinState::Finished,
        _ => PinState::Reset,
    };
    let lease = match has {
        Has::Lease | Has::LeaseAndAge => Lease { number: rest.get_u8(), port: rest.get_u16_le() },
        Has::Nothing => Lease::NONE,
    };
    let age = if has == Has::LeaseAndAge { rest.get_uint_le(3) as u32 } else { 0 };
    if has != Has::Nothing && (lease.number == 0 || lease.port == 0) {
        return Err(FrameError::Range { field: "lease", value: 0 });
    }
    Ok(Record { client, port, target, server, state, remaining, lease, age })
}

fn number(value: u32) -> Result<u16, FrameError> {
    u16::try_from(value).map_err(|_| FrameError::Range { field: "number", value: value.into() })
}

fn parse_target(target: wire::PinTarget) -> Result<(u16, Target), FrameError> {
    let protocol = u8::try_from(target.protocol)
        .map_err(|_| FrameError::Range { field: "protocol", value: target.protocol.into() })?;
    let address = parse_address(&target.address)?;
    Ok((number(target.number)?, Target { protocol, address, port: port(target.port)? }))
}

fn parse_address(bytes: &[u8]) -> Result<Address, FrameError> {
    Ok(match address(bytes)? {
        std::net::IpAddr::V4(address) => Address::from_ipv4(address.octets()),
        std::net::IpAddr::V6(address) => Address(address.octets()),
    })
}

fn parse_local(local: &wire::PinLocal) -> Result<(u8, Local), FrameError> {
    let ip = address(&local.address)?;
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        return Err(FrameError::Address { address: ip });
    }
    let address = parse_address(&local.address)?;
    match u8::try_from(local.number) {
        Ok(number) if number != 0 => Ok((number, Local { address, is_own: local.own })),
        _ => Err(FrameError::Range { field: "number", value: local.number.into() }),
    }
}

fn parse_server(server: wire::PinServer) -> Result<(u16, Server), FrameError> {
    let (address, port) = (address(&server.address)?, port(server.port)?);
    Ok((number(server.number)?, Server { service: name(server.service)?, address, port }))
}
