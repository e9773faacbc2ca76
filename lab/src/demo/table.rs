//! The demo's results, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::SWITCHES;
use crate::load::{RealBook, Sample};

/// What one step came to for one service.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ServiceResult {
    /// Name of the service.
    pub service: String,
    /// Downloads alive at the end of the step.
    pub alive: u64,
    /// Of these, on the same connection as at its beginning.
    pub held: u64,
    /// Of these, seen on directors both before and after: the base of `changed`.
    pub seen: u64,
    /// Of these, carried by another director for a part of the step.
    pub changed: u64,
    /// Downloads and requests that were reset during the step.
    pub reset: u64,
    /// Downloads and requests that failed in any other way.
    pub lost: u64,
    /// Wrong bytes.
    pub wrong_bytes: u64,
    /// Longest wait of a download for bytes, milliseconds.
    pub longest_stall_ms: u64,
}

/// When the next hops in a switch's kernel changed in the course of a step, in milliseconds from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Convergence {
    /// The first change: who is lost is out, or who came is in.
    pub first_ms: u64,
    /// The last one: from then on the next hops are what they shall be.
    pub last_ms: u64,
}

/// What one step came to.
#[derive(Debug, Clone, Serialize)]
pub struct StepResult {
    /// What was done.
    pub step: String,
    /// By service, in the order of the load.
    pub services: Vec<ServiceResult>,
    /// By real server: downloads held at the end of the step, connections opened during it.
    pub reals: BTreeMap<String, RealBook>,
    /// By switch: when its kernel's next hops changed; without the switches where they did not.
    pub switches: BTreeMap<String, Convergence>,
    /// What went wrong besides, if anything.
    pub complaint: Option<String>,
}

impl StepResult {
    /// One figure over all services.
    #[must_use]
    pub fn sum(&self, figure: impl Fn(&ServiceResult) -> u64) -> u64 {
        self.services.iter().map(figure).sum()
    }

    /// Whether clients noticed nothing and the cluster did what it should.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.sum(|s| s.reset + s.lost + s.wrong_bytes) == 0 && self.complaint.is_none()
    }

    /// One line, printed when the step is over.
    #[must_use]
    pub fn line(&self) -> String {
        let verdict = if self.passed() { "ok" } else { "FAILED" };
        let complaint = self.complaint.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
        format!("{verdict:6} {}{complaint}", self.step)
    }

    fn longest_stall_ms(&self) -> u64 {
        self.services.iter().map(|s| s.longest_stall_ms).max().unwrap_or(0)
    }
}

/// The whole demo.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Steps in order.
    pub steps: Vec<StepResult>,
    /// The load's own account of the whole time.
    pub total: Sample,
    /// Seconds from the first command to the last.
    pub seconds: f64,
}

impl Outcome {
    /// Whether every step passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(StepResult::passed) && self.total.clean()
    }

    fn sum(&self, figure: impl Fn(&ServiceResult) -> u64) -> u64 {
        self.steps.iter().map(|step| step.sum(&figure)).sum()
    }

    /// The tables and the summary line.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = self.steps_table();
        out.push('\n');
        out.push_str(&self.reals_table());
        out.push('\n');
        out.push_str(&self.services_table());
        let _ = writeln!(
            out,
            "{}: {} resets, {} lost, {} wrong bytes; {} MB checked, {} short requests answered, {:.0} s",
            if self.passed() { "PASSED" } else { "FAILED" },
            self.sum(|s| s.reset),
            self.sum(|s| s.lost),
            self.sum(|s| s.wrong_bytes),
            self.total.sum(|book| book.bytes) / 1_000_000,
            self.total.sum(|book| book.requests.succeeded),
            self.seconds,
        );
        out
    }

    /// The steps, all services together.
    fn steps_table(&self) -> String {
        let header = ["step", "alive", "changed director", "reset", "lost", "wrong", "stall"];
        let rows = self.steps.iter().map(|step| {
            let mut row = vec![
                step.step.clone(),
                step.sum(|s| s.alive).to_string(),
                format!("{} of {}", step.sum(|s| s.changed), step.sum(|s| s.seen)),
                step.sum(|s| s.reset).to_string(),
                step.sum(|s| s.lost).to_string(),
                step.sum(|s| s.wrong_bytes).to_string(),
                seconds(step.longest_stall_ms()),
            ];
            row.extend(SWITCHES.map(|switch| convergence(step.switches.get(switch))));
            row
        });
        let header: Vec<_> = header.into_iter().chain(SWITCHES).map(str::to_owned).collect();
        render(&header, &rows.collect::<Vec<_>>())
    }

    /// Who serves: downloads at the end of each step, and connections opened in its course.
    fn reals_table(&self) -> String {
        let names = self.steps.first().into_iter().flat_map(|step| step.reals.keys());
        let mut header = vec!["held at the end + opened during the step".to_owned()];
        header.extend(names.cloned());
        let rows = self.steps.iter().map(|step| {
            let cell = |real: &RealBook| format!("{} + {}", real.held, real.opened);
            [step.step.clone()].into_iter().chain(step.reals.values().map(cell)).collect()
        });
        render(&header, &rows.collect::<Vec<_>>())
    }

    /// The services, all steps together.
    fn services_table(&self) -> String {
        let header = ["service", "alive", "requests", "changed director", "reset", "lost", "wrong", "stall"];
        let rows = self.total.services.iter().map(|book| {
            let of = |step: &StepResult| step.services.iter().find(|s| s.service == book.service).cloned();
            let steps: Vec<ServiceResult> = self.steps.iter().filter_map(of).collect();
            let sum = |figure: fn(&ServiceResult) -> u64| steps.iter().map(figure).sum::<u64>().to_string();
            vec![
                book.service.clone(),
                book.alive.to_string(),
                book.requests.succeeded.to_string(),
                sum(|s| s.changed),
                sum(|s| s.reset),
                sum(|s| s.lost),
                sum(|s| s.wrong_bytes),
                seconds(steps.iter().map(|s| s.longest_stall_ms).max().unwrap_or(0)),
            ]
        });
        render(&header.map(str::to_owned), &rows.collect::<Vec<_>>())
    }
}

/// A table with its first column to the left and the others to the right.
fn render(header: &[String], rows: &[Vec<String>]) -> String {
    let all = || std::iter::once(header).chain(rows.iter().map(Vec::as_slice));
    let width = |column: usize| all().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut out = String::new();
    for (index, row) in all().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(out, "{cell:width$}"),
                _ => write!(out, " | {cell:>width$}"),
            };
        }
        out.push('\n');
        if index == 0 {
            let length = widths.iter().sum::<usize>() + 3 * (widths.len() - 1);
            let _ = writeln!(out, "{}", "-".repeat(length));
        }
    }
    out
}

/// A switch that changed once has one figure, another one the first and the last.
fn convergence(changes: Option<&Convergence>) -> String {
    match changes {
        None => "unchanged".to_owned(),
        Some(Convergence { first_ms, last_ms }) if first_ms == last_ms => seconds(*last_ms),
        Some(Convergence { first_ms, last_ms }) => {
            let first = seconds(*first_ms);
            format!("{} to {}", first.trim_end_matches(" s"), seconds(*last_ms))
        }
    }
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:02} s", milliseconds / 1000, milliseconds % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::{Convergence, Outcome, ServiceResult, StepResult};
    use crate::load::{Book, RealBook, Sample};

    fn step(web6: ServiceResult) -> StepResult {
        let web =
            ServiceResult { alive: 1333, held: 1333, seen: 1333, changed: 667, ..ServiceResult::default() };
        StepResult {
            step: "director1 lost".to_owned(),
            services: vec![web, ServiceResult { service: "web6".to_owned(), alive: 667, ..web6 }],
            reals: [("real1".to_owned(), RealBook { held: 7, opened: 9 })].into(),
            switches: [("switch1".to_owned(), Convergence { first_ms: 160, last_ms: 2400 })].into(),
            complaint: None,
        }
    }

    fn outcome(step: StepResult) -> Outcome {
        let book = Book { service: "web6".to_owned(), ..Book::default() };
        let total = Sample { at_ms: 0, services: vec![book] };
        Outcome { steps: vec![step], total, seconds: 1.0 }
    }

    #[test]
    fn anything_a_client_of_any_service_notices_fails_the_demo() {
        let good = outcome(step(ServiceResult::default()));
        assert!(good.passed());
        for part in ["PASSED: 0 resets", "2000 |      667 of 1333", "7 + 9", "0.16 to 2.40 s", "unchanged"] {
            assert!(good.table().contains(part), "{part}:\n{}", good.table());
        }
        let none = ServiceResult::default;
        for bad in [
            step(ServiceResult { reset: 1, ..none() }),
            step(ServiceResult { lost: 1, ..none() }),
            step(ServiceResult { wrong_bytes: 1, ..none() }),
            StepResult { complaint: Some("late".to_owned()), ..step(none()) },
        ] {
            assert!(outcome(bad.clone()).table().contains("FAILED"), "{bad:?}");
            assert!(!outcome(bad).passed());
        }
        let mut between_steps = good;
        between_steps.total.services[0].failures.reset = 1;
        assert!(!between_steps.passed());
        between_steps.steps.clear();
        assert!(
            !outcome(step(none())).steps.is_empty() && !between_steps.passed(),
            "nothing done is no success"
        );
    }
}
