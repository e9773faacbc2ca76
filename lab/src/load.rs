//! Clients that notice: thousands of slow downloads held open, every byte checked against the content it must be, and
//! short requests at a steady rate, on any number of services at once, each with an account of its own.
//!
//! A *stall* is the time a client waited for bytes it was ready to take; its own slowness does not count. The receive
//! buffer hides up to about a second of an outage, the price of a download that can be slow at all.
//!
//! Downloads last as long as the load. Those of one real server can be [retired](Load::retire): they come to a good
//! end and begin anew on new connections, as the clients of a server that is drained do sooner or later.

pub mod content;
pub mod control;
mod download;
mod http;
mod record;
mod report;
mod request;
mod tally;
mod target;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

pub use report::{Book, Connection, Failure, Failures, RealBook, Report, Requests, Sample, Stage};
pub use target::Target;

/// What load to make.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The services, and the load on each.
    pub targets: Vec<Target>,
    /// Bytes that a download takes at once.
    pub read_bytes: usize,
    /// How often a download takes bytes.
    pub read_every: Duration,
    /// Bytes that a download asks for at once; a multiple of what the server's send buffer holds, so that the server
    /// is never done with a download before its client.
    pub piece_bytes: u64,
    /// Receive buffer of a download as asked from the kernel, bytes.
    pub receive_buffer: Option<u32>,
    /// Length of `/content`, bytes; downloads begin at different offsets below it.
    pub content_bytes: u64,
    /// Time over which downloads are started.
    pub ramp: Duration,
    /// How long nothing may come until a connection or request counts as timed out.
    pub time_limit: Duration,
}

impl Plan {
    /// A plan for these services whose downloads take about 4 KB/s each.
    #[must_use]
    pub fn new(targets: Vec<Target>) -> Self {
        let connections: usize = targets.iter().map(|target| target.connections).sum();
        Self {
            targets,
            read_bytes: 2048,
            read_every: Duration::from_millis(500),
            piece_bytes: 256 << 10,
            receive_buffer: Some(4096),
            content_bytes: 64 << 20,
            ramp: Duration::from_millis(connections as u64),
            time_limit: Duration::from_secs(30),
        }
    }
}

/// The parts of a running load that belong to one service.
#[derive(Debug)]
struct Service {
    name: String,
    records: Vec<Arc<record::Record>>,
    tally: Arc<tally::Tally>,
}

/// A load that is running on the current tokio runtime; it ends when this is dropped.
#[derive(Debug)]
pub struct Load {
    start: Instant,
    services: Vec<Service>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Starts downloads and requests.
    #[must_use]
    pub fn start(plan: Plan) -> Self {
        let plan = Arc::new(plan);
        let mut tasks = JoinSet::new();
        let services = plan.targets.iter().map(|target| Service::start(&plan, target, &mut tasks)).collect();
        Self { start: Instant::now(), services, tasks }
    }

    /// The load at this moment.
    #[must_use]
    pub fn sample(&self) -> Sample {
        Sample {
            at_ms: record::milliseconds(self.start.elapsed()),
            services: self.services.iter().map(Service::book).collect(),
        }
    }

    /// Begins a new interval for the `since_mark` figures.
    pub fn mark(&self) {
        self.records().for_each(|record| record.mark());
        self.services.iter().for_each(|service| service.tally.mark());
    }

    /// Lets the downloads that `server` serves now come to a good end, evenly spread over a time, and begin anew on new
    /// connections. Returns how many.
    pub fn retire(&self, server: &str, over: Duration) -> usize {
        let served: Vec<_> = self.records().filter(|record| record.is_served_by(server)).collect();
        let now = Instant::now();
        for (index, record) in served.iter().enumerate() {
            record.retire(now + over.mul_f64(index as f64 / served.len() as f64));
        }
        served.len()
    }

    /// Every download, in the order they were started.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        self.records().map(|record| record.now().0).collect()
    }

    /// Ends the load and says what it saw.
    pub async fn stop(mut self) -> Report {
        let total = self.sample();
        self.tasks.shutdown().await;
        self.records().for_each(|record| record.finish());
        Report { total, connections: self.connections() }
    }

    fn records(&self) -> impl Iterator<Item = &Arc<record::Record>> {
        self.services.iter().flat_map(|service| &service.records)
    }
}

impl Service {
    fn start(plan: &Arc<Plan>, target: &Target, tasks: &mut JoinSet<()>) -> Self {
        let tally = Arc::new(tally::Tally::default());
        let records: Vec<_> =
            (0..target.connections).map(|_| Arc::new(record::Record::new(target))).collect();
        for (index, record) in records.iter().enumerate() {
            let (plan, record, tally) = (Arc::clone(plan), Arc::clone(record), Arc::clone(&tally));
            let after = plan.ramp.mul_f64(index as f64 / records.len() as f64);
            tasks.spawn(async move {
                tokio::time::sleep(after).await;
                download::run(&plan, index, &record, &tally).await;
            });
        }
        tasks.spawn(request::run(Arc::clone(plan), target.clone(), Arc::clone(&tally)));
        Self { name: target.name.clone(), records, tally }
    }

    fn book(&self) -> Book {
        let (requests, wrong_bytes, opened) = self.tally.now();
        let reals = opened.into_iter().map(|(name, opened)| (name, RealBook { held: 0, opened })).collect();
        let mut book = Book { service: self.name.clone(), wrong_bytes, requests, reals, ..Book::default() };
        for record in &self.records {
            let (seen, current) = record.now();
            match seen.stage {
                Stage::Starting => book.starting += 1,
                Stage::Alive | Stage::Done => book.alive += 1,
                Stage::Failed(failure) => book.failures.add(failure),
            }
            if let (Stage::Alive, Some(name)) = (seen.stage, seen.served_by) {
                book.reals.entry(name).or_default().held += 1;
            }
            book.bytes += seen.bytes;
            book.wrong_bytes += seen.wrong_bytes;
            book.current_stall_ms = book.current_stall_ms.max(current);
            book.stall_since_mark_ms = book.stall_since_mark_ms.max(seen.stall_since_mark_ms);
            book.stalled_since_mark += u64::from(seen.stall_since_mark_ms > 1000);
        }
        book
    }
}

/// Runs a load for a while.
pub async fn run(plan: Plan, duration: Duration) -> Report {
    let load = Load::start(plan);
    tokio::time::sleep(duration).await;
    load.stop().await
}
