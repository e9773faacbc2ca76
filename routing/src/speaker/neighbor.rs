//! The neighbour machine (RFC 2328 section 10): the table of transitions, pure, and what is remembered of
//! one neighbour.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::Ipv4Addr,
};

use serde::{Deserialize, Serialize};

use super::{Protocol, Time, graceful::Help, reminder::Said};
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
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(bound = "")]
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
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
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
    #[serde(with = "crate::serial::pairs")]
    pub(super) requests: BTreeMap<LsaKey<V>, LsaHeader<V>>,
    /// Those asked for and not yet received, and when they are asked for again.
    pub(super) asked: BTreeSet<LsaKey<V>>,
    pub(super) ask_again: Option<Time>,
    /// LSAs sent and not acknowledged, and when each was sent (link state retransmission list).
    #[serde(with = "crate::serial::pairs")]
    pub(super) unacknowledged: BTreeMap<LsaKey<V>, Time>,
    pub(super) resend_lsas: Option<Time>,
    /// It restarts gracefully, and we help.
    pub(super) help: Option<Help>,
    #[serde(default)]
    pub(super) said: Said<V>,
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
            said: Said::default(),
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
        self.said = Said::default();
    }

    pub(super) fn deadlines(&self) -> impl Iterator<Item = Time> + use<V> {
        // Who is helped may be silent.
        let dead_at = self.help.map_or(self.dead_at, |help| help.until);
        [Some(dead_at), self.exchange.resend, self.ask_again, self.resend_lsas, self.said.due()]
            .into_iter()
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::{NeighborEvent as E, NeighborState as S, next_state};

    const STATES: [S; 7] = [S::Down, S::Init, S::TwoWay, S::ExStart, S::Exchange, S::Loading, S::Full];
    const EVENTS: [E; 12] = [
        E::HelloReceived,
        E::TwoWayReceived,
        E::NegotiationDone,
        E::ExchangeDone,
        E::BadLsReq,
        E::LoadingDone,
        E::AdjOk,
        E::SeqNumberMismatch,
        E::OneWay,
        E::KillNbr,
        E::InactivityTimer,
        E::LinkDown,
    ];

    /// What section 10.3 says: the states that an entry is for, its event, and the new state where an adjacency should
    /// exist, and where it should not. Whatever has no entry changes nothing.
    fn entries() -> Vec<(&'static [S], E, S, S)> {
        let (any, init_or_greater) = (&STATES[..], &STATES[1..]);
        let (two_way_or_greater, ex_start_or_greater, exchange_or_greater) =
            (&STATES[2..], &STATES[3..], &STATES[4..]);
        assert_eq!(init_or_greater[0], S::Init);
        vec![
            // "Start the Inactivity Timer for the neighbor. The timer's later firing would indicate that the neighbor is
            // dead."
            (&STATES[..1], E::HelloReceived, S::Init, S::Init),
            // "Determine whether an adjacency should be established with the neighbor (see Section 10.4). If not, the new
            // neighbor state is 2-Way. Otherwise (an adjacency should be established) the neighbor state transitions to
            // ExStart."
            (&STATES[1..2], E::TwoWayReceived, S::ExStart, S::TwoWay),
            // "The router must list the contents of its entire area link state database in the neighbor Database summary
            // list."
            (&STATES[3..4], E::NegotiationDone, S::Exchange, S::Exchange),
            // "If the neighbor Link state request list is empty, the new neighbor state is Full." It is so in the same
            // turn, by LoadingDone.
            (&STATES[4..5], E::ExchangeDone, S::Loading, S::Loading),
            // "No action required. This is an adjacency's final state."
            (&STATES[5..6], E::LoadingDone, S::Full, S::Full),
            // "Determine whether an adjacency should be formed with the neighboring router (see Section 10.4). If not, the
            // neighbor state remains at 2-Way. Otherwise, transition the neighbor state to ExStart".
            (&STATES[2..3], E::AdjOk, S::ExStart, S::TwoWay),
            // "Determine whether the neighboring router should still be adjacent. If yes, there is no state change and no
            // further action is necessary. Otherwise, the (possibly partially formed) adjacency must be destroyed. The
            // neighbor state transitions to 2-Way."
            (ex_start_or_greater, E::AdjOk, S::Down, S::TwoWay), // Down: stands for no change, see below
            // "The (possibly partially formed) adjacency is torn down, and then an attempt is made at reestablishment. The
            // neighbor state first transitions to ExStart."
            (exchange_or_greater, E::SeqNumberMismatch, S::ExStart, S::ExStart),
            // "The action for event BadLSReq is exactly the same as for the neighbor event SeqNumberMismatch."
            (exchange_or_greater, E::BadLsReq, S::ExStart, S::ExStart),
            // "The Link state retransmission list, Database summary list and Link state request list are cleared of LSAs.
            // Also, the Inactivity Timer is disabled."
            (any, E::KillNbr, S::Down, S::Down),
            (any, E::LinkDown, S::Down, S::Down),
            (any, E::InactivityTimer, S::Down, S::Down),
            // "State(s): 2-Way or greater, Event: 1-WayReceived, New state: Init".
            (two_way_or_greater, E::OneWay, S::Init, S::Init),
        ]
    }

    #[test]
    fn every_entry_of_section_10_3_and_no_other_change() {
        let entries = entries();
        for state in STATES {
            for event in EVENTS {
                let entry = entries.iter().find(|entry| entry.0.contains(&state) && entry.1 == event);
                let stays = event == E::AdjOk && state >= S::ExStart;
                let (wanted, unwanted) = match entry {
                    Some((.., unwanted)) if stays => (state, *unwanted),
                    Some((.., wanted, unwanted)) => (*wanted, *unwanted),
                    None => (state, state),
                };
                assert_eq!(next_state(state, event, true), wanted, "{state:?} {event:?}, wanted");
                assert_eq!(next_state(state, event, false), unwanted, "{state:?} {event:?}, not wanted");
            }
        }
    }
}
