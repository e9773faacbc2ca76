//! A session with its socket and its books, as the endpoint keeps it.

use std::time::{Duration, Instant};

use super::packet::{Packet, State};
use super::session::{Change, Session};
use super::socket::Sender;
use super::status::{Counters, Event, LastDown, SessionKey, SessionStatus};

/// A departure from Up.
#[derive(Debug)]
struct Fall {
    at: Instant,
    change: Change,
}

/// One session of the endpoint.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: SessionKey,
    pub(super) interface_index: u32,
    pub(super) session: Session,
    /// Set when the session was removed: until then at most it says its farewells.
    pub(super) leaving_until: Option<Instant>,
    sender: Sender,
    /// The latest change its client does not yet know.
    unreported: Option<Event>,
    since: Instant,
    last_fall: Option<Fall>,
    last_send_error: Option<String>,
    counters: Counters,
}

impl Entry {
    pub(super) fn new(
        key: SessionKey,
        interface_index: u32,
        session: Session,
        sender: Sender,
        now: Instant,
    ) -> Self {
        Self {
            key,
            interface_index,
            session,
            leaving_until: None,
            sender,
            unreported: None,
            since: now,
            last_fall: None,
            last_send_error: None,
            counters: Counters::default(),
        }
    }

    pub(super) fn source_port(&self) -> u16 {
        self.sender.source_port()
    }

    pub(super) fn handle_packet(&mut self, now: Instant, packet: &Packet) {
        self.counters.received += 1;
        let was = self.session.snapshot().state;
        let change = self.session.handle_packet(now, packet);
        self.record(now, was, change);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let was = self.session.snapshot().state;
        let change = self.session.handle_timeout(now);
        self.record(now, was, change);
    }

    pub(super) fn handle_path_failure(&mut self, now: Instant) {
        let was = self.session.snapshot().state;
        let change = self.session.handle_path_failure();
        self.record(now, was, change);
    }

    pub(super) fn set_disabled(&mut self, now: Instant, disabled: bool) {
        let was = self.session.snapshot().state;
        let change = if disabled { self.session.disable() } else { self.session.enable() };
        self.record(now, was, change);
    }

    /// Begins to leave: the peer is told for `longest` at most.
    pub(super) fn leave(&mut self, now: Instant, longest: Duration) {
        let _of_no_interest_any_more = self.session.disable();
        self.unreported = None;
        self.leaving_until = Some(now + longest);
    }

    /// Whether a removed session has nothing more to say.
    pub(super) fn has_left(&self, now: Instant) -> bool {
        let unheard = self.session.remote_discriminator() == 0;
        self.leaving_until.is_some_and(|until| unheard || now >= until || !self.session.is_taking_leave())
    }

    fn record(&mut self, now: Instant, was: State, change: Option<Change>) {
        let Some(change) = change else { return };
        if change.state != was {
            self.since = now;
        }
        if was == State::Up && change.state != State::Up {
            self.counters.downs += 1;
            self.last_fall = Some(Fall { at: now, change });
        } else if was != State::Up && change.state == State::Up {
            self.counters.ups += 1;
        }
        tracing::info!(
            interface = %self.key.interface, peer = %self.key.peer, state = %change.state, path = ?change.path,
            diagnostic = %change.diagnostic, remote_diagnostic = %change.remote_diagnostic, "BFD session changed"
        );
        if self.leaving_until.is_none() {
            self.unreported = Some(event(&self.key, now, change));
        }
    }

    /// Sends whatever is due.
    pub(super) fn transmit(&mut self, mut random: impl FnMut() -> u32) {
        while let Some(packet) = self.session.poll_transmit(Instant::now(), random()) {
            match self.sender.send(&packet.emit()) {
                Ok(()) => self.counters.sent += 1,
                Err(error) => {
                    self.counters.send_errors += 1;
                    self.last_send_error = Some(error.to_string());
                }
            }
        }
    }

    /// Hands the latest change to `deliver`, which gives it back if it has no room; it is then kept for later.
    pub(super) fn report(&mut self, deliver: impl FnOnce(Event) -> Option<Event>) {
        self.unreported = self.unreported.take().and_then(deliver);
    }

    /// Whether a change waits for room in the channel.
    pub(super) fn has_report(&self) -> bool {
        self.unreported.is_some()
    }

    pub(super) fn status(&self, now: Instant) -> SessionStatus {
        let Change { state, path, diagnostic, remote_state, remote_diagnostic } = self.session.snapshot();
        SessionStatus {
            key: self.key.clone(),
            state,
            path,
            since_ms: milliseconds(now - self.since),
            diagnostic,
            remote_state,
            remote_diagnostic,
            discriminator: self.session.discriminator().get(),
            remote_discriminator: self.session.remote_discriminator(),
            source_port: self.sender.source_port(),
            parameters: self.session.parameters(),
            transmit_interval: self.session.transmit_interval(),
            detection_time: self.session.detection_time(),
            polling: self.session.is_polling(),
            last_down: self.last_fall.as_ref().map(|fall| last_down(fall, now)),
            last_send_error: self.last_send_error.clone(),
            counters: self.counters,
        }
    }
}

fn event(key: &SessionKey, at: Instant, change: Change) -> Event {
    let Change { state, path, diagnostic, remote_state, remote_diagnostic } = change;
    Event { key: key.clone(), at, state, path, diagnostic, remote_state, remote_diagnostic }
}

fn last_down(fall: &Fall, now: Instant) -> LastDown {
    LastDown {
        ago_ms: milliseconds(now - fall.at),
        diagnostic: fall.change.diagnostic,
        remote_state: fall.change.remote_state,
        remote_diagnostic: fall.change.remote_diagnostic,
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
