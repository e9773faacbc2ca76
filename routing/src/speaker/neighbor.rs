//! The neighbour machine (RFC 2328 section 10): the table of transitions, pure, and what is remembered of
//! one neighbour.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::Ipv4Addr,
};

use serde::{Deserialize, Serialize};

use super::{Protocol, Time, graceful::Help};
use crate::{
    auth::Heard,
    packet::wire::{Description, LsaHeader, LsaKey, Version},
};

/// States of a neighbour (section 10.1), in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NeighborState {
    /// Nothing heard, or silent for the dead interval.
    Down,
    /// Heard, but it has not heard us.
    Init,
    /// Both hear each other; no adjacency is wanted.
    TwoWay,
    /// Agreeing who leads the exchange.
    ExStart,
    /// Describing the databases.
    Exchange,
    /// Asking for what is missing.
    Loading,
    /// Databases are equal.
    Full,
}

/// Events of a neighbour (section 10.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are those of RFC 2328 section 10.2")]
pub enum NeighborEvent {
    HelloReceived,
    TwoWayReceived,
    NegotiationDone,
    ExchangeDone,
    BadLsReq,
    LoadingDone,
    AdjOk,
    SeqNumberMismatch,
    OneWay,
    KillNbr,
    InactivityTimer,
    LinkDown,
}

/// The state after `event` (section 10.3). `wanted` says whether an adjacency should exist (section 10.4).
/// An event that the RFC does not expect in a state changes nothing.
pub(super) fn next_state(state: NeighborState, event: NeighborEvent, wanted: bool) -> NeighborState {
    use NeighborEvent as E;
    use NeighborState as S;
    match (state, event) {
        (_, E::KillNbr | E::InactivityTimer | E::LinkDown) => S::Down,
        (S::Down, E::HelloReceived) => S::Init,
        (S::Init, E::TwoWayReceived) | (S::TwoWay, E::AdjOk) => {
            if wanted {
                S::ExStart
            } else {
                S::TwoWay
            }
        }
        (S::ExStart, E::NegotiationDone) => S::Exchange,
        (S::Exchange, E::ExchangeDone) => S::Loading,
        (S::Loading, E::LoadingDone) => S::Full,
        (S::ExStart | S::Exchange | S::Loading | S::Full, E::AdjOk) if !wanted => S::TwoWay,
        (S::Exchange | S::Loading | S::Full, E::SeqNumberMismatch | E::BadLsReq) => S::ExStart,
        (S::TwoWay | S::ExStart | S::Exchange | S::Loading | S::Full, E::OneWay) => S::Init,
        (
            state,
            E::HelloReceived
            | E::TwoWayReceived
            | E::NegotiationDone
            | E::ExchangeDone
            | E::BadLsReq
            | E::LoadingDone
            | E::AdjOk
            | E::SeqNumberMismatch
            | E::OneWay,
        ) => state,
    }
}

/// The database exchange with one neighbour.
#[derive(Debug, Default)]
pub(super) struct Exchange<V: Version> {
    /// We lead.
    pub(super) master: bool,
    pub(super) sequence: u32,
    /// Headers still to be described.
    pub(super) summary: VecDeque<LsaHeader<V>>,
    pub(super) last_received: Option<Description<V>>,
    pub(super) last_sent: Option<Description<V>>,
    /// When the last description is sent again.
    pub(super) resend: Option<Time>,
}

/// A neighbour on one interface.
#[derive(Debug)]
pub(super) struct Neighbor<V: Protocol> {
    pub(super) router: Ipv4Addr,
    pub(super) address: V::Address,
    /// What its Hellos say of its end of the link.
    pub(super) mark: u32,
    pub(super) state: NeighborState,
    /// Since when it has been in this state.
    pub(super) since: Time,
    pub(super) priority: u8,
    /// Whom it declares designated router and backup.
    pub(super) dr: Ipv4Addr,
    pub(super) bdr: Ipv4Addr,
    /// Dead unless heard again.
    pub(super) dead_at: Time,
    /// Cryptographic sequence numbers.
    pub(super) heard: Heard,
    pub(super) exchange: Exchange<V>,
    /// Options of its database descriptions.
    pub(super) options: u32,
    /// MTU in its last database description.
    pub(super) mtu: Option<u16>,
    /// LSAs it has newer than we do (link state request list).
    pub(super) requests: BTreeMap<LsaKey<V>, LsaHeader<V>>,
    /// Those asked for and not yet received, and when they are asked for again.
    pub(super) asked: BTreeSet<LsaKey<V>>,
    pub(super) ask_again: Option<Time>,
    /// LSAs sent and not acknowledged, and when each was sent (link state retransmission list).
    pub(super) unacknowledged: BTreeMap<LsaKey<V>, Time>,
    pub(super) resend_lsas: Option<Time>,
    /// It restarts gracefully, and we help.
    pub(super) help: Option<Help>,
}

impl<V: Protocol> Neighbor<V> {
    pub(super) fn new(router: Ipv4Addr, address: V::Address, now: Time) -> Self {
        Self {
            router,
            address,
            mark: 0,
            state: NeighborState::Down,
            since: now,
            priority: 0,
            dr: Ipv4Addr::UNSPECIFIED,
            bdr: Ipv4Addr::UNSPECIFIED,
            dead_at: now,
            heard: Heard::default(),
            exchange: Exchange::default(),
            options: 0,
            mtu: None,
            requests: BTreeMap::new(),
            asked: BTreeSet::new(),
            ask_again: None,
            unacknowledged: BTreeMap::new(),
            resend_lsas: None,
            help: None,
        }
    }

    /// How designated routers name it.
    pub(super) fn identity(&self) -> Ipv4Addr {
        V::identity(self.router, self.address)
    }

    /// Forgets the exchange and every list (section 10.3, actions of leaving an adjacency). The sequence
    /// number stays, so that the next exchange uses a new one.
    pub(super) fn clear(&mut self) {
        let sequence = self.exchange.sequence;
        self.exchange = Exchange { sequence, ..Exchange::default() };
        self.requests.clear();
        self.asked.clear();
        self.ask_again = None;
        self.unacknowledged.clear();
        self.resend_lsas = None;
    }

    pub(super) fn deadlines(&self) -> impl Iterator<Item = Time> + use<V> {
        // Who is helped may be silent.
        let dead_at = self.help.map_or(self.dead_at, |help| help.until);
        [Some(dead_at), self.exchange.resend, self.ask_again, self.resend_lsas].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::{NeighborEvent as E, NeighborState as S, next_state};

    #[test]
    fn transitions_follow_section_10_3() {
        let rows = [
            (S::Down, E::HelloReceived, true, S::Init),
            (S::Init, E::TwoWayReceived, false, S::TwoWay),
            (S::Init, E::TwoWayReceived, true, S::ExStart),
            (S::TwoWay, E::AdjOk, true, S::ExStart),
            (S::ExStart, E::NegotiationDone, true, S::Exchange),
            (S::Exchange, E::ExchangeDone, true, S::Loading),
            (S::Loading, E::LoadingDone, true, S::Full),
            (S::Full, E::AdjOk, true, S::Full),
            (S::Full, E::AdjOk, false, S::TwoWay),
            (S::Full, E::SeqNumberMismatch, true, S::ExStart),
            (S::Loading, E::BadLsReq, true, S::ExStart),
            (S::Full, E::OneWay, true, S::Init),
            (S::Init, E::OneWay, true, S::Init),
            (S::Full, E::InactivityTimer, true, S::Down),
            (S::ExStart, E::SeqNumberMismatch, true, S::ExStart),
            (S::Down, E::TwoWayReceived, true, S::Down),
        ];
        for (state, event, wanted, expected) in rows {
            assert_eq!(next_state(state, event, wanted), expected, "{state:?} {event:?} {wanted}");
        }
    }
}
