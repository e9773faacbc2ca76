//! What a packet costs, against references that run beside it, and what a change costs.
//!
//! `cargo bench -p cluster-tests --bench fast_path` measures for about a minute, as root, and prints a table;
//! `-- --quick` only shows that everything runs; `-- --help` tells the rest. Times of this machine mean nothing
//! elsewhere, and little in the next run: the ratios do, because every round measures every path.
//!
//! A packet's cost is that above the floor, which is a program that swaps the link addresses and sends the packet
//! back: what remains is what the measured program itself does.

mod costs;
mod ipvs;
mod measure;
mod paths;
mod report;
mod rig;
#[path = "../ebpf/src/shared.rs"]
mod shared;
mod stream;
#[path = "../../../director/build/toolchain.rs"]
mod toolchain;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser;

use measure::Effort;
use report::Report;

/// Measures the data plane against references that run beside it.
#[derive(Debug, Parser)]
struct Arguments {
    /// Show that everything runs, in less than a minute: times mean nothing.
    #[arg(long)]
    quick: bool,
    /// Rounds: in each, every path has its turn.
    #[arg(long)]
    rounds: Option<usize>,
    /// Services of the row with many; as many as the data plane can have, up to 10,000, otherwise.
    #[arg(long)]
    services: Option<usize>,
    /// Processor that everything runs on; the last one otherwise.
    #[arg(long)]
    cpu: Option<usize>,
    /// Where all numbers go, round by round; target/fast_path.json of the workspace otherwise.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The object with the references, instead of building it.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Leave out the comparison with kernel IPVS, which boots Debian's stock kernel.
    #[arg(long)]
    no_ipvs: bool,
    /// Only the comparison with IPVS, in this kernel.
    #[arg(long, hide = true)]
    ipvs_here: bool,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// A table for each service takes its time.
    fn services(&self) -> usize {
        self.services.unwrap_or(if self.quick { 100 } else { 10_000 })
    }

    fn effort(&self) -> Effort {
        let (rounds, packets) = if self.quick { (3, 1 << 14) } else { (41, 1 << 17) };
        Effort { rounds: self.rounds.unwrap_or(rounds).max(1), packets }
    }
}

/// The folder of the workspace.
fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("invariant: the crate is in the workspace")
}

/// The object with the references and the generator.
fn programs(arguments: &Arguments) -> Result<PathBuf> {
    match &arguments.programs {
        Some(path) => Ok(path.clone()),
        None => {
            let folder = workspace().join("tests/benches/ebpf");
            let built = toolchain::build(&folder, &workspace().join("target/bench-ebpf"));
            Ok(built.map_err(|error| anyhow!(error))?.join("bench"))
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let processors = std::thread::available_parallelism()?.get();
    let processor = arguments.cpu.unwrap_or(processors - 1);
    let object = programs(&arguments)?;
    if arguments.ipvs_here {
        return ipvs::compare_here(&object, processor);
    }
    let effort = arguments.effort();
    let mut rig = rig::Rig::new(&object, processor)?;
    let paths = paths::Paths::build(&mut rig, arguments.services()).context("setting up what is measured")?;
    let rounds = measure::rounds(&mut rig, &paths.paths, effort)?;
    let changes = costs::changes(&mut rig, if arguments.quick { 1 } else { 10 })?;
    let memory = costs::memory(&paths)?;
    let ipvs = if arguments.no_ipvs {
        ipvs::Outcome::Skipped("left out by --no-ipvs".to_owned())
    } else {
        ipvs::compare_in_guest(&object, arguments.quick)?
    };
    let report = Report { paths: &paths, rounds: &rounds, effort, processor, changes, memory, ipvs };
    print!("{}", report.text()?);
    let json = arguments.json.unwrap_or_else(|| workspace().join("target/fast_path.json"));
    report.write_json(&json)?;
    println!("\nAll rounds: {}", json.display());
    Ok(())
}
