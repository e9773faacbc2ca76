//! A download's record, written by its task and read by samples.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::report::{Connection, Failure, Stage};
use super::{Target, content};

#[derive(Debug)]
pub(super) struct Record(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    seen: Connection,
    waiting_since: Option<Instant>,
    /// When the download shall come to a good end and begin anew.
    retire_at: Option<Instant>,
}

impl Record {
    pub(super) fn new(target: &Target) -> Self {
        let seen = Connection {
            service: target.name.clone(),
            target: target.address,
            source: None,
            served_by: None,
            stage: Stage::Starting,
            renewed: 0,
            bytes: 0,
            wrong_bytes: 0,
            longest_stall_ms: 0,
            stall_since_mark_ms: 0,
        };
        Self(Mutex::new(Inner { seen, waiting_since: None, retire_at: None }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("invariant: no holder of this lock panics")
    }

    /// What is known now, with the wait that is going on (milliseconds) counted in.
    pub(super) fn now(&self) -> (Connection, u64) {
        let inner = self.inner();
        let mut seen = inner.seen.clone();
        let current = inner.waiting_since.map_or(0, |since| milliseconds(since.elapsed()));
        seen.longest_stall_ms = seen.longest_stall_ms.max(current);
        seen.stall_since_mark_ms = seen.stall_since_mark_ms.max(current);
        (seen, current)
    }

    pub(super) fn target(&self) -> SocketAddr {
        self.inner().seen.target
    }

    pub(super) fn mark(&self) {
        self.inner().seen.stall_since_mark_ms = 0;
    }

    pub(super) fn connected(&self, source: SocketAddr) {
        self.inner().seen.source = Some(source);
    }

    pub(super) fn served_by(&self, name: Option<String>) {
        self.inner().seen.served_by = name;
    }

    pub(super) fn is_served_by(&self, name: &str) -> bool {
        let seen = &self.inner().seen;
        seen.stage == Stage::Alive && seen.served_by.as_deref() == Some(name)
    }

    pub(super) fn wait_begins(&self) {
        self.inner().waiting_since = Some(Instant::now());
    }

    pub(super) fn wait_ends(&self) {
        let mut inner = self.inner();
        let waited = inner.waiting_since.take().map_or(0, |since| milliseconds(since.elapsed()));
        inner.seen.longest_stall_ms = inner.seen.longest_stall_ms.max(waited);
        inner.seen.stall_since_mark_ms = inner.seen.stall_since_mark_ms.max(waited);
    }

    pub(super) fn received(&self, offset: u64, bytes: &[u8]) {
        let wrong = content::wrong_bytes(offset, bytes);
        let mut inner = self.inner();
        inner.seen.stage = Stage::Alive;
        inner.seen.bytes += bytes.len() as u64;
        inner.seen.wrong_bytes += wrong;
    }

    pub(super) fn failed(&self, failure: Failure) {
        self.wait_ends();
        self.inner().seen.stage = Stage::Failed(failure);
    }

    /// The download shall come to a good end from `at` on.
    pub(super) fn retire(&self, at: Instant) {
        self.inner().retire_at = Some(at);
    }

    pub(super) fn retired(&self) -> bool {
        self.inner().retire_at.is_some_and(|at| at <= Instant::now())
    }

    /// The download came to a good end and has no connection for the moment.
    pub(super) fn begins_anew(&self) {
        let mut inner = self.inner();
        inner.waiting_since = None;
        inner.retire_at = None;
        inner.seen.renewed += 1;
        inner.seen.stage = Stage::Starting;
        inner.seen.source = None;
        inner.seen.served_by = None;
    }

    /// Closes the record of a download that the client ended.
    pub(super) fn finish(&self) {
        let mut inner = self.inner();
        if !matches!(inner.seen.stage, Stage::Failed(_)) {
            inner.seen.stage = Stage::Done;
        }
        inner.waiting_since = None;
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
