//! The connections of a director, what went over them, and how that looks from outside.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use director_proto::pins::PinMessage;
use director_proto::sync::{BootId, Frame, Hello, Message, Report, wire};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::net::{Kind, Origin, Taken};
use crate::pins::Pins;
use crate::replica::{Member, Replica};
use crate::status::{PeerState, PeerStatus, RefusedPeer, Status};

/// Refused directors remembered.
const REMEMBERED_REFUSALS: usize = 8;

/// The same refusal of a director that keeps trying is logged no more often than this.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A greeted connection.
#[derive(Debug)]
struct Link {
    router_id: Ipv4Addr,
    boot_id: BootId,
    kind: Kind,
    dialled: bool,
    outgoing: mpsc::Sender<wire::Frame>,
    /// Dropped with the link, which ends its session.
    _given_up: oneshot::Sender<()>,
}

/// A configured peer, as far as dialling it went.
#[derive(Debug)]
struct Dialled {
    address: SocketAddr,
    router_id: Option<Ipv4Addr>,
    refused: Option<String>,
    error: Option<String>,
}

#[derive(Debug, Default)]
struct Traffic {
    bytes_in: u64,
    bytes_out: u64,
    messages_in: u64,
    messages_out: u64,
    messages_dropped: u64,
    rtt: Option<Duration>,
    rate: Rate,
}

/// Bytes per second, received and sent, over the last whole [`RATE_INTERVAL`].
#[derive(Debug, Default)]
struct Rate {
    since: Option<(Instant, u64, u64)>,
    bytes: (f64, f64),
}

/// Time over which bytes per second are counted.
const RATE_INTERVAL: Duration = Duration::from_secs(2);

impl Rate {
    fn note(&mut self, now: Instant, bytes_in: u64, bytes_out: u64) {
        let Some((since, was_in, was_out)) = self.since else {
            self.since = Some((now, bytes_in, bytes_out));
            return;
        };
        let passed = now.saturating_duration_since(since);
        if passed >= RATE_INTERVAL {
            let of = |is: u64, was: u64| is.saturating_sub(was) as f64 / passed.as_secs_f64();
            self.bytes = (of(bytes_in, was_in), of(bytes_out, was_out));
            self.since = Some((now, bytes_in, bytes_out));
        }
    }
}

#[derive(Debug)]
struct Refused {
    remote: Option<SocketAddr>,
    reason: String,
    at: Instant,
    logged: Instant,
}

#[derive(Debug)]
pub(super) struct Links {
    started: Instant,
    next: u64,
    links: BTreeMap<u64, Link>,
    dialled: Vec<Dialled>,
    traffic: BTreeMap<Ipv4Addr, Traffic>,
    refused: VecDeque<Refused>,
}

impl Links {
    pub(super) fn new(peers: Vec<SocketAddr>) -> Self {
        let dialled = |address| Dialled { address, router_id: None, refused: None, error: None };
        Self {
            started: Instant::now(),
            next: 0,
            links: BTreeMap::new(),
            dialled: peers.into_iter().map(dialled).collect(),
            traffic: BTreeMap::new(),
            refused: VecDeque::new(),
        }
    }

    /// Takes a connection whose peer is admitted, in place of an older one of its sort.
    pub(super) fn take(
        &mut self,
        hello: &Hello,
        kind: Kind,
        origin: Origin,
        answer: Option<Box<wire::Frame>>,
        outgoing: mpsc::Sender<wire::Frame>,
    ) -> Taken {
        if let Some(answer) = answer {
            // There is room: nothing was sent yet. Once the link is known, anything may be sent on it.
            let _ = outgoing.try_send(*answer);
        }
        let router_id = hello.router_id;
        let dialled = matches!(origin, Origin::Dialled(_));
        self.links.retain(|_, link| {
            let same_sort = (link.kind, link.dialled) == (kind, dialled);
            link.router_id != router_id || link.boot_id == hello.boot_id && !same_sort
        });
        if let Some(peer) = self.peer(origin) {
            peer.router_id = Some(router_id);
            if peer.refused.take().or(peer.error.take()).is_some() {
                info!(address = %peer.address, %router_id, "peer reached");
            }
        }
        let (given_up, receiver) = oneshot::channel();
        let link = Link { router_id, boot_id: hello.boot_id, kind, dialled, outgoing, _given_up: given_up };
        self.next += 1;
        self.links.insert(self.next, link);
        Taken { link: self.next, given_up: receiver }
    }

    pub(super) fn remove(&mut self, link: u64) {
        self.links.remove(&link);
    }

    fn peer(&mut self, origin: Origin) -> Option<&mut Dialled> {
        match origin {
            Origin::Dialled(index) => self.dialled.get_mut(index),
            Origin::Accepted(_) => None,
        }
    }

    /// One of the two sides does not talk with the other. Told once, however often it is tried again.
    pub(super) fn refused(&mut self, now: Instant, origin: Origin, reason: String) {
        match origin {
            Origin::Dialled(index) => {
                let Some(peer) = self.dialled.get_mut(index) else { return };
                if peer.refused.as_ref() != Some(&reason) {
                    warn!(address = %peer.address, reason, "no sync with this peer");
                }
                peer.refused = Some(reason);
            }
            Origin::Accepted(remote) => self.refused_caller(now, remote, reason),
        }
    }

    /// Whether a configured peer can be reached and does not talk with us.
    pub(super) fn is_refused(&self) -> bool {
        self.dialled.iter().any(|peer| peer.refused.is_some())
    }

    fn refused_caller(&mut self, now: Instant, remote: Option<SocketAddr>, reason: String) {
        let same = |refused: &Refused| {
            refused.reason == reason && refused.remote.map(|from| from.ip()) == remote.map(|from| from.ip())
        };
        let known = self.refused.iter().position(same).and_then(|index| self.refused.remove(index));
        let logged = known.map(|refused| refused.logged).filter(|at| now < *at + REFUSAL_LOG_INTERVAL);
        if logged.is_none() {
            let remote = remote.map(|remote| remote.to_string()).unwrap_or_default();
            warn!(remote, reason, "no sync with the director that connected");
        }
        self.refused.push_back(Refused { remote, reason, at: now, logged: logged.unwrap_or(now) });
        if self.refused.len() > REMEMBERED_REFUSALS {
            self.refused.pop_front();
        }
    }

    pub(super) fn unreachable(&mut self, peer: usize, reason: String) {
        let Some(peer) = self.dialled.get_mut(peer) else { return };
        if peer.error.as_ref() != Some(&reason) {
            warn!(address = %peer.address, reason, "peer not reachable");
        }
        peer.refused = None;
        peer.error = Some(reason);
    }

    /// Counts a received frame and says whose it is.
    pub(super) fn received(&mut self, link: u64, size: usize) -> Option<(Ipv4Addr, BootId)> {
        let link = self.links.get(&link)?;
        let traffic = self.traffic.entry(link.router_id).or_default();
        traffic.messages_in += 1;
        traffic.bytes_in += size as u64;
        Some((link.router_id, link.boot_id))
    }

    pub(super) fn send_on(&mut self, link: u64, frame: &Frame) {
        let Some(link) = self.links.get(&link) else { return };
        let traffic = self.traffic.entry(link.router_id).or_default();
        let frame = wire::Frame::from(frame);
        let size = frame.encoded_len() as u64;
        match link.outgoing.try_send(frame) {
            Ok(()) => {
                traffic.messages_out += 1;
                traffic.bytes_out += size;
            }
            // Full or just closed: the replica repeats what matters.
            Err(_) => traffic.messages_dropped += 1,
        }
    }

    /// Sends a message to a director by the connection we opened, else by the one it opened.
    pub(super) fn send(&mut self, to: Ipv4Addr, message: Message) {
        self.send_by(Kind::Exchange, to, &Frame::Message(message));
    }

    /// The same of a message about pins.
    pub(super) fn send_pins(&mut self, to: Ipv4Addr, message: PinMessage) {
        self.send_by(Kind::Pins, to, &Frame::Pins(message));
    }

    fn send_by(&mut self, kind: Kind, to: Ipv4Addr, frame: &Frame) {
        let usable = |(_, link): &(&u64, &Link)| link.router_id == to && link.kind == kind;
        let best = self.links.iter().filter(usable).max_by_key(|(_, link)| link.dialled);
        match best.map(|(id, _)| *id) {
            Some(link) => self.send_on(link, frame),
            None => self.traffic.entry(to).or_default().messages_dropped += 1,
        }
    }

    /// Sends the heartbeat on all connections for it; those we opened also measure the round trip.
    pub(super) fn beat(&mut self, now: Instant, report: &Report) {
        let clock = self.clock(now);
        for traffic in self.traffic.values_mut() {
            traffic.rate.note(now, traffic.bytes_in, traffic.bytes_out);
        }
        let beats: Vec<(u64, bool)> = self
            .links
            .iter()
            .filter(|(_, link)| link.kind == Kind::Beat)
            .map(|(id, link)| (*id, link.dialled))
            .collect();
        for (link, dialled) in beats {
            self.send_on(link, &Frame::Report(report.clone(), if dialled { clock } else { 0 }));
        }
    }

    /// An answered heartbeat. Clocks that cannot be ours measure nothing.
    pub(super) fn measured(&mut self, now: Instant, from: Ipv4Addr, sent_at: u64) {
        if let Some(elapsed) = self.clock(now).checked_sub(sent_at) {
            self.traffic.entry(from).or_default().rtt = Some(Duration::from_micros(elapsed));
        }
    }

    /// Our clock in microseconds, never 0.
    fn clock(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.started).as_micros()).unwrap_or(u64::MAX).max(1)
    }

    pub(super) fn status(&self, now: Instant, replica: &Replica, pins: &Pins) -> Status {
        let version = replica.version();
        let members: BTreeMap<Ipv4Addr, &Member> = replica.members().collect();
        let configured = self
            .dialled
            .iter()
            .map(|peer| self.peer_status(now, (replica, pins), &members, Some(peer), None));
        let is_configured = |id: Ipv4Addr| self.dialled.iter().any(|peer| peer.router_id == Some(id));
        let others = members
            .keys()
            .filter(|id| !is_configured(**id))
            .map(|id| self.peer_status(now, (replica, pins), &members, None, Some(*id)));
        let refused = self.refused.iter().map(|refused| RefusedPeer {
            remote: refused.remote,
            reason: refused.reason.clone(),
            ago_ms: millis(now.duration_since(refused.at)),
        });
        Status {
            router_id: replica.settings().router_id,
            boot_id: replica.settings().boot_id,
            standing: replica.standing(),
            epoch: version.map(|version| version.epoch),
            digest: version.map(|version| version.digest),
            phase: replica.phase(),
            leader: replica.leader(),
            peers: configured.chain(others).collect(),
            pins_whole: pins.is_whole(),
            refused: refused.collect(),
        }
    }

    fn peer_status(
        &self,
        now: Instant,
        (replica, pins): (&Replica, &Pins),
        members: &BTreeMap<Ipv4Addr, &Member>,
        dialled: Option<&Dialled>,
        router_id: Option<Ipv4Addr>,
    ) -> PeerStatus {
        let router_id = router_id.or(dialled.and_then(|peer| peer.router_id));
        let member = router_id.and_then(|id| members.get(&id).copied());
        let traffic = router_id.and_then(|id| self.traffic.get(&id));
        let refused = dialled.and_then(|peer| peer.refused.clone());
        let theirs = member.and_then(Member::tables);
        let count = |value: fn(&Traffic) -> u64| traffic.map_or(0, value);
        PeerStatus {
            address: dialled
                .map(|peer| peer.address)
                .or(member.and_then(|member| member.endpoint().parse().ok())),
            router_id,
            boot_id: member.map(Member::boot_id),
            state: state(member, refused.is_some()),
            epoch: theirs.map(|version| version.epoch),
            digest: theirs.map(|version| version.digest),
            phase: member.map(Member::phase),
            same_tables: theirs.is_some() && theirs == replica.version(),
            same_config: member.is_none_or(Member::has_same_config),
            last_heard_ms: member.and_then(Member::heard).map(|heard| millis(now.duration_since(heard))),
            rtt_ms: traffic.and_then(|traffic| traffic.rtt).map(|rtt| rtt.as_secs_f64() * 1000.0),
            version: member.map(|member| member.software().to_owned()),
            refused,
            error: dialled.and_then(|peer| peer.error.clone()),
            bytes_in: count(|traffic| traffic.bytes_in),
            bytes_out: count(|traffic| traffic.bytes_out),
            messages_in: count(|traffic| traffic.messages_in),
            messages_out: count(|traffic| traffic.messages_out),
            messages_dropped: count(|traffic| traffic.messages_dropped),
            unacked: router_id.map_or(0, |id| u64::from(replica.awaits(id))),
            bytes_in_per_second: traffic.map_or(0.0, |traffic| traffic.rate.bytes.0),
            bytes_out_per_second: traffic.map_or(0.0, |traffic| traffic.rate.bytes.1),
            pins: router_id.and_then(|id| pins.status(now, id)).unwrap_or_default(),
        }
    }
}

fn state(member: Option<&Member>, refused: bool) -> PeerState {
    match member {
        Some(member) if member.is_live() => PeerState::Up,
        _ if refused => PeerState::Refused,
        Some(member) if member.heard().is_some() => PeerState::Down,
        _ => PeerState::Connecting,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
