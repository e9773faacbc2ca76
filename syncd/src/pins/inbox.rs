//! What one other director tells of its pins: its stream taken apart, and its manners watched.
//!
//! Nothing is believed that the stream cannot mean: a batch out of turn is not used but asked for again, and whoever
//! goes on sending what cannot be is not heard for a while. What it said before is left to expire.

use std::sync::Arc;
use std::time::{Duration, Instant};

use director_common::pin::PinState;
use director_common::tables::{Address, Endpoint, FlowKey, Lease};
use director_proto::pins::{Batch, Begin, MAX_UNACKNOWLEDGED, Position, Server, Subscription, Target};
use director_proto::sync::BootId;

/// A pin of another director.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemotePin {
    /// The connection.
    pub flow: FlowKey,
    /// Where it is: index in [`Delivery::servers`].
    pub server: u32,
    /// What it was last seen to do.
    pub state: PinState,
    /// Seconds until the pin expires, if no packet comes.
    pub remaining: u32,
    /// What stands for the client, by full NAT.
    pub local: Option<Endpoint>,
    /// Seconds since that was taken.
    pub age: u32,
}

/// Pins of another director, for the node to put into its data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Whose they are, and which batch: to be returned with [`Applied`](super::Applied).
    pub receipt: Receipt,
    /// A snapshot begins with this, or changes to what there is.
    pub begins: Option<Begin>,
    /// The snapshot is whole with this: what the other had and has not named since it began is no more.
    pub ends_snapshot: bool,
    /// The other's own local addresses, where a session begins with this.
    pub locals: Option<Vec<Address>>,
    /// The servers of these pins.
    pub servers: Vec<Arc<Server>>,
    /// Pins, in place of what was known of the same connections.
    pub pins: Vec<RemotePin>,
    /// Connections that the other has no pin of any more.
    pub removed: Vec<FlowKey>,
}

/// Names a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The director it comes from.
    pub from: std::net::Ipv4Addr,
    /// Which run of it.
    pub boot_id: BootId,
    /// Which of its batches.
    pub position: Position,
}

/// Why a director is not heard for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Offence {
    /// It has more local addresses than there can be.
    #[error("it has more than {MAX_OWN_LOCALS} local addresses of its own")]
    Locals,
    /// It uses a number that it has not defined.
    #[error("its records name what it has not defined")]
    Undefined,
    /// It does not wait for acknowledgements.
    #[error("it sends more than {MAX_UNACKNOWLEDGED} batches ahead")]
    Flood,
    /// It jumps in its sequence again and again.
    #[error("its sequence of batches jumps again and again")]
    Jumps,
    /// It has pins of services that nobody has.
    #[error("it has connections of services that do not exist")]
    Strangers,
    /// It asks for everything again and again, which costs a list of all connections each time.
    #[error("it asks again and again for what it is sent")]
    Subscriptions,
    /// It acknowledges what it was never sent.
    #[error("it acknowledges what it was never sent")]
    Acknowledgement,
}

/// Most local addresses of one director: sixteen of each family.
const MAX_OWN_LOCALS: usize = 32;
/// Time for which an offender is not heard.
const SILENCE: Duration = Duration::from_secs(60);
/// Offences are forgotten after this time.
const MEMORY: Duration = Duration::from_secs(60);
/// Batches out of turn that are forgiven in that time: when a connection breaks, or another one takes its place, all
/// that
/// are on their way are.
const JUMPS: u32 = 1_024;
/// Pins of unknown services that are forgiven in it, while the tables are equal: they may have just changed.
const STRANGERS: u32 = 16_384;
/// Subscriptions that are forgiven in it: twice as many as a director sends that waits for a first walk.
const SUBSCRIPTIONS: u32 = 120;
/// Time between two requests for the same.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The stream from one director.
#[derive(Debug)]
pub(super) struct Inbox {
    boot_id: BootId,
    /// The last batch taken.
    taken: Position,
    /// The last one in force.
    applied: Position,
    /// The last session that does not count any more.
    past: u64,
    /// Batches at the node.
    pending: usize,
    targets: Vec<Option<Target>>,
    servers: Vec<Option<Arc<Server>>>,
    /// By number; that is a byte.
    locals: Vec<Option<Address>>,
    /// A whole snapshot of this run is in force.
    whole: bool,
    asked: Option<Instant>,
    jumps: u32,
    strangers: u32,
    subscriptions: u32,
    watched_since: Option<Instant>,
    silenced_until: Option<Instant>,
    /// Records taken.
    pub(super) records: u64,
    /// Batches thrown away.
    pub(super) refused: u64,
    /// How often it was silenced.
    pub(super) silenced: u64,
}

impl Inbox {
    pub(super) fn new(boot_id: BootId) -> Self {
        Self {
            boot_id,
            taken: Position::default(),
            applied: Position::default(),
            past: 0,
            pending: 0,
            targets: Vec::new(),
            servers: Vec::new(),
            locals: Vec::new(),
            whole: false,
            asked: None,
            jumps: 0,
            strangers: 0,
            subscriptions: 0,
            watched_since: None,
            silenced_until: None,
            records: 0,
            refused: 0,
            silenced: 0,
        }
    }

    /// Whether a whole snapshot of the other's present run is in force.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// What to ask for, if it is time to.
    pub(super) fn poll_subscription(&mut self, now: Instant) -> Option<Subscription> {
        if self.silenced_until.is_some_and(|until| now >= until) {
            self.silenced_until = None;
            self.ask();
        }
        // As long as nothing is whole, it is asked for again: requests get lost.
        let due = self.asked.is_none_or(|asked| !self.whole && self.pending == 0 && now >= asked + ASK_AGAIN);
        if !due || self.silenced_until.is_some() {
            return None;
        }
        self.asked = Some(now);
        let boot_id = if self.applied.session == 0 { BootId(0) } else { self.boot_id };
        Some(Subscription { boot_id, position: self.applied })
    }

    /// When to poll again though nothing came in.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let again = self.asked.filter(|_| !self.whole && self.pending == 0).map(|asked| asked + ASK_AGAIN);
        self.silenced_until.or(again)
    }

    /// The connection is new: what was on its way is lost.
    pub(super) fn ask(&mut self) {
        self.asked = None;
    }

    /// What is known is not enough any more: everything has to be told anew.
    pub(super) fn ask_for_all(&mut self) {
        self.past = self.past.max(self.taken.session);
        (self.applied, self.taken, self.pending) = (Position::default(), Position::default(), 0);
        self.ask();
    }

    /// The same, and nothing is whole until it is.
    pub(super) fn rejoin(&mut self) {
        self.ask_for_all();
        // Whoever is not heard is not waited for.
        self.whole = self.silenced_until.is_some();
    }

    /// Takes a batch; what the node is to do with it, if it is the next one.
    pub(super) fn handle_batch(
        &mut self,
        now: Instant,
        from: std::net::Ipv4Addr,
        batch: Batch,
    ) -> Result<Option<Delivery>, Offence> {
        let position = batch.position;
        let is_next = match batch.begins {
            Some(Begin::Snapshot) => position.session > self.taken.session && position.sequence == 1,
            // To build on what was sent before, one must have begun with a snapshot.
            Some(Begin::Changes) => {
                position.session > self.taken.session && position.sequence == 1 && self.taken.session != 0
            }
            None => position.session == self.taken.session && position.sequence == self.taken.sequence + 1,
        };
        if self.silenced_until.is_some() || position <= self.taken {
            self.refused += 1;
            return Ok(None);
        }
        let is_full = self.pending >= MAX_UNACKNOWLEDGED;
        if !is_next || is_full {
            self.refused += 1;
            self.watch(now);
            self.jumps += 1;
            if self.asked.is_none_or(|asked| now >= asked + ASK_AGAIN) {
                self.ask();
            }
            return match (self.jumps > JUMPS, is_full) {
                (false, _) => Ok(None),
                (true, false) => Err(Offence::Jumps),
                (true, true) => Err(Offence::Flood),
            };
        }
        if batch.begins.is_some() {
            (self.targets, self.servers, self.locals) = (Vec::new(), Vec::new(), Vec::new());
        }
        (self.taken, self.asked) = (position, Some(now));
        let delivery = self.open(from, batch)?;
        self.pending += 1;
        self.records += (delivery.pins.len() + delivery.removed.len()) as u64;
        Ok(Some(delivery))
    }

    /// Puts the meaning of numbers into a batch.
    fn open(&mut self, from: std::net::Ipv4Addr, batch: Batch) -> Result<Delivery, Offence> {
        for (number, target) in batch.targets {
            *place(&mut self.targets, number) = Some(target);
        }
        for (number, server) in batch.servers {
            *place(&mut self.servers, number) = Some(Arc::new(server));
        }
        let own = || batch.locals.iter().filter(|(_, local)| local.is_own).map(|(_, local)| local.address);
        if own().count() > MAX_OWN_LOCALS {
            return Err(Offence::Locals);
        }
        let locals = batch.begins.map(|_| own().collect());
        for (number, local) in batch.locals {
            *place(&mut self.locals, number.into()) = Some(local.address);
        }
        let mut servers: Vec<Arc<Server>> = Vec::new();
        let mut named: Vec<Option<u32>> = vec![None; self.servers.len()];
        let mut pins = Vec::with_capacity(batch.records.len());
        for record in batch.records {
            let flow = self.flow(record.client, record.port, record.target)?;
            let number = usize::from(record.server);
            let (Some(Some(server)), Some(index)) = (self.servers.get(number), named.get_mut(number)) else {
                return Err(Offence::Undefined);
            };
            let server = *index.get_or_insert_with(|| {
                servers.push(Arc::clone(server));
                servers.len() as u32 - 1
            });
            let (state, remaining, age) = (record.state, record.remaining, record.age);
            pins.push(RemotePin { flow, server, state, remaining, local: self.end(record.lease)?, age });
        }
        let removed = batch
            .removals
            .into_iter()
            .map(|removal| self.flow(removal.client, removal.port, removal.target))
            .collect::<Result<_, _>>()?;
        let receipt = Receipt { from, boot_id: self.boot_id, position: batch.position };
        Ok(Delivery {
            receipt,
            begins: batch.begins,
            ends_snapshot: batch.ends_snapshot,
            locals,
            servers,
            pins,
            removed,
        })
    }

    /// What a lease stands for, if it is one.
    fn end(&self, lease: Lease) -> Result<Option<Endpoint>, Offence> {
        if !lease.is_some() {
            return Ok(None);
        }
        let address = self.locals.get(usize::from(lease.number)).copied().flatten();
        let address = address.ok_or(Offence::Undefined)?;
        Ok(Some(Endpoint { address, port: lease.port, reserved: 0 }))
    }

    fn flow(&self, source: Address, source_port: u16, target: u16) -> Result<FlowKey, Offence> {
        let target = self.targets.get(usize::from(target)).copied().flatten().ok_or(Offence::Undefined)?;
        Ok(FlowKey {
            source,
            destination: target.address,
            source_port,
            destination_port: target.port,
            protocol: target.protocol,
            ..FlowKey::default()
        })
    }

    /// The node has put a batch in force, `strangers` of whose pins are of services that it does not know although it
    /// holds the same tables.
    pub(super) fn handle_applied(
        &mut self,
        now: Instant,
        position: Position,
        ends_snapshot: bool,
        strangers: u32,
    ) -> Result<(), Offence> {
        if position.session <= self.past {
            // Of before everything was asked for again.
            return Ok(());
        }
        self.pending = self.pending.saturating_sub(1);
        self.applied = self.applied.max(position);
        self.whole |= ends_snapshot;
        self.watch(now);
        self.strangers = self.strangers.saturating_add(strangers);
        if self.strangers > STRANGERS { Err(Offence::Strangers) } else { Ok(()) }
    }

    fn watch(&mut self, now: Instant) {
        if self.watched_since.is_none_or(|since| now >= since + MEMORY) {
            self.watched_since = Some(now);
            (self.jumps, self.strangers, self.subscriptions) = (0, 0, 0);
        }
    }

    /// The other asks for our pins.
    pub(super) fn handle_subscription(&mut self, now: Instant) -> Result<(), Offence> {
        self.watch(now);
        self.subscriptions += 1;
        match self.subscriptions {
            0..=SUBSCRIPTIONS => Ok(()),
            // Said once; what follows is passed over.
            _ => Err(Offence::Subscriptions),
        }
    }

    /// Hears nothing more of the other for a while.
    pub(super) fn silence(&mut self, now: Instant) {
        self.silenced_until = Some(now + SILENCE);
        self.silenced += 1;
        self.ask_for_all();
        (self.jumps, self.strangers) = (0, 0);
        // Whoever lies shall not keep this director from serving.
        self.whole = true;
    }
}

fn place<T>(all: &mut Vec<Option<T>>, number: u16) -> &mut Option<T> {
    let index = usize::from(number);
    if all.len() <= index {
        all.resize_with(index + 1, || None);
    }
    &mut all[index]
}
