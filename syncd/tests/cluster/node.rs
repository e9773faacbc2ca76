//! A director as far as replication goes: deals tables when asked, remembers what it was told.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use director_proto::tables::{Digest, SLOTS, ServiceTable, TableReal};
use syncd::{Config, Event, Fed, Handle, Status};
use tokio::sync::mpsc;

/// Longest time for anything to come true.
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) handle: Handle,
    config: Config,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Node {
    /// Starts the director of `index` in `addresses`, with all others as peers unless `change` says otherwise.
    pub(crate) async fn start(
        router_id: Ipv4Addr,
        index: usize,
        addresses: &[SocketAddr],
        change: impl FnOnce(&mut Config),
    ) -> Self {
        // Tests run in one process; the first sets the log up.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let mut config = config(router_id, index, addresses);
        change(&mut config);
        Self::run(config).await
    }

    async fn run(config: Config) -> Self {
        let (handle, receiver) = syncd::spawn(config.clone()).await.expect("starts");
        let events = Arc::new(Mutex::new(Vec::new()));
        let salt = u64::from(config.router_id.to_bits());
        tokio::spawn(answer(handle.clone(), receiver, Arc::clone(&events), salt));
        Self { handle, config, events }
    }

    pub(crate) async fn status(&self) -> Status {
        self.handle.status().await.expect("running")
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().expect("lock").clone()
    }

    pub(crate) async fn stop(self) {
        self.handle.shutdown().await;
    }

    /// Ends this run and starts another at the same address.
    pub(crate) async fn restart(self) -> Self {
        self.handle.shutdown().await;
        Self::run(self.config).await
    }
}

async fn answer(handle: Handle, mut events: mpsc::Receiver<Event>, seen: Arc<Mutex<Vec<Event>>>, salt: u64) {
    while let Some(event) = events.recv().await {
        let asked = matches!(event, Event::NeedTables { previous: None });
        // Whatever replication ends with, the next event does not come.
        match &event {
            Event::Prepare { version, .. } => _ = handle.loaded(*version, Ok(())).await,
            Event::TablesInForce { version, .. } => _ = handle.applied(*version, Ok(Fed::Onward)).await,
            _ => {}
        }
        seen.lock().expect("lock").push(event);
        if asked {
            // Somebody else's tables may have come into force meanwhile.
            let _ = handle.propose(services(salt), [salt as u8; 16], "asked for".into()).await;
        }
    }
}

pub(crate) fn config(router_id: Ipv4Addr, index: usize, addresses: &[SocketAddr]) -> Config {
    let own = addresses[index];
    Config {
        cluster: "edge".into(),
        router_id,
        listen: Some(own),
        peers: addresses.iter().copied().filter(|address| *address != own).collect(),
        tls: None,
        state_dir: None,
        grace: Duration::from_secs(3),
        heartbeat: Duration::from_millis(100),
        dead: Duration::from_secs(1),
        isolation: syncd::Isolation::Withdraw,
        version: "0.1.0".into(),
        config_digest: Digest([0; 32]),
        definitions: Arc::default(),
        local_addresses: Vec::new(),
        allow_plaintext: false,
    }
}

/// Free when asked for; the kernel does not hand them out again at once.
pub(crate) fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<_> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("bound")).collect()
}

/// A service whose table is a function of `salt`.
pub(crate) fn services(salt: u64) -> BTreeMap<String, ServiceTable> {
    let real =
        |index| TableReal { address: IpAddr::from([10, 0, 2, index]), port: 80, weight: 1, dead: false };
    let mut slots: Vec<u16> = (0..SLOTS).map(|slot| (slot % 4) as u16).collect();
    slots[usize::try_from(salt % 65_537).expect("small")] = 3;
    slots[0] = (salt % 3) as u16;
    let table = ServiceTable {
        scheduler: "mh".into(),
        reals: (11..15).map(real).collect(),
        slots: slots.into(),
        definition: "".into(),
    };
    BTreeMap::from([("web".to_owned(), table)])
}

/// Asks until the answer is `Ok`; fails with the last `Err` after [`DEADLINE`].
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> Result<(), String>) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match condition().await {
            Ok(()) => return,
            Err(state) => assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}\n{state}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
