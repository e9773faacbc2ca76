//! Snapshots. The one that lacks tables asks for them piece by piece, so that it sets the pace, a lost piece is
//! asked for again, and a source that stops answering is left for another.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use director_proto::sync::{Chunk, MAX_CHUNK, Message, Prepare, Request, decode_tables, encode_tables};
use director_proto::tables::Version;

use super::{Event, Held, Output, Replica};

/// Pieces sent for one request.
const WINDOW: usize = 4;

/// Time for a request to be answered.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Requests without progress before another source is tried.
const MAX_ATTEMPTS: u32 = 3;

/// A snapshot on its way in.
#[derive(Debug)]
pub(super) struct Download {
    source: Ipv4Addr,
    version: Option<Version>,
    total: u64,
    data: Vec<u8>,
    /// Pieces since the last request.
    pieces: usize,
    attempts: u32,
    deadline: Instant,
    /// Sources that failed, not asked again while there is another.
    failed: BTreeSet<Ipv4Addr>,
}

impl Download {
    fn new(now: Instant, source: Ipv4Addr, failed: BTreeSet<Ipv4Addr>) -> Self {
        Self {
            source,
            version: None,
            total: 0,
            data: Vec::new(),
            pieces: 0,
            attempts: 0,
            deadline: now + TIMEOUT,
            failed,
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    fn request(&self) -> Output {
        let request = Request { version: self.version, offset: self.data.len() as u64 };
        Output::Send { to: self.source, message: Message::Request(request) }
    }

    /// Takes a piece if it is the next one. A source whose tables have changed meanwhile starts over.
    fn take(&mut self, now: Instant, chunk: &Chunk) -> bool {
        if self.version != Some(chunk.version) {
            if chunk.offset != 0 {
                return false;
            }
            self.version = Some(chunk.version);
            self.total = chunk.total;
            self.data.clear();
            self.pieces = 0;
        }
        if chunk.offset != self.data.len() as u64 || chunk.total != self.total {
            return false;
        }
        self.data.extend_from_slice(&chunk.data);
        self.pieces += 1;
        self.attempts = 0;
        self.deadline = now + TIMEOUT;
        true
    }

    fn is_complete(&self) -> bool {
        self.version.is_some() && self.data.len() as u64 == self.total
    }

    /// Decodes and verifies what came in.
    fn finish(&mut self) -> Result<Held, String> {
        let tables =
            decode_tables(std::mem::take(&mut self.data).into()).map_err(|error| error.to_string())?;
        let held = Held::new(tables);
        match self.version {
            Some(version) if version == held.version => Ok(held),
            _ => Err(format!("the snapshot has version {}, another one was announced", held.version)),
        }
    }
}

impl Replica {
    /// Sends the pieces asked for.
    pub(super) fn serve(&mut self, to: Ipv4Addr, request: Request) {
        let Some(held) = self.wanted(request.version) else { return };
        let version = held.version;
        if self.snapshot.as_ref().is_none_or(|(encoded, _)| *encoded != version) {
            let encoded = encode_tables(&held.tables);
            self.snapshot = Some((version, encoded));
        }
        let Some((_, bytes)) = &self.snapshot else { return };
        let start = match request.version {
            Some(wanted) if wanted == version => request.offset,
            _ => 0,
        };
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let pieces = (start..bytes.len()).step_by(MAX_CHUNK).take(WINDOW);
        for offset in pieces {
            let data = bytes.slice(offset..bytes.len().min(offset + MAX_CHUNK));
            let chunk = Chunk { version, offset: offset as u64, total: bytes.len() as u64, data };
            self.outputs.push_back(Output::Send { to, message: Message::Chunk(chunk) });
        }
    }

    /// The tables to send: those in force, unless those that are being prepared are asked for.
    fn wanted(&self, version: Option<Version>) -> Option<&Held> {
        let prepared = self.prepared.as_ref().map(|prepared| &prepared.held);
        let prepared = prepared.or(self.round.as_ref().map(|round| round.held()));
        prepared.filter(|held| Some(held.version) == version).or(self.held.as_ref())
    }

    /// Asks the leader for tables that it wants loaded, and again at each of its repetitions.
    pub(super) fn download_prepared(&mut self, now: Instant, from: Ipv4Addr, prepare: &Prepare) {
        let same = |(download, _): &(Download, String)| {
            download.source == from && download.version == Some(prepare.to)
        };
        if !self.loading.as_ref().is_some_and(same) {
            let mut download = Download::new(now, from, BTreeSet::new());
            download.version = Some(prepare.to);
            self.outputs.push_back(download.request());
            self.loading = Some((download, prepare.cause.clone()));
            return;
        }
        if let Some((download, _)) = self.loading.as_mut().filter(|(download, _)| now >= download.deadline) {
            download.deadline = now + TIMEOUT;
            self.outputs.push_back(download.request());
        }
    }

    /// Takes a piece of tables to be loaded; false if it is not one.
    fn load_chunk(&mut self, now: Instant, from: Ipv4Addr, chunk: &Chunk) -> bool {
        let Some((download, _)) = self
            .loading
            .as_mut()
            .filter(|(download, _)| download.source == from && download.version == Some(chunk.version))
        else {
            return false;
        };
        if download.data.is_empty() && chunk.offset == 0 {
            download.total = chunk.total;
        }
        if !download.take(now, chunk) {
            return true;
        }
        if !download.is_complete() {
            if download.pieces.is_multiple_of(WINDOW) {
                self.outputs.push_back(download.request());
            }
            return true;
        }
        let Some((mut download, cause)) = self.loading.take() else { return true };
        match download.finish() {
            Ok(held) => self.take_prepared(download.source, held, cause),
            Err(reason) => {
                self.outputs.push_back(Output::Event(Event::TransferFailed { router_id: from, reason }));
            }
        }
        true
    }

    pub(super) fn handle_chunk(&mut self, now: Instant, from: Ipv4Addr, chunk: &Chunk) {
        if self.load_chunk(now, from, chunk) {
            return;
        }
        let useful = self.version().is_none_or(|ours| chunk.version.epoch > ours.epoch);
        let Some(download) = self.download.as_mut().filter(|download| download.source == from) else {
            return;
        };
        if !useful || !download.take(now, chunk) {
            return;
        }
        if !download.is_complete() {
            if download.pieces.is_multiple_of(WINDOW) {
                self.outputs.push_back(download.request());
            }
            return;
        }
        match download.finish() {
            Ok(held) => {
                let cause = format!("caught up with {from}");
                self.adopt(now, held, None, cause);
            }
            Err(reason) => self.fail_download(now, reason),
        }
    }

    /// Asks for a snapshot when somebody holds a higher epoch: at once without tables, else once a message
    /// under way has had its time.
    pub(super) fn catch_up(&mut self, now: Instant) {
        let due = match self.lagging_since {
            Some(since) => now >= since + self.settings.heartbeat,
            None => self.held.is_none(),
        };
        let source = self.best_source(&BTreeSet::new());
        let (true, Some(source)) = (due, source) else {
            if source.is_none() {
                self.download = None;
            }
            return;
        };
        if let Some(candidate) = self.take_matching_candidate() {
            self.adopt(now, candidate, None, "the cluster has the tables from disk".to_owned());
            return;
        }
        let Some(download) = &mut self.download else {
            self.start_download(now, source);
            return;
        };
        let source_died = !self.members.get(&download.source).is_some_and(|member| member.is_live());
        if source_died || (now >= download.deadline && download.attempts >= MAX_ATTEMPTS) {
            self.fail_download(now, "no answer".to_owned());
        } else if now >= download.deadline {
            download.attempts += 1;
            download.deadline = now + TIMEOUT;
            let request = download.request();
            self.outputs.push_back(request);
        }
    }

    pub(super) fn start_download(&mut self, now: Instant, source: Ipv4Addr) {
        if self.download.is_none() {
            self.begin(now, source, BTreeSet::new());
        }
    }

    fn begin(&mut self, now: Instant, source: Ipv4Addr, failed: BTreeSet<Ipv4Addr>) {
        let download = Download::new(now, source, failed);
        self.outputs.push_back(download.request());
        self.download = Some(download);
    }

    fn fail_download(&mut self, now: Instant, reason: String) {
        let Some(mut download) = self.download.take() else { return };
        let event = Event::TransferFailed { router_id: download.source, reason };
        self.outputs.push_back(Output::Event(event));
        download.failed.insert(download.source);
        if let Some(source) = self.best_source(&download.failed) {
            self.begin(now, source, download.failed);
        } else if let Some(source) = self.best_source(&BTreeSet::new()) {
            // Everybody failed: start over, but not in a tight loop.
            self.download = Some(Download::new(now, source, BTreeSet::new()));
        }
    }

    /// The live member with the highest epoch above ours, the lowest router id among equals.
    fn best_source(&self, except: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let ours = self.version().map(|version| version.epoch);
        self.live()
            .filter(|(id, _)| !except.contains(id))
            .filter_map(|(id, member)| Some((member.tables()?.epoch, std::cmp::Reverse(id))))
            .filter(|(epoch, _)| ours.is_none_or(|ours| *epoch > ours))
            .max()
            .map(|(_, std::cmp::Reverse(id))| id)
    }

    /// What is on our disk, if the cluster holds exactly that.
    fn take_matching_candidate(&mut self) -> Option<Held> {
        let highest = self.highest()?;
        let version = self.candidate.as_ref()?.version;
        let in_force = self.live().any(|(_, member)| member.tables() == Some(version));
        if version.epoch == highest && in_force { self.candidate.take() } else { None }
    }
}
