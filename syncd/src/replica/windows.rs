//! How slots stand, for a director that did not take part in every step that led to its tables: one that joins, was
//! passed over, or could not put an epoch into its kernel.
//!
//! Tables do not say which slots are still moving, and from whom. So such a director asks one that serves under the same
//! tables, and does not serve itself until it knows: the node waits for [`Event::Windows`]. Nobody may be there to ask,
//! as when a whole cluster starts; then it goes on by what its kernel holds. One that has lost the others does not know
//! whether anybody is there: it waits until it hears enough of them, and half a minute for each that had tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use director_proto::sync::{Chunk, MAX_CHUNK, Message, Request};
use director_proto::tables::Version;
use director_proto::windows::Windows;

use super::{Event, Output, Replica, Standing};

/// Pieces sent for one request.
const PIECES: usize = 4;

/// Time for a request to be answered.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Longest time for which a director waits for others that serve, or may, and do not say how their slots stand.
const BARRIER: Duration = Duration::from_secs(30);

/// What is not known here, and the search for it.
#[derive(Debug)]
pub(super) struct Missing {
    since: Instant,
    /// Somebody was seen to serve since.
    served: bool,
    /// The director asked, and until when it may answer.
    asked: Option<(Ipv4Addr, Instant)>,
    /// Directors that did not answer, not asked again while there is another.
    failed: BTreeSet<Ipv4Addr>,
    data: BytesMut,
    /// Pieces since the last request.
    pieces: usize,
}

impl Missing {
    fn new(since: Instant, served: bool) -> Self {
        Self { since, served, asked: None, failed: BTreeSet::new(), data: BytesMut::new(), pieces: 0 }
    }
}

/// What other directors are being told.
#[derive(Debug, Default)]
pub(super) struct Given(BTreeMap<Ipv4Addr, (Version, Bytes)>);

impl Replica {
    /// Whether it is known here how slots stand.
    pub fn knows_windows(&self) -> bool {
        self.missing.is_none()
    }

    /// Whether this director serves by tables that are in its kernel, as far as this machine knows.
    pub(super) fn serves(&self) -> bool {
        let in_kernel = self
            .applied
            .as_ref()
            .is_some_and(|(version, result)| Some(*version) == self.version() && result.is_ok());
        in_kernel && self.standing == Standing::Current && self.missing.is_none()
    }

    /// The tables in force are in the kernel, where slots do not follow from how they stood before.
    pub(super) fn miss_windows(&mut self, now: Instant) {
        let before = self.missing.take().map(|missing| (missing.since, missing.served));
        let (since, served) = before.unwrap_or((now, false));
        self.missing = Some(Missing::new(since, served));
        // Nobody shall ask here.
        self.next_beat = now;
    }

    /// The tables have changed: whoever is asked has others by now, or will not say what was asked for.
    pub(super) fn restart_search(&mut self) {
        if let Some(missing) = &mut self.missing {
            *missing = Missing::new(missing.since, missing.served);
        }
        self.given.0.clear();
    }

    /// Asks who can be asked, or goes on without.
    pub(super) fn seek_windows(&mut self, now: Instant) {
        let Some(version) = self.version().filter(|_| self.missing.is_some()) else { return };
        let serving = || self.live().filter(|(_, member)| member.serves());
        let same: BTreeSet<Ipv4Addr> =
            serving().filter(|(_, member)| member.tables() == Some(version)).map(|(id, _)| id).collect();
        let others_serve = serving().next().is_some();
        let others_hold = self.live().any(|(_, member)| member.tables().is_some());
        let grace = self.settings.dead * 2;
        let is_alone = self.is_alone();
        let silent_until = self.silent_until();
        let leads = self.leader == Some(self.settings.router_id);
        let Some(missing) = &mut self.missing else { return };
        if missing.asked.is_some_and(|(from, until)| now < until && same.contains(&from)) {
            return;
        }
        if let Some((from, _)) = missing.asked.take() {
            missing.failed.insert(from);
        }
        if same.iter().all(|id| missing.failed.contains(id)) {
            missing.failed.clear();
        }
        missing.served |= others_serve;
        if is_alone {
            // Who can be asked is known when enough are heard again: the search begins then.
            missing.since = now;
        }
        let limit = match (missing.served, others_hold || is_alone) {
            // Of those that all have missed something the leader goes on first, and the others ask it.
            (_, true) if !leads => missing.since + BARRIER + grace,
            // It knows, and may come back: silent or not, it may be serving.
            (true, _) => missing.since + BARRIER,
            // It may be about to serve.
            (false, true) => missing.since + grace,
            (false, false) => now,
        };
        let limit = silent_until.map_or(limit, |until| limit.max(until));
        if now >= limit {
            self.missing = None;
            // The others may ask here from now on.
            self.next_beat = now;
            self.tell_windows(now, version, None);
            return;
        }
        let Some(to) = same.into_iter().find(|id| !missing.failed.contains(id)) else { return };
        missing.asked = Some((to, now + TIMEOUT));
        missing.data.clear();
        missing.pieces = 0;
        let request = Request { version: Some(version), offset: 0 };
        self.outputs.push_back(Output::Send { to, message: Message::WindowsRequest(request) });
    }

    /// Until when it is waited for directors that had tables and are silent: they may serve, and know how slots stand.
    fn silent_until(&self) -> Option<Instant> {
        let silent = self.members.values().filter(|member| !member.is_live() && member.tables().is_some());
        silent.filter_map(|member| member.heard()).max().map(|heard| heard + BARRIER)
    }

    fn tell_windows(&mut self, now: Instant, version: Version, windows: Option<Arc<Windows>>) {
        let in_time = now + self.settings.commit_time();
        self.outputs.push_back(Output::Event(Event::Windows { version, windows, in_time }));
    }

    /// When to ask another one, or to go on without.
    pub(super) fn windows_deadlines(&self) -> impl Iterator<Item = Instant> + '_ {
        let grace = self.settings.dead * 2;
        self.missing.iter().flat_map(move |missing| {
            let asked = missing.asked.map(|(_, until)| until);
            let limits = [grace, BARRIER, BARRIER + grace].map(|limit| Some(missing.since + limit));
            limits.into_iter().chain([self.silent_until(), asked]).flatten()
        })
    }

    /// Another director asks how slots stand: the node knows.
    pub(super) fn handle_windows_request(&mut self, from: Ipv4Addr, request: Request) {
        let Some(version) = self.version().filter(|held| request.version == Some(*held)) else { return };
        if request.offset > 0 {
            return self.send_windows(from, version, request.offset);
        }
        if self.serves() {
            let event = Event::WindowsWanted { to: from, version };
            self.outputs.push_back(Output::Event(event));
        }
    }

    /// The node says how slots stand.
    pub(super) fn give_windows(&mut self, to: Ipv4Addr, version: Version, windows: Bytes) {
        if self.version() == Some(version) {
            self.given.0.insert(to, (version, windows));
            self.send_windows(to, version, 0);
        }
    }

    fn send_windows(&mut self, to: Ipv4Addr, version: Version, offset: u64) {
        let Some((_, bytes)) = self.given.0.get(&to).filter(|(given, _)| *given == version) else { return };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for offset in (start..bytes.len()).step_by(MAX_CHUNK).take(PIECES) {
            let data = bytes.slice(offset..bytes.len().min(offset + MAX_CHUNK));
            let chunk = Chunk { version, offset: offset as u64, total: bytes.len() as u64, data };
            self.outputs.push_back(Output::Send { to, message: Message::Windows(chunk) });
        }
    }

    /// A piece of what another director says.
    pub(super) fn handle_windows(&mut self, now: Instant, from: Ipv4Addr, chunk: &Chunk) {
        let version = self.version();
        let Some(missing) = &mut self.missing else { return };
        let wanted = missing.asked.is_some_and(|(asked, _)| asked == from)
            && Some(chunk.version) == version
            && chunk.offset == missing.data.len() as u64;
        if !wanted {
            return;
        }
        missing.data.extend_from_slice(&chunk.data);
        missing.pieces += 1;
        missing.asked = Some((from, now + TIMEOUT));
        let taken = missing.data.len() as u64;
        if taken < chunk.total {
            if missing.pieces.is_multiple_of(PIECES) {
                let request = Request { version, offset: taken };
                self.outputs.push_back(Output::Send { to: from, message: Message::WindowsRequest(request) });
            }
            return;
        }
        let data = std::mem::take(&mut missing.data).freeze();
        match Windows::decode(data) {
            Ok(windows) => {
                self.missing = None;
                self.next_beat = now;
                self.tell_windows(now, chunk.version, Some(Arc::new(windows)));
            }
            Err(error) => {
                missing.asked = None;
                missing.failed.insert(from);
                let reason = error.to_string();
                self.outputs.push_back(Output::Event(Event::TransferFailed { router_id: from, reason }));
            }
        }
    }
}
