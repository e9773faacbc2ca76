//! What a switch's kernel says of its routes, with the moment of each change: read from netlink, never asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    process::Stdio,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use cluster_tests::netns::{Namespace, Process};

/// Gateways of a destination.
pub(crate) type Hops = BTreeSet<String>;

/// A destination has other gateways than before.
#[derive(Clone, Debug)]
struct Change {
    at: Instant,
    destination: String,
    hops: Hops,
}

#[derive(Debug, Default)]
struct Log {
    now: BTreeMap<String, Hops>,
    changes: Vec<Change>,
}

#[derive(Debug, Default)]
struct Shared {
    log: Mutex<Log>,
    news: Condvar,
}

/// The routes of one switch, from its beginning.
pub(crate) struct Monitor {
    shared: Arc<Shared>,
    _process: Process,
}

impl Monitor {
    /// Begins to listen; to be called before there are routes.
    ///
    /// # Errors
    /// `ip monitor` does not start.
    pub(crate) fn new(switch: &Namespace) -> Result<Self> {
        let mut command = switch.command("ip");
        command.args(["-4", "-o", "monitor", "route"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Process(command.spawn().context("ip monitor")?);
        let lines = BufReader::new(process.0.stdout.take().context("piped")?).lines();
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        // Ends with the process. Each line is written out by `ip` as the kernel sends it.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let at = Instant::now();
                if let Some((destination, hops)) = parse(&line) {
                    let mut log = lock(&writer);
                    log.now.insert(destination.clone(), hops.clone());
                    log.changes.push(Change { at, destination, hops });
                    writer.news.notify_all();
                }
            }
        });
        Ok(Self { shared, _process: process })
    }

    /// Gateways of a destination now.
    pub(crate) fn hops(&self, destination: &str) -> Hops {
        lock(&self.shared).now.get(destination).cloned().unwrap_or_default()
    }

    /// How many destinations lead through a gateway.
    pub(crate) fn destinations_by(&self, gateway: &str) -> usize {
        lock(&self.shared).now.values().filter(|hops| hops.contains(gateway)).count()
    }

    /// Waits until the gateways of a destination are as they should be, or were so at `since` already; how long after
    /// `since` they became so, or nothing if they do not within `limit` of it.
    pub(crate) fn until(
        &self,
        destination: &str,
        since: Instant,
        limit: Duration,
        holds: impl Fn(&Hops) -> bool,
    ) -> Option<Duration> {
        let mut log = lock(&self.shared);
        loop {
            let of = || log.changes.iter().filter(|change| change.destination == destination);
            let before = of().rfind(|change| change.at <= since);
            if holds(&before.map(|change| change.hops.clone()).unwrap_or_default()) {
                return Some(Duration::ZERO);
            }
            let first = of().find(|change| change.at > since && holds(&change.hops));
            if let Some(change) = first {
                return Some(change.at - since);
            }
            let left = (since + limit).checked_duration_since(Instant::now())?;
            let waited = self.shared.news.wait_timeout(log, left);
            log = waited.expect("invariant: no thread panics with the log").0;
        }
    }

    /// How often a destination lost a gateway since a moment.
    pub(crate) fn losses(&self, destination: &str, gateway: &str, since: Instant) -> usize {
        let log = lock(&self.shared);
        let of = |change: &&Change| change.destination == destination;
        let has = |change: &Change| change.hops.contains(gateway);
        let mut had = log.changes.iter().filter(of).rfind(|change| change.at <= since).is_some_and(has);
        let mut losses = 0;
        for change in log.changes.iter().filter(of).filter(|change| change.at > since) {
            losses += usize::from(had && !has(change));
            had = has(change);
        }
        losses
    }

    /// How long after a moment a destination gained a gateway that it has not lost since.
    pub(crate) fn gained_for_good(
        &self,
        destination: &str,
        gateway: &str,
        since: Instant,
    ) -> Option<Duration> {
        let log = lock(&self.shared);
        let mut gained = None;
        for change in
            log.changes.iter().filter(|change| change.at > since && change.destination == destination)
        {
            gained = change.hops.contains(gateway).then_some(gained.unwrap_or(change.at - since));
        }
        gained
    }

    /// How many changes other destinations have had since a moment.
    pub(crate) fn others_touched(&self, destination: &str, since: Instant) -> usize {
        let log = lock(&self.shared);
        let is_other = |change: &&Change| change.at > since && change.destination != destination;
        log.changes.iter().filter(is_other).count()
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Log> {
    shared.log.lock().expect("invariant: no thread panics with the log")
}

/// A line of `ip -o monitor route`: the destination and its gateways, none if the route was deleted. Nothing for routes
/// of other tables, which begin with their type.
fn parse(line: &str) -> Option<(String, Hops)> {
    let (deleted, line) = match line.strip_prefix("Deleted ") {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let mut words = line.split_whitespace();
    let destination = words.next().filter(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    let mut hops = Hops::new();
    while let Some(word) = words.next() {
        if word == "via" && !deleted {
            hops.extend(words.next().map(str::to_owned));
        }
    }
    Some((destination.to_owned(), hops))
}
