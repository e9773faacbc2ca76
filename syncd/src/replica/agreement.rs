//! Epochs in three steps: how tables come into force everywhere, or nowhere.
//!
//! | step | a member | why |
//! |---|---|---|
//! | PREPARE | loads the tables beside those in force, looks connections of the slots that change up from now on and pins them | whatever another director does next, a pin says where a connection lives |
//! | COMMIT | puts them in force | |
//! | FINISH | lets the windows of the slots that changed run out | nobody forwards by the tables before any more |
//!
//! The rule that all of it serves: while any director forwards by tables *n*, every other one that forwards holds *n*,
//! or has prepared it and not given it up for longer than a margin, or knows that it may not forward (`standing`).
//!
//! What is done by the director that leads an epoch, and by those that are led, is in `leading` and `following`.
//!
//! A leader that dies leaves prepared tables behind. Where one live director holds them in force, the others follow it.
//! Else the next leader, if it has them loaded, goes through the same steps with them, under an epoch of its own where any
//! director, a silent one too, is known to have had a higher one: what is resumed is above all that was ever in force, so
//! that nobody takes it for less than it is. If the leader has not loaded them, its heartbeats tell those
//! who have that nothing is under way, and they roll back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use director_proto::sync::{MAX_TEXT, Message, Phase, Prepare};
use director_proto::tables::{Digest, Epoch, ServiceTable, TableSet, Version};
use sha2::{Digest as _, Sha256};

use super::{Event, Held, Output, Replica};

/// What a member has said to the step under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    None,
    Done,
}

/// The step under way at the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Prepare,
    Commit,
}

/// The epoch under way, at the director that leads it through its steps.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) held: Held,
    /// Tables it starts from, to go back to.
    pub(super) before: Held,
    pub(super) message: Arc<Prepare>,
    pub(super) step: Step,
    /// Members of this step, the leader included.
    pub(super) answers: BTreeMap<Ipv4Addr, Answer>,
    /// Who served when it began, or had done so lately: nobody else has a veto.
    pub(super) served: BTreeSet<Ipv4Addr>,
    pub(super) sent: Instant,
    pub(super) deadline: Instant,
    /// It puts tables back that were in force before: if that fails too, nobody goes anywhere.
    pub(super) is_return: bool,
}

/// Tables loaded beside those in force.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) held: Held,
    pub(super) cause: String,
    /// Whose PREPARE this director goes by: it leads the epoch through its steps, and nobody else can say that it is
    /// given up.
    pub(super) led_by: Ipv4Addr,
    /// The node has them in the kernel.
    pub(super) loaded: bool,
    /// The node could not load them, and the epoch goes on without it.
    pub(super) refused: bool,
    /// Since when the leader does not lead through this epoch.
    pub(super) orphaned: Option<Instant>,
}

/// Tables that the cluster has refused, by what is in them.
#[derive(Debug)]
pub(super) struct Rejected {
    pub(super) contents: Digest,
    pub(super) reason: String,
    pub(super) until: Instant,
    /// How long until then when they were refused.
    pause: Duration,
}

/// Time for which tables that were refused for the first time are not proposed again.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// Longest such time, of tables that are refused again and again.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

impl Rejected {
    /// Tables are refused, after others or the same were: every attempt costs all directors a preparation.
    pub(super) fn after(before: Option<Self>, now: Instant, contents: Digest, reason: String) -> Self {
        let pause = before
            .filter(|before| before.contents == contents)
            .map_or(FIRST_PAUSE, |before| (before.pause * 2).min(LONGEST_PAUSE));
        Self { contents, reason, until: now + pause, pause }
    }

    pub(super) fn concerns(&self, services: &BTreeMap<String, ServiceTable>, now: Instant) -> bool {
        now < self.until && contents(services) == self.contents
    }
}

/// Digest of tables whatever their epoch.
pub(super) fn contents(services: &BTreeMap<String, ServiceTable>) -> Digest {
    let mut hash = Sha256::new();
    for (name, table) in services {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(table.digest().0);
    }
    Digest(hash.finalize().into())
}

impl Round {
    pub(super) fn awaits(&self, router_id: Ipv4Addr) -> bool {
        self.answers.get(&router_id) == Some(&Answer::None)
    }

    /// Whether the epoch ends when this director refuses. One that did not serve announces nothing: it is passed over
    /// when the step is over, as one that is silent, and serves again once it has the tables.
    pub(super) fn heeds(&self, router_id: Ipv4Addr) -> bool {
        self.answers.contains_key(&router_id) && self.served.contains(&router_id)
    }

    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.held.version.epoch
    }
}

impl Replica {
    /// Where the epoch under way stands here.
    pub fn phase(&self) -> Phase {
        match (&self.prepared, self.committed) {
            (Some(prepared), _) if prepared.loaded => Phase::Prepared,
            (Some(_), _) => Phase::Preparing,
            (None, Some(_)) => Phase::Committed,
            (None, None) => Phase::Settled,
        }
    }

    /// The node shall load tables beside those in force.
    pub(super) fn load_beside(&mut self, led_by: Ipv4Addr, held: Held, cause: String) {
        let event =
            Event::Prepare { tables: Arc::clone(&held.tables), version: held.version, cause: cause.clone() };
        self.outputs.push_back(Output::Event(event));
        self.prepared = Some(Prepared { held, cause, led_by, loaded: false, refused: false, orphaned: None });
    }

    /// What is loaded comes into force here.
    pub(super) fn put_prepared_in_force(&mut self, now: Instant) {
        let Some(prepared) = self.prepared.take() else { return };
        // A leader that could not load it, and goes on all the same, has not held the slots that change.
        let (version, before) = (prepared.held.version, self.version().filter(|_| prepared.loaded));
        // The node has ended that with PREPARE.
        self.committed = None;
        self.adopt(now, prepared.held, before, prepared.cause);
        self.committed = Some((version, now));
    }

    pub(super) fn tell_live(&mut self, message: &Message) {
        let live: Vec<Ipv4Addr> = self.live().map(|(id, _)| id).collect();
        self.outputs.extend(live.into_iter().map(|to| Output::Send { to, message: message.clone() }));
    }

    pub(super) fn finish(&mut self, version: Version) {
        if self.committed.is_some_and(|(committed, _)| committed == version) {
            self.committed = None;
            self.outputs.push_back(Output::Event(Event::Finished { version }));
        }
    }

    /// Forgets what was loaded.
    pub(super) fn roll_back(&mut self, reason: String) {
        let Some(prepared) = self.prepared.take() else { return };
        let event = Event::RolledBack { version: prepared.held.version, reason };
        self.outputs.push_back(Output::Event(event));
    }

    /// The same tables under an epoch of this director's own, above everything ever met.
    pub(super) fn renumbered(&self, held: &Held) -> Held {
        let epoch = Epoch { number: self.next_number(), leader: self.settings.router_id };
        Held::new(TableSet { epoch, ..TableSet::clone(&held.tables) })
    }

    /// When something of an epoch is due.
    pub(super) fn round_deadlines(&self) -> impl Iterator<Item = Instant> + '_ {
        let round = self.round.iter().flat_map(|round| [round.deadline, round.sent + self.patience()]);
        let new = self.leader_since.iter().map(|since| *since + self.patience());
        let committed =
            self.committed.map(|(_, since)| since + self.settings.commit_time() + self.patience());
        round.chain(committed).chain(new)
    }
}

/// A text that fits into a frame.
pub(super) fn clipped(mut text: String) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
