//! How soon a switch knows what happens to a director, measured at the switch's kernel route table: FRR and BIRD as
//! switches side by side, and beside this project BIRD and FRR doing the same job in its place.
//!
//! `cargo bench -p cluster-tests --bench convergence` measures for about a quarter of an hour, as root, and prints tables in
//! Markdown; `-- --quick` shows that everything runs, `-- --flaps SECONDS` counts the false alarms of BFD under load
//! instead. What else the machine does meets all three alike.

mod calculation;
mod flaps;
mod life;
mod monitor;
mod place;
mod pool;
mod report;
mod rig;
mod samples;
#[path = "../../tests/ospf_interop/speaker.rs"]
#[allow(dead_code, reason = "the tests ask it more")]
mod speaker;

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use cluster_tests::requirement::{Requirement, met};

use life::Watch;
use place::{As, Brand};
use samples::Samples;

/// Measures convergence beside BIRD and FRR.
#[derive(Debug, Parser)]
struct Arguments {
    /// Show that everything runs: every event twice.
    #[arg(long)]
    quick: bool,
    /// How often each event happens.
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Only count for so many seconds how often BFD is wrong while all processors are busy.
    #[arg(long)]
    flaps: Option<u64>,
    /// Only the calculation of a large domain, in this process.
    #[arg(long)]
    calculation: bool,
    /// Only one history, as `bfd50` (deaths and restarts), `alive` (withdrawals, drain, links), `hellos`, `bfd10` or `pools`.
    #[arg(long, value_parser = ["bfd50", "alive", "hellos", "bfd10", "pools"])]
    only: Option<String>,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Measures something with a brand in our place.
type Task<'a> = dyn Fn(Brand) -> Result<()> + Sync + 'a;

/// Measures side by side; what fails is in the samples.
fn side_by_side(samples: &Samples, tasks: &[&Task<'_>]) {
    std::thread::scope(|scope| {
        for task in tasks {
            for place in Brand::ALL {
                scope.spawn(move || {
                    if let Err(error) = task(place) {
                        samples.fail(format!("{place} in our place: {error:#}"));
                    }
                });
            }
        }
    });
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runs = if arguments.quick { 2 } else { arguments.runs.max(1) };
    let programs = ["bird", "birdc", "vtysh", "chrt"].map(Requirement::Program);
    if !met(&[Requirement::Root]) || !met(&programs) {
        return Ok(());
    }
    let load = report::load()?;
    if let Some(seconds) = arguments.flaps {
        let table = flaps::measure(Duration::from_secs(seconds))?;
        println!("{}\n\n{table}", report::machine(&load)?);
        return Ok(());
    }
    // First, while this process is small.
    let calculation = calculation::measure(runs.max(11))?;
    if arguments.calculation {
        print!("{}", report::calculation(&calculation));
        return Ok(());
    }
    let samples = Samples::default();
    let chosen = |name: &str| arguments.only.as_ref().is_none_or(|only| only == name);
    let histories = [
        ("bfd50", Watch::Bfd50),
        ("alive", Watch::Alive),
        ("hellos", Watch::Hellos),
        ("bfd10", Watch::Bfd10),
    ];
    let lives = histories.map(|(name, watch)| {
        let samples = &samples;
        (name, move |place| life::measure(place, watch, runs, samples))
    });
    let lives: Vec<&Task> =
        lives.iter().filter(|(name, _)| chosen(name)).map(|(_, life)| life as &Task).collect();
    side_by_side(&samples, &lives);
    if chosen("pools") {
        side_by_side(
            &samples,
            &[&|place| pool::measure(place, As::External, runs, &samples), &|place| {
                pool::measure(place, As::Stub, runs, &samples)
            }],
        );
    }
    println!("{} {runs} runs; median / worst.\n", report::machine(&load)?);
    println!("{}\n{}", report::events(&samples), report::calculation(&calculation));
    Ok(())
}
