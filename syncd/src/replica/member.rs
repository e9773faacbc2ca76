//! What is known of one other director.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use director_proto::sync::{BootId, Phase, Report};
use director_proto::tables::{Digest, Version};

use super::definitions;
use super::health::Theirs;
use super::{Event, Settings};

/// Runs of a director that were followed by another, remembered to tell a duplicate from a restart.
const REMEMBERED_BOOTS: usize = 8;

/// Another director.
#[derive(Debug)]
pub struct Member {
    boot_id: BootId,
    superseded: VecDeque<BootId>,
    endpoint: String,
    software: String,
    heard: Option<Instant>,
    /// When it was last known to be heard, here or by another director that is heard here.
    known_heard: Option<Instant>,
    live: bool,
    /// When it came to life last.
    revived: Option<Instant>,
    tables: Option<Version>,
    candidate: Option<Version>,
    config_digest: Option<Digest>,
    same_config: bool,
    differs_since: Option<Instant>,
    difference_told: bool,
    /// What its health checks say.
    pub(super) observations: Theirs,
    /// What it has configured.
    pub(super) definitions: definitions::Theirs,
    /// Number of the last report.
    sequence: u64,
    prepared: Option<Version>,
    phase: Phase,
    leader: Option<Ipv4Addr>,
    hears: Vec<Ipv4Addr>,
    serves: bool,
    /// When it last said so.
    served: Option<Instant>,
}

impl Member {
    pub(super) fn new(boot_id: BootId, endpoint: &str, software: &str) -> Self {
        Self {
            boot_id,
            superseded: VecDeque::new(),
            endpoint: endpoint.to_owned(),
            software: software.to_owned(),
            heard: None,
            known_heard: None,
            live: false,
            revived: None,
            tables: None,
            candidate: None,
            config_digest: None,
            same_config: true,
            differs_since: None,
            difference_told: false,
            observations: Theirs::default(),
            definitions: definitions::Theirs::default(),
            sequence: 0,
            prepared: None,
            phase: Phase::Settled,
            leader: None,
            hears: Vec::new(),
            serves: false,
            served: None,
        }
    }

    /// The run that follows this one, of which nothing is known yet.
    pub(super) fn restarted(&mut self, boot_id: BootId, endpoint: &str, software: &str) {
        let mut superseded = std::mem::take(&mut self.superseded);
        superseded.retain(|boot| *boot != boot_id);
        superseded.push_back(self.boot_id);
        if superseded.len() > REMEMBERED_BOOTS {
            superseded.pop_front();
        }
        *self = Self { superseded, ..Self::new(boot_id, endpoint, software) };
    }

    /// Which run of the director this is.
    pub fn boot_id(&self) -> BootId {
        self.boot_id
    }

    /// Where it listens, as it says.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its software version.
    pub fn software(&self) -> &str {
        &self.software
    }

    /// Whether it was heard within the dead interval.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// When it was heard again after a silence, or for the first time.
    pub(super) fn revived(&self) -> Option<Instant> {
        self.revived
    }

    /// When it was last heard.
    pub fn heard(&self) -> Option<Instant> {
        self.heard
    }

    /// When it was last known to be heard, here or by another director that is heard here: it may have followed
    /// the others until then.
    pub(super) fn known_heard(&self) -> Option<Instant> {
        self.known_heard.max(self.heard)
    }

    /// Another director says that it hears it.
    pub(super) fn heard_elsewhere(&mut self, now: Instant) {
        self.known_heard = Some(now);
    }

    /// Version of the tables in force there.
    pub fn tables(&self) -> Option<Version> {
        self.tables
    }

    /// Whether it has our services configured; true while unknown.
    pub fn has_same_config(&self) -> bool {
        self.same_config
    }

    /// Digest of the services that it has configured.
    pub(super) fn config_digest(&self) -> Option<Digest> {
        self.config_digest
    }

    /// Where the epoch under way stands there.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Version of the tables loaded there beside those in force, or being loaded.
    pub fn prepared(&self) -> Option<Version> {
        self.prepared
    }

    /// Whether it serves, and can say how its slots stand.
    pub(super) fn serves(&self) -> bool {
        self.serves
    }

    /// When it last said that it serves. While tables come into its kernel it says so for a moment that it does not.
    pub(super) fn served(&self) -> Option<Instant> {
        self.served
    }

    /// Whether it hears another director.
    pub(super) fn hears(&self, router_id: Ipv4Addr) -> bool {
        self.hears.contains(&router_id)
    }

    /// Whom it takes for the leader.
    pub fn leader(&self) -> Option<Ipv4Addr> {
        self.leader
    }

    pub(super) fn candidate(&self) -> Option<Version> {
        self.candidate
    }

    pub(super) fn was_superseded(&self, boot_id: BootId) -> bool {
        self.superseded.contains(&boot_id)
    }

    /// Whether the member has come to life by this.
    pub(super) fn handle_report(&mut self, now: Instant, report: Report) -> bool {
        self.heard = Some(now);
        let overtaken = report.sequence <= self.sequence;
        let comes_to_life = !std::mem::replace(&mut self.live, true);
        if comes_to_life {
            self.revived = Some(now);
        }
        if overtaken {
            return comes_to_life;
        }
        self.sequence = report.sequence;
        self.prepared = report.prepared;
        self.phase = report.phase;
        self.leader = report.leader;
        self.hears = report.hears;
        self.serves = report.serves;
        self.served = if report.serves { Some(now) } else { self.served };
        self.candidate = report.candidate;
        self.config_digest = Some(report.config_digest);
        self.software = report.software;
        if let Some(version) = report.tables {
            self.handle_version(version);
        }
        comes_to_life
    }

    /// The member holds `version`. Reports and acknowledgements may overtake each other; one run of a director
    /// never goes back, so the higher epoch is the newer.
    pub(super) fn handle_version(&mut self, version: Version) {
        if self.tables.is_some_and(|known| known.epoch > version.epoch) {
            return;
        }
        self.tables = Some(version);
        self.candidate = None;
    }

    /// Whether the member has died by now.
    pub(super) fn bury_if_silent(&mut self, now: Instant, dead: Duration) -> bool {
        let silent = self.heard.is_none_or(|heard| now >= heard + dead);
        if !self.live || !silent {
            return false;
        }
        self.live = false;
        self.prepared = None;
        self.phase = Phase::Settled;
        self.leader = None;
        self.serves = false;
        self.differs_since = None;
        true
    }

    /// The new answer when the comparison changed.
    pub(super) fn compare_configuration(&mut self, ours: Digest) -> Option<bool> {
        let same = self.config_digest.is_none_or(|theirs| theirs == ours);
        (std::mem::replace(&mut self.same_config, same) != same).then_some(same)
    }

    /// What to tell of its tables: a difference only once it has lasted for `dead`.
    pub(super) fn compare_tables(
        &mut self,
        now: Instant,
        router_id: Ipv4Addr,
        ours: Version,
        dead: Duration,
    ) -> Option<Event> {
        if !self.live {
            return None;
        }
        if self.tables == Some(ours) {
            self.differs_since = None;
            return std::mem::take(&mut self.difference_told)
                .then_some(Event::TablesAgree { router_id, version: ours });
        }
        let since = *self.differs_since.get_or_insert(now);
        if self.difference_told || now < since + dead {
            return None;
        }
        self.difference_told = true;
        Some(Event::TablesDiffer { router_id, ours, theirs: self.tables })
    }

    pub(super) fn deadlines(&self, settings: &Settings) -> impl Iterator<Item = Instant> {
        let dead = settings.dead;
        let death = self.heard.filter(|_| self.live).map(|heard| heard + dead);
        let tell = self.differs_since.filter(|_| !self.difference_told).map(|since| since + dead);
        let definitions = self.definitions.deadline().filter(|_| self.live);
        [death, tell, definitions].into_iter().flatten()
    }
}
