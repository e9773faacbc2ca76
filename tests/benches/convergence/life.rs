//! What happens to a director, one event after the other, again and again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{
    monitor::Hops,
    place::{As, Brand, Director, Wish},
    rig::{OTHER_VIP, Rig, VIP, gateway},
    samples::{Event, Sample, Samples},
};

/// Beyond this an event is not noticed any more.
const LIMIT: Duration = Duration::from_secs(20);
/// A restart is watched for so long: FRR and BIRD lose the next hop again up to 16 s after it.
const RESTART: Duration = Duration::from_secs(17);
/// The gap between two changes.
const GAP: Duration = Duration::from_millis(300);
/// Longer than the dead interval and than MinLSInterval: neighbours have forgotten who stopped, and may say at once that
/// it is back.
const FORGOTTEN: Duration = Duration::from_secs(6);

/// How neighbours are watched, and with it which events are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    Hellos,
    Bfd50,
    Bfd10,
    /// BFD 50 ms x 3, for what happens to a director that lives on.
    Alive,
}

impl Watch {
    /// BFD's interval in milliseconds.
    pub(crate) fn interval(self) -> Option<u64> {
        match self {
            Self::Hellos => None,
            Self::Bfd50 | Self::Alive => Some(50),
            Self::Bfd10 => Some(10),
        }
    }
}

/// A rig with a director that lives and dies.
struct Life<'a> {
    rig: Rig,
    samples: &'a Samples,
    /// For moments that are spread over the ticks and intervals of others.
    random: u64,
}

/// Measures all events of a way to watch, `runs` times.
///
/// # Errors
/// The network does not come up, or does not come back after an event.
pub(crate) fn measure(place: Brand, watch: Watch, runs: usize, samples: &Samples) -> Result<()> {
    let wishes = [Wish::of(&[VIP]), Wish::of(&[VIP])];
    let rig = Rig::new(place, watch.interval(), As::Stub, wishes)?;
    let mut life = Life { rig, samples, random: 0x9e37_79b9 + place as u64 };
    for _ in 0..runs {
        match watch {
            Watch::Hellos => {
                life.die(Event::KilledHellos)?;
                life.rig.victim().start()?;
                life.steady()?;
                life.start_cold()?;
            }
            Watch::Bfd10 => {
                life.die(Event::KilledBfd10)?;
                life.rig.victim().start()?;
            }
            Watch::Bfd50 => {
                life.die(Event::KilledBfd50)?;
                life.restart(Event::Restarted)?;
                life.steady()?;
                life.rig.victim().kill()?;
                std::thread::sleep(FORGOTTEN);
                life.restart(Event::RestartedLater)?;
            }
            Watch::Alive => {
                life.change_what_is_announced()?;
                life.lose_the_links()?;
            }
        }
    }
    Ok(())
}

impl Life<'_> {
    /// Waits for quiet and then for a moment at random.
    fn steady(&mut self) -> Result<()> {
        self.rig.until_steady()?;
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis((self.random >> 33) % 1000));
        Ok(())
    }

    fn record(&self, event: Event, at: usize, took: Option<Duration>, harm: usize) {
        let key = (event, self.rig.place, self.rig.switches[at].brand);
        self.samples.push(key, Sample { took, harm });
    }

    /// Does something to the victim and records when each switch no longer leads to it.
    fn goes(&mut self, event: Event, act: impl FnOnce(&mut Director) -> Result<()>) -> Result<()> {
        let since = Instant::now();
        act(self.rig.victim())?;
        for (at, switch) in self.rig.switches.iter().enumerate() {
            let gone = |hops: &Hops| !hops.contains(&gateway(at, 1));
            let took = switch.monitor.until(VIP, since, LIMIT, gone);
            // What was gone before, a false alarm took: nothing was measured.
            if took != Some(Duration::ZERO) {
                self.record(event, at, took, 0);
            }
        }
        Ok(())
    }

    fn die(&mut self, event: Event) -> Result<()> {
        self.steady()?;
        self.goes(event, Director::kill)
    }

    fn restart(&mut self, event: Event) -> Result<()> {
        let since = Instant::now();
        self.rig.victim().start()?;
        std::thread::sleep(RESTART.saturating_sub(since.elapsed()));
        for (at, switch) in self.rig.switches.iter().enumerate() {
            let took = switch.monitor.gained_for_good(VIP, &gateway(at, 1), since);
            let losses = switch.monitor.losses(VIP, &gateway(at, 1), since);
            self.record(event, at, took, losses);
        }
        Ok(())
    }

    fn change_what_is_announced(&mut self) -> Result<()> {
        let (active, both) = (Wish::of(&[VIP]), Wish::of(&[VIP, OTHER_VIP]));
        self.steady()?;
        self.goes(Event::Withdrawn, |victim| victim.announce(Wish::of(&[])))?;
        self.rig.victim().announce(active.clone())?;
        self.steady()?;
        self.rig.victim().announce(both)?;
        std::thread::sleep(GAP);
        self.goes(Event::SecondChange, |victim| victim.announce(Wish::of(&[OTHER_VIP])))?;
        self.rig.victim().announce(active.clone())?;
        self.steady()?;
        self.goes(Event::Drained, |victim| victim.announce(Wish { drained: true, ..active.clone() }))?;
        self.rig.victim().announce(active)
    }

    fn lose_the_links(&mut self) -> Result<()> {
        self.steady()?;
        for at in 0..self.rig.switches.len() {
            let since = Instant::now();
            self.rig.victim().namespace.ip(&format!("link set eth{} down", at + 1))?;
            let gone = |hops: &Hops| !hops.contains(&gateway(at, 1));
            let took = self.rig.switches[at].monitor.until(VIP, since, LIMIT, gone);
            self.record(Event::LinkDown, at, took, 0);
        }
        for at in 0..self.rig.switches.len() {
            self.rig.victim().namespace.ip(&format!("link set eth{} up", at + 1))?;
        }
        Ok(())
    }

    /// A clean stop, and a start when nobody knows the director any more.
    fn start_cold(&mut self) -> Result<()> {
        self.rig.victim().stop()?;
        std::thread::sleep(FORGOTTEN);
        for (at, switch) in self.rig.switches.iter().enumerate() {
            ensure!(
                !switch.monitor.hops(VIP).contains(&gateway(at, 1)),
                "{} leads to who stopped",
                switch.brand
            );
        }
        let since = Instant::now();
        self.rig.victim().start()?;
        for (at, switch) in self.rig.switches.iter().enumerate() {
            let there = |hops: &Hops| hops.contains(&gateway(at, 1));
            let took = switch.monitor.until(VIP, since, LIMIT, there);
            self.record(Event::ColdStart, at, took, 0);
        }
        Ok(())
    }
}
