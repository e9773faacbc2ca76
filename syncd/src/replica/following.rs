//! A director that is led through the steps of an epoch: see `agreement` for what they are.
//!
//! The rule for giving up: what a director has loaded it gives up only when the director whose PREPARE it answered last
//! says so, or when the leader that it follows has told for a dead interval that nothing of it is under way; and the
//! slots stay held for a margin from then on.
//!
//! No misroute can follow from it. Whoever else has the same tables loaded, and could still put them in force, is told
//! the same, or sees it in the same heartbeats a dead interval later; or it does not hear who leads, and has withdrawn by
//! then (`standing`). All that is over before the margin is, which is longer than both steps and a dead interval
//! together. Until then slots that the tables would have given away are looked up and pinned here as everywhere, and
//! what has no pin goes where it went. If somebody does put them in force meanwhile, as a leader that was taken for dead
//! and is heard again makes those who have them loaded do, its heartbeats say so, and this director does not serve
//! until it has the tables, too. A director that merely follows another leader than the sender of a PREPARE says ABORT
//! as well: to the sender, who leads nobody then, and to nobody else.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use director_proto::sync::{Message, Prepare};
use director_proto::tables::Version;

use super::agreement::{Prepared, Round, Step, clipped};
use super::{Event, Fed, Held, Member, Output, Replica};

impl Replica {
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
            (prepared.led_by, prepared.orphaned) = (from, None);
            if prepared.loaded {
                self.outputs.push_back(Output::Send { to: from, message: Message::Prepared(prepare.to) });
            }
            return;
        }
        match prepare.delta.as_ref().map(|delta| delta.apply(&held.tables, held.version)) {
            Some(Ok(tables)) => {
                let held = Held { tables: Arc::new(tables), version: prepare.to };
                self.load_beside(from, held, prepare.cause.clone());
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
    pub(super) fn take_prepared(&mut self, from: Ipv4Addr, held: Held, cause: String) {
        if self.version().is_some_and(|ours| ours.epoch < held.version.epoch) {
            self.load_beside(from, held, cause);
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
            Err(reason) if leads => {
                (prepared.loaded, prepared.refused) = (false, true);
                self.handle_refused(now, own, version, format!("{own}: {reason}"));
            }
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
            (Err(reason), _) => self.handle_refused(now, own, version, format!("{own}: {reason}")),
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
        // Anybody else who says so only does not follow its leader.
        let given_up = |prepared: &Prepared| prepared.held.version == version && prepared.led_by == from;
        if self.prepared.as_ref().is_some_and(given_up) && self.round.is_none() {
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
            |member: &Member| member.prepared() == Some(version) || member.tables() == Some(version);
        if self.round.is_some() || leader.is_none_or(goes_on) {
            prepared.orphaned = None;
            return;
        }
        let since = *prepared.orphaned.get_or_insert(now);
        // Known from the leader itself: one that is not heard any more may go on with it.
        let told = leader.and_then(Member::heard).is_some_and(|heard| heard >= since + patience);
        if told {
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
}
