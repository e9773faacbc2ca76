//! Observations on their way to the node: at most one per target, the latest, so that a slow reader costs neither
//! memory nor probes.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::sync::{Notify, mpsc};

use super::{Observation, TargetId};

#[derive(Debug, Default)]
pub(super) struct Outbox {
    pending: Mutex<BTreeMap<TargetId, Observation>>,
    wake: Notify,
}

impl Outbox {
    /// Replaces what the reader has not yet taken about the same target.
    pub(super) fn put(&self, observation: Observation) {
        self.lock().insert(observation.target.clone(), observation);
        self.wake.notify_one();
    }

    /// Withholds what the reader has not yet taken about `target`.
    pub(super) fn forget(&self, target: &TargetId) {
        self.lock().remove(target);
    }

    /// Hands observations on until the reader is gone.
    pub(super) async fn forward(&self, reader: mpsc::Sender<Observation>) {
        loop {
            // Room first: what waits here can still be replaced, what was taken out cannot.
            let Ok(room) = reader.reserve().await else { return };
            let next = self.lock().pop_first();
            match next {
                Some((_, observation)) => room.send(observation),
                None => {
                    drop(room);
                    self.wake.notified().await;
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<TargetId, Observation>> {
        self.pending.lock().expect("invariant: nothing panics while the outbox is locked")
    }
}
