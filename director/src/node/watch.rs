//! Whoever watches packets: a capture that the node feeds to one client, and ends when that one has enough or is
//! gone.

use std::time::Duration;

use director_proto::control as wire;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::Node;
use crate::dataplane::{CaptureRequest, CapturedPacket};

/// How often the buffers are read. Nobody is woken by packets: that would cost each of them more than all the
/// rest of its way.
const PERIOD: Duration = Duration::from_millis(20);
/// Batches on their way to a client that does not read. Beyond, packets stay in the buffers, and are lost there.
const BATCHES: usize = 4;
/// About so many packets in a batch.
const BATCH: usize = 4_096;

/// The client of a capture.
pub(super) struct Watcher {
    batches: mpsc::Sender<wire::CaptureBatch>,
    ticks: Interval,
    /// Packets it still wants; `None` for any number.
    left: Option<u64>,
    until: Option<Instant>,
    /// What was lost when it was last told.
    lost: u64,
}

/// Waits until the buffers are to be read; for ever without a watcher.
pub(super) async fn due(watcher: &mut Option<Watcher>) {
    match watcher {
        Some(watcher) => {
            watcher.ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}

impl Node {
    /// Begins a capture; the batches come out of the returned end.
    pub(super) fn start_capture(
        &mut self,
        request: wire::CaptureRequest,
    ) -> Result<mpsc::Receiver<wire::CaptureBatch>, String> {
        // One that nobody reads any more is over, also if that was not noticed yet.
        if self.watcher.as_ref().is_some_and(|watcher| watcher.batches.is_closed()) {
            self.stop_capture("its client is gone");
        }
        let wire::CaptureRequest { service, reasons, count, duration_ms, snaplen, after } = request;
        let service = Some(service).filter(|service| !service.is_empty());
        let wanted = CaptureRequest { service, reasons, snaplen, after };
        self.dataplane.start_capture(&wanted).map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
        tracing::info!(?wanted, count, duration_ms, "capture begins");
        let (batches, receiver) = mpsc::channel(BATCHES);
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let first = wire::CaptureBatch { interfaces: self.interfaces(), ..Default::default() };
        // There is room: it is the first.
        let _ = batches.try_send(first);
        self.watcher = Some(Watcher {
            batches,
            ticks,
            left: (count != 0).then_some(count),
            until: (duration_ms != 0).then(|| Instant::now() + Duration::from_millis(duration_ms)),
            lost: 0,
        });
        Ok(receiver)
    }

    /// Hands the watcher what came since the last time.
    pub(super) fn read_capture(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        if watcher.batches.is_closed() {
            return self.stop_capture("its client is gone");
        }
        let over = watcher.until.is_some_and(|until| Instant::now() >= until);
        // Where the client does not read, packets wait in the buffers.
        if watcher.batches.capacity() == 0 {
            if over {
                self.stop_capture("its time is over");
            }
            return;
        }
        let mut packets = self.dataplane.read_capture(BATCH);
        let lost = self.dataplane.capture_lost();
        let mut enough = false;
        if let Some(left) = &mut watcher.left {
            packets.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= packets.len() as u64;
            enough = *left == 0;
        }
        if !packets.is_empty() || lost != watcher.lost {
            watcher.lost = lost;
            let packets = packets.into_iter().map(packet).collect();
            // There is room, as was just seen; a client that goes away now is noticed the next time.
            let _ = watcher.batches.try_send(wire::CaptureBatch { interfaces: Vec::new(), packets, lost });
        }
        match (enough, over) {
            (true, _) => self.stop_capture("it has all packets it wanted"),
            (false, true) => self.stop_capture("its time is over"),
            (false, false) => {}
        }
    }

    /// Ends the capture: the program looks at no filter any more, and the client's stream ends.
    fn stop_capture(&mut self, reason: &str) {
        self.watcher = None;
        match self.dataplane.stop_capture() {
            Ok(()) => tracing::info!(reason, "capture ends"),
            Err(error) => tracing::error!(%error, "capture"),
        }
    }
}

fn packet(packet: CapturedPacket) -> wire::CapturedPacket {
    wire::CapturedPacket {
        time_ns: u64::try_from(packet.time.as_nanos()).unwrap_or(u64::MAX),
        ifindex: packet.ifindex,
        verdict: packet.outcome.to_string(),
        service: packet.service.unwrap_or_default(),
        real: packet.real.map(|real| real.to_string()).unwrap_or_default(),
        length: packet.length,
        bytes: packet.bytes.into(),
    }
}
