//! The director that leads an epoch through its steps: see `agreement` for what they are.
//!
//! Every step has a deadline. A member that is silent or stuck is passed over when PREPARE has lasted for
//! [`prepare_time`](Settings::prepare_time): by then it has withdrawn its VIPs by its own clock. One that was silent and
//! is heard again just then ends the epoch, which is begun anew; one that refuses ends it before anybody has changed
//! anything; one that cannot put in force what it had loaded has the tables from before
//! put back, under an epoch of their own. Only a director that serves can refuse: one in trouble, the leader included,
//! announces nothing, and would keep the cluster from every change, even from the one that ends the trouble. It is
//! passed over like a silent one, at the deadline, since it may have begun to serve unnoticed. So no member holds the cluster up for longer than two deadlines.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use director_proto::sync::{MAX_FRAME, MAX_TEXT, Message, Prepare, encoded_delta_size};
use director_proto::tables::{Delta, Epoch, Version};

#[cfg(doc)]
use super::Settings;
use super::agreement::{Answer, Rejected, Round, Step, clipped, contents};
use super::{Event, Held, Output, Replica};

/// Room in a frame beside the delta.
const FRAME_OVERHEAD: usize = MAX_TEXT + 256;

impl Replica {
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
        let lately = now.checked_sub(self.settings.dead);
        let served = self.live().filter(|(_, member)| member.serves() || member.served() > lately);
        let served = served.map(|(id, _)| id).chain(self.serves().then_some(own)).collect();
        self.floor = self.floor.max(to.epoch.number);
        // Nobody shall ever give this number to other tables, not even this director's next run.
        self.store();
        self.load_beside(own, held.clone(), cause);
        let deadline = now + self.settings.prepare_time();
        self.round = Some(Round {
            held,
            before,
            message,
            step: Step::Prepare,
            answers,
            served,
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

    /// What the last leader has begun and this one goes on with, in a moment.
    pub(super) fn to_be_resumed(&self) -> Option<Epoch> {
        let epoch = self.prepared.as_ref().filter(|prepared| prepared.loaded)?.held.version.epoch;
        self.highest().is_none_or(|highest| highest < epoch).then_some(epoch)
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
    pub(super) fn gives_way(&mut self) -> bool {
        let own = self.settings.router_id;
        self.round.take_if(|round| round.epoch().leader != own).is_some()
    }

    /// PREPARE is over: whoever has not answered is passed over.
    fn commit(&mut self, now: Instant) {
        let own = self.settings.router_id;
        let Some(round) = &mut self.round else { return };
        let refused = self.prepared.as_ref().is_some_and(|prepared| prepared.refused);
        if round.answers.get(&own) != Some(&Answer::Done) && !refused {
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
        let silent = round.answers.iter().filter(|(id, answer)| **answer == Answer::None && **id != own);
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
        let time = self.settings.prepare_time();
        let silent = self.round.iter().flat_map(|round| &round.answers);
        let mut silent = silent.filter(|(_, answer)| **answer == Answer::None).map(|(id, _)| *id);
        let revived = |id: &Ipv4Addr| {
            let member = self.members.get(id).filter(|member| member.is_live())?;
            member.revived()
        };
        silent.find(|id| revived(id).is_some_and(|revived| now < revived + time))
    }

    /// COMMIT is over.
    fn finish_round(&mut self, now: Instant) {
        let Some(round) = self.round.take() else { return };
        let version = round.held.version;
        for (&router_id, answer) in &round.answers {
            if *answer == Answer::None && router_id != self.settings.router_id {
                self.outputs.push_back(Output::Event(Event::PassedOver { router_id, version }));
            }
        }
        // What is in force now was not hopeless.
        self.rejected.take_if(|rejected| rejected.contents == contents(&round.held.tables.services));
        self.tell_live(&Message::Finish(version));
        self.finish(version);
        self.next_beat = now;
    }

    /// The tables of an epoch were refused: they are not proposed again for a while.
    fn remember_rejected(&mut self, now: Instant, round: &Round, reason: &str) {
        let contents = contents(&round.held.tables.services);
        self.rejected = Some(Rejected::after(self.rejected.take(), now, contents, reason.to_owned()));
    }

    /// Ends the epoch under way before anybody has put it in force.
    pub(super) fn abort(&mut self, now: Instant, reason: String, remember: bool) {
        let Some(round) = self.round.take() else { return };
        if remember {
            self.remember_rejected(now, &round, &reason);
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

    pub(super) fn handle_answer(&mut self, from: Ipv4Addr, version: Version, step: Step) {
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

    pub(super) fn handle_refused(&mut self, now: Instant, from: Ipv4Addr, version: Version, reason: String) {
        let round = self.round.as_ref().filter(|round| round.held.version == version && round.heeds(from));
        match round.map(|round| round.step) {
            Some(Step::Prepare) => self.abort(now, reason, true),
            Some(Step::Commit) => self.put_back(now, version, reason),
            None => {}
        }
    }

    /// Tables in force that some director could not use give way to those from before: all or nothing.
    pub(super) fn put_back(&mut self, now: Instant, version: Version, reason: String) {
        let Some(round) = self.round.take_if(|round| round.held.version == version) else { return };
        self.remember_rejected(now, &round, &reason);
        self.outputs.push_back(Output::Event(Event::NotInForce { version, reason: reason.clone() }));
        self.tell_live(&Message::Finish(version));
        self.finish(version);
        if round.is_return {
            return;
        }
        let cause = format!("epoch {} put back: {reason}", version.epoch);
        self.begin_round(now, self.renumbered(&round.before), cause, true);
    }
}
