//! What happened lately: changes of the databases, and calculations with what set them off. Bounded rings, for
//! whoever has to find out afterwards why a route came or went.

use std::{collections::VecDeque, fmt, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{Event, Machine, Protocol, Scope, SpfState, Time};
use crate::packet::wire::{LsaHeader, LsaKey};

/// Changes of LSAs that are remembered.
const LSA_EVENTS: usize = 256;
/// Changes of state that are remembered.
const STATE_EVENTS: usize = 128;
/// Calculations that are remembered.
const SPF_EVENTS: usize = 64;
/// Triggers of one calculation that are named; more are counted.
const NAMED_TRIGGERS: usize = 8;

/// What became of an LSA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LsaAction {
    /// One of ours went out in a new instance.
    Originated,
    /// One of ours was taken out of the domain.
    Flushed,
    /// A new instance came from a neighbour.
    Received,
    /// A neighbour said that its originator took it out of the domain.
    Withdrawn,
    /// It reached MaxAge here.
    Expired,
    /// Its checksum no longer held; forgotten.
    Damaged,
}

/// One change of a database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LsaEvent {
    /// Version of OSPF, 2 or 3.
    pub version: u8,
    /// Milliseconds ago.
    pub ago_ms: u64,
    /// What happened.
    pub action: LsaAction,
    /// `link NAME`, `area ID` or `domain`.
    pub scope: String,
    /// LS type.
    pub kind: u16,
    /// Link state id.
    pub id: Ipv4Addr,
    /// Originator.
    pub router: Ipv4Addr,
    /// Sequence number, as printed by routers.
    pub sequence: u32,
    /// Router id of the neighbour it came from.
    pub from: Option<Ipv4Addr>,
    /// Whether it says something else than before, rather than the same once more.
    pub changed: bool,
}

/// How much is calculated anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// Only which of the known routes are wanted.
    Selection,
    /// Destinations outside the domain (RFC 2328 section 16.6).
    Externals,
    /// And those in other areas (section 16.5).
    InterArea,
    /// The trees as well (section 16.1).
    Full,
}

/// Why routes are calculated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Trigger {
    Lsa { kind: u16, id: Ipv4Addr, router: Ipv4Addr },
    Neighbor(Ipv4Addr),
    Interface(String),
    Announcements,
    Protection,
    Configuration,
    Restart,
}

impl Trigger {
    pub(super) fn lsa<V: Protocol>(key: &LsaKey<V>) -> Self {
        Self::Lsa { kind: key.kind.into(), id: key.id, router: key.router }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lsa { kind, id, router } if *kind > 0xff => {
                write!(f, "LSA type {kind:#06x} id {id} from {router}")
            }
            Self::Lsa { kind, id, router } => write!(f, "LSA type {kind} id {id} from {router}"),
            Self::Neighbor(router) => write!(f, "neighbour {router}"),
            Self::Interface(name) => write!(f, "interface {name}"),
            Self::Announcements => f.write_str("announcements"),
            Self::Protection => f.write_str("protected prefixes"),
            Self::Configuration => f.write_str("configuration"),
            Self::Restart => f.write_str("end of the graceful restart"),
        }
    }
}

/// One calculation of routes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpfEvent {
    /// Version of OSPF, 2 or 3.
    pub version: u8,
    /// Milliseconds ago.
    pub ago_ms: u64,
    /// Milliseconds between the first trigger and the calculation.
    pub delay_ms: u64,
    /// What was calculated.
    pub extent: Extent,
    /// State of the back-off afterwards.
    pub state: SpfState,
    /// What set it off, the first few.
    pub triggers: Vec<String>,
    /// What set it off, all counted.
    pub trigger_count: u64,
    /// Routes meant for the kernel afterwards.
    pub routes: usize,
    /// Whether they differ from those before.
    pub changed: bool,
}

/// A neighbour or an interface changed its state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateEvent {
    /// Version of OSPF, 2 or 3.
    pub version: u8,
    /// Milliseconds ago.
    pub ago_ms: u64,
    /// [`Event::Neighbor`], [`Event::Interface`], [`Event::Helping`] or [`Event::HelpEnded`].
    pub event: Event,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
struct LsaRecord<V: Protocol> {
    at: Time,
    action: LsaAction,
    scope: Scope,
    key: LsaKey<V>,
    sequence: i32,
    from: Option<Ipv4Addr>,
    changed: bool,
}

/// What waits for the next calculation.
#[derive(Debug, Serialize, Deserialize)]
struct Pending {
    since: Time,
    extent: Extent,
    triggers: Vec<Trigger>,
    count: u64,
}

/// The rings.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(super) struct History<V: Protocol> {
    lsas: VecDeque<LsaRecord<V>>,
    spf: VecDeque<(Time, SpfEvent)>,
    states: VecDeque<(Time, Event)>,
    pending: Option<Pending>,
}

impl<V: Protocol> Default for History<V> {
    fn default() -> Self {
        Self { lsas: VecDeque::new(), spf: VecDeque::new(), states: VecDeque::new(), pending: None }
    }
}

fn push<T>(ring: &mut VecDeque<T>, most: usize, item: T) {
    if ring.len() >= most {
        ring.pop_front();
    }
    ring.push_back(item);
}

fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl<V: Protocol> Machine<V> {
    /// Something that routes depend on has changed: they are calculated when RFC 8405 lets it be.
    pub(super) fn request_spf(&mut self, extent: Extent, trigger: Trigger) {
        let now = self.now;
        self.spf.handle_event(now);
        let fresh = || Pending { since: now, extent, triggers: Vec::new(), count: 0 };
        let pending = self.history.pending.get_or_insert_with(fresh);
        pending.extent = pending.extent.max(extent);
        pending.count += 1;
        if pending.triggers.len() < NAMED_TRIGGERS && !pending.triggers.contains(&trigger) {
            pending.triggers.push(trigger);
        }
    }

    /// How much the next calculation covers.
    pub(super) fn pending_extent(&self) -> Option<Extent> {
        self.history.pending.as_ref().map(|pending| pending.extent)
    }

    pub(super) fn record_spf(&mut self, changed: bool) {
        let (now, state) = (self.now, self.spf.state(self.now));
        let Some(pending) = self.history.pending.take() else { return };
        let event = SpfEvent {
            version: V::NUMBER,
            ago_ms: 0,
            delay_ms: millis(now.since(pending.since)),
            extent: pending.extent,
            state,
            triggers: pending.triggers.iter().map(Trigger::to_string).collect(),
            trigger_count: pending.count,
            routes: self.routes.len(),
            changed,
        };
        push(&mut self.history.spf, SPF_EVENTS, (now, event));
    }

    pub(super) fn record_lsa(
        &mut self,
        action: LsaAction,
        scope: Scope,
        header: &LsaHeader<V>,
        from: Option<Ipv4Addr>,
        changed: bool,
    ) {
        let (key, sequence) = (header.key, header.sequence);
        let record = LsaRecord { at: self.now, action, scope, key, sequence, from, changed };
        push(&mut self.history.lsas, LSA_EVENTS, record);
    }

    /// Remembers an event, if it is one of state.
    pub(super) fn record_state(&mut self, event: &Event) {
        let is_one = matches!(
            event,
            Event::Neighbor { .. }
                | Event::Interface { .. }
                | Event::Helping { .. }
                | Event::HelpEnded { .. }
                | Event::Resuming { .. }
                | Event::Resumed { .. }
                | Event::Reminded { .. }
        );
        if is_one {
            push(&mut self.history.states, STATE_EVENTS, (self.now, event.clone()));
        }
    }

    /// Changes of state, the oldest first.
    pub(super) fn state_events(&self) -> Vec<StateEvent> {
        let event = |(at, event): &(Time, Event)| {
            let ago_ms = millis(self.now.since(*at));
            StateEvent { version: V::NUMBER, ago_ms, event: event.clone() }
        };
        self.history.states.iter().map(event).collect()
    }

    /// Changes of LSAs, the oldest first.
    pub(super) fn lsa_events(&self) -> Vec<LsaEvent> {
        let event = |record: &LsaRecord<V>| LsaEvent {
            version: V::NUMBER,
            ago_ms: millis(self.now.since(record.at)),
            action: record.action,
            scope: self.scope_name(record.scope),
            kind: record.key.kind.into(),
            id: record.key.id,
            router: record.key.router,
            sequence: record.sequence.cast_unsigned(),
            from: record.from,
            changed: record.changed,
        };
        self.history.lsas.iter().map(event).collect()
    }

    /// Calculations, the oldest first.
    pub(super) fn spf_events(&self) -> Vec<SpfEvent> {
        let aged = |(at, event): &(Time, SpfEvent)| SpfEvent {
            ago_ms: millis(self.now.since(*at)),
            ..event.clone()
        };
        self.history.spf.iter().map(aged).collect()
    }
}
