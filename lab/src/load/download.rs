//! One slow download: a connection that is held for as long as the load lasts or until it is retired, read at a steady
//! pace, every byte checked.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{MissedTickBehavior, timeout};

use super::record::Record;
use super::report::Failure;
use super::tally::Tally;
use super::{Plan, http};

/// How much faster than otherwise a retired download takes the rest of what it asked for.
const HURRY: u32 = 16;

/// Runs until it fails or is cancelled.
pub(super) async fn run(plan: &Plan, index: usize, record: &Record, tally: &Tally) {
    // Different offsets, so that bytes of one connection in another are noticed.
    let mut offset = (index as u64).wrapping_mul(4099) % plan.content_bytes.max(1);
    loop {
        match hold(plan, &mut offset, record, tally).await {
            Ok(()) => record.begins_anew(),
            Err(failure) => return record.failed(failure),
        }
    }
}

/// Fetches the content over and over, piece by piece, on one connection, until the download is retired.
async fn hold(plan: &Plan, offset: &mut u64, record: &Record, tally: &Tally) -> Result<(), Failure> {
    record.wait_begins();
    let mut stream = limited(plan, connect(record.target(), plan.receive_buffer)).await?;
    record.connected(stream.local_addr().map_err(|error| Failure::of(&error))?);
    let mut first = true;
    while !record.retired() {
        let end = plan.content_bytes.min(*offset + plan.piece_bytes);
        limited(plan, http::send(&mut stream, "/content", Some(*offset..end), false)).await?;
        let head = limited(plan, http::receive_head(&mut stream)).await?;
        record.wait_ends();
        if head.status != 206 || head.length != end - *offset || (head.body.len() as u64) > head.length {
            return Err(Failure::Wrong);
        }
        if first {
            tally.answered(head.served_by.as_deref());
            record.served_by(head.served_by);
            first = false;
        }
        record.received(*offset, &head.body);
        read_slowly(plan, &mut stream, *offset + head.body.len() as u64, end, record).await?;
        *offset = end % plan.content_bytes;
        record.wait_begins();
    }
    Ok(())
}

/// Takes the content from `at` to `end` at the plan's pace, or faster once the download is retired.
async fn read_slowly(
    plan: &Plan,
    stream: &mut TcpStream,
    mut at: u64,
    end: u64,
    record: &Record,
) -> Result<(), Failure> {
    let mut pace = paced(plan.read_every);
    let mut in_hurry = false;
    let mut buffer = vec![0_u8; plan.read_bytes];
    while at < end {
        pace.tick().await;
        if record.retired() && !in_hurry {
            pace = paced(plan.read_every / HURRY);
            in_hurry = true;
        }
        let mut wanted = (end - at).min(buffer.len() as u64);
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
            wanted -= count as u64;
        }
    }
    Ok(())
}

fn paced(every: Duration) -> tokio::time::Interval {
    let mut pace = tokio::time::interval(every.max(Duration::from_millis(1)));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
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
