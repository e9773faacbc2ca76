//! What the other directors have configured, where it differs from what this one has: asked for piece by piece, so that
//! a difference can be shown by service and key, and so that the leader can carry out a wish (`wishes`).
//!
//! Nothing of it is in force: that are the definitions in the tables.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use director_proto::definitions::{self, Definitions};
use director_proto::sync::{DefinitionsPiece, MAX_CHUNK, Message};
use director_proto::tables::Digest;

use super::{Event, Output, Replica};

/// Pieces sent for one request.
const PIECES: usize = 4;

/// Time for a request to be answered.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Pause after what came in was not usable: it will not be better at once.
const PAUSE: Duration = Duration::from_secs(30);

/// What this director has configured.
#[derive(Debug, Default)]
pub(super) struct Own {
    definitions: Arc<Definitions>,
    encoded: Option<Bytes>,
}

/// What another director has configured, as far as it is known and differs.
#[derive(Debug, Default)]
pub(super) struct Theirs {
    known: Option<(Digest, Arc<Definitions>)>,
    download: Option<Download>,
}

#[derive(Debug)]
struct Download {
    digest: Digest,
    data: BytesMut,
    /// Pieces since the last request.
    pieces: usize,
    again: Instant,
}

impl Download {
    fn request(&self, to: Ipv4Addr) -> Output {
        let message = Message::DefinitionsRequest { digest: self.digest, offset: self.data.len() as u64 };
        Output::Send { to, message }
    }
}

impl Theirs {
    /// The definitions, if they are known to have this digest.
    pub(super) fn known(&self, digest: Digest) -> Option<&Arc<Definitions>> {
        self.known.as_ref().filter(|(known, _)| *known == digest).map(|(_, definitions)| definitions)
    }

    /// When to ask again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.download.as_ref().map(|download| download.again)
    }
}

impl Replica {
    /// The node has read its configuration.
    pub(super) fn configure(&mut self, now: Instant, digest: Digest, definitions: Arc<Definitions>) {
        self.config_digest = digest;
        self.own_definitions = Own { definitions, encoded: None };
        self.next_beat = now;
        self.compare_configurations();
    }

    /// The definitions that a member has with this digest, if they are known here: its own, or ours if they are equal.
    pub(super) fn definitions_of(&self, member: Ipv4Addr, digest: Digest) -> Option<Arc<Definitions>> {
        if digest == self.config_digest {
            return Some(Arc::clone(&self.own_definitions.definitions));
        }
        self.members.get(&member)?.definitions.known(digest).cloned()
    }

    /// Asks those whose definitions differ for them, once, and again where no answer comes.
    pub(super) fn fetch_definitions(&mut self, now: Instant) {
        let ours = self.config_digest;
        for (&router_id, member) in &mut self.members {
            let wanted = member.config_digest().filter(|digest| *digest != ours && member.is_live());
            let theirs = &mut member.definitions;
            theirs.download.take_if(|download| Some(download.digest) != wanted);
            let Some(digest) = wanted else { continue };
            if theirs.known(digest).is_some() {
                continue;
            }
            let download = theirs.download.get_or_insert_with(|| Download {
                digest,
                data: BytesMut::new(),
                pieces: 0,
                again: now,
            });
            if now >= download.again {
                (download.again, download.pieces) = (now + TIMEOUT, 0);
                self.outputs.push_back(download.request(router_id));
            }
        }
    }

    /// Sends the pieces asked for.
    pub(super) fn give_definitions(&mut self, to: Ipv4Addr, digest: Digest, offset: u64) {
        if digest != self.config_digest {
            return;
        }
        let Own { definitions, encoded } = &mut self.own_definitions;
        let bytes = encoded.get_or_insert_with(|| definitions::encode(definitions));
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for offset in (start..bytes.len()).step_by(MAX_CHUNK).take(PIECES) {
            let data = bytes.slice(offset..bytes.len().min(offset + MAX_CHUNK));
            let piece = DefinitionsPiece { digest, offset: offset as u64, total: bytes.len() as u64, data };
            self.outputs.push_back(Output::Send { to, message: Message::Definitions(piece) });
        }
    }

    /// A piece of what another director has configured.
    pub(super) fn handle_definitions(&mut self, now: Instant, from: Ipv4Addr, piece: &DefinitionsPiece) {
        let Some(member) = self.members.get_mut(&from) else { return };
        let Some(download) = &mut member.definitions.download else { return };
        if download.digest != piece.digest || download.data.len() as u64 != piece.offset {
            return;
        }
        download.data.extend_from_slice(&piece.data);
        download.pieces += 1;
        download.again = now + TIMEOUT;
        if (download.data.len() as u64) < piece.total {
            if download.pieces.is_multiple_of(PIECES) {
                self.outputs.push_back(download.request(from));
            }
            return;
        }
        match definitions::decode(std::mem::take(&mut download.data).freeze()) {
            Ok(definitions) => {
                let definitions = Arc::new(definitions);
                member.definitions =
                    Theirs { known: Some((piece.digest, Arc::clone(&definitions))), download: None };
                let event = Event::Definitions { router_id: from, definitions };
                self.outputs.push_back(Output::Event(event));
                self.take_up_wish(from);
            }
            Err(error) => {
                download.again = now + PAUSE;
                let reason = error.to_string();
                self.outputs.push_back(Output::Event(Event::TransferFailed { router_id: from, reason }));
            }
        }
    }
}
