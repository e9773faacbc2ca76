//! Deltas: a change goes at once to everybody who holds what it starts from, and again until acknowledged.
//!
//! They are a short cut. Whoever does not take one, because it is too large, lost too often or starts from
//! other tables, sees the higher epoch in the heartbeats and asks for a snapshot (`transfer`).

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use director_proto::sync::{MAX_FRAME, Message, encoded_delta_size};
use director_proto::tables::Delta;

use super::{Event, Held, Output, Replica};

/// Deltas a member may be behind before it is left to ask for a snapshot.
const MAX_PENDING: usize = 8;

/// Repetitions of a delta before the member is left to ask for a snapshot.
const MAX_ATTEMPTS: u32 = 3;

/// Room in a frame beside the delta.
const FRAME_OVERHEAD: usize = 64;

impl Replica {
    /// Puts new tables in force and sends the change to those who follow.
    pub(super) fn decide(&mut self, now: Instant, new: Held) {
        let delta = self.held.as_ref().and_then(|old| {
            Delta::between((&*old.tables, old.version), (&*new.tables, new.version))
                .filter(|delta| encoded_delta_size(delta) + FRAME_OVERHEAD <= MAX_FRAME)
        });
        self.adopt(now, new);
        match delta.map(Arc::new) {
            Some(delta) => self.spread(now, &delta),
            None => self.members.values_mut().for_each(|member| member.pending.clear()),
        }
    }

    fn spread(&mut self, now: Instant, delta: &Arc<Delta>) {
        for (&to, member) in self.members.iter_mut().filter(|(_, member)| member.is_live()) {
            let reached = member.pending.back().map(|last| last.to).or(member.tables());
            if reached != Some(delta.from) || member.pending.len() >= MAX_PENDING {
                member.pending.clear();
                continue;
            }
            member.pending.push_back(Arc::clone(delta));
            member.sent_at = Some(now);
            self.outputs.push_back(Output::Send { to, message: Message::Delta(Arc::clone(delta)) });
        }
    }

    pub(super) fn repeat_deltas(&mut self, now: Instant) {
        let patience = self.patience();
        for (&to, member) in &mut self.members {
            let due = member.sent_at.is_some_and(|sent| now >= sent + patience);
            if member.pending.is_empty() || !due {
                continue;
            }
            if member.attempts >= MAX_ATTEMPTS {
                member.pending.clear();
                member.attempts = 0;
                continue;
            }
            member.attempts += 1;
            member.sent_at = Some(now);
            for delta in &member.pending {
                self.outputs.push_back(Output::Send { to, message: Message::Delta(Arc::clone(delta)) });
            }
        }
    }

    pub(super) fn handle_delta(&mut self, now: Instant, from: Ipv4Addr, delta: &Delta) {
        let Some(held) = &self.held else { return };
        if delta.to.epoch <= held.version.epoch {
            let message = Message::Acknowledge(held.version);
            self.outputs.push_back(Output::Send { to: from, message });
            return;
        }
        if delta.to.epoch.leader != from {
            let reason = format!("a change decided by {}, not by its sender", delta.to.epoch.leader);
            self.outputs.push_back(Output::Event(Event::TransferFailed { router_id: from, reason }));
            return;
        }
        match delta.apply(&held.tables, held.version) {
            Ok(tables) => {
                self.adopt(now, Held { tables: Arc::new(tables), version: delta.to });
                self.outputs.push_back(Output::Send { to: from, message: Message::Acknowledge(delta.to) });
            }
            Err(error) => {
                let reason = error.to_string();
                self.outputs.push_back(Output::Event(Event::TransferFailed { router_id: from, reason }));
                self.start_download(now, from);
            }
        }
    }
}
