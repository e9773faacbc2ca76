//! What the endpoint does when it is asked to.

use std::collections::hash_map;
use std::io::Read;
use std::num::NonZeroU32;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::{Endpoint, Phase};
use crate::bfd::entry::Entry;
use crate::bfd::handle::{Action, AddError, Command, UpdateError};
use crate::bfd::parameters::Parameters;
use crate::bfd::session::Session;
use crate::bfd::socket::{Listener, SOURCE_PORTS, Sender, interface_index};
use crate::bfd::status::{EndpointStatus, SessionKey, Status};

/// How long a removed session may take leave.
const LEAVE: Duration = Duration::from_secs(3);

/// How long all of them may at the end of the process.
const SHUTDOWN: Duration = Duration::from_millis(500);

/// Source ports tried for a session.
const PORT_ATTEMPTS: usize = 64;

impl Endpoint {
    pub(super) fn handle_commands(&mut self) {
        let mut wakeups = [0; 64];
        while matches!(self.wake.read(&mut wakeups), Ok(read) if read == wakeups.len()) {}
        while self.phase == Phase::Running {
            match self.commands.try_recv() {
                Ok(command) => self.handle_command(command),
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => self.abandon(),
            }
        }
    }

    fn handle_command(&mut self, command: Command) {
        // Somebody who no longer waits for the answer does not need it.
        let now = Instant::now();
        match command {
            Command::Add { key, parameters, reply } => {
                let outcome = self.add(key, parameters);
                self.close_unused_listeners();
                let _nobody_waits = reply.send(outcome);
            }
            Command::Act { key, action, reply } => {
                let _nobody_waits = reply.send(self.act(&key, action, now));
            }
            Command::Status { reply } => {
                let _nobody_waits = reply.send(self.status(now));
            }
            Command::Shutdown => {
                for entry in self.sessions.values_mut() {
                    entry.leave(now, SHUTDOWN);
                }
                self.phase = Phase::Leaving { until: now + SHUTDOWN };
            }
            Command::Abandon => self.abandon(),
        }
    }

    /// Tells all peers that this end is gone; the pass that is under way sends it, and is the last.
    fn abandon(&mut self) {
        let now = Instant::now();
        for entry in self.sessions.values_mut().filter(|entry| entry.leaving_until.is_none()) {
            entry.handle_path_failure(now);
        }
        self.phase = Phase::Ended;
    }

    fn add(&mut self, key: SessionKey, parameters: Parameters) -> Result<(), AddError> {
        let interface_index = interface_index(&key.interface)?;
        let peer = (interface_index, key.peer);
        if let Some(discriminator) = self.by_peer.get(&peer).copied() {
            if self.sessions.get(&discriminator).is_some_and(|entry| entry.leaving_until.is_none()) {
                return Err(AddError::Exists(key));
            }
            self.forget(discriminator);
        }
        if self.sessions.len() >= self.config.max_sessions {
            return Err(AddError::TooMany(self.config.max_sessions));
        }
        let v6 = key.peer.is_ipv6();
        if let hash_map::Entry::Vacant(vacant) = self.listeners.entry((interface_index, v6)) {
            vacant.insert(Listener::open(&key.interface, v6)?);
        }
        let ports = self.candidate_ports();
        let sender = Sender::open(&key.interface, interface_index, key.local, key.peer, ports.into_iter())?;
        let discriminator = self.unused_discriminator();
        let session = Session::new(discriminator, parameters);
        let entry = Entry::new(key, interface_index, session, sender, Instant::now());
        self.by_peer.insert(peer, discriminator.get());
        self.sessions.insert(discriminator.get(), entry);
        Ok(())
    }

    fn act(&mut self, key: &SessionKey, action: Action, now: Instant) -> Result<(), UpdateError> {
        let entry = self.sessions.values_mut().find(|e| e.key == *key && e.leaving_until.is_none());
        let entry = entry.ok_or_else(|| UpdateError::Unknown(key.clone()))?;
        match action {
            Action::Remove => entry.leave(now, LEAVE),
            Action::Set(parameters) => entry.session.set_parameters(parameters),
            Action::Disable => entry.set_disabled(now, true),
            Action::Enable => entry.set_disabled(now, false),
        }
        Ok(())
    }

    fn status(&self, now: Instant) -> Status {
        let present = self.sessions.values().filter(|entry| entry.leaving_until.is_none());
        let mut sessions: Vec<_> = present.map(|entry| entry.status(now)).collect();
        sessions.sort_by(|a, b| a.key.cmp(&b.key));
        Status {
            endpoint: EndpointStatus {
                realtime: self.realtime.clone(),
                memory_locked: self.memory_locked.clone(),
                late_by_max_us: u64::try_from(self.late_by_max.as_micros()).unwrap_or(u64::MAX),
                late_wakeups: self.late_wakeups,
                discards: self.discards.clone(),
                receive_errors: self.receive_errors,
            },
            sessions,
        }
    }

    /// RFC 5881 section 4: the source port "SHOULD be unique among all BFD sessions on the system".
    fn candidate_ports(&mut self) -> Vec<u16> {
        let span = u32::from(SOURCE_PORTS.end() - SOURCE_PORTS.start()) + 1;
        let mut candidates = Vec::with_capacity(PORT_ATTEMPTS);
        while candidates.len() < PORT_ATTEMPTS {
            let offset =
                u16::try_from(self.random.next() % span).expect("invariant: the span is below 65536");
            let port = SOURCE_PORTS.start() + offset;
            if !self.sessions.values().any(|entry| entry.source_port() == port) {
                candidates.push(port);
            }
        }
        candidates
    }

    fn unused_discriminator(&mut self) -> NonZeroU32 {
        loop {
            let candidate = NonZeroU32::new(self.random.next());
            if let Some(candidate) = candidate.filter(|new| !self.sessions.contains_key(&new.get())) {
                return candidate;
            }
        }
    }
}
