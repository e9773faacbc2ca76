//! Pins between this node's data plane and the other directors.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use director_proto::sync::BootId;
use syncd::pins::{Applied, Delivery, PinInput};
use syncd::{PinPort, Standing};
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

/// Whether this director was where it could not hear of the others' connections.
///
/// While it is there it takes no leases, and before it serves again it learns what the others have, as at a start. One that
/// serves all the while, as a majority does, learns of it when those are back that were cut off.
#[derive(Debug, Default)]
pub(super) struct Seclusion {
    /// Runs of the others, and whether each was silent for the dead interval last.
    runs: BTreeMap<Ipv4Addr, (BootId, bool)>,
    standing: Option<Standing>,
    is_cut_off: bool,
}

impl Seclusion {
    /// A director is silent.
    pub(super) fn note_silence(&mut self, router_id: Ipv4Addr) {
        if let Some((_, is_silent)) = self.runs.get_mut(&router_id) {
            *is_silent = true;
        }
    }

    /// A director is heard, by a run of this id.
    pub(super) fn note_run(&mut self, router_id: Ipv4Addr, boot_id: BootId) {
        let before = self.runs.insert(router_id, (boot_id, false));
        // It has lived on meanwhile.
        let is_back = before == Some((boot_id, true));
        self.is_cut_off |= is_back && self.standing != Some(Standing::Current);
    }

    /// This director stands so now: true if it may serve again once it knows what it may have missed.
    pub(super) fn stand(&mut self, standing: Standing) -> bool {
        self.standing = Some(standing);
        self.is_cut_off |= standing == Standing::Isolated;
        standing == Standing::Current && std::mem::take(&mut self.is_cut_off)
    }

    /// Whether others may have connections, by ports of this director's too, of which it does not hear.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }
}

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

    async fn tell(&self, input: PinInput) {
        // The loop ends by itself with the sync service.
        let _ = self.port.send(input).await;
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

    /// This director stands elsewhere among the others.
    pub(super) async fn stand(&mut self, standing: Standing) {
        self.standing = standing;
        if self.seclusion.stand(standing) {
            tracing::info!("it was cut off: nothing is announced before the others' connections are known");
            self.exchange.rejoin().await;
        }
        self.follow_locals();
        self.announce();
    }

    /// A director is silent.
    pub(super) async fn lose_peer(&mut self, router_id: Ipv4Addr) {
        self.seclusion.note_silence(router_id);
        self.dataplane.orphan_pins(router_id, monotonic_seconds());
        self.exchange.tell(PinInput::Left { router_id }).await;
        self.follow_locals();
    }

    /// A director is heard, for the first time or again.
    pub(super) async fn meet_peer(&mut self, router_id: Ipv4Addr, boot_id: BootId) {
        self.seclusion.note_run(router_id, boot_id);
        self.dataplane.note_run(router_id, boot_id, monotonic_seconds());
        self.exchange.tell(PinInput::Came { router_id, boot_id }).await;
        self.follow_locals();
    }

    /// Services or servers have come: pins of them that were passed over are asked for again.
    pub(super) async fn ask_for_passed_over(&mut self) {
        if std::mem::take(&mut self.exchange.passed_over) {
            self.exchange.tell(PinInput::Again).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 2);

    fn current() -> Seclusion {
        let mut seclusion = Seclusion::default();
        seclusion.note_run(OTHER, BootId(1));
        assert!(!seclusion.stand(Standing::Joining));
        assert!(!seclusion.stand(Standing::Current), "the start waits by itself");
        seclusion
    }

    #[test]
    fn who_was_cut_off_learns_what_the_others_have_before_it_serves() {
        for way in [&[Standing::Isolated][..], &[Standing::Isolated, Standing::Behind]] {
            let mut seclusion = current();
            seclusion.note_silence(OTHER);
            assert!(way.iter().all(|standing| !seclusion.stand(*standing)));
            seclusion.note_run(OTHER, BootId(1));
            assert!(seclusion.is_cut_off());
            assert!(seclusion.stand(Standing::Current));
            assert!(!seclusion.is_cut_off() && !seclusion.stand(Standing::Behind));
            assert!(!seclusion.stand(Standing::Current), "it has heard them all the while");
        }
    }

    #[test]
    fn a_director_that_was_silent_and_lives_has_what_is_missing_here() {
        let mut seclusion = current();
        seclusion.note_silence(OTHER);
        seclusion.stand(Standing::Behind);
        seclusion.note_run(OTHER, BootId(1));
        assert!(seclusion.stand(Standing::Current));
        // One that has been started anew knows no more than is known here.
        seclusion.note_silence(OTHER);
        seclusion.stand(Standing::Behind);
        seclusion.note_run(OTHER, BootId(2));
        assert!(!seclusion.stand(Standing::Current));
        // Who serves goes on to.
        seclusion.note_silence(OTHER);
        seclusion.note_run(OTHER, BootId(2));
        assert!(!seclusion.is_cut_off() && !seclusion.stand(Standing::Current));
    }
}
