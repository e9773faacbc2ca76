//! The `lab` command.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use lab::deploy::{self, Lab, Options};
use lab::load::{Plan, Target, control};
use lab::{Topology, demo, graph};

/// Network labs on one machine: containerlab topologies on plain namespaces.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Deploy a topology.
    Up {
        /// Topology file (*.clab.yml).
        topology: PathBuf,
        /// Replace a running lab of the same name.
        #[arg(long)]
        reconfigure: bool,
        /// Name of the lab, instead of the file's.
        #[arg(long)]
        name: Option<String>,
    },
    /// Take a lab down, also one whose deployment was interrupted.
    Down {
        /// Lab name or topology file.
        lab: String,
    },
    /// Show the nodes of a lab, or the labs that are running.
    Inspect {
        /// Lab name or topology file; all labs when left out.
        lab: Option<String>,
        /// Machine-readable.
        #[arg(long)]
        json: bool,
    },
    /// Run a command in a node, with all of its namespaces.
    Exec {
        /// Lab name or topology file; may be left out when one lab is running.
        #[arg(long, short)]
        lab: Option<String>,
        /// Node.
        node: String,
        /// Command and arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Hold slow downloads through a service and check every byte; add short requests at a steady rate.
    Load(LoadArguments),
    /// Write a content file as the load expects it from the servers.
    Content {
        /// File to write.
        file: PathBuf,
        /// Its length.
        #[arg(long)]
        bytes: u64,
    },
    /// Run the demo: a cluster under load loses directors, changes its real servers, and clients notice nothing.
    Demo(DemoArguments),
    /// Draw a topology.
    Graph {
        /// Topology file.
        topology: PathBuf,
        /// Graphviz instead of text.
        #[arg(long)]
        dot: bool,
    },
}

#[derive(clap::Args)]
struct LoadArguments {
    /// A service, as [NAME=]ADDRESS:PORT; may be given several times, each gets an account of its own.
    #[arg(long = "target", value_name = "SERVICE", required = true)]
    targets: Vec<Target>,
    /// Downloads held open, shared evenly among the services.
    #[arg(long, default_value_t = 2000)]
    connections: usize,
    /// Short requests a second, shared likewise.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Seconds to run; until interrupted when left out.
    #[arg(long)]
    duration: Option<u64>,
    /// File that holds a fresh sample, five times a second.
    #[arg(long)]
    status: Option<PathBuf>,
    /// Take commands from standard input (sample, mark, connections, retire, stop), answer in lines of JSON.
    #[arg(long)]
    control: bool,
}

#[derive(clap::Args)]
struct DemoArguments {
    /// Topology file.
    #[arg(long, default_value = "lab/ecmp.clab.yml")]
    topology: PathBuf,
    /// The `director` binary.
    #[arg(long, default_value = "target/release/director")]
    director: PathBuf,
    /// Where lab/ecmp/prepare.sh put its files.
    #[arg(long, default_value = "lab/ecmp/generated")]
    data: PathBuf,
    /// Slow downloads.
    #[arg(long, default_value_t = 2000)]
    connections: usize,
    /// Short requests a second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Leave the lab up.
    #[arg(long)]
    keep: bool,
    /// Replace a running lab of the same name.
    #[arg(long)]
    reconfigure: bool,
    /// Name of the lab, instead of the file's.
    #[arg(long)]
    name: Option<String>,
    /// Write the results to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter("info").without_time().init();
    match run(Arguments::parse().action) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> Result<ExitCode> {
    match action {
        Action::Up { topology, reconfigure, name } => up(&topology, reconfigure, name)?,
        Action::Down { lab } => {
            let start = Instant::now();
            let name = lab_name(&lab)?;
            deploy::down(&name)?;
            eprintln!("lab {name} is gone ({:.1} s)", start.elapsed().as_secs_f64());
        }
        Action::Inspect { lab: None, json: false } => {
            deploy::running().iter().for_each(|name| println!("{name}"))
        }
        Action::Inspect { lab: None, json: true } => {
            println!("{}", serde_json::to_string_pretty(&deploy::running())?)
        }
        Action::Inspect { lab: Some(lab), json } => inspect(&Lab::attach(&lab_name(&lab)?)?, json)?,
        Action::Exec { lab, node, command } => return exec(lab, &node, &command),
        Action::Load(arguments) => return run_load(arguments),
        Action::Content { file, bytes } => lab::load::content::write(&file, bytes)?,
        Action::Demo(arguments) => return run_demo(arguments),
        Action::Graph { topology, dot } => {
            let topology = Topology::load(topology)?;
            print!("{}", if dot { graph::dot(&topology) } else { graph::text(&topology) });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn up(file: &PathBuf, reconfigure: bool, name: Option<String>) -> Result<()> {
    let start = Instant::now();
    let mut topology = Topology::load(file)?;
    if let Some(name) = name {
        topology = topology.renamed(&name)?;
    }
    let mut images: Vec<_> = topology.nodes.iter().filter_map(|node| node.image.as_deref()).collect();
    images.sort_unstable();
    images.dedup();
    for image in images {
        eprintln!("image {image}: not used, nodes see the host's file system (their writes stay in memory)");
    }
    let mut lab = Lab::up(&topology, &Options { reconfigure, ..Options::default() })?;
    lab.keep();
    eprintln!(
        "lab {} is up: {} nodes ({:.1} s)",
        topology.name,
        topology.nodes.len(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// A lab's name from what people type: the name itself, or its topology file.
fn lab_name(text: &str) -> Result<String> {
    if text.contains('/') || text.ends_with(".yml") || text.ends_with(".yaml") {
        return Ok(Topology::load(text)?.name);
    }
    Ok(text.to_owned())
}

fn inspect(lab: &Lab, json: bool) -> Result<()> {
    let nodes = lab.inspect()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&nodes)?);
        return Ok(());
    }
    for node in nodes {
        let addresses = node.interfaces.as_array().into_iter().flatten().flat_map(|interface| {
            let name = interface["ifname"].as_str().unwrap_or("?").to_owned();
            let local = interface["addr_info"].as_array().cloned().unwrap_or_default();
            local
                .into_iter()
                .filter(|a| a["family"] == "inet" || a["scope"] == "global")
                .map(move |a| format!("{name} {}/{}", a["local"].as_str().unwrap_or("?"), a["prefixlen"]))
        });
        println!("{:12} {:24} {}", node.name, node.namespace, addresses.collect::<Vec<_>>().join(", "));
        for (pid, command) in node.processes {
            println!("{:12} {pid:8} {command}", "");
        }
    }
    Ok(())
}

fn exec(lab: Option<String>, node: &str, command: &[String]) -> Result<ExitCode> {
    let name = match (lab, deploy::running().as_slice()) {
        (Some(lab), _) => lab_name(&lab)?,
        (None, [only]) => only.clone(),
        (None, []) => bail!("no lab is running"),
        (None, several) => bail!("several labs are running ({}): say which with --lab", several.join(", ")),
    };
    let argv: Vec<&str> = command.iter().map(String::as_str).collect();
    let lab = Lab::attach(&name)?;
    let status =
        lab.command(node, &argv)?.status().with_context(|| format!("running {} in {node}", command[0]))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

fn run_load(arguments: LoadArguments) -> Result<ExitCode> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut targets = arguments.targets;
    Target::share(&mut targets, arguments.connections, arguments.rate);
    let plan = Plan::new(targets);
    let options = control::Options {
        status: arguments.status,
        duration: arguments.duration.map(Duration::from_secs),
        commands: arguments.control,
    };
    let report = tokio::runtime::Runtime::new()?.block_on(control::serve(plan, options))?;
    println!("{}", serde_json::to_string(&report)?);
    // The runtime's thread that reads standard input cannot be interrupted.
    std::process::exit(i32::from(!report.total.clean()));
}

fn run_demo(arguments: DemoArguments) -> Result<ExitCode> {
    let existing = |path: &PathBuf, remedy: &str| {
        path.canonicalize().with_context(|| format!("{}: {remedy}", path.display()))
    };
    let plan = demo::Plan {
        director: existing(&arguments.director, "build it: cargo build --release -p director")?,
        data: existing(&arguments.data, "make it: lab/ecmp/prepare.sh")?,
        topology: arguments.topology,
        connections: arguments.connections,
        rate: arguments.rate,
        keep: arguments.keep,
        reconfigure: arguments.reconfigure,
        name: arguments.name,
    };
    let begin = Instant::now();
    let outcome = demo::run(&plan, &mut |line| println!("[{:6.1} s] {line}", begin.elapsed().as_secs_f64()))?;
    println!("\n{}", outcome.table());
    if let Some(file) = arguments.json {
        std::fs::write(&file, serde_json::to_vec_pretty(&outcome)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(if outcome.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
