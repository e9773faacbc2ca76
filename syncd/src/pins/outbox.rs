//! What one other director is still to be told of this one's pins.
//!
//! A connection waits in the queue at most once, and what is sent is how it stands then. So nothing sent is kept: what
//! was lost on the way is queued again by its name. A queue that grows beyond its bound is given up for a snapshot.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use director_common::tables::{Address, FlowKey, Lease};
use director_proto::pins::{Batch, Begin, Local, MAX_RECORDS, Position, Record, Removal};

use super::FlowSet;
use super::journal::Journal;
use super::numbers::Numbers;

/// Most connections that wait, some 16 MB; beyond, a snapshot is cheaper.
const QUEUE: usize = 1 << 18;
/// Most batches that are sent and not acknowledged.
pub(super) const WINDOW: usize = 16;
/// Silence after which what was sent counts as lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of definitions in one batch, beside its records, after which it is full.
const DEFINITIONS: usize = 96 * 1024;

/// A batch that is on its way.
#[derive(Debug)]
struct Sent {
    sequence: u64,
    flows: Vec<FlowKey>,
    /// It says that the snapshot is whole.
    ends_snapshot: bool,
    /// Since when the oldest of it had to be told.
    due: Instant,
    at: Instant,
}

/// The stream to one director.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: VecDeque<(FlowKey, Instant)>,
    queued: FlowSet,
    /// The queue has overflowed, or the other has nothing yet: only a snapshot helps.
    lacks_snapshot: bool,
    session: Option<Session>,
    /// Number of the last session.
    last_session: u64,
    /// Walks that have to have ended before a snapshot is whole; `None` as long as nobody has said how many.
    walks: Option<u32>,
    /// Records sent, again included.
    pub(super) records: u64,
    /// Snapshots begun.
    pub(super) snapshots: u64,
}

#[derive(Debug)]
struct Session {
    number: u64,
    /// What the other had when it began.
    base: Position,
    /// How the first batch, which is still to be sent, begins.
    begins: Option<Begin>,
    next: u64,
    sent: VecDeque<Sent>,
    /// What of the snapshot is still to be sent; `None` once its end was.
    snapshot: Option<Vec<FlowKey>>,
    numbers: Numbers,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            queued: FlowSet::default(),
            lacks_snapshot: true,
            session: None,
            last_session: 0,
            walks: Some(0),
            records: 0,
            snapshots: 0,
        }
    }
}

impl Outbox {
    /// A stream whose snapshots are not whole before [`Self::inherit`] was called.
    pub(super) fn inheriting() -> Self {
        Self { walks: None, ..Self::default() }
    }

    /// If nothing was said of it so far, snapshots are not whole before so many walks have ended.
    pub(super) fn inherit(&mut self, walks: u32) {
        self.walks.get_or_insert(walks);
    }

    /// Whether the journal has all that belongs into a snapshot.
    fn is_ripe(&self, journal: &Journal) -> bool {
        journal.is_whole() && self.walks.is_some_and(|walks| journal.walks() >= walks)
    }

    /// The other must be told of a connection.
    pub(super) fn push(&mut self, now: Instant, flow: FlowKey) {
        if self.lacks_snapshot || !self.queued.insert(flow) {
            return;
        }
        self.queue.push_back((flow, now));
        if self.queue.len() > QUEUE {
            self.demand_snapshot();
        }
    }

    /// Everything has to be told anew.
    pub(super) fn demand_snapshot(&mut self) {
        (self.queue, self.queued) = (VecDeque::new(), FlowSet::default());
        self.lacks_snapshot = true;
    }

    /// The other has put in force what was sent up to `position` in this run, and wants the rest.
    pub(super) fn subscribe(&mut self, position: Position, journal: &Journal) {
        match self.session.take() {
            Some(lost) if position.session == lost.number => self.resume(lost, position, journal),
            // It has not heard of the last session, which was to go on from there.
            Some(lost) if position.session == lost.base.session && position >= lost.base => {
                self.resume(lost, position, journal);
            }
            _ => self.begin_snapshot(journal),
        }
    }

    /// Queues what was sent after the batch at `base` once more, and goes on in a new session.
    fn resume(&mut self, lost: Session, base: Position, journal: &Journal) {
        if base.session == 0 || self.lacks_snapshot {
            return self.begin_snapshot(journal);
        }
        let is_there = |sent: &Sent| base.session == lost.number && sent.sequence <= base.sequence;
        let mut snapshot = lost.snapshot;
        for sent in lost.sent.into_iter().filter(|sent| !is_there(sent)) {
            if sent.ends_snapshot {
                // To be said again, after what is queued again with it.
                snapshot.get_or_insert_default();
            }
            for flow in sent.flows {
                if self.queued.insert(flow) {
                    self.queue.push_back((flow, sent.due));
                }
            }
        }
        self.begin(base, Begin::Changes, snapshot);
    }

    fn begin_snapshot(&mut self, journal: &Journal) {
        self.demand_snapshot();
        self.lacks_snapshot = false;
        self.snapshots += 1;
        self.begin(Position::default(), Begin::Snapshot, Some(journal.flows()));
    }

    fn begin(&mut self, base: Position, begin: Begin, snapshot: Option<Vec<FlowKey>>) {
        self.last_session += 1;
        self.session = Some(Session {
            number: self.last_session,
            base,
            begins: Some(begin),
            next: 1,
            sent: VecDeque::new(),
            snapshot,
            numbers: Numbers::default(),
        });
    }

    /// The other has put batches in force. False if they were never sent: it lies.
    pub(super) fn acknowledge(&mut self, now: Instant, position: Position) -> bool {
        let Some(session) = self.session.as_mut().filter(|session| session.number == position.session) else {
            // Of an earlier session.
            return position.session <= self.last_session;
        };
        if position.sequence >= session.next {
            return false;
        }
        session.sent.retain(|sent| sent.sequence > position.sequence);
        // The others get their time from now on.
        if let Some(first) = session.sent.front_mut() {
            first.at = now;
        }
        true
    }

    /// The next batch, if there is one and the other has room. `wants` says which connections are for it, `locals` this
    /// director's own local addresses.
    pub(super) fn poll(
        &mut self,
        now: Instant,
        second: u32,
        journal: &Journal,
        locals: &[Address],
        wants: impl Fn(&FlowKey) -> bool,
    ) -> Option<Batch> {
        let session = self.session.as_ref()?;
        if session.sent.front().is_some_and(|sent| now >= sent.at + PATIENCE) {
            // Nobody says what has become of it: it is all sent again.
            let base = session.acknowledged();
            let lost = self.session.take()?;
            self.resume(lost, base, journal);
        } else if self.lacks_snapshot {
            // Not ahead of what is on its way: the other must not be sent more than it has room for.
            if !session.sent.is_empty() {
                return None;
            }
            self.begin_snapshot(journal);
        }
        let (flows, due) = self.choose(now, journal, wants)?;
        let is_ripe = self.is_ripe(journal);
        let session = self.session.as_mut()?;
        let position = Position { session: session.number, sequence: session.next };
        let mut batch = Batch { position, begins: session.begins.take(), ..Batch::default() };
        if batch.begins.is_some() {
            for address in locals {
                session.numbers.local(Local { address: *address, is_own: true }, &mut batch.locals);
            }
        }
        let mut sent = Vec::with_capacity(flows.len());
        let (mut flows, mut put_back) = (flows.into_iter(), None);
        while let Some(flow) = Numbers::size(&batch).lt(&DEFINITIONS).then(|| flows.next()).flatten() {
            let entry = journal.get(&flow);
            let local = entry.and_then(|entry| entry.local);
            if local.is_some_and(|local| session.numbers.renames(&local.address)) && !sent.is_empty() {
                // What is in this batch may have the number that would get another meaning.
                put_back = Some(flow);
                break;
            }
            let target = session.numbers.target(&flow, &mut batch.targets);
            sent.push(flow);
            let (client, port) = (flow.source, flow.source_port);
            match entry {
                Some(entry) => {
                    let server = session.numbers.server(&entry.server, &mut batch.servers);
                    let lease = entry.local.map_or(Lease::NONE, |local| {
                        let known = Local { address: local.address, is_own: false };
                        Lease { number: session.numbers.local(known, &mut batch.locals), port: local.port }
                    });
                    let (state, remaining) = (entry.state, entry.until.saturating_sub(second));
                    let age = if lease.is_some() { entry.age(second) } else { 0 };
                    batch.records.push(Record { client, port, target, server, state, remaining, lease, age });
                }
                None => batch.removals.push(Removal { client, port, target }),
            }
        }
        for flow in put_back.into_iter().chain(flows).rev().filter(|flow| self.queued.insert(*flow)) {
            self.queue.push_front((flow, due));
        }
        // A journal that is not whole yet may still get what belongs into the snapshot.
        let is_last = session.snapshot.as_ref().is_some_and(Vec::is_empty) && self.queue.is_empty();
        if is_last && is_ripe {
            session.snapshot = None;
            batch.ends_snapshot = true;
        }
        session.next += 1;
        self.records += sent.len() as u64;
        session.sent.push_back(Sent {
            sequence: position.sequence,
            flows: sent,
            ends_snapshot: batch.ends_snapshot,
            due,
            at: now,
        });
        Some(batch)
    }

    /// The connections of the next batch, and since when the oldest of them had to be told; `None` if there is nothing
    /// to say or no room for it. What has changed goes before the snapshot, but leaves it half of the room.
    fn choose(
        &mut self,
        now: Instant,
        journal: &Journal,
        wants: impl Fn(&FlowKey) -> bool,
    ) -> Option<(Vec<FlowKey>, Instant)> {
        let is_ripe = self.is_ripe(journal);
        let session = self.session.as_mut().filter(|session| session.sent.len() < WINDOW)?;
        let ends = session.snapshot.as_ref().is_some_and(Vec::is_empty) && is_ripe;
        let more = session.snapshot.as_ref().is_some_and(|snapshot| !snapshot.is_empty());
        if self.queue.is_empty() && !more && !ends && session.begins.is_none() {
            return None;
        }
        let room = MAX_RECORDS;
        let due = self.queue.front().map_or(now, |(_, due)| *due);
        let mut flows = Vec::new();
        let share = if more { room / 2 } else { room };
        while flows.len() < share.max(1) {
            let Some((flow, _)) = self.queue.pop_front() else { break };
            self.queued.remove(&flow);
            if wants(&flow) {
                flows.push(flow);
            }
        }
        while let Some(flow) = session.snapshot.as_mut().filter(|_| flows.len() < room).and_then(Vec::pop) {
            // What is gone meanwhile was never told; what is queued is told by that.
            if wants(&flow) && journal.get(&flow).is_some() && !self.queued.contains(&flow) {
                flows.push(flow);
            }
        }
        Some((flows, due))
    }

    /// Connections that the other is still to be told of or has not acknowledged.
    pub(super) fn lag(&self) -> usize {
        let session = self.session.as_ref();
        let sent = session.map_or(0, |session| session.sent.iter().map(|sent| sent.flows.len()).sum());
        let snapshot = session.and_then(|session| session.snapshot.as_ref()).map_or(0, Vec::len);
        self.queue.len() + sent + snapshot
    }

    /// Since when the oldest of them has had to be told.
    pub(super) fn lags_since(&self) -> Option<Instant> {
        let sent = self.session.as_ref().and_then(|session| session.sent.front()).map(|sent| sent.due);
        let queued = self.queue.front().map(|(_, due)| *due);
        sent.into_iter().chain(queued).min()
    }

    /// When to poll again though nothing came in.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let session = self.session.as_ref()?;
        session.sent.front().map(|sent| sent.at + PATIENCE)
    }
}

impl Session {
    /// The last batch that is known to be in force.
    fn acknowledged(&self) -> Position {
        let last = self.sent.front().map_or(self.next, |sent| sent.sequence) - 1;
        if last == 0 { self.base } else { Position { session: self.number, sequence: last } }
    }
}
