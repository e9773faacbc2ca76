//! How tables come into force where nobody has any: after the start of a whole cluster, or alone.

use std::cmp::Reverse;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use director_proto::tables::Epoch;

use super::{Event, Output, Replica};

impl Replica {
    /// Seeds if it is this director's turn: by what it has from disk, else by asking the node.
    pub(super) fn seed(&mut self, now: Instant) {
        if !self.is_seeder(now) {
            self.asked = false;
            return;
        }
        if let Some(candidate) = self.candidate.take() {
            let previous = Some(Arc::clone(&candidate.tables));
            self.adopt(now, candidate, None, "tables from disk".to_owned());
            self.outputs.push_back(Output::Event(Event::NeedTables { previous }));
        } else if !std::mem::replace(&mut self.asked, true) {
            self.outputs.push_back(Output::Event(Event::NeedTables { previous: None }));
        }
    }

    /// Whether it is up to this director: nobody has tables, the others were waited for, and among those
    /// reached it has the highest candidate, or, where candidates are equal or none, the lowest router id.
    pub(super) fn is_seeder(&self, now: Instant) -> bool {
        if self.held.is_some() || self.highest().is_some() || !self.has_waited(now) {
            return false;
        }
        // Refused by those it can reach and heard by nobody: whatever is wrong with this director, its own tables
        // would not be the cluster's.
        if self.refused && self.live().next().is_none() {
            return false;
        }
        let claim = |candidate: Option<Epoch>, id: Ipv4Addr| (candidate, Reverse(id));
        let ours = claim(self.candidate.as_ref().map(|held| held.version.epoch), self.settings.router_id);
        self.live().all(|(id, member)| claim(member.candidate().map(|version| version.epoch), id) < ours)
    }

    fn has_waited(&self, now: Instant) -> bool {
        let expected = self.settings.expected_peers;
        let all = expected > 0 && self.live().count() >= expected;
        all || now >= self.started + self.settings.grace
    }
}
