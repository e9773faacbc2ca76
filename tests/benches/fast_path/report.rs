//! The table for people and the numbers for machines.

use std::fmt::Write as _;
use std::path::Path as FilePath;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::costs::{Changes, Memory};
use crate::ipvs::Outcome;
use crate::measure::{Effort, Rounds, gross, net};
use crate::paths::{Path, Paths};

/// The least that the data plane is to forward as a multiple of the kernel's IPVS.
const TIMES_IPVS: f64 = 8.0;

/// All that was measured.
pub(crate) struct Report<'a> {
    pub(crate) paths: &'a Paths,
    pub(crate) rounds: &'a Rounds,
    pub(crate) effort: Effort,
    pub(crate) processor: usize,
    pub(crate) changes: Changes,
    pub(crate) memory: Memory,
    pub(crate) ipvs: Outcome,
}

impl Report<'_> {
    /// The tables, as Markdown.
    pub(crate) fn text(&self) -> Result<String> {
        let mut text = String::new();
        let (date, kernel, model) = machine()?;
        let packets = self.effort.packets;
        writeln!(text, "{date}, Linux {kernel}, {model}, processor {}.", self.processor)?;
        let (rounds, floor) = (self.rounds.len(), gross(self.rounds, self.paths.paths.len())[0]);
        writeln!(
            text,
            "{rounds} rounds of {packets} packets for each path; 65,536 flows where nothing else is said."
        )?;
        writeln!(text, "The floor, subtracted from all, takes {floor:.0} ns from generator to sink.\n")?;
        writeln!(text, "| path | ns a packet, net | ratio | target | met |\n|---|---:|---:|---|---|")?;
        let net = net(self.rounds, &self.paths.paths);
        for (path, cost) in self.paths.paths.iter().zip(&net) {
            if path.name == path.floor {
                continue;
            }
            match self.ratio(path, &net) {
                None => writeln!(text, "| {} | {cost:.1} | | | |", path.title)?,
                Some((ratio, to, limit)) => {
                    let met = if ratio <= limit { "yes" } else { "**no**" };
                    writeln!(
                        text,
                        "| {} | {cost:.1} | {ratio:.2} | at most {limit} x {to} | {met} |",
                        path.title
                    )?;
                }
            }
        }
        for absent in &self.paths.absent {
            writeln!(text, "| {} | not measured: {} | | | |", absent.title, absent.why)?;
        }
        writeln!(text, "\n| cost | |\n|---|---:|")?;
        let millis = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
        writeln!(text, "| another slot table for one service | {:.1} ms |", millis(self.changes.swap))?;
        let (deal, apply) = (millis(self.changes.deal), millis(self.changes.apply));
        let sum = deal + apply;
        writeln!(
            text,
            "| one weight of 1,000 real servers | {sum:.1} ms ({deal:.1} dealing, {apply:.1} applying) |"
        )?;
        writeln!(text, "| kernel memory of a service | {:.0} bytes |", self.memory.service)?;
        writeln!(text, "| kernel memory of a pin | {:.0} bytes |", self.memory.pin)?;
        writeln!(text)?;
        match &self.ipvs {
            Outcome::Skipped(why) => writeln!(text, "Beside kernel IPVS: not measured: {why}")?,
            Outcome::Measured { kernel, ours, ipvs, floor, reference } => {
                let ratio = ours / ipvs;
                let met = if ratio >= TIMES_IPVS { "met" } else { "**not met**" };
                // The floor is in every packet's time: what each adds to it says more.
                let net = |rate: &f64| 1.0 / rate - 1.0 / floor;
                let net_ratio = net(ipvs) / net(ours);
                writeln!(
                    text,
                    "Beside kernel IPVS (DR, mh; Linux {kernel} in an emulated machine): {ours:.0} packets per second \
                     against {ipvs:.0}, {ratio:.1} x (target: at least {TIMES_IPVS:.0} x, {met}). The floor does \
                     {floor:.0} and the reference {reference:.0}; above the floor, a packet costs IPVS {net_ratio:.1} x what it costs us."
                )?;
            }
        }
        Ok(text)
    }

    /// Ratio, what to, and limit of a path that has a target.
    fn ratio(&self, path: &Path, net: &[f64]) -> Option<(f64, &str, f64)> {
        let (name, limit) = path.target?;
        let cost = |name: &str| {
            let at = self.paths.paths.iter().position(|path| path.name == name)?;
            net.get(at).copied()
        };
        Some((cost(path.name)? / cost(name)?, name, limit))
    }

    /// Writes everything, round by round.
    pub(crate) fn write_json(&self, path: &FilePath) -> Result<()> {
        let (date, kernel, model) = machine()?;
        let net = net(self.rounds, &self.paths.paths);
        let paths: Vec<_> = self
            .paths
            .paths
            .iter()
            .enumerate()
            .map(|(at, path)| {
                let rounds: Vec<f64> = self.rounds.iter().map(|round| round[at]).collect();
                let ratio = self.ratio(path, &net);
                json!({
                    "name": path.name,
                    "title": path.title,
                    "floor": path.floor,
                    "flows": 1_u64 << path.flows.bits,
                    "net_ns": net[at],
                    "ratio": ratio.map(|(ratio, _, _)| ratio),
                    "compared_with": ratio.map(|(_, to, _)| to),
                    "target": ratio.map(|(_, _, limit)| limit),
                    "rounds_ns": rounds,
                })
            })
            .collect();
        let ipvs = match &self.ipvs {
            Outcome::Skipped(why) => json!({ "skipped": why }),
            Outcome::Measured { kernel, ours, ipvs, floor, reference } => json!({
                "kernel": kernel, "ours_pps": ours, "ipvs_pps": ipvs, "floor_pps": floor, "reference_pps": reference,
                "reference_packets_per_second": reference,
            }),
        };
        let seconds = |duration: std::time::Duration| duration.as_secs_f64();
        let all = json!({
            "date": date,
            "kernel": kernel,
            "cpu": model,
            "processor": self.processor,
            "packets_per_turn": self.effort.packets,
            "paths": paths,
            "seconds": {
                "swap_table": seconds(self.changes.swap),
                "deal_weight": seconds(self.changes.deal),
                "apply_weight": seconds(self.changes.apply),
            },
            "bytes": { "service": self.memory.service, "pin": self.memory.pin },
            "ipvs": ipvs,
        });
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        std::fs::write(path, serde_json::to_string_pretty(&all)?).with_context(|| path.display().to_string())
    }
}

/// Date, kernel and processor.
fn machine() -> Result<(String, String, String)> {
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output().context("date")?;
    let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
    let kernel = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let information = std::fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
    let model = information
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(|| "unknown processor".to_owned(), |(_, model)| model.to_owned());
    Ok((date, kernel, model))
}
