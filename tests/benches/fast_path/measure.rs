//! Rounds of measurements, and what they say.

use anyhow::{Result, ensure};

use crate::paths::Path;
use crate::rig::Rig;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Rounds, in each of which every path has its turn.
    pub(crate) rounds: usize,
    /// Packets of a turn, after half as many that are not measured.
    pub(crate) packets: u32,
}

/// Nanoseconds per packet, from the generator to the sink, by round and path.
pub(crate) type Rounds = Vec<Vec<f64>>;

/// Measures every path once a round, so that what else the machine does meets all of them.
///
/// # Errors
/// Not every packet of a path came to the sink as it should.
pub(crate) fn rounds(rig: &mut Rig, paths: &[Path], effort: Effort) -> Result<Rounds> {
    let mut numbers = vec![0_u32; paths.len()];
    let mut turn = |rig: &mut Rig, at: usize, packets: u32| -> Result<f64> {
        let path = &paths[at];
        let before = rig.arrived(path.kind)?;
        let cost = rig.send(&path.link, &path.flows, numbers[at], packets)?;
        numbers[at] = numbers[at].wrapping_add(packets);
        let came = rig.arrived(path.kind)? - before;
        // What is lost on the way was not measured. A link's queue that overflows now and then is no reason to stop.
        ensure!(
            came >= u64::from(packets) * 99 / 100,
            "{}: {came} of {packets} packets came as protocol {}; so far came{}",
            path.title,
            path.kind & 0xff,
            rig.arrivals()?
        );
        Ok(cost.as_nanos() as f64)
    };
    // Each flow once: tables of connections are full of them before anything is measured.
    for (at, path) in paths.iter().enumerate() {
        turn(rig, at, 1 << path.flows.bits)?;
    }
    let mut rounds = Vec::with_capacity(effort.rounds);
    for _ in 0..effort.rounds {
        let mut round = Vec::with_capacity(paths.len());
        for at in 0..paths.len() {
            // The caches hold what the path before this one needed.
            turn(rig, at, effort.packets / 2)?;
            round.push(turn(rig, at, effort.packets)?);
        }
        rounds.push(round);
    }
    Ok(rounds)
}

/// What each path costs above its floor, in nanoseconds: of the differences within each round, the mean of the middle
/// half. (The clock's readings are whole nanoseconds, so that their median would be one too.)
pub(crate) fn net(rounds: &Rounds, paths: &[Path]) -> Vec<f64> {
    let index = |name: &str| paths.iter().position(|path| path.name == name).unwrap_or(0);
    let floors: Vec<usize> = paths.iter().map(|path| index(path.floor)).collect();
    (0..paths.len())
        .map(|at| middle(rounds.iter().map(|round| round[at] - round[floors[at]]).collect()))
        .collect()
}

/// What each path costs from the generator to the sink.
pub(crate) fn gross(rounds: &Rounds, paths: usize) -> Vec<f64> {
    (0..paths).map(|at| middle(rounds.iter().map(|round| round[at]).collect())).collect()
}

/// The mean of the middle half: as deaf to outliers as the median, and finer.
pub(crate) fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let quarter = values.len() / 4;
    let half = &values[quarter..values.len() - quarter];
    half.iter().sum::<f64>() / half.len() as f64
}
