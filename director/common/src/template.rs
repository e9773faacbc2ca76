//! Persistence: for some time, all connections of a client go to one real server.
//!
//! The first connection of a client makes its *template*: an entry of the tables of connections ([`table`]) whose key is
//! the client and the service, and no flow ([`FlowKey::template`]). The client is an address, or all addresses of a network
//! ([`ServiceEntry::client`]). While the template lives, each new connection of the client goes to the template's server
//! instead of the one that the scheduler would choose: to whichever address and port of the service, and whatever the
//! server's weight and thresholds say.
//!
//! | the template's server | a new connection |
//! |---|---|
//! | serves, or is drained (weight 0) | goes there, and the template has its whole time again |
//! | is dead, or has left | goes to whom the scheduler chooses, and there is a new template |
//! | takes only what nobody else takes | likewise |
//!
//! That is IPVS's rule (`ip_vs_sched_persist`), and so is how a template ends: when its time after the last *new*
//! connection is up, unless a connection that it led to its server is known still. User space sees to that
//! (`dataplane/templates.rs`), so packets of connections under way look no template up.
//!
//! A template begins among the half-open connections, as those do: a flood of SYNs leaves nothing behind. With the second
//! packet of some connection of the client it goes to the pins, and from there to the other directors.
//!
//! [`table`]: crate::pin::table

use crate::packet::PROTOCOL_UDP;
use crate::pin::{Pin, PinCell, PinState, ServerId};
use crate::tables::{FlowKey, Roster, ServiceEntry, Tables};

/// The key of the template of whoever sends packets of `flow`.
#[inline(always)]
pub const fn key_of(service: &ServiceEntry, flow: &FlowKey) -> FlowKey {
    FlowKey::template(service.client(&flow.source), service.service)
}

/// The position of the server that the client's template names, for a connection that begins now; [`Roster::NOBODY`] if
/// there is no template, or none that counts: such a one is removed.
#[inline(always)]
pub fn recall(tables: &impl Tables, service: &ServiceEntry, flow: &FlowKey) -> u32 {
    let key = key_of(service, flow);
    if let Some(cell) = tables.pin(&key) {
        let position = follow(tables, service, cell);
        if position != Roster::NOBODY {
            return position;
        }
        tables.remove_pin(&key);
    }
    let Some(cell) = tables.half_open(&key) else { return Roster::NOBODY };
    let position = follow(tables, service, cell);
    if position == Roster::NOBODY {
        tables.remove_half_open(&key);
    } else if flow.protocol == PROTOCOL_UDP {
        // The second datagram, as that of a flow would be.
        assure(tables, &key, cell);
    }
    position
}

/// The position of the server that a template names, which has its whole time again; [`Roster::NOBODY`] if it is void.
#[inline(always)]
fn follow(tables: &impl Tables, service: &ServiceEntry, cell: &PinCell) -> u32 {
    let pin = cell.load();
    let position = u32::from(pin.server().position());
    if position >= service.real_count || position == tables.sorry(service) {
        return Roster::NOBODY;
    }
    match tables.real(service.real_base.wrapping_add(position)) {
        Some(real) if pin.server().is(real) => {
            cell.touch(&pin, tables.now());
            position
        }
        _ => Roster::NOBODY,
    }
}

/// Makes a template for a client that has none, whose connection is to begin with the server at `position`. Returns where
/// it is to begin: elsewhere if another processor has just made one. Where there is no room, the next connection is as the
/// first. Whoever takes only what nobody else takes gets no template: the client is to leave it when others serve again.
#[inline(always)]
pub fn make(tables: &impl Tables, service: &ServiceEntry, flow: &FlowKey, position: u32) -> u32 {
    if position >= service.real_count || position == tables.sorry(service) {
        return position;
    }
    let Some(real) = tables.real(service.real_base.wrapping_add(position)) else { return position };
    // Of datagrams one may be all that a flow has, so they count at once.
    let state = if flow.protocol == PROTOCOL_UDP { PinState::Open } else { PinState::Opening };
    let pin = Pin::new(ServerId::new(position as u16, real.generation), state, tables.now());
    let key = key_of(service, flow);
    if tables.add_half_open(&key, &pin) {
        return position;
    }
    let Some(cell) = tables.half_open(&key) else { return position };
    let found = follow(tables, service, cell);
    if found == Roster::NOBODY { position } else { found }
}

/// A connection of the client goes on: its template goes to the pins.
#[inline(always)]
pub(crate) fn confirm(tables: &impl Tables, service: &ServiceEntry, flow: &FlowKey) {
    let key = key_of(service, flow);
    if let Some(cell) = tables.half_open(&key) {
        assure(tables, &key, cell);
    }
}

/// Takes a template over from the half-open connections to the pins. Where those have no room, it stays.
#[inline(always)]
fn assure(tables: &impl Tables, key: &FlowKey, cell: &PinCell) {
    let pin = cell.load();
    let assured = Pin::new(pin.server(), PinState::Open, pin.seen as u32);
    if tables.add_pin(key, &assured) || tables.pin(key).is_some() {
        tables.remove_half_open(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedulers::Method;
    use crate::tables::Address;

    const V6: Address = Address(*b"\x20\x01\x0d\xb8\x12\x34\x56\x78\x9a\xbc\xde\xf0\x01\x02\x03\x04");

    fn service(v4: u8, v6: u8) -> ServiceEntry {
        let flags =
            ServiceEntry::tracking_flags(Method::RoundRobin) | ServiceEntry::persistence_flags(v4, v6);
        ServiceEntry { flags, ..ServiceEntry::default() }
    }

    #[test]
    fn a_client_is_the_first_bits_of_its_address_for_every_length() {
        let v4 = Address::from_ipv4([203, 0, 113, 255]);
        for length in 1..=32_u8 {
            let mask = u32::MAX << (32 - length);
            let expected = Address::from_ipv4((u32::from_be_bytes([203, 0, 113, 255]) & mask).to_be_bytes());
            assert_eq!(service(length, 128).client(&v4), expected, "/{length}");
            assert_eq!(service(length, 128).client(&V6), V6);
        }
        for length in 1..=128_u8 {
            let expected = Address((u128::from_be_bytes(V6.0) & u128::MAX << (128 - length)).to_be_bytes());
            assert_eq!(service(32, length).client(&V6), expected, "/{length}");
            assert_eq!(service(32, length).client(&v4), v4);
        }
    }

    #[test]
    fn the_flags_of_persistence_are_nobody_elses() {
        for (v4, v6) in [(1, 1), (32, 128), (24, 64), (1, 128), (32, 1)] {
            let service = service(v4, v6);
            assert!(service.is_persistent() && service.is_tracked());
            assert_eq!(service.method(), Method::RoundRobin);
            for flag in [
                ServiceEntry::FLAG_HASH_PORT,
                ServiceEntry::FLAG_ONE_PACKET,
                ServiceEntry::FLAG_QUIC,
                ServiceEntry::FLAG_REFUSE,
                ServiceEntry::FLAG_ECHO,
                ServiceEntry::FLAG_ECHO_KERNEL,
            ] {
                assert!(!service.has(flag), "/{v4}, /{v6}: {flag:#x}");
            }
        }
        assert_eq!(ServiceEntry::default().client(&V6), V6);
    }
}
