//! What one director knows of the cluster's tables, as a machine without sockets, clock or threads.
//!
//! Time is an argument, inputs go to [`Replica::handle`], results wait in [`Replica::poll_output`], and
//! [`Replica::next_deadline`] says when to call again though nothing came in. The whole cluster can so run on
//! a virtual clock, over a network that loses and reorders (`simulation`, in the tests).
//!
//! | file | owns |
//! |---|---|
//! | `agreement` | epochs in three steps: prepare, commit, finish |
//! | `leading` | the steps, at the director that leads through them |
//! | `following` | the steps, at those that are led |
//! | `claims` | what others had in force that this director lacks, remembered while they are silent |
//! | `definitions` | what the others have configured, where it differs from what this director has |
//! | `wishes` | services that one director wants in force in the whole cluster |
//! | `admission` | who may speak: cluster, protocol, router id |
//! | `health` | what every director's checks say of the real servers, and what follows |
//! | `input` | what the machine is told |
//! | `member` | what is known of one other director |
//! | `seeding` | how tables come into force where nobody has any |
//! | `standing` | whether this director may serve |
//! | `transfer` | snapshots, asked for piece by piece |
//! | `windows` | how slots stand, for who was not there when they began to move |
//! | `output` | what the machine wants done and what it tells the node |
//!
//! Three rules carry it. Tables have a total order, the epoch, and the higher one wins wherever two meet.
//! Heartbeats say what everybody holds and has prepared, so that whoever lacks something asks for it: the messages
//! of an epoch's steps only make that faster, and losing one costs time, not agreement. And what was on disk is a
//! candidate: it comes into force only when the directors that can be reached agree that nobody holds anything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use director_proto::sync::{BootId, MAX_HEARD, Message, Report};
use director_proto::tables::{Digest, Epoch, ServiceTable, TableSet, Version};

pub use admission::Refusal;
pub use health::{HealthView, Votes};
pub use input::{Fed, Input, Isolation, ProposeError, Saved, Settings, skew};
pub use member::Member;
pub use output::{Event, Output, Standing};
pub use wishes::Outcome;

use agreement::{Prepared, Rejected, Round};
use claims::Claims;
use standing::Doubts;
use transfer::Download;
use windows::{Given, Missing};

mod admission;
mod agreement;
mod claims;
mod definitions;
mod following;
mod health;
mod input;
mod leading;
mod member;
mod output;
mod seeding;
mod standing;
mod transfer;
mod windows;
mod wishes;

/// Tables with their version, which costs a hash over everything.
#[derive(Clone, Debug)]
struct Held {
    tables: Arc<TableSet>,
    version: Version,
}

impl Held {
    fn new(tables: TableSet) -> Self {
        Self { version: tables.version(), tables: Arc::new(tables) }
    }
}

/// The machine.
#[derive(Debug)]
pub struct Replica {
    settings: Settings,
    config_digest: Digest,
    own_definitions: definitions::Own,
    wishes: wishes::Wishes,
    /// Whether a configured peer that can be reached does not talk with us.
    refused: bool,
    started: Instant,
    /// When the machine last did what was due.
    handled: Instant,
    /// Highest epoch number ever met, in force or not: what is decided here is above it.
    floor: u64,
    members: BTreeMap<Ipv4Addr, Member>,
    /// Tables in force.
    held: Option<Held>,
    /// Tables from disk.
    candidate: Option<Held>,
    /// Encoding of `held`, made when first asked for.
    snapshot: Option<(Version, Bytes)>,
    download: Option<Download>,
    /// Tables to be loaded on their way in, and why they change.
    loading: Option<(Download, String)>,
    /// Tables loaded beside those in force.
    prepared: Option<Prepared>,
    /// Tables that came into force in an epoch that is not finished, and when.
    committed: Option<(Version, Instant)>,
    /// What the node has said of the tables in force.
    applied: Option<(Version, Result<(), String>)>,
    /// It is not known how slots stand.
    missing: Option<Missing>,
    given: Given,
    /// The epoch that this director leads through its steps.
    round: Option<Round>,
    /// Tables that the cluster refused last.
    rejected: Option<Rejected>,
    /// The other directors that were there when all was well.
    roster: BTreeSet<Ipv4Addr>,
    doubts: Doubts,
    claims: Claims,
    /// Reports sent.
    reports: u64,
    /// What this director's own health checks say.
    observations: health::Own,
    /// What all live directors' say together, as last told to the node.
    health: Arc<HealthView>,
    /// Something it follows from has changed since.
    health_changed: bool,
    /// Since when a live member holds a higher epoch.
    lagging_since: Option<Instant>,
    /// Since when a live member holds other tables under our epoch.
    diverged_since: Option<Instant>,
    /// The node was asked for tables.
    asked: bool,
    next_beat: Instant,
    standing: Standing,
    leader: Option<Ipv4Addr>,
    /// When that was last somebody else.
    leader_since: Option<Instant>,
    outputs: VecDeque<Output>,
}

impl Replica {
    /// A replica that starts to join at `now`; `saved` is what the disk held.
    pub fn new(now: Instant, settings: Settings, config_digest: Digest, saved: Option<Saved>) -> Self {
        let floor = saved.as_ref().map_or(0, |saved| saved.floor.max(saved.tables.epoch.number));
        let candidate = saved.map(|saved| Held { version: saved.tables.version(), tables: saved.tables });
        Self {
            settings,
            config_digest,
            own_definitions: definitions::Own::default(),
            wishes: wishes::Wishes::default(),
            refused: false,
            started: now,
            handled: now,
            floor,
            members: BTreeMap::new(),
            held: None,
            candidate,
            snapshot: None,
            download: None,
            loading: None,
            prepared: None,
            committed: None,
            applied: None,
            missing: None,
            given: Given::default(),
            round: None,
            rejected: None,
            roster: BTreeSet::new(),
            doubts: Doubts::default(),
            claims: Claims::default(),
            reports: 0,
            observations: health::Own::default(),
            health: Arc::default(),
            health_changed: false,
            lagging_since: None,
            diverged_since: None,
            asked: false,
            next_beat: now,
            standing: Standing::Joining,
            leader: None,
            leader_since: None,
            outputs: VecDeque::new(),
        }
    }

    /// Takes an input, then does whatever is due at `now`.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Tick => {}
            Input::Report { from, boot_id, report } => self.handle_report(now, from, boot_id, report),
            Input::Message { from, boot_id, message } => self.handle_message(now, from, boot_id, message),
            Input::Configured { digest, definitions } => self.configure(now, digest, definitions),
            Input::Wish(id) => self.wish(id),
            Input::WishDecided { from, id, outcome } => self.decide_wish(from, id, outcome),
            Input::Loaded { version, result } => self.handle_loaded(now, version, result),
            Input::Applied { version, result } => self.handle_applied(now, version, result),
            Input::Windows { to, version, windows } => self.give_windows(to, version, windows),
            Input::Refused(refused) => self.refused = refused,
            Input::Observed(observed) => self.observe(&observed),
        }
        self.handle_time(now);
    }

    /// Begins to put tables for `services` in force in the whole cluster, if this director leads or is the one to seed; what is
    /// in force or under way already keeps its epoch. `hash_key_if_new` becomes the key where there are no tables yet;
    /// `cause` is for people.
    ///
    /// # Errors
    /// [`ProposeError`]. What becomes of the epoch is told by [`Event::TablesInForce`], [`Event::RolledBack`] and
    /// [`Event::NotInForce`].
    pub fn propose(
        &mut self,
        now: Instant,
        services: BTreeMap<String, ServiceTable>,
        hash_key_if_new: [u8; 16],
        cause: String,
    ) -> Result<Epoch, ProposeError> {
        self.handle_time(now);
        let router_id = self.settings.router_id;
        let (number, hash_key) = match (&self.held, self.leader) {
            (Some(held), Some(leader)) if leader == router_id => {
                if let Some(round) = &self.round {
                    let same = round.held().tables.services == services;
                    return if same {
                        Ok(round.epoch())
                    } else {
                        Err(ProposeError::Busy { epoch: round.epoch() })
                    };
                }
                if held.tables.services == services {
                    return Ok(held.version.epoch);
                }
                if self.is_isolated() || self.is_leaderless() {
                    return Err(ProposeError::Isolated);
                }
                if let Some(epoch) = self.to_be_resumed() {
                    return Err(ProposeError::Busy { epoch });
                }
                if let Some(rejected) =
                    self.rejected.as_ref().filter(|rejected| rejected.concerns(&services, now))
                {
                    return Err(ProposeError::Rejected { reason: rejected.reason.clone() });
                }
                (self.next_number(), held.tables.hash_key)
            }
            (_, Some(leader)) => return Err(ProposeError::NotLeader { leader }),
            (None, None) if self.is_seeder(now) => (self.next_number(), hash_key_if_new),
            (_, None) => return Err(ProposeError::Joining),
        };
        let epoch = Epoch { number, leader: router_id };
        let tables = TableSet { epoch, hash_key, services };
        tables.check()?;
        if self.held.is_some() {
            self.begin_round(now, Held::new(tables), cause, false);
        } else {
            self.adopt(now, Held::new(tables), None, cause);
        }
        self.handle_time(now);
        Ok(epoch)
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Self::handle`] with [`Input::Tick`] at the latest.
    pub fn next_deadline(&self) -> Instant {
        let settings = &self.settings;
        let grace = self.held.is_none().then(|| self.started + settings.grace);
        let lag = self.lagging_since.iter().map(|&since| since + settings.heartbeat);
        let diverged = self.diverged_since.map(|since| since + self.patience());
        let download = self.download.as_ref().map(Download::deadline);
        let members = self.members.values().flat_map(|member| member.deadlines(settings));
        grace
            .into_iter()
            .chain(lag)
            .chain(diverged)
            .chain(download)
            .chain(members)
            .chain(self.round_deadlines())
            .chain(self.standing_deadlines())
            .chain(self.claims.deadlines())
            .chain(self.windows_deadlines())
            .chain(self.wish_deadline())
            // What was due has been done: only the future needs a call.
            .filter(|deadline| *deadline > self.handled)
            .fold(self.next_beat, Instant::min)
    }

    /// Identity and patience.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where this director stands.
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Version of the tables in force here.
    pub fn version(&self) -> Option<Version> {
        self.held.as_ref().map(|held| held.version)
    }

    /// Tables in force here.
    pub fn tables(&self) -> Option<&Arc<TableSet>> {
        self.held.as_ref().map(|held| &held.tables)
    }

    /// Lowest router id among the live holders of the highest epoch.
    pub fn leader(&self) -> Option<Ipv4Addr> {
        self.leader
    }

    /// Whether a member has yet to answer to the step under way here.
    pub fn awaits(&self, router_id: Ipv4Addr) -> bool {
        self.round.as_ref().is_some_and(|round| round.awaits(router_id))
    }

    /// Version of the tables loaded beside those in force, or being loaded.
    pub fn prepared(&self) -> Option<Version> {
        self.prepared.as_ref().map(|prepared| prepared.held.version)
    }

    /// What the live directors' health checks say.
    pub fn health(&self) -> &Arc<HealthView> {
        &self.health
    }

    /// Digest of the services configured here.
    pub fn config_digest(&self) -> Digest {
        self.config_digest
    }

    /// The other directors met so far, by router id.
    pub fn members(&self) -> impl Iterator<Item = (Ipv4Addr, &Member)> {
        self.members.iter().map(|(router_id, member)| (*router_id, member))
    }

    fn handle_report(&mut self, now: Instant, from: Ipv4Addr, boot_id: BootId, report: Report) {
        let Some(member) = self.members.get_mut(&from).filter(|member| member.boot_id() == boot_id) else {
            return;
        };
        let numbers = [report.tables, report.candidate, report.prepared]
            .into_iter()
            .flatten()
            .map(|version| version.epoch.number);
        self.floor = numbers.fold(self.floor.max(report.floor), u64::max);
        let edition = report.observations;
        if member.handle_report(now, report) {
            self.health_changed = true;
            self.outputs.push_back(Output::Event(Event::PeerUp { router_id: from, boot_id }));
            // The newcomer learns at once what we hold.
            self.next_beat = now;
        }
        self.catch_up_observations(from, edition);
        self.compare_configurations();
    }

    fn handle_message(&mut self, now: Instant, from: Ipv4Addr, boot_id: BootId, message: Message) {
        let Some(member) = self.members.get_mut(&from).filter(|member| member.boot_id() == boot_id) else {
            return;
        };
        match message {
            Message::Acknowledge(version) => {
                member.handle_version(version);
                self.handle_acknowledge(from, version);
            }
            Message::Prepare(prepare) => self.handle_prepare(now, from, &prepare),
            Message::Prepared(version) => self.handle_prepared(from, version),
            Message::Refused { version, reason } => self.handle_refused(now, from, version, reason),
            Message::Commit(version) => self.handle_commit(now, from, version),
            Message::Finish(version) => self.finish(version),
            Message::Abort(version) => self.handle_abort(now, from, version),
            Message::Request(request) => self.serve(from, request),
            Message::Observations(piece) => self.handle_observations(from, &piece),
            Message::ObservationsSince(edition) => self.handle_observations_since(from, edition),
            Message::Chunk(chunk) => self.handle_chunk(now, from, &chunk),
            Message::WindowsRequest(request) => self.handle_windows_request(from, request),
            Message::Windows(chunk) => self.handle_windows(now, from, &chunk),
            Message::DefinitionsRequest { digest, offset } => self.give_definitions(from, digest, offset),
            Message::Definitions(piece) => self.handle_definitions(now, from, &piece),
            Message::Wish { id, digest } => self.handle_wish(from, boot_id, id, digest),
            Message::WishOutcome { id, outcome } => self.end_wish(from, id, outcome),
        }
    }

    fn handle_time(&mut self, now: Instant) {
        self.handled = now;
        self.bury_the_silent(now);
        self.call_the_roll(now);
        self.compare_tables(now);
        self.follow(now);
        self.catch_up(now);
        self.settle_divergence(now);
        self.seed(now);
        self.merge_health();
        self.announce(now);
        self.lead_round(now);
        self.announce(now);
        self.seek_windows(now);
        self.fetch_definitions(now);
        self.pursue_wish(now);
        if now >= self.next_beat {
            self.next_beat = now + self.settings.heartbeat;
            let report = self.report();
            self.outputs.push_back(Output::Beat(report));
        }
    }

    fn report(&mut self) -> Report {
        self.reports += 1;
        Report {
            sequence: self.reports,
            prepared: self.prepared(),
            phase: self.phase(),
            leader: self.leader,
            hears: self.live().map(|(id, _)| id).take(MAX_HEARD).collect(),
            tables: self.version(),
            candidate: self.candidate.as_ref().map(|held| held.version),
            config_digest: self.config_digest,
            software: self.settings.software.clone(),
            observations: self.observations.edition(),
            serves: self.serves(),
            floor: self.floor,
        }
    }

    fn live(&self) -> impl Iterator<Item = (Ipv4Addr, &Member)> {
        self.members().filter(|(_, member)| member.is_live())
    }

    /// Highest epoch in force at any live director, this one included.
    fn highest(&self) -> Option<Epoch> {
        let theirs = self.live().filter_map(|(_, member)| member.tables());
        theirs.chain(self.version()).map(|version| version.epoch).max()
    }

    fn bury_the_silent(&mut self, now: Instant) {
        for (router_id, member) in &mut self.members {
            if member.bury_if_silent(now, self.settings.dead) {
                self.health_changed = true;
                self.outputs.push_back(Output::Event(Event::PeerDown { router_id: *router_id }));
            }
        }
    }

    fn compare_configurations(&mut self) {
        for (router_id, member) in &mut self.members {
            if let Some(same) = member.compare_configuration(self.config_digest) {
                self.outputs.push_back(Output::Event(Event::Configuration { router_id: *router_id, same }));
            }
        }
    }

    /// Notices who holds other tables, and tells when it lasts.
    fn compare_tables(&mut self, now: Instant) {
        let ours = self.version();
        let since = |present: Option<Instant>, condition: bool| condition.then(|| present.unwrap_or(now));
        let is_higher = |epoch: Epoch| ours.is_some_and(|ours| epoch > ours.epoch);
        let lagging = self.highest().is_some_and(is_higher);
        self.lagging_since = since(self.lagging_since, lagging);
        let diverged = self.live().filter_map(|(_, member)| member.tables()).any(|theirs| {
            ours.is_some_and(|ours| ours.epoch == theirs.epoch && ours.digest != theirs.digest)
        });
        self.diverged_since = since(self.diverged_since, diverged);
        let Some(ours) = ours else { return };
        for (router_id, member) in &mut self.members {
            if let Some(event) = member.compare_tables(now, *router_id, ours, self.settings.dead) {
                self.outputs.push_back(Output::Event(event));
            }
        }
    }

    /// Two contents under one epoch: the lowest router id among their holders sends its own under a new one.
    fn settle_divergence(&mut self, now: Instant) {
        let (Some(held), Some(since)) = (&self.held, self.diverged_since) else { return };
        let lowest = self.leader_among_holders() == Some(self.settings.router_id);
        if !lowest || now < since + self.patience() {
            return;
        }
        let epoch = Epoch { number: self.next_number(), leader: self.settings.router_id };
        let tables = TableSet { epoch, ..TableSet::clone(&held.tables) };
        let before = held.version;
        self.adopt(now, Held::new(tables), Some(before), "two contents under one epoch".to_owned());
        self.diverged_since = None;
    }

    /// Above everything ever met, so that no epoch names two contents: not even after tables that only this
    /// director held gave way to the cluster's.
    fn next_number(&self) -> u64 {
        self.floor.saturating_add(1)
    }

    /// Time for reports under way to arrive before acting on what they say.
    fn patience(&self) -> Duration {
        self.settings.patience()
    }

    fn leader_among_holders(&self) -> Option<Ipv4Addr> {
        let highest = self.highest()?;
        let holds = |version: Option<Version>| version.is_some_and(|version| version.epoch == highest);
        let others = self.live().filter(|(_, member)| holds(member.tables())).map(|(id, _)| id);
        others.chain(holds(self.version()).then_some(self.settings.router_id)).min()
    }

    /// Puts tables in force here; `follows` names those that this director has gone on from, if it took part in the step.
    fn adopt(&mut self, now: Instant, held: Held, follows: Option<Version>, cause: String) {
        let version = held.version;
        self.floor = self.floor.max(version.epoch.number);
        let tables = Arc::clone(&held.tables);
        // Who did not serve may be late: the others may have let go by now what it would begin to keep.
        let follows = follows.filter(|_| self.standing == Standing::Current);
        let in_time = now + self.settings.commit_time();
        let event = Event::TablesInForce { tables, version, follows, in_time, cause };
        self.outputs.push_back(Output::Event(event));
        self.held = Some(held);
        self.store();
        self.candidate = None;
        self.download = None;
        self.loading = None;
        // What was under way here is overtaken: the node shall not wait for its end.
        let overtaken = self.prepared.take_if(|prepared| prepared.held.version.epoch <= version.epoch);
        let overtaken = overtaken.map(|prepared| prepared.held.version);
        let overtaken = overtaken.or(self.committed.take().map(|(committed, _)| committed));
        // What is still prepared has taken the place of all that was under way before.
        if let Some(version) = overtaken.filter(|_| self.prepared.is_none()) {
            self.outputs.push_back(Output::Event(Event::Finished { version }));
        }
        self.applied = None;
        self.snapshot = None;
        self.restart_search();
        self.asked = false;
        // The others learn at once.
        self.next_beat = now;
        self.compare_tables(now);
    }

    /// Keeps the tables in force, and the highest number given to any.
    fn store(&mut self) {
        if let Some(held) = &self.held {
            let saved = Saved { tables: Arc::clone(&held.tables), floor: self.floor };
            self.outputs.push_back(Output::Store(saved));
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
