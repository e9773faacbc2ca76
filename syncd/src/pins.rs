//! Replication of pins: connections that are at a real server which does not follow from the tables.
//!
//! A machine without sockets, clock or threads, beside the [`replica`](crate::replica), which keeps the tables. Each
//! director sends its own pins to every other one; what it heard from others it sends to nobody.
//!
//! | file | owns |
//! |---|---|
//! | `placement` | who holds a copy of which connection |
//! | `journal` | this director's pins, and what of them has changed |
//! | `outbox` | what one other director is still to be told |
//! | `numbers` | short names for what records repeat |
//! | `inbox` | what one other director tells, and whether it behaves |
//!
//! What is sent is how a connection stands when it is sent, and may be sent again: a batch that is lost, late or
//! doubled
//! costs time, not agreement. Time travels as seconds left, so that clocks need not agree.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use director_common::tables::{Address, FlowKey};
use director_proto::pins::{PinMessage, Position};
use director_proto::sync::BootId;
use serde::Serialize;
use tracing::{info, warn};

pub use inbox::{Delivery, Receipt, RemotePin};
pub use journal::{LocalPin, staleness};
pub use placement::{Class, HOMES, MESH, PIN_MESH, Placement, Replicas};

use inbox::{Inbox, Offence};
use journal::Journal;
use outbox::Outbox;

mod inbox;
mod journal;
mod numbers;
mod outbox;
mod placement;

/// Something of each connection, found in a few nanoseconds: there may be millions. The hash has a secret of this
/// process, since connections are what others choose.
pub type FlowMap<V> = HashMap<FlowKey, V, ahash::RandomState>;

/// Connections, likewise.
type FlowSet = HashSet<FlowKey, ahash::RandomState>;

/// Longest time for which a director that has tables waits for the pins of others before it serves.
pub const BARRIER: Duration = Duration::from_secs(30);

/// Time for directors that are configured to be heard, for one that has just got its tables: only then is it known whose
/// pins there are. Two attempts to reach them.
pub const HEARING: Duration = Duration::from_secs(3);

/// What the node tells.
#[derive(Debug)]
pub enum PinInput {
    /// Pins that it has met in its data plane.
    Met(Vec<LocalPin>),
    /// It has met all that there are, and begins again.
    WalkEnded,
    /// A delivery is in force.
    Applied(Applied),
    /// Services or servers have come of which pins had been passed over: they are to be told again.
    Again,
    /// A director is dead, and what it has left is this director's to tell from now on.
    Left {
        /// Which one.
        router_id: Ipv4Addr,
    },
    /// A director is heard by a run of this id, and what an earlier run has left is this director's to tell from now on.
    Came {
        /// Which one.
        router_id: Ipv4Addr,
        /// Which run of it.
        boot_id: BootId,
    },
    /// The same of what said no more than the slots did, as far as was known: as at a start, nothing is whole until all
    /// is told.
    Rejoin,
}

/// What became of a [`Delivery`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Which one.
    pub receipt: Receipt,
    /// Its [`Delivery::ends_snapshot`].
    pub ends_snapshot: bool,
    /// Pins of services that the node does not know.
    pub strangers: u32,
}

/// What there is to see of the exchange with one director.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PinStatus {
    /// Connections that it is still to be told of, or has not acknowledged.
    pub lag_records: u64,
    /// Milliseconds for which the oldest of them has waited.
    pub lag_ms: u64,
    /// Records sent to it.
    pub records_out: u64,
    /// Records that came from it.
    pub records_in: u64,
    /// Snapshots begun for it.
    pub snapshots_out: u64,
    /// Whether its pins are whole here.
    pub whole: bool,
    /// Batches of it that were thrown away, out of turn or while it was not heard.
    pub refused: u64,
    /// How often it was not heard for a while, for what it sent.
    pub silenced: u64,
}

/// Another director.
#[derive(Debug)]
struct Peer {
    boot_id: BootId,
    inbox: Inbox,
    outbox: Outbox,
    is_live: bool,
    /// Walks of this director that had ended when what the other one has left became this one's to tell.
    left_at: Option<u32>,
}

/// Walks that end before all that another director has left behind is this one's to tell: one may be under way, and the
/// next one meets everything.
const INHERITING: u32 = 2;

/// The machine.
#[derive(Debug)]
pub struct Pins {
    router_id: Ipv4Addr,
    boot_id: BootId,
    started: Instant,
    journal: Journal,
    peers: BTreeMap<Ipv4Addr, Peer>,
    placement: Placement,
    hash_key: [u8; 16],
    /// Since when this director has had tables.
    tables_since: Option<Instant>,
    /// The pins of all others were whole once.
    is_whole: bool,
    /// How often this director has begun to wait for them again.
    rejoins: u64,
    /// Other directors in the configuration.
    expected: usize,
    /// This director's own local addresses.
    locals: Vec<Address>,
    messages: VecDeque<(Ipv4Addr, PinMessage)>,
    deliveries: VecDeque<Delivery>,
}

impl Pins {
    /// The machine of this run of a director, at its start.
    pub fn new(now: Instant, router_id: Ipv4Addr, boot_id: BootId) -> Self {
        Self {
            router_id,
            boot_id,
            started: now,
            journal: Journal::default(),
            peers: BTreeMap::new(),
            placement: Placement::new(BTreeSet::from([router_id]), [0; 16]),
            hash_key: [0; 16],
            tables_since: None,
            is_whole: false,
            rejoins: 0,
            expected: 0,
            locals: Vec::new(),
            messages: VecDeque::new(),
            deliveries: VecDeque::new(),
        }
    }

    /// So many other directors are in the configuration: while fewer are live, a director that joins waits for
    /// [`HEARING`] whether the rest come.
    #[must_use]
    pub fn expecting(mut self, peers: usize) -> Self {
        self.expected = peers;
        self
    }

    /// This director takes ports of these addresses, which stand for clients by full NAT; the others are told.
    #[must_use]
    pub fn with_locals(mut self, locals: Vec<Address>) -> Self {
        self.locals = locals;
        self
    }

    /// The directors that are live now, without this one, and the key of the tables in force here, if any are.
    pub fn handle_members(
        &mut self,
        now: Instant,
        live: impl IntoIterator<Item = (Ipv4Addr, BootId)>,
        hash_key: Option<[u8; 16]>,
    ) {
        self.peers.values_mut().for_each(|peer| peer.is_live = false);
        for (router_id, boot_id) in live {
            let peer = self.peer(router_id, boot_id);
            peer.is_live = true;
        }
        if hash_key.is_some() {
            self.tables_since.get_or_insert(now);
        }
        let live = self.peers.iter().filter(|(_, peer)| peer.is_live).map(|(router_id, _)| *router_id);
        let members: BTreeSet<Ipv4Addr> = live.chain([self.router_id]).collect();
        let key = hash_key.unwrap_or(self.hash_key);
        if members != *self.placement.members() || key != self.hash_key {
            self.place(members, key);
        }
        let missing = self.missing();
        let live = self.peers.values().filter(|peer| peer.is_live).count();
        let Some(since) = self.tables_since.filter(|_| !self.is_whole) else { return };
        if missing == 0 {
            self.is_whole = live >= self.expected || now >= since + HEARING;
        } else if now >= since + BARRIER {
            self.is_whole = true;
            warn!(
                missing,
                "serving without the pins of all live directors: they have not come within {BARRIER:?}"
            );
        }
    }

    /// Live directors whose pins are not whole here.
    fn missing(&self) -> usize {
        self.peers.values().filter(|peer| peer.is_live && !peer.inbox.is_whole()).count()
    }

    fn place(&mut self, members: BTreeSet<Ipv4Addr>, key: [u8; 16]) {
        let is_mesh = |placement: &Placement| placement.members().len() <= PIN_MESH;
        let placement = Placement::new(members, key);
        let moves = !is_mesh(&self.placement) || !is_mesh(&placement);
        (self.placement, self.hash_key) = (placement, key);
        if moves {
            // Whoever has become a home of a connection has not been told of it.
            self.peers.values_mut().for_each(|peer| peer.outbox.demand_snapshot());
        }
    }

    fn peer(&mut self, router_id: Ipv4Addr, boot_id: BootId) -> &mut Peer {
        let new =
            |outbox| Peer { boot_id, inbox: Inbox::new(boot_id), outbox, is_live: false, left_at: None };
        let peer = self.peers.entry(router_id).or_insert_with(|| new(Outbox::default()));
        if peer.boot_id != boot_id {
            // It may have lost what the run before knew: then it learns from what that one has left to this director, once
            // the node has taken that over.
            *peer = Peer { left_at: peer.left_at, ..new(Outbox::inheriting()) };
            // What is still to be said was meant for the run before.
            self.messages.retain(|(to, _)| *to != router_id);
        }
        peer
    }

    /// A connection for pins to a director is up.
    pub fn handle_link(&mut self, router_id: Ipv4Addr, boot_id: BootId) {
        self.peer(router_id, boot_id).inbox.ask();
    }

    /// A message of a director.
    pub fn handle_message(&mut self, now: Instant, from: Ipv4Addr, boot_id: BootId, message: PinMessage) {
        let own = self.boot_id;
        let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.boot_id == boot_id) else { return };
        let handled = match message {
            PinMessage::Subscribe(subscription) => peer.inbox.handle_subscription(now).map(|()| {
                let same = subscription.boot_id == own;
                let position = if same { subscription.position } else { Position::default() };
                peer.outbox.subscribe(position, &self.journal);
            }),
            PinMessage::Acknowledge(position) => match peer.outbox.acknowledge(now, position) {
                true => Ok(()),
                false => Err(Offence::Acknowledgement),
            },
            PinMessage::Batch(batch) => peer.inbox.handle_batch(now, from, *batch).map(|delivery| {
                self.deliveries.extend(delivery);
            }),
        };
        if let Err(offence) = handled {
            self.silence(now, from, offence);
        }
    }

    fn silence(&mut self, now: Instant, from: Ipv4Addr, offence: Offence) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        warn!(peer = %from, %offence, "pins of this director are not taken for a while");
        peer.inbox.silence(now);
        self.deliveries.retain(|delivery| delivery.receipt.from != from);
    }

    /// Something the node tells. `same_tables` says which directors hold the tables that this one does.
    pub fn handle_node(&mut self, now: Instant, input: PinInput, same_tables: impl Fn(Ipv4Addr) -> bool) {
        let second = self.second(now);
        match input {
            PinInput::Met(pins) => {
                let shares = self.placement.filter(Class::Pin);
                for pin in pins {
                    let flow = pin.flow;
                    if self.journal.note(second, pin) && shares {
                        self.tell(now, flow);
                    }
                }
            }
            PinInput::WalkEnded => {
                let was_whole = self.journal.is_whole();
                for flow in self.journal.end_walk(second) {
                    self.tell(now, flow);
                }
                if !was_whole {
                    info!(pins = self.journal.len(), "this director's own pins are known");
                }
            }
            PinInput::Applied(applied) => self.handle_applied(now, applied, same_tables),
            PinInput::Rejoin => {
                self.peers.values_mut().for_each(|peer| peer.inbox.rejoin());
                (self.is_whole, self.tables_since) = (false, self.tables_since.map(|_| now));
                self.rejoins += 1;
            }
            PinInput::Left { router_id } => {
                if let Some(peer) = self.peers.get_mut(&router_id) {
                    peer.left_at.get_or_insert(self.journal.walks());
                }
            }
            PinInput::Came { router_id, boot_id } => {
                let peer = self.peers.get_mut(&router_id).filter(|peer| peer.boot_id == boot_id);
                if let Some(peer) = peer {
                    let since = peer.left_at.take().unwrap_or(self.journal.walks());
                    peer.outbox.inherit(since.saturating_add(INHERITING));
                }
            }
            PinInput::Again => self.peers.values_mut().for_each(|peer| peer.inbox.ask_for_all()),
        }
    }

    fn tell(&mut self, now: Instant, flow: FlowKey) {
        self.peers.values_mut().for_each(|peer| peer.outbox.push(now, flow));
    }

    fn handle_applied(&mut self, now: Instant, applied: Applied, same_tables: impl Fn(Ipv4Addr) -> bool) {
        let Receipt { from, boot_id, position } = applied.receipt;
        let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.boot_id == boot_id) else { return };
        let strangers = if same_tables(from) { applied.strangers } else { 0 };
        match peer.inbox.handle_applied(now, position, applied.ends_snapshot, strangers) {
            Ok(()) => self.messages.push_back((from, PinMessage::Acknowledge(position))),
            Err(offence) => self.silence(now, from, offence),
        }
    }

    /// The next message to send. It may get lost.
    pub fn poll_message(&mut self, now: Instant) -> Option<(Ipv4Addr, PinMessage)> {
        if let Some(message) = self.messages.pop_front() {
            return Some(message);
        }
        let second = self.second(now);
        let (journal, placement, locals) = (&self.journal, &self.placement, &self.locals);
        for (router_id, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.is_live) {
            if let Some(subscription) = peer.inbox.poll_subscription(now) {
                return Some((*router_id, PinMessage::Subscribe(subscription)));
            }
            let wants = |flow: &_| placement.replicas(Class::Pin, flow).has(*router_id);
            if let Some(batch) = peer.outbox.poll(now, second, journal, locals, wants) {
                return Some((*router_id, PinMessage::Batch(Box::new(batch))));
            }
        }
        None
    }

    /// The next delivery for the node.
    pub fn poll_delivery(&mut self) -> Option<Delivery> {
        self.deliveries.pop_front()
    }

    /// When to poll again though nothing came in.
    pub fn next_deadline(&self) -> Option<Instant> {
        let live = self.peers.values().filter(|peer| peer.is_live);
        let peers = live.flat_map(|peer| [peer.inbox.deadline(), peer.outbox.deadline()]).flatten();
        let limit = if self.missing() == 0 { HEARING } else { BARRIER };
        let waits = self.tables_since.filter(|_| !self.is_whole).map(|since| since + limit);
        peers.chain(waits).min()
    }

    /// Whether the pins of every live director have been whole here since this one has tables (or it has waited for
    /// [`BARRIER`] in vain): only then may it serve.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// How often [`PinInput::Rejoin`] was told.
    pub fn rejoins(&self) -> u64 {
        self.rejoins
    }

    /// What there is to see of the exchange with a director.
    pub fn status(&self, now: Instant, router_id: Ipv4Addr) -> Option<PinStatus> {
        let peer = self.peers.get(&router_id)?;
        let since = peer.outbox.lags_since();
        let lag = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        Some(PinStatus {
            lag_records: peer.outbox.lag() as u64,
            lag_ms: u64::try_from(lag.as_millis()).unwrap_or(u64::MAX),
            records_out: peer.outbox.records,
            records_in: peer.inbox.records,
            snapshots_out: peer.outbox.snapshots,
            whole: peer.inbox.is_whole(),
            refused: peer.inbox.refused,
            silenced: peer.inbox.silenced,
        })
    }

    /// This machine's own clock in whole seconds.
    fn second(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.started).as_secs()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
