//! A thousand VIPs, and one of them withdrawn.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{
    monitor::Hops,
    place::{As, Brand, Wish},
    rig::{Rig, gateway},
    samples::{Event, Sample, Samples},
};

const VIPS: usize = 1000;
/// Longer than MinLSInterval of all three.
const QUIET: Duration = Duration::from_millis(6500);
const LIMIT: Duration = Duration::from_secs(60);
/// Changes of others within this span are harm.
const AFTERWARDS: Duration = Duration::from_secs(2);

fn vip(number: usize) -> String {
    format!("203.0.{}.{}", 100 + number / 250, 1 + number % 250)
}

/// Withdraws one of a thousand, `runs` times.
///
/// # Errors
/// The VIPs are not learned within a minute.
pub(crate) fn measure(place: Brand, kind: As, runs: usize, samples: &Samples) -> Result<()> {
    let all = Wish { vips: (0..VIPS).map(vip).collect(), drained: false };
    let mut rig = Rig::new(place, None, kind, [Wish::of(&[]), all.clone()])?;
    let event = if kind == As::External { Event::PoolExternal } else { Event::PoolStub };
    for run in 0..runs {
        let withdrawn = 7 + 31 * run % VIPS;
        let (name, start) = (vip(withdrawn), Instant::now());
        for (at, switch) in rig.switches.iter().enumerate() {
            while switch.monitor.destinations_by(&gateway(at, 1)) < VIPS {
                let known = switch.monitor.destinations_by(&gateway(at, 1));
                ensure!(start.elapsed() < LIMIT, "{} as switch knows {known} VIPs of {place}", switch.brand);
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        std::thread::sleep(QUIET + Duration::from_millis(173 * u64::try_from(run)? % 1000));
        let mut rest = all.clone();
        rest.vips.remove(withdrawn);
        let since = Instant::now();
        rig.victim().announce(rest)?;
        let mut took = Vec::new();
        for (at, switch) in rig.switches.iter().enumerate() {
            let gone = |hops: &Hops| !hops.contains(&gateway(at, 1));
            took.push(switch.monitor.until(&name, since, LIMIT, gone));
        }
        std::thread::sleep(AFTERWARDS);
        for (switch, took) in rig.switches.iter().zip(took) {
            let harm = switch.monitor.others_touched(&name, since);
            samples.push((event, place, switch.brand), Sample { took, harm });
        }
        rig.victim().announce(all.clone())?;
    }
    Ok(())
}
