//! One BFD speaker for the neighbours of both versions: sessions follow what the speakers want watched, and a
//! path that failed is told to the speaker whose neighbour it leads to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    bfd::{self, Bfd, Path, SessionKey, SessionStatus, State},
    config::InterfaceConfig,
    speaker::{BfdStatus, InterfaceId, NeighborStatus, Watched},
};

/// A session that could not be opened (an address not there yet, for instance) is tried again this often.
const RETRY: Duration = Duration::from_secs(1);

/// A session whose path failed outlives its neighbour by this much: the peer shall hear Down several times at the slow
/// rate of 1 s, not AdminDown after a single packet. By RFC 5882 it would keep the adjacency through an AdminDown,
/// although nothing of what it sends arrives.
const LINGER: Duration = Duration::from_secs(3);

/// A path that was up and failed.
#[derive(Debug)]
pub(super) struct PathDown {
    pub(super) interface: InterfaceId,
    pub(super) peer: IpAddr,
}

enum Request {
    /// Tell the speaker of this family of failed paths.
    Join { v6: bool, paths: mpsc::UnboundedSender<PathDown> },
    /// Watch exactly these of this family.
    Watch { v6: bool, neighbors: BTreeSet<Watched> },
    /// The interfaces are configured like this from now on.
    Configure(Vec<InterfaceConfig>),
    /// Fill in what is known of these neighbours.
    Describe(Vec<NeighborStatus>, oneshot::Sender<Vec<NeighborStatus>>),
    /// Take leave of all peers.
    End(oneshot::Sender<()>),
}

/// Controls of the task; clones are equal.
#[derive(Clone, Debug)]
pub(super) struct Liveness(mpsc::UnboundedSender<Request>);

impl Liveness {
    /// Starts BFD, with no session yet.
    ///
    /// # Errors
    /// The BFD thread cannot be started.
    pub(super) fn start(interfaces: &[InterfaceConfig]) -> Result<Self, bfd::StartError> {
        let (bfd, events) = Bfd::spawn(bfd::Config::default())?;
        let (requests_in, requests) = mpsc::unbounded_channel();
        let sessions = Sessions {
            bfd,
            interfaces: interfaces.to_vec(),
            speakers: BTreeMap::new(),
            wanted: BTreeMap::new(),
            open: BTreeMap::new(),
            refused: BTreeMap::new(),
            look_again: None,
        };
        tokio::spawn(sessions.run(requests, events));
        Ok(Self(requests_in))
    }

    /// Failed paths of one family go to `paths`.
    pub(super) fn join(&self, v6: bool, paths: mpsc::UnboundedSender<PathDown>) {
        self.ask(Request::Join { v6, paths });
    }

    /// Watches differently from now on: sessions that there are change their intervals.
    pub(super) fn configure(&self, interfaces: &[InterfaceConfig]) {
        self.ask(Request::Configure(interfaces.to_vec()));
    }

    /// Watches exactly these neighbours of one family.
    pub(super) fn watch(&self, v6: bool, neighbors: BTreeSet<Watched>) {
        self.ask(Request::Watch { v6, neighbors });
    }

    /// The neighbours with what BFD says of them; unchanged once it has ended.
    pub(super) async fn describe(&self, neighbors: Vec<NeighborStatus>) -> Vec<NeighborStatus> {
        let (answer, described) = oneshot::channel();
        self.ask(Request::Describe(neighbors.clone(), answer));
        described.await.unwrap_or(neighbors)
    }

    /// Tells all peers AdminDown and ends, within half a second. A peer that obeys RFC 5882 keeps its adjacency
    /// through this: leave OSPF first.
    pub(super) async fn end(&self) {
        let (answer, done) = oneshot::channel();
        self.ask(Request::End(answer));
        let _ = done.await; // an error means that it has ended already
    }

    fn ask(&self, request: Request) {
        let _ = self.0.send(request); // it may have ended
    }
}

struct Sessions {
    bfd: bfd::Handle,
    interfaces: Vec<InterfaceConfig>,
    /// By whether the family is IPv6, as `wanted`.
    speakers: BTreeMap<bool, mpsc::UnboundedSender<PathDown>>,
    wanted: BTreeMap<bool, BTreeSet<Watched>>,
    /// The sessions there are.
    open: BTreeMap<Watched, Open>,
    /// Why others are not.
    refused: BTreeMap<Watched, String>,
    /// When time alone changes something: a session is tried again, or has lingered long enough.
    look_again: Option<Instant>,
}

/// What is remembered of a session.
struct Open {
    since: Instant,
    /// When its path last failed.
    failed: Option<Instant>,
}

impl Open {
    /// Until when it stays although nobody is watched by it any more.
    fn lingers_until(&self) -> Option<Instant> {
        self.failed.map(|failed| failed + LINGER)
    }
}

impl Sessions {
    async fn run(
        mut self,
        mut requests: mpsc::UnboundedReceiver<Request>,
        mut events: mpsc::Receiver<bfd::Event>,
    ) {
        loop {
            let look_again = self.look_again.map(tokio::time::Instant::from_std);
            tokio::select! {
                biased;
                Some(event) = events.recv() => self.handle_event(&event),
                request = requests.recv() => match request {
                    Some(Request::Join { v6, paths }) => drop(self.speakers.insert(v6, paths)),
                    Some(Request::Watch { v6, neighbors }) => {
                        self.wanted.insert(v6, neighbors);
                        self.reconcile().await;
                    }
                    Some(Request::Configure(interfaces)) => self.configure(interfaces).await,
                    Some(Request::Describe(neighbors, answer)) => {
                        let _ = answer.send(self.describe(neighbors).await); // nobody waits any more
                    }
                    Some(Request::End(answer)) => {
                        self.call(bfd::Handle::shutdown).await;
                        let _ = answer.send(()); // likewise
                        return;
                    }
                    // The speakers are gone without a word: the peers are told Down as the thread's handle goes.
                    None => return,
                },
                () = super::run::sleep_until(look_again) => self.reconcile().await,
            }
        }
    }

    /// Runs a call that waits for the BFD thread where waiting is allowed; none if the runtime is ending.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&bfd::Handle) -> T + Send + 'static,
    ) -> Option<T> {
        let bfd = self.bfd.clone();
        tokio::task::spawn_blocking(move || work(&bfd)).await.ok()
    }

    /// `path` alone counts: the states also say Down while a session comes up, or at the operator's will
    /// (RFC 5882 section 3.2).
    fn handle_event(&mut self, event: &bfd::Event) {
        if event.path != Path::Down {
            return;
        }
        let interfaces = &self.interfaces;
        let named = |watched: &Watched| key(interfaces, watched).as_ref() == Some(&event.key);
        let Some((watched, open)) = self.open.iter_mut().find(|(watched, _)| named(watched)) else { return };
        if event.at < open.since {
            return; // of an earlier session of the same name
        }
        open.failed = Some(event.at);
        if let Some(paths) = self.speakers.get(&watched.peer.is_ipv6()) {
            let _ = paths.send(PathDown { interface: watched.interface, peer: watched.peer }); // it may have stopped
        }
    }

    fn key(&self, watched: &Watched) -> Option<SessionKey> {
        key(&self.interfaces, watched)
    }

    /// Another configuration of the same interfaces, in the same order. Who is not to be watched any more is the
    /// speakers' to say.
    async fn configure(&mut self, interfaces: Vec<InterfaceConfig>) {
        let before = std::mem::replace(&mut self.interfaces, interfaces);
        let bfd =
            |all: &[InterfaceConfig], id: InterfaceId| all.get(id.0).and_then(|interface| interface.bfd);
        for watched in self.open.keys() {
            let Some(after) = bfd(&self.interfaces, watched.interface) else { continue };
            if bfd(&before, watched.interface) == Some(after) {
                continue;
            }
            let Some(key) = self.key(watched) else { continue };
            let parameters = after.parameters();
            if let Some(Err(error)) = self.call(move |bfd| bfd.update(&key, parameters)).await {
                tracing::warn!(%error, "cannot change a BFD session"); // it names the session
            }
        }
    }

    /// Makes the sessions those that are wanted.
    async fn reconcile(&mut self) {
        let wanted: BTreeSet<Watched> = self.wanted.values().flatten().cloned().collect();
        self.refused.retain(|watched, _| wanted.contains(watched));
        let keys: BTreeSet<SessionKey> = wanted.iter().filter_map(|watched| self.key(watched)).collect();
        let now = Instant::now();
        let mut look_again = None;
        let mut surplus = Vec::new();
        for (watched, open) in self.open.iter().filter(|(watched, _)| !wanted.contains(watched)) {
            // A device that was made anew gets a session of the same name: the old one ends first, lingering or not.
            let succeeded = self.key(watched).is_none_or(|key| keys.contains(&key));
            match open.lingers_until().filter(|until| *until > now && !succeeded) {
                Some(until) => look_again = look_again.into_iter().chain([until]).min(),
                None => surplus.push(watched.clone()),
            }
        }
        for watched in surplus {
            self.open.remove(&watched);
            let Some(key) = self.key(&watched) else { continue };
            if let Some(Err(error)) = self.call(move |bfd| bfd.remove(&key)).await {
                tracing::warn!(%error, "cannot end a BFD session"); // it names the session
            }
        }
        for watched in wanted {
            if !self.open.contains_key(&watched) {
                self.open(watched).await;
            }
        }
        let retry = (!self.refused.is_empty()).then(|| Instant::now() + RETRY);
        self.look_again = look_again.into_iter().chain(retry).min();
    }

    async fn open(&mut self, watched: Watched) {
        let bfd = self.interfaces.get(watched.interface.0).and_then(|interface| interface.bfd);
        let Some((key, bfd)) = self.key(&watched).zip(bfd) else { return };
        let since = Instant::now();
        let (interface, peer) = (key.interface.clone(), key.peer);
        match self.call(move |handle| handle.add(key, bfd.parameters())).await {
            Some(Ok(())) => {
                self.refused.remove(&watched);
                self.open.insert(watched, Open { since, failed: None });
            }
            Some(Err(error)) => {
                let reason = describe_error(&error);
                if self.refused.insert(watched.clone(), reason.clone()).is_none() {
                    tracing::warn!(interface, %peer, reason, "no BFD session with a neighbour; trying again");
                }
            }
            None => {}
        }
    }

    async fn describe(&self, mut neighbors: Vec<NeighborStatus>) -> Vec<NeighborStatus> {
        let sessions = match self.call(bfd::Handle::status).await {
            Some(Ok(status)) => status.sessions,
            Some(Err(_)) | None => Vec::new(),
        };
        for neighbor in &mut neighbors {
            let is_it =
                |key: &SessionKey| key.interface == neighbor.interface && key.peer == neighbor.address;
            let session = sessions.iter().find(|session| is_it(&session.key));
            let refused =
                self.refused.iter().find(|(watched, _)| self.key(watched).is_some_and(|key| is_it(&key)));
            neighbor.bfd = session.map(session_status).or_else(|| refused.map(|(_, reason)| absent(reason)));
        }
        neighbors
    }
}

/// The name of a session; none if there is no such interface.
fn key(interfaces: &[InterfaceConfig], watched: &Watched) -> Option<SessionKey> {
    let interface = interfaces.get(watched.interface.0)?.name.clone();
    Some(SessionKey { interface, local: watched.local, peer: watched.peer })
}

/// The error with its causes, which name the address and what the kernel said.
fn describe_error(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn session_status(session: &SessionStatus) -> BfdStatus {
    BfdStatus {
        state: session.state,
        remote_state: session.remote_state,
        in_state_ms: session.since_ms,
        detection_ms: u64::try_from(session.detection_time.as_millis()).unwrap_or(u64::MAX),
        downs: session.counters.downs,
        error: session.last_send_error.clone().filter(|_| session.state != State::Up),
    }
}

fn absent(reason: &str) -> BfdStatus {
    let error = Some(reason.to_owned());
    BfdStatus {
        state: State::Down,
        remote_state: State::Down,
        in_state_ms: 0,
        detection_ms: 0,
        downs: 0,
        error,
    }
}
