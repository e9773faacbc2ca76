//! Epochs in three steps: how tables come into force everywhere, or nowhere.
//!
//! | step | a member | why |
//! |---|---|---|
//! | PREPARE | loads the tables beside those in force, looks connections of the slots that change up from now on and pins them | whatever another director does next, a pin says where a connection lives |
//! | COMMIT | puts them in force | |
//! | FINISH | lets the windows of the slots that changed run out | nobody forwards by the tables before any more |
//!
//! The rule that all of it serves: while any director forwards by tables *n*, every other one that forwards holds *n*,
//! or has prepared it, or knows that it may not forward (`standing`).
//!
//! Every step has a deadline. A member that is silent or stuck is passed over when PREPARE has lasted for
//! [`prepare_time`](Settings::prepare_time): by then it has withdrawn its VIPs by its own clock. One that was silent and
//! is heard again just then ends the epoch, which is begun anew; one that refuses ends it before anybody has changed
//! anything; one that cannot put in force what it had loaded has the tables from before
//! put back, under an epoch of their own. So no member holds the cluster up for longer than two deadlines.
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

use director_proto::sync::{MAX_FRAME, MAX_TEXT, Message, Phase, Prepare, encoded_delta_size};
use director_proto::tables::{Delta, Digest, Epoch, ServiceTable, TableSet, Version};
use sha2::{Digest as _, Sha256};

#[cfg(doc)]
use super::Settings;
use super::{Event, Fed, Held, Output, Replica};

/// Room in a frame beside the delta.
const FRAME_OVERHEAD: usize = MAX_TEXT + 256;

/// Time for which tables that were refused are not proposed again.
pub(super) const RETRY: Duration = Duration::from_secs(10);

/// What a member has said to the step under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    None,
    Done,
}

/// The step under way at the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Prepare,
    Commit,
}

/// The epoch under way, at the director that leads it through its steps.
#[derive(Debug)]
pub(super) struct Round {
    held: Held,
    /// Tables it starts from, to go back to.
    before: Held,
    message: Arc<Prepare>,
    step: Step,
    /// Members of this step, the leader included.
    answers: BTreeMap<Ipv4Addr, Answer>,
    sent: Instant,
    deadline: Instant,
    /// It puts tables back that were in force before: if that fails too, nobody goes anywhere.
    is_return: bool,
}

/// Tables loaded beside those in force.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) held: Held,
    pub(super) cause: String,
    /// The node has them in the kernel.
    pub(super) loaded: bool,
    /// Since when the leader does not lead through this epoch.
    orphaned: Option<Instant>,
}

/// Tables that the cluster has refused, by what is in them.
#[derive(Debug)]
pub(super) struct Rejected {
    contents: Digest,
    pub(super) reason: String,
    pub(super) until: Instant,
}

impl Rejected {
    pub(super) fn concerns(&self, services: &BTreeMap<String, ServiceTable>, now: Instant) -> bool {
        now < self.until && contents(services) == self.contents
    }
}

/// Digest of tables whatever their epoch.
fn contents(services: &BTreeMap<String, ServiceTable>) -> Digest {
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

    /// Leads tables through the steps, from those in force.
    pub(super) fn begin_round(&mut self, now: Instant, held: Held, cause: String, is_return: bool) {
        let Some(before) = self.held.clone() else { return };
        let delta = Delta::between((&*before.tables, before.version), (&*held.tables, held.version))
            .filter(|delta| encoded_delta_size(delta) + FRAME_OVERHEAD <= MAX_FRAME);
        let cause = clipped(cause);
        let (from, to) = (before.version, held.version);
        let message = Arc::new(Prepare { from, to, cause: cause.clone(), delta });
        // Whoever may be forwarding is asked; of those that are silent it is not known, so they have their time.
        let holders = self.live().filter(|(_, member)| member.tables().is_some()).map(|(id, _)| id);
        let asked: BTreeSet<Ipv4Addr> = holders.chain(self.roster.iter().copied()).collect();
        let own = self.settings.router_id;
        let answers = asked.into_iter().chain([own]).map(|id| (id, Answer::None)).collect();
        self.floor = self.floor.max(to.epoch.number);
        // Nobody shall ever give this number to other tables, not even this director's next run.
        self.store();
        self.load_beside(held.clone(), cause);
        let deadline = now + self.settings.prepare_time();
        self.round = Some(Round {
            held,
            before,
            message,
            step: Step::Prepare,
            answers,
            sent: now,
            deadline,
            is_return,
        });
        self.send_step(now);
    }

    /// Sends what the step under way asks for to those who have not answered.
    fn send_step(&mut self, now: Instant) {
        let Some(round) = &mut self.round else { return };
        round.sent = now;
        let message = match round.step {
            Step::Prepare => Message::Prepare(Arc::clone(&round.message)),
            Step::Commit => Message::Commit(round.held.version),
        };
        let unanswered = round.answers.iter().filter(|(_, answer)| **answer == Answer::None);
        for (&to, _) in unanswered {
            if self.members.get(&to).is_some_and(|member| member.is_live()) {
                self.outputs.push_back(Output::Send { to, message: message.clone() });
            }
        }
        self.next_beat = now;
    }

    /// The node shall load tables beside those in force.
    fn load_beside(&mut self, held: Held, cause: String) {
        let event =
            Event::Prepare { tables: Arc::clone(&held.tables), version: held.version, cause: cause.clone() };
        self.outputs.push_back(Output::Event(event));
        self.prepared = Some(Prepared { held, cause, loaded: false, orphaned: None });
    }

    /// What is due at `now` in the epoch under way.
    pub(super) fn lead_round(&mut self, now: Instant) {
        self.resume(now);
        self.ask_newcomers(now);
        let Some(round) = &self.round else { return };
        let overtaken = self.version().is_some_and(|ours| ours.epoch > round.held.version.epoch);
        if overtaken || self.leader != Some(self.settings.router_id) {
            if round.step == Step::Commit {
                return self.finish_round(now);
            }
            if self.gives_way() {
                return;
            }
            let leader = self.leader.map_or("nobody".to_owned(), |leader| leader.to_string());
            return self.abort(now, format!("{leader} leads now"), false);
        }
        let all = round.answers.values().all(|answer| *answer == Answer::Done);
        match round.step {
            Step::Prepare if all || now >= round.deadline => self.commit(now),
            Step::Commit if all || now >= round.deadline => self.finish_round(now),
            _ if now >= round.sent + self.patience() => self.send_step(now),
            _ => {}
        }
    }

    /// Whoever is heard only now, and may be forwarding, has a say while nothing is in force yet.
    fn ask_newcomers(&mut self, now: Instant) {
        let Some(round) = self.round.as_ref().filter(|round| round.step == Step::Prepare) else { return };
        let holders = self.live().filter(|(_, member)| member.tables().is_some()).map(|(id, _)| id);
        let newcomers: Vec<Ipv4Addr> = holders.filter(|id| !round.answers.contains_key(id)).collect();
        if let Some(round) = self.round.as_mut().filter(|_| !newcomers.is_empty()) {
            round.answers.extend(newcomers.into_iter().map(|id| (id, Answer::None)));
            self.send_step(now);
        }
    }

    /// A new leader goes on with what it has loaded, unless somebody is beyond it.
    fn resume(&mut self, now: Instant) {
        let leads = self.leader == Some(self.settings.router_id) && !self.is_isolated();
        // Others may follow the leader that is not heard here: it has the say then.
        // And the last leader may have put it in force, and has its time to withdraw.
        let is_new = self.leader_since.is_some_and(|since| now < since + self.patience());
        if !leads || self.round.is_some() || self.is_leaderless() || is_new {
            return;
        }
        let Some(prepared) = self.prepared.take() else { return };
        if self.highest().is_some_and(|highest| highest >= prepared.held.version.epoch) {
            self.prepared = Some(prepared);
            return;
        }
        if prepared.loaded {
            let leader = prepared.held.version.epoch.leader;
            let cause = match prepared.cause.split_once(" (begun by ") {
                Some((cause, _)) => cause.to_owned(),
                None => prepared.cause,
            };
            let held = match prepared.held.version.epoch.number < self.floor {
                true => self.renumbered(&prepared.held),
                false => prepared.held,
            };
            self.begin_round(now, held, format!("{cause} (begun by {leader})"), false);
        } else {
            self.prepared = Some(prepared);
            self.roll_back("its leader is gone".to_owned());
        }
    }

    /// Leaves an epoch that another director began to whoever leads: what is loaded stays loaded until it is known what
    /// has become of it.
    fn gives_way(&mut self) -> bool {
        let own = self.settings.router_id;
        self.round.take_if(|round| round.epoch().leader != own).is_some()
    }

    /// PREPARE is over: whoever has not answered is passed over.
    fn commit(&mut self, now: Instant) {
        let own = self.settings.router_id;
        let Some(round) = &mut self.round else { return };
        if round.answers.get(&own) != Some(&Answer::Done) {
            let reason = format!("the data plane of {own} has not loaded the tables in time");
            return self.abort(now, reason, true);
        }
        if self.is_isolated() || self.is_leaderless() {
            return self.abort(now, "this director does not hear those that others hear".to_owned(), false);
        }
        if let Some(router_id) = self.unaware(now) {
            let reason = format!("{router_id} is heard again, and may not have heard of it yet");
            return self.abort(now, reason, false);
        }
        let Some(round) = &mut self.round else { return };
        let silent = round.answers.iter().filter(|(_, answer)| **answer == Answer::None);
        let passed: Vec<Ipv4Addr> = silent.map(|(id, _)| *id).collect();
        round.answers.retain(|_, answer| *answer == Answer::Done);
        round.answers.values_mut().for_each(|answer| *answer = Answer::None);
        round.step = Step::Commit;
        let version = round.held.version;
        for router_id in passed {
            self.outputs.push_back(Output::Event(Event::PassedOver { router_id, version }));
        }
        let time = self.settings.commit_time();
        if let Some(round) = &mut self.round {
            round.deadline = now + time;
        }
        self.put_prepared_in_force(now);
        self.send_step(now);
    }

    /// What the former run of a director had loaded, its new one has not.
    pub(super) fn forget_answer(&mut self, router_id: Ipv4Addr) {
        let round = self.round.as_mut().filter(|round| round.step == Step::Prepare);
        if let Some(answer) = round.and_then(|round| round.answers.get_mut(&router_id)) {
            *answer = Answer::None;
        }
    }

    /// A director that has not answered, and was silent until just now: it may have gone on by itself, and has had no time
    /// to withdraw.
    fn unaware(&self, now: Instant) -> Option<Ipv4Addr> {
        let time = self.settings.dead + self.patience();
        let silent = self.round.iter().flat_map(|round| &round.answers);
        let mut silent = silent.filter(|(_, answer)| **answer == Answer::None).map(|(id, _)| *id);
        let revived = |id: &Ipv4Addr| {
            let member = self.members.get(id).filter(|member| member.is_live())?;
            member.revived()
        };
        silent.find(|id| revived(id).is_some_and(|revived| now < revived + time))
    }

    /// What is loaded comes into force here.
    fn put_prepared_in_force(&mut self, now: Instant) {
        let Some(prepared) = self.prepared.take() else { return };
        let (version, before) = (prepared.held.version, self.version());
        self.adopt(now, prepared.held, before, prepared.cause);
        self.committed = Some((version, now));
    }

    /// COMMIT is over.
    fn finish_round(&mut self, now: Instant) {
        let Some(round) = self.round.take() else { return };
        let version = round.held.version;
        for (&router_id, answer) in &round.answers {
            if *answer == Answer::None {
                self.outputs.push_back(Output::Event(Event::PassedOver { router_id, version }));
            }
        }
        self.tell_live(&Message::Finish(version));
        self.finish(version);
        self.next_beat = now;
    }

    fn tell_live(&mut self, message: &Message) {
        let live: Vec<Ipv4Addr> = self.live().map(|(id, _)| id).collect();
        self.outputs.extend(live.into_iter().map(|to| Output::Send { to, message: message.clone() }));
    }

    pub(super) fn finish(&mut self, version: Version) {
        if self.committed.is_some_and(|(committed, _)| committed == version) {
            self.committed = None;
            self.outputs.push_back(Output::Event(Event::Finished { version }));
        }
    }

    /// Ends the epoch under way before anybody has put it in force.
    pub(super) fn abort(&mut self, now: Instant, reason: String, remember: bool) {
        let Some(round) = self.round.take() else { return };
        if remember {
            let contents = contents(&round.held.tables.services);
            self.rejected = Some(Rejected { contents, reason: reason.clone(), until: now + RETRY });
        }
        self.tell_live(&Message::Abort(round.held.version));
        self.next_beat = now;
        if self.prepared.as_ref().is_some_and(|prepared| prepared.held.version == round.held.version) {
            self.roll_back(reason);
        } else {
            let event = Event::RolledBack { version: round.held.version, reason };
            self.outputs.push_back(Output::Event(event));
        }
    }

    /// Forgets what was loaded.
    fn roll_back(&mut self, reason: String) {
        let Some(prepared) = self.prepared.take() else { return };
        let event = Event::RolledBack { version: prepared.held.version, reason };
        self.outputs.push_back(Output::Event(event));
    }

    pub(super) fn handle_prepare(&mut self, now: Instant, from: Ipv4Addr, prepare: &Prepare) {
        let Some(held) = &self.held else { return };
        if prepare.to == held.version {
            return self.acknowledge(from);
        }
        if self.leader != Some(from) {
            // Two that take themselves for the leader are told apart by those that hear both.
            return self.outputs.push_back(Output::Send { to: from, message: Message::Abort(prepare.to) });
        }
        if prepare.to.epoch <= held.version.epoch {
            // Its sender will see our higher epoch in the next heartbeat.
            return;
        }
        if prepare.from != held.version {
            // Slots keep the connections of the owner before: first to where the others start from.
            return;
        }
        if let Some(prepared) = self.prepared.as_mut().filter(|prepared| prepared.held.version == prepare.to)
        {
            prepared.orphaned = None;
            if prepared.loaded {
                self.outputs.push_back(Output::Send { to: from, message: Message::Prepared(prepare.to) });
            }
            return;
        }
        match prepare.delta.as_ref().map(|delta| delta.apply(&held.tables, held.version)) {
            Some(Ok(tables)) => {
                let held = Held { tables: Arc::new(tables), version: prepare.to };
                self.load_beside(held, prepare.cause.clone());
            }
            Some(Err(error)) => {
                let reason = error.to_string();
                self.outputs.push_back(Output::Event(Event::TransferFailed { router_id: from, reason }));
                self.download_prepared(now, from, prepare);
            }
            None => self.download_prepared(now, from, prepare),
        }
    }

    /// Tables asked for by PREPARE have come as a snapshot.
    pub(super) fn take_prepared(&mut self, held: Held, cause: String) {
        if self.version().is_some_and(|ours| ours.epoch < held.version.epoch) {
            self.load_beside(held, cause);
        }
    }

    /// The node has loaded tables beside those in force, or cannot.
    pub(super) fn handle_loaded(&mut self, now: Instant, version: Version, result: Result<(), String>) {
        let Some(prepared) = self.prepared.as_mut().filter(|prepared| prepared.held.version == version)
        else {
            return;
        };
        let own = self.settings.router_id;
        let leads = self.round.as_ref().is_some_and(|round| round.held.version == version);
        match result {
            Ok(()) => {
                prepared.loaded = true;
                self.next_beat = now;
                if let (false, Some(to)) = (leads, self.leader) {
                    self.outputs.push_back(Output::Send { to, message: Message::Prepared(version) });
                }
                self.handle_answer(own, version, Step::Prepare);
            }
            Err(reason) if leads => self.abort(now, format!("{own}: {reason}"), true),
            Err(reason) => {
                if let Some(to) = self.leader {
                    self.refuse(to, version, format!("{own}: {reason}"));
                }
                self.roll_back(reason);
            }
        }
    }

    /// The node has put tables in force, or could not.
    pub(super) fn handle_applied(&mut self, now: Instant, version: Version, result: Result<Fed, String>) {
        if self.version() != Some(version) {
            return;
        }
        if result == Ok(Fed::Afresh) {
            self.miss_windows(now);
        }
        let result = result.map(|_| ());
        let own = self.settings.router_id;
        self.applied = Some((version, result.clone()));
        match (result, self.leader) {
            (_, Some(leader)) if leader != own => self.acknowledge(leader),
            (Ok(()), _) => self.handle_answer(own, version, Step::Commit),
            (Err(reason), _) => self.put_back(now, version, format!("{own}: {reason}")),
        }
    }

    /// Tells whether the tables in force are in the kernel, once that is known.
    fn acknowledge(&mut self, to: Ipv4Addr) {
        let Some((version, result)) = self.applied.clone() else { return };
        match result {
            Ok(()) => self.outputs.push_back(Output::Send { to, message: Message::Acknowledge(version) }),
            Err(reason) => self.refuse(to, version, format!("{}: {reason}", self.settings.router_id)),
        }
    }

    fn refuse(&mut self, to: Ipv4Addr, version: Version, reason: String) {
        let message = Message::Refused { version, reason: clipped(reason) };
        self.outputs.push_back(Output::Send { to, message });
    }

    fn handle_answer(&mut self, from: Ipv4Addr, version: Version, step: Step) {
        let Some(round) = self.round.as_mut().filter(|round| round.held.version == version) else { return };
        if let Some(answer) = round.answers.get_mut(&from).filter(|_| round.step == step) {
            *answer = Answer::Done;
        }
    }

    pub(super) fn handle_prepared(&mut self, from: Ipv4Addr, version: Version) {
        self.handle_answer(from, version, Step::Prepare);
    }

    pub(super) fn handle_acknowledge(&mut self, from: Ipv4Addr, version: Version) {
        self.handle_answer(from, version, Step::Commit);
    }

    pub(super) fn handle_refused(&mut self, now: Instant, version: Version, reason: String) {
        match self.round.as_ref().filter(|round| round.held.version == version).map(|round| round.step) {
            Some(Step::Prepare) => self.abort(now, reason, true),
            Some(Step::Commit) => self.put_back(now, version, reason),
            None => {}
        }
    }

    /// Tables in force that some director could not use give way to those from before: all or nothing.
    fn put_back(&mut self, now: Instant, version: Version, reason: String) {
        let Some(round) = self.round.take_if(|round| round.held.version == version) else { return };
        let contents = contents(&round.held.tables.services);
        self.rejected = Some(Rejected { contents, reason: reason.clone(), until: now + RETRY });
        self.outputs.push_back(Output::Event(Event::NotInForce { version, reason: reason.clone() }));
        self.tell_live(&Message::Finish(version));
        self.finish(version);
        if round.is_return {
            return;
        }
        let cause = format!("epoch {} put back: {reason}", version.epoch);
        self.begin_round(now, self.renumbered(&round.before), cause, true);
    }

    /// The same tables under an epoch of this director's own, above everything ever met.
    fn renumbered(&self, held: &Held) -> Held {
        let epoch = Epoch { number: self.next_number(), leader: self.settings.router_id };
        Held::new(TableSet { epoch, ..TableSet::clone(&held.tables) })
    }

    pub(super) fn handle_commit(&mut self, now: Instant, from: Ipv4Addr, version: Version) {
        if let Some(member) = self.members.get_mut(&from) {
            // Who says so has done so.
            member.handle_version(version);
        }
        if self.version() == Some(version) {
            return self.acknowledge(from);
        }
        if self.prepared.as_ref().is_some_and(|prepared| prepared.loaded && prepared.held.version == version)
        {
            self.put_prepared_in_force(now);
        }
        // Else it has passed by: the snapshot follows, and until then this director does not serve.
    }

    pub(super) fn handle_abort(&mut self, now: Instant, from: Ipv4Addr, version: Version) {
        let prepares = |round: &Round| round.held.version == version && round.step == Step::Prepare;
        if self.round.as_ref().is_some_and(prepares) {
            if self.gives_way() {
                return;
            }
            return self.abort(now, format!("{from} follows another leader"), false);
        }
        let concerns = self.prepared.as_ref().is_some_and(|prepared| prepared.held.version == version);
        if concerns && self.leader == Some(from) && self.round.is_none() {
            self.roll_back(format!("{from} has given the epoch up"));
        }
    }

    /// What the others' heartbeats say of the epoch under way here.
    pub(super) fn follow(&mut self, now: Instant) {
        self.follow_commit(now);
        self.follow_abort(now);
        self.follow_finish(now);
    }

    /// COMMIT was lost, or its sender: somebody has the prepared tables in force.
    fn follow_commit(&mut self, now: Instant) {
        let Some(prepared) = self.prepared.as_ref().filter(|prepared| prepared.loaded) else { return };
        let version = prepared.held.version;
        let highest = self.highest() == Some(version.epoch);
        if highest && self.live().any(|(_, member)| member.tables() == Some(version)) {
            self.round = None;
            self.put_prepared_in_force(now);
        }
    }

    /// The leader has nothing under way, for longer than its heartbeats may take.
    fn follow_abort(&mut self, now: Instant) {
        let patience = self.settings.dead;
        let leader = self.leader.filter(|leader| *leader != self.settings.router_id);
        let leader = leader.and_then(|leader| self.members.get(&leader));
        let Some(prepared) = &mut self.prepared else { return };
        let version = prepared.held.version;
        let goes_on =
            |member: &super::Member| member.prepared() == Some(version) || member.tables() == Some(version);
        if self.round.is_some() || leader.is_none_or(goes_on) {
            prepared.orphaned = None;
            return;
        }
        let since = *prepared.orphaned.get_or_insert(now);
        if now >= since + patience {
            self.roll_back("the leader does not go on with it".to_owned());
        }
    }

    /// FINISH was lost, or its sender.
    fn follow_finish(&mut self, now: Instant) {
        let Some((version, since)) = self.committed else { return };
        let due = self.round.is_none() && now >= since + self.settings.commit_time() + self.patience();
        if due || self.version() != Some(version) {
            self.finish(version);
        }
    }

    /// When something of an epoch is due.
    pub(super) fn round_deadlines(&self) -> impl Iterator<Item = Instant> + '_ {
        let round = self.round.iter().flat_map(|round| [round.deadline, round.sent + self.patience()]);
        let orphaned = self.prepared.iter().filter_map(|prepared| prepared.orphaned);
        let new = self.leader_since.iter().map(|since| *since + self.patience());
        let committed =
            self.committed.map(|(_, since)| since + self.settings.commit_time() + self.patience());
        round.chain(orphaned.map(|since| since + self.settings.dead)).chain(committed).chain(new)
    }
}

/// A text that fits into a frame.
fn clipped(mut text: String) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
