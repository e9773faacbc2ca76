//! The demo: a cluster under load loses a director, gets it back, and has another one's daemon killed; then a real
//! server is added, another one drained and removed; while every client's connection and every byte is watched, on a
//! service with direct return, one through IPIP tunnels, and one over IPv6.
//!
//! - [`play`] is the sequence of steps and their judgement.
//! - [`cluster`] asks switches, directors and real servers, and tells them what to do.
//! - [`edit`] changes a director's configuration file, [`flows`] knows which director carries which flow.
//! - [`table`] shows the results.

mod cluster;
mod edit;
mod flows;
mod play;
mod table;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;

use crate::deploy::{Lab, Options};
use crate::topology::Topology;
pub use table::{Convergence, Outcome, ServiceResult, StepResult};

/// The services that are under load, with their virtual IPs, all on port 80.
pub const SERVICES: [(&str, IpAddr); 3] = [
    ("web", IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10))),
    ("web-ipip", IpAddr::V4(Ipv4Addr::new(203, 0, 113, 20))),
    ("web6", IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0x10))),
];
/// The topology's directors.
pub const DIRECTORS: [&str; 3] = ["director1", "director2", "director3"];
/// The topology's switches.
pub const SWITCHES: [&str; 2] = ["switch1", "switch2"];
/// The topology's real servers: names, and the last number of each one's addresses. The last one is in no
/// configuration file at first.
pub const REALS: [(&str, &str); 4] = [("real1", "11"), ("real2", "12"), ("real3", "13"), ("real4", "14")];

/// What to run the demo with.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `ecmp.clab.yml`.
    pub topology: PathBuf,
    /// The `director` binary.
    pub director: PathBuf,
    /// Where `prepare.sh` put certificates and content.
    pub data: PathBuf,
    /// Downloads.
    pub connections: usize,
    /// Short requests a second.
    pub rate: u32,
    /// Leave the lab up afterwards.
    pub keep: bool,
    /// Replace a running lab of the same name.
    pub reconfigure: bool,
    /// Name of the lab, instead of the file's.
    pub name: Option<String>,
}

/// Runs the demo; `say` gets a line for each thing that happened.
///
/// # Errors
/// When the lab cannot be put up or something besides the promise fails; a broken promise is in the outcome.
pub fn run(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Outcome> {
    let begin = Instant::now();
    let mut topology = Topology::load_with(&plan.topology, &|name| match name {
        "DIRECTOR" => Some(plan.director.display().to_string()),
        "ECMP_DATA" => Some(plan.data.display().to_string()),
        other => std::env::var(other).ok(),
    })?;
    if let Some(name) = &plan.name {
        topology = topology.renamed(name)?;
    }
    let mut lab = Lab::up(&topology, &Options { reconfigure: plan.reconfigure, ..Options::default() })?;
    if plan.keep {
        lab.keep();
    }
    say(&format!(
        "lab {} is up: {} nodes, {:.1} s",
        topology.name,
        topology.nodes.len(),
        begin.elapsed().as_secs_f64()
    ));
    let result = play::Demo::start(&lab, plan, begin, say).and_then(|demo| demo.play(say));
    if !result.as_ref().is_ok_and(Outcome::passed) {
        say_logs(&lab, say);
    }
    if !plan.keep {
        lab.down()?;
    }
    let mut outcome = result?;
    outcome.seconds = begin.elapsed().as_secs_f64();
    Ok(outcome)
}

/// The ends of the directors' logs, for whoever has to find out why.
fn say_logs(lab: &Lab, say: &mut dyn FnMut(&str)) {
    for director in DIRECTORS {
        say(&format!("--- end of the log of {director}"));
        match lab.sh(director, "tail -n 15 /var/log/director.log") {
            Ok(text) => say(text.trim_end()),
            Err(error) => say(&format!("{error:#}")),
        }
    }
}
