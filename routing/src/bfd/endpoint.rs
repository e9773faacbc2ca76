//! The thread: waits for packets, deadlines and commands, and moves the sessions.
//!
//! A pass of its loop has a fixed order, on which the promise "no peer is declared down because this end slept"
//! rests: first the receive queues are emptied of all that had come, then the detection times are judged, then the
//! packets that are due are sent. After a wake-up that was late by more than [`LATE`], detection waits for
//! [`SETTLE`] more, as the kernel may have been late with the queues themselves (a virtual machine that was
//! stopped, for instance).

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tokio::sync::mpsc as events;

use super::Config;
use super::discard::{Discard, Discards};
use super::entry::Entry;
use super::handle::Command;
use super::packet::Packet;
use super::scheduling::{Grant, enter_realtime, lock_memory};
use super::socket::{Datagram, Listener, TIME_TO_LIVE};
use super::status::Event;

mod commands;
#[cfg(test)]
mod tests;

/// A wake-up later than this after its deadline makes detection wait for [`SETTLE`].
const LATE: Duration = Duration::from_millis(5);

/// How long packets that the kernel still holds may take to be queued.
const SETTLE: Duration = Duration::from_millis(5);

/// Packets taken from one listener in a pass: more than its buffer holds, so the queue of the pass's start is empty
/// afterwards, and no flood keeps the thread from its timers.
const BATCH: usize = 1024;

/// How often to try again to hand over an event that found the channel full.
const RETRY_REPORT: Duration = Duration::from_millis(100);

/// Which socket a packet came through.
type ListenerKey = (u32, bool);

/// Numbers nobody can guess, from the standard library's keyed hash.
#[derive(Debug, Default)]
struct Random {
    key: RandomState,
    count: u64,
}

impl Random {
    fn next(&mut self) -> u32 {
        self.count += 1;
        (self.key.hash_one(self.count) >> 32) as u32
    }
}

/// How the thread ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Leaving { until: Instant },
    Ended,
}

/// Everything the thread owns.
#[derive(Debug)]
pub(super) struct Endpoint {
    config: Config,
    commands: mpsc::Receiver<Command>,
    wake: UnixStream,
    events: events::Sender<Event>,

    phase: Phase,
    random: Random,
    listeners: HashMap<ListenerKey, Listener>,
    /// By this end's discriminator.
    sessions: BTreeMap<u32, Entry>,
    by_peer: HashMap<(u32, IpAddr), u32>,
    /// Detection is not judged before this instant.
    settled_at: Option<Instant>,

    realtime: Grant,
    memory_locked: Grant,
    late_by_max: Duration,
    late_wakeups: u64,
    discards: Discards,
    receive_errors: u64,
}

impl Endpoint {
    pub(super) fn new(
        config: Config,
        commands: mpsc::Receiver<Command>,
        wake: UnixStream,
        events: events::Sender<Event>,
    ) -> Self {
        Self {
            config,
            commands,
            wake,
            events,
            phase: Phase::Running,
            random: Random::default(),
            listeners: HashMap::new(),
            sessions: BTreeMap::new(),
            by_peer: HashMap::new(),
            settled_at: None,
            realtime: Grant::NotAsked,
            memory_locked: Grant::NotAsked,
            late_by_max: Duration::ZERO,
            late_wakeups: 0,
            discards: Discards::default(),
            receive_errors: 0,
        }
    }

    /// The life of the thread.
    pub(super) fn run(mut self) {
        self.realtime = enter_realtime(self.config.realtime_priority);
        self.memory_locked = lock_memory(self.config.lock_memory);
        for (what, grant) in [("real-time class", &self.realtime), ("locked memory", &self.memory_locked)] {
            if let Grant::Refused(reason) = grant {
                tracing::warn!(%reason, "BFD runs without {what}: it may be late on a busy machine");
            }
        }
        while self.phase != Phase::Ended {
            let deadline = self.next_deadline();
            self.wait(deadline);
            self.note_lateness(deadline);
            self.handle_commands();
            self.receive();
            self.expire();
            self.transmit();
            self.report();
            self.forget_the_departed();
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let sessions = self.sessions.values().filter_map(|entry| {
            let detection =
                entry.session.detection_deadline().map(|at| self.settled_at.map_or(at, |s| at.max(s)));
            detection.into_iter().chain(entry.session.transmit_deadline()).chain(entry.leaving_until).min()
        });
        let until = match self.phase {
            Phase::Leaving { until } => Some(until),
            Phase::Running | Phase::Ended => None,
        };
        sessions.chain(until).min()
    }

    fn wait(&mut self, deadline: Option<Instant>) {
        let mut timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if self.sessions.values().any(Entry::has_report) {
            timeout = Some(timeout.map_or(RETRY_REPORT, |timeout| timeout.min(RETRY_REPORT)));
        }
        let mut descriptors: Vec<PollFd<'_>> = self
            .listeners
            .values()
            .map(AsFd::as_fd)
            .chain([self.wake.as_fd()])
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        // Interrupted or not: the pass that follows finds out what there is to do.
        let _outcome = ppoll(&mut descriptors, timeout.map(TimeSpec::from_duration), None);
    }

    fn note_lateness(&mut self, deadline: Option<Instant>) {
        let now = Instant::now();
        let late = deadline.map_or(Duration::ZERO, |deadline| now.saturating_duration_since(deadline));
        self.late_by_max = self.late_by_max.max(late);
        if late > LATE {
            self.late_wakeups += 1;
            self.settled_at = Some(now + SETTLE);
        } else if self.settled_at.is_some_and(|at| now >= at) {
            self.settled_at = None;
        }
    }

    fn receive(&mut self) {
        for ((interface_index, _), listener) in &mut self.listeners {
            for _ in 0..BATCH {
                let datagram = match listener.receive() {
                    Ok(Some(datagram)) => datagram,
                    Ok(None) => break,
                    Err(_) => {
                        self.receive_errors += 1;
                        continue;
                    }
                };
                let outcome = accept(&datagram).and_then(|packet| {
                    let entry = select(
                        &mut self.sessions,
                        &self.by_peer,
                        *interface_index,
                        datagram.source,
                        &packet,
                    )?;
                    entry.handle_packet(Instant::now(), &packet);
                    Ok(())
                });
                if let Err(reason) = outcome {
                    self.discards.count(reason);
                }
            }
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        if self.settled_at.is_some_and(|at| now < at) {
            return;
        }
        for entry in self.sessions.values_mut() {
            entry.handle_timeout(now);
        }
    }

    fn transmit(&mut self) {
        for entry in self.sessions.values_mut() {
            entry.transmit(|| self.random.next());
        }
    }

    fn report(&mut self) {
        for entry in self.sessions.values_mut() {
            entry.report(|event| match self.events.try_send(event) {
                Ok(()) | Err(events::error::TrySendError::Closed(_)) => None,
                Err(events::error::TrySendError::Full(event)) => Some(event),
            });
        }
    }

    fn forget_the_departed(&mut self) {
        let now = Instant::now();
        let departed: Vec<u32> =
            self.sessions.iter().filter(|(_, entry)| entry.has_left(now)).map(|(key, _)| *key).collect();
        for discriminator in departed {
            self.forget(discriminator);
        }
        if let Phase::Leaving { until } = self.phase
            && (self.sessions.is_empty() || now >= until)
        {
            self.phase = Phase::Ended;
        }
    }

    /// Closes the sockets of a session, and those of its interface with the last one.
    fn forget(&mut self, discriminator: u32) {
        let Some(entry) = self.sessions.remove(&discriminator) else { return };
        self.by_peer.remove(&(entry.interface_index, entry.key.peer));
        self.close_unused_listeners();
    }

    fn close_unused_listeners(&mut self) {
        let sessions = &self.sessions;
        self.listeners.retain(|(interface_index, v6), _| {
            sessions.values().any(|e| e.interface_index == *interface_index && e.key.peer.is_ipv6() == *v6)
        });
    }
}

/// The rules that need no session.
fn accept(datagram: &Datagram<'_>) -> Result<Packet, Discard> {
    //# RFC 5881 section 5: all received BFD Control packets that are demultiplexed to the session MUST be discarded
    //# if the received TTL or Hop Limit is not equal to 255.
    if datagram.time_to_live != Some(TIME_TO_LIVE) {
        return Err(Discard::TimeToLive);
    }
    Packet::parse(datagram.payload)
}

/// The session a packet belongs to.
fn select<'a>(
    sessions: &'a mut BTreeMap<u32, Entry>,
    by_peer: &HashMap<(u32, IpAddr), u32>,
    interface_index: u32,
    source: IpAddr,
    packet: &Packet,
) -> Result<&'a mut Entry, Discard> {
    //# If the Your Discriminator field is nonzero, it MUST be used to select the session with which this BFD packet
    //# is associated. If no session is found, the packet MUST be discarded.
    let discriminator = match packet.your_discriminator {
        //# If the Your Discriminator field is zero, the session MUST be selected based on some combination of other
        //# fields, possibly including source addressing information.
        0 => *by_peer.get(&(interface_index, source)).ok_or(Discard::NoSession)?,
        yours => yours,
    };
    sessions
        .get_mut(&discriminator)
        .filter(|entry| entry.interface_index == interface_index)
        .ok_or(Discard::NoSession)
}
