//! How often BFD takes a living director for dead while every processor is busy.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    life::Watch,
    place::{As, Brand, Wish},
    rig::{Rig, VIP, gateway},
};

/// Busy threads for each processor.
const BUSY: usize = 2;

/// What one rig went through.
struct Count {
    place: Brand,
    watch: Watch,
    /// Next hops that a switch lost, of the four between two directors and two switches.
    losses: usize,
    /// Next hops that are there at the end, of the same four: what was never there cannot be lost.
    there: usize,
    /// Sessions that went down as our speakers count them.
    downs: Option<u64>,
}

/// Loads every processor for `span`, with all brands in our place side by side, and returns a table.
///
/// # Errors
/// A network does not come up.
pub(crate) fn measure(span: Duration) -> Result<String> {
    let mut rigs = Vec::new();
    for watch in [Watch::Bfd50, Watch::Bfd10] {
        for place in Brand::ALL {
            let rig = Rig::new(place, watch.interval(), As::Stub, [Wish::of(&[VIP]), Wish::of(&[VIP])])?;
            rig.spare_the_switches()?;
            rigs.push((watch, rig));
        }
    }
    // The steadiness that other measurements wait for is what is counted here.
    std::thread::sleep(Duration::from_secs(30));
    let mut before = Vec::new();
    for (_, rig) in &mut rigs {
        before.push(downs(rig)?);
    }
    let (since, stop) = (Instant::now(), AtomicBool::new(false));
    let processors = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        for _ in 0..processors * BUSY {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        std::thread::sleep(span);
        stop.store(true, Ordering::Relaxed);
    });
    let mut counts = Vec::new();
    for ((watch, rig), before) in rigs.iter_mut().zip(before) {
        let lost = |(at, switch): (usize, &crate::rig::Switch)| {
            (0..2).map(|director| switch.monitor.losses(VIP, &gateway(at, director), since)).sum::<usize>()
        };
        let losses = rig.switches.iter().enumerate().map(lost).sum();
        let there = rig.switches.iter().map(|switch| switch.monitor.hops(VIP).len()).sum();
        let downs = downs(rig)?.zip(before).map(|(now, before)| now.saturating_sub(before));
        counts.push(Count { place: rig.place, watch: *watch, losses, there, downs });
    }
    Ok(table(&counts, span, processors))
}

fn downs(rig: &mut Rig) -> Result<Option<u64>> {
    let mut sum = None;
    for director in &mut rig.directors {
        if let Some(downs) = director.downs()? {
            *sum.get_or_insert(0) += downs;
        }
    }
    Ok(sum)
}

fn table(counts: &[Count], span: Duration, processors: usize) -> String {
    let mut text = format!(
        "{} s with {} busy threads on {processors} processors; four sessions each, of two directors with two switches, \
         whose daemons are in the real-time class as if they were on another machine.\n\n\
         | BFD | in our place | next hops lost | there at the end | a session's rate | sessions down, as we count |\n|---|---|---:|---:|---:|---:|\n",
        span.as_secs(),
        processors * BUSY
    );
    for Count { place, watch, losses, there, downs } in counts {
        let interval = watch.interval().unwrap_or_default();
        let rate = *losses as f64 / 4.0 / (span.as_secs_f64() / 3600.0);
        let downs = downs.map_or_else(|| "not counted".to_owned(), |downs| downs.to_string());
        writeln!(
            text,
            "| {interval} ms x 3 | {place} | {losses} | {there} of 4 | {rate:.1} an hour | {downs} |"
        )
        .expect("invariant: a string takes all");
    }
    text
}
