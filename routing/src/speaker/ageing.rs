//! LSAs grow old: reaching MaxAge they are flooded once more and forgotten when everybody knows (RFC 2328
//! section 14). On the way there their checksums are verified, for memory may fail.

use std::time::Duration;

use super::{
    Event, InterfaceId, LsaAction, Machine, NeighborState, Protocol, Refusal, Scope, Time, Trigger, is_due,
};
use crate::packet::{
    INITIAL_SEQUENCE,
    wire::{LsaHeader, LsaKey},
};

/// Within so many steps every checksum is verified once,
const CHECK_STEPS: usize = 30;
/// and this is between two of them: CheckAge, 5 minutes, in all (appendix B).
const CHECK_PAUSE: Duration = Duration::from_secs(10);

impl<V: Protocol> Machine<V> {
    /// Floods what has reached MaxAge.
    pub(super) fn expire_lsas(&mut self) {
        let scopes: Vec<_> = self.databases.keys().copied().collect();
        for scope in scopes {
            let now = self.now;
            while let Some(key) = self.database_mut(scope).pop_expired(now) {
                let entry = self.database(scope).and_then(|db| db.get(&key));
                let Some(header) = entry.map(|entry| entry.lsa.header) else { continue };
                self.record_lsa(LsaAction::Expired, scope, &header, None, true);
                if V::extent(key.kind, false).is_some() {
                    self.end_help_by_change(scope, None);
                }
                if let Some(extent) = V::extent(key.kind, V::is_own(self, &key)) {
                    self.request_spf(extent, Trigger::lsa(&key));
                }
                for id in self.interface_ids() {
                    if self.floods_over(id, scope) {
                        self.queue_flood(id, &header, None);
                    }
                }
            }
        }
    }

    /// When the next checksums are verified; none while there is nothing to verify.
    pub(super) fn check_deadline(&self) -> Option<Time> {
        let holds = self.databases.values().any(|database| database.iter().next().is_some());
        holds.then(|| self.checked + CHECK_PAUSE)
    }

    /// Verifies the checksums of some LSAs (section 14), each once in CheckAge.
    pub(super) fn check_lsas(&mut self) {
        if !is_due(Some(self.checked + CHECK_PAUSE), self.now) {
            return;
        }
        self.checked = self.now;
        let damaged = |(scope, database): (&Scope, &mut super::Lsdb<V>)| {
            let scope = *scope;
            database.verify_next(CHECK_STEPS).into_iter().map(move |key| (scope, key)).collect::<Vec<_>>()
        };
        let damaged: Vec<_> = self.databases.iter_mut().flat_map(damaged).collect();
        for (scope, key) in damaged {
            self.replace_damaged(scope, key);
        }
    }

    /// Forgets an LSA that is not what came in. Ours is originated anew in this turn, that of another router is asked for
    /// again; until it is there, routes do without it.
    fn replace_damaged(&mut self, scope: Scope, key: LsaKey<V>) {
        let Some(header) = self.database(scope).and_then(|db| db.get(&key)).map(|entry| entry.lsa.header)
        else {
            return;
        };
        self.database_mut(scope).remove(&key);
        self.record_lsa(LsaAction::Damaged, scope, &header, None, true);
        let concerned: Vec<_> =
            self.interface_ids().into_iter().filter(|id| self.floods_over(*id, scope)).collect();
        if let Some(id) = concerned.first() {
            self.refusals.count(self.now, *id, Refusal::LsaDamaged);
        }
        self.event(Event::Damaged { lsa: key.to_string() });
        let own = V::is_own(self, &key);
        if let Some(extent) = V::extent(key.kind, own) {
            self.request_spf(extent, Trigger::lsa(&key));
        }
        for id in concerned {
            self.ask_for(id, &header, !own || self.is_resuming());
        }
    }

    /// Puts a forgotten LSA on the request lists of those who hold it, if it is to be `asked` for, and off the lists of
    /// what they have not acknowledged.
    fn ask_for(&mut self, id: InterfaceId, forgotten: &LsaHeader<V>, asked: bool) {
        let key = forgotten.key;
        // The oldest instance that there can be: any that comes is an answer.
        let header = LsaHeader { age: 0, sequence: INITIAL_SEQUENCE, checksum: 0, ..*forgotten };
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        for neighbor in interface.neighbors.values_mut() {
            neighbor.unacknowledged.remove(&key);
            if asked && neighbor.state >= NeighborState::Exchange && V::is_for(key.kind, neighbor.options) {
                neighbor.requests.insert(key, header);
            }
        }
    }

    /// Forgets MaxAge LSAs that nobody has to acknowledge any more, unless a database exchange is going on.
    pub(super) fn sweep_max_age(&mut self) {
        if self.someone_is_exchanging() {
            return;
        }
        let scopes: Vec<_> = self.databases.keys().copied().collect();
        for scope in scopes {
            let dying: Vec<_> = self.database(scope).into_iter().flat_map(|db| db.dying().copied()).collect();
            for key in dying {
                if !self.is_awaited(scope, &key) {
                    self.database_mut(scope).remove(&key);
                }
            }
        }
    }

    /// Whether a neighbour still has to acknowledge the LSA.
    pub(super) fn is_awaited(&self, scope: Scope, key: &LsaKey<V>) -> bool {
        let here = self.interfaces.iter().filter(|(id, _)| self.floods_over(**id, scope));
        here.flat_map(|(_, interface)| interface.neighbors.values())
            .any(|n| n.state >= NeighborState::Exchange && n.unacknowledged.contains_key(key))
    }
}
