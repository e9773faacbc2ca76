//! Clients that notice: thousands of slow downloads held open, every byte checked against the content it must be, and
//! short requests at a steady rate.
//!
//! A *stall* is the time a client waited for bytes it was ready to take; its own slowness does not count. The receive
//! buffer hides up to about a second of an outage, the price of a download that can be slow at all.

pub mod content;
pub mod control;
mod download;
mod http;
mod report;
mod request;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

pub use report::{Connection, Failure, Failures, Report, Requests, Sample, Stage};

/// What load to make.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the service is.
    pub target: SocketAddr,
    /// Downloads held open.
    pub connections: usize,
    /// Short requests a second; zero for none.
    pub rate: u32,
    /// Bytes that a download takes at once.
    pub read_bytes: usize,
    /// How often a download takes bytes.
    pub read_every: Duration,
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
    /// A plan of `connections` downloads of about 4 KB/s each and `rate` short requests a second.
    #[must_use]
    pub fn new(target: SocketAddr, connections: usize, rate: u32) -> Self {
        Self {
            target,
            connections,
            rate,
            read_bytes: 2048,
            read_every: Duration::from_millis(500),
            receive_buffer: Some(4096),
            content_bytes: 64 << 20,
            ramp: Duration::from_millis(connections as u64),
            time_limit: Duration::from_secs(30),
        }
    }
}

/// A load that is running on the current tokio runtime; it ends when this is dropped.
#[derive(Debug)]
pub struct Load {
    start: Instant,
    records: Vec<Arc<download::Record>>,
    counters: Arc<request::Counters>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Starts downloads and requests.
    #[must_use]
    pub fn start(plan: Plan) -> Self {
        let plan = Arc::new(plan);
        let mut tasks = JoinSet::new();
        let records: Vec<_> = (0..plan.connections).map(|_| Arc::new(download::Record::new())).collect();
        for (index, record) in records.iter().enumerate() {
            let (plan, record) = (Arc::clone(&plan), Arc::clone(record));
            tasks.spawn(async move { download::run(&plan, index, &record).await });
        }
        let counters = Arc::new(request::Counters::default());
        tasks.spawn(request::run(plan, Arc::clone(&counters)));
        Self { start: Instant::now(), records, counters, tasks }
    }

    /// The load at this moment.
    #[must_use]
    pub fn sample(&self) -> Sample {
        let (requests, wrong_bytes) = self.counters.now();
        let mut sample = Sample {
            at_ms: download::milliseconds(self.start.elapsed()),
            alive: 0,
            starting: 0,
            failures: Failures::default(),
            bytes: 0,
            wrong_bytes,
            current_stall_ms: 0,
            stall_since_mark_ms: 0,
            stalled_since_mark: 0,
            requests,
        };
        for record in &self.records {
            let (seen, current) = record.now();
            match seen.stage {
                Stage::Starting => sample.starting += 1,
                Stage::Alive | Stage::Done => sample.alive += 1,
                Stage::Failed(failure) => sample.failures.add(failure),
            }
            sample.bytes += seen.bytes;
            sample.wrong_bytes += seen.wrong_bytes;
            sample.current_stall_ms = sample.current_stall_ms.max(current);
            sample.stall_since_mark_ms = sample.stall_since_mark_ms.max(seen.stall_since_mark_ms);
            sample.stalled_since_mark += u64::from(seen.stall_since_mark_ms > 1000);
        }
        sample
    }

    /// Begins a new interval for the `since_mark` figures.
    pub fn mark(&self) {
        self.records.iter().for_each(|record| record.mark());
        self.counters.mark();
    }

    /// Every download, in the order they were started.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        self.records.iter().map(|record| record.now().0).collect()
    }

    /// Ends the load and says what it saw.
    pub async fn stop(mut self) -> Report {
        let total = self.sample();
        self.tasks.shutdown().await;
        self.records.iter().for_each(|record| record.finish());
        Report { total, connections: self.connections() }
    }
}

/// Runs a load for a while.
pub async fn run(plan: Plan, duration: Duration) -> Report {
    let load = Load::start(plan);
    tokio::time::sleep(duration).await;
    load.stop().await
}
