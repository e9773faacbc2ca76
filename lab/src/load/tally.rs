//! What the connections of one service come to, besides each download's own record.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use super::report::{Failure, Requests};

/// The short requests' counters, and which real server answered how many connections.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    requests: Requests,
    wrong_bytes: u64,
    opened: BTreeMap<String, u64>,
}

impl Tally {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("invariant: no holder of this lock panics")
    }

    /// The counters of requests, the number of their wrong bytes, and the connections by real server.
    pub(super) fn now(&self) -> (Requests, u64, BTreeMap<String, u64>) {
        let inner = self.inner();
        (inner.requests, inner.wrong_bytes, inner.opened.clone())
    }

    pub(super) fn mark(&self) {
        self.inner().requests.longest_since_mark_ms = 0;
    }

    /// A real server answered on a connection for the first time.
    pub(super) fn answered(&self, by: Option<&str>) {
        if let Some(name) = by {
            *self.inner().opened.entry(name.to_owned()).or_default() += 1;
        }
    }

    pub(super) fn request_started(&self) {
        self.inner().requests.started += 1;
    }

    pub(super) fn request_skipped(&self) {
        self.inner().requests.skipped += 1;
    }

    /// `outcome`: how many bytes of a complete answer were wrong.
    pub(super) fn request_ended(&self, outcome: Result<u64, Failure>, took_ms: u64) {
        let mut inner = self.inner();
        match outcome {
            Ok(0) => inner.requests.succeeded += 1,
            Ok(bytes) => {
                inner.requests.failures.add(Failure::Wrong);
                inner.wrong_bytes += bytes;
            }
            Err(failure) => inner.requests.failures.add(failure),
        }
        inner.requests.longest_ms = inner.requests.longest_ms.max(took_ms);
        inner.requests.longest_since_mark_ms = inner.requests.longest_since_mark_ms.max(took_ms);
    }
}
