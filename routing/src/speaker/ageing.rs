//! LSAs grow old: reaching MaxAge they are flooded once more and forgotten when everybody knows (RFC 2328
//! section 14).

use super::{LsaAction, Machine, NeighborState, Protocol, Scope, Trigger};
use crate::packet::wire::LsaKey;

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
