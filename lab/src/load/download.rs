//! One slow download: a connection that is held for as long as the load lasts, read at a steady pace, every byte
//! checked.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::report::{Connection, Failure, Stage};
use super::{Plan, content, http};

/// A download's record, written by its task and read by samples.
#[derive(Debug)]
pub(super) struct Record(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    seen: Connection,
    waiting_since: Option<Instant>,
}

impl Record {
    pub(super) fn new() -> Self {
        let seen = Connection {
            source: None,
            stage: Stage::Starting,
            bytes: 0,
            wrong_bytes: 0,
            longest_stall_ms: 0,
            stall_since_mark_ms: 0,
        };
        Self(Mutex::new(Inner { seen, waiting_since: None }))
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.0.lock().expect("invariant: no holder of this lock panics"));
    }

    /// What is known now, with the wait that is going on (milliseconds) counted in.
    pub(super) fn now(&self) -> (Connection, u64) {
        let inner = self.0.lock().expect("invariant: no holder of this lock panics");
        let mut seen = inner.seen.clone();
        let current = inner.waiting_since.map_or(0, |since| milliseconds(since.elapsed()));
        seen.longest_stall_ms = seen.longest_stall_ms.max(current);
        seen.stall_since_mark_ms = seen.stall_since_mark_ms.max(current);
        (seen, current)
    }

    pub(super) fn mark(&self) {
        self.change(|inner| inner.seen.stall_since_mark_ms = 0);
    }

    fn wait_begins(&self) {
        self.change(|inner| inner.waiting_since = Some(Instant::now()));
    }

    fn wait_ends(&self) {
        self.change(|inner| {
            let waited = inner.waiting_since.take().map_or(0, |since| milliseconds(since.elapsed()));
            inner.seen.longest_stall_ms = inner.seen.longest_stall_ms.max(waited);
            inner.seen.stall_since_mark_ms = inner.seen.stall_since_mark_ms.max(waited);
        });
    }

    fn received(&self, offset: u64, bytes: &[u8]) {
        let wrong = content::wrong_bytes(offset, bytes);
        self.change(|inner| {
            inner.seen.stage = Stage::Alive;
            inner.seen.bytes += bytes.len() as u64;
            inner.seen.wrong_bytes += wrong;
        });
    }

    /// Closes the record of a download that the client ended.
    pub(super) fn finish(&self) {
        self.change(|inner| {
            if !matches!(inner.seen.stage, Stage::Failed(_)) {
                inner.seen.stage = Stage::Done;
            }
            inner.waiting_since = None;
        });
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Runs until it fails or is cancelled.
pub(super) async fn run(plan: &Plan, index: usize, record: &Record) {
    tokio::time::sleep(plan.ramp.mul_f64(index as f64 / plan.connections.max(1) as f64)).await;
    if let Err(failure) = hold(plan, index, record).await {
        record.wait_ends();
        record.change(|inner| inner.seen.stage = Stage::Failed(failure));
    }
}

/// Fetches the content over and over, each time from another offset, on one connection.
async fn hold(plan: &Plan, index: usize, record: &Record) -> Result<(), Failure> {
    record.wait_begins();
    let mut stream = limited(plan, connect(plan.target, plan.receive_buffer)).await?;
    let source = stream.local_addr().map_err(|error| Failure::of(&error))?;
    record.change(|inner| inner.seen.source = Some(source));
    // Different offsets, so that bytes of one connection in another are noticed.
    let mut offset = (index as u64).wrapping_mul(4099) % plan.content_bytes.max(1);
    loop {
        limited(plan, http::send(&mut stream, "/content", Some(offset), false)).await?;
        let head = limited(plan, http::receive_head(&mut stream)).await?;
        record.wait_ends();
        if head.status != 206 || (head.body.len() as u64) > head.length {
            return Err(Failure::Wrong);
        }
        record.received(offset, &head.body);
        let got = head.body.len() as u64;
        read_slowly(plan, &mut stream, offset + got, head.length - got, record).await?;
        offset = 0;
        record.wait_begins();
    }
}

async fn read_slowly(
    plan: &Plan,
    stream: &mut TcpStream,
    mut at: u64,
    mut left: u64,
    record: &Record,
) -> Result<(), Failure> {
    let mut pace = tokio::time::interval(plan.read_every);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = vec![0_u8; plan.read_bytes];
    while left > 0 {
        pace.tick().await;
        let mut wanted = left.min(buffer.len() as u64);
        while wanted > 0 {
            let room = usize::try_from(wanted).unwrap_or(buffer.len()).min(buffer.len());
            record.wait_begins();
            let read = async { stream.read(&mut buffer[..room]).await.map_err(|error| Failure::of(&error)) };
            let count = limited(plan, read).await?;
            record.wait_ends();
            if count == 0 {
                return Err(Failure::Closed);
            }
            record.received(at, &buffer[..count]);
            at += count as u64;
            left -= count as u64;
            wanted -= count as u64;
        }
    }
    Ok(())
}

/// Opens a connection. A receive buffer is set before connecting: afterwards the window is negotiated.
pub(super) async fn connect(target: SocketAddr, receive_buffer: Option<u32>) -> Result<TcpStream, Failure> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|_| Failure::Local)?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes).map_err(|_| Failure::Local)?;
    }
    socket.connect(target).await.map_err(|error| Failure::of(&error))
}

pub(super) async fn limited<T>(
    plan: &Plan,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(plan.time_limit, work).await.unwrap_or(Err(Failure::TimedOut))
}
