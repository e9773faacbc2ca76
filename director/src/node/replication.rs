//! Pins between this node's data plane and the other directors.

use std::time::{Duration, Instant};

use syncd::PinPort;
use syncd::pins::{Applied, Delivery, PinInput};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Node;
use crate::dataplane::{PinReport, monotonic_seconds};

/// How often the data plane is asked for new pins while there may be any: what a director that dies has not told is
/// at most that old, while its pins are few.
const PERIOD: Duration = Duration::from_millis(20);
/// Pins looked at each time: some 5 ms. A walk through more takes more than one period.
const BUDGET: usize = 16_384;
/// A walk is followed by a pause of so many times its own duration: looking costs a tenth of a processor at most, also
/// where the map is large and nearly empty.
const REST: u32 = 9;

/// The exchange of pins.
pub(super) struct Exchange {
    port: PinPort,
    ticks: Interval,
    /// When the walk may go on.
    next: Instant,
    /// Pins of something unknown here have been passed over.
    passed_over: bool,
    /// The pins of all others are known.
    whole: bool,
    /// What became of the others' pins so far.
    totals: PinReport,
}

impl Exchange {
    pub(super) fn new(port: PinPort) -> Self {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let totals = PinReport::default();
        Self { port, ticks, next: Instant::now(), passed_over: false, whole: false, totals }
    }

    /// Whether the pins of all live directors are known.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// What was passed over so far may be needed: nothing is known until all is told again.
    pub(super) async fn rejoin(&mut self) {
        self.whole = false;
        // The loop ends by itself with the sync service.
        let _ = self.port.rejoin().await;
    }

    /// What became of the others' pins so far.
    pub(super) fn totals(&self) -> PinReport {
        self.totals
    }
}

/// What there is to do.
pub(super) enum Due {
    Walk,
    Deliver(Delivery),
    Ended,
}

/// Waits for something to do. What others tell waits until the tables are in the kernel.
pub(super) async fn due(exchange: &mut Exchange, attached: bool) -> Due {
    tokio::select! {
        _ = exchange.ticks.tick() => Due::Walk,
        delivery = exchange.port.delivery(), if attached => delivery.map_or(Due::Ended, Due::Deliver),
    }
}

impl Node {
    pub(super) async fn exchange_pins(&mut self, due: Due) -> anyhow::Result<()> {
        match due {
            Due::Walk => self.walk_pins().await,
            Due::Deliver(delivery) => self.take_pins(delivery).await,
            Due::Ended => anyhow::bail!("the sync service has ended"),
        }
    }

    /// Goes on with the walk through our own pins, and tells what it meets.
    async fn walk_pins(&mut self) -> anyhow::Result<()> {
        if !self.exchange.whole && self.exchange.port.is_whole() {
            self.exchange.whole = true;
            self.follow_locals();
            tracing::info!(
                replicas = self.dataplane.replicas(),
                "the other directors' connections are known"
            );
            self.announce();
        }
        if let Err(error) = self.dataplane.refresh_candidates() {
            tracing::error!(%error, "whom tracked services choose from stays as it is");
        }
        // Where the other end is busy, what is said now can be said later as well.
        let begun = Instant::now();
        if begun < self.exchange.next || !self.dataplane.may_have_pins() || !self.exchange.port.has_room() {
            return Ok(());
        }
        let (now, orphans) = (monotonic_seconds(), self.exchange.whole);
        let mut pins = Vec::new();
        let ended = match self.dataplane.walk_pins(now, BUDGET, orphans, &mut pins) {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "connections' pins are not told to the other directors");
                return Ok(());
            }
        };
        self.exchange.next = Instant::now() + begun.elapsed() * REST;
        if !pins.is_empty() {
            self.exchange.port.send(PinInput::Met(pins)).await?;
        }
        if ended {
            self.exchange.port.send(PinInput::WalkEnded).await?;
        }
        Ok(())
    }

    /// Puts another director's pins in force.
    async fn take_pins(&mut self, delivery: Delivery) -> anyhow::Result<()> {
        let (receipt, ends_snapshot) = (delivery.receipt, delivery.ends_snapshot);
        let report = match self.dataplane.apply_pins(&delivery, monotonic_seconds()) {
            Ok(report) => report,
            Err(error) => {
                // Not acknowledged, so it comes again.
                tracing::error!(peer = %receipt.from, %error, "connections of this director are not known here");
                return Ok(());
            }
        };
        let totals = &mut self.exchange.totals;
        if report.refused > 0 && totals.refused == 0 {
            tracing::warn!(
                "no room for connections of other directors: they are lost here if their director is"
            );
        }
        totals.add(&report);
        self.follow_locals();
        self.exchange.passed_over |= report.strangers + report.unknown_servers > 0;
        let applied = Applied { receipt, ends_snapshot, strangers: report.strangers };
        Ok(self.exchange.port.send(PinInput::Applied(applied)).await?)
    }

    /// Services or servers have come: pins of them that were passed over are asked for again.
    pub(super) async fn ask_for_passed_over(&mut self) {
        if std::mem::take(&mut self.exchange.passed_over) {
            // The loop ends by itself with the sync service.
            let _ = self.exchange.port.send(PinInput::Again).await;
        }
    }
}
