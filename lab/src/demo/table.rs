//! The demo's results, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

/// What one step came to.
#[derive(Debug, Clone, Serialize)]
pub struct StepResult {
    /// What was done.
    pub step: String,
    /// Downloads alive at the end of the step.
    pub alive: u64,
    /// Downloads that another director carried after the step than before.
    pub changed: u64,
    /// Downloads that were seen on directors both before and after: the base of `changed`.
    pub seen: u64,
    /// Downloads and requests that were reset during the step.
    pub reset: u64,
    /// Downloads and requests that failed in any other way.
    pub lost: u64,
    /// Wrong bytes.
    pub wrong_bytes: u64,
    /// Longest wait of a download for bytes, milliseconds.
    pub longest_stall_ms: u64,
    /// Time until both switches had their final next hops, milliseconds; none if they never changed.
    pub switches_ms: Option<u64>,
    /// What went wrong besides, if anything.
    pub complaint: Option<String>,
}

impl StepResult {
    /// Whether clients noticed nothing and the cluster did what it should.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.reset == 0 && self.lost == 0 && self.wrong_bytes == 0 && self.complaint.is_none()
    }

    /// One line, printed when the step is over.
    #[must_use]
    pub fn line(&self) -> String {
        let verdict = if self.passed() { "ok" } else { "FAILED" };
        let complaint = self.complaint.as_ref().map(|text| format!(": {text}")).unwrap_or_default();
        format!("{verdict:6} {}{complaint}", self.step)
    }
}

/// The whole demo.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Steps in order.
    pub steps: Vec<StepResult>,
    /// Short requests answered correctly.
    pub requests: u64,
    /// Content bytes received and checked.
    pub bytes: u64,
    /// Seconds from the first command to the last.
    pub seconds: f64,
}

impl Outcome {
    /// Whether every step passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(StepResult::passed)
    }

    /// The table and the summary line.
    #[must_use]
    pub fn table(&self) -> String {
        let width = self.steps.iter().map(|step| step.step.len()).max().unwrap_or(4);
        let mut out = format!(
            "{:width$} | {:>6} | {:>16} | {:>5} | {:>5} | {:>6} | {:>8} | {:>9}\n",
            "step", "alive", "changed director", "reset", "lost", "wrong", "stall", "switches"
        );
        let _ = writeln!(out, "{}", "-".repeat(out.trim_end().len()));
        for step in &self.steps {
            let switches = step.switches_ms.map_or_else(|| "unchanged".to_owned(), seconds);
            let _ = writeln!(
                out,
                "{:width$} | {:>6} | {:>16} | {:>5} | {:>5} | {:>6} | {:>8} | {switches:>9}",
                step.step,
                step.alive,
                format!("{} of {}", step.changed, step.seen),
                step.reset,
                step.lost,
                step.wrong_bytes,
                seconds(step.longest_stall_ms),
            );
        }
        let sum = |field: fn(&StepResult) -> u64| self.steps.iter().map(field).sum::<u64>();
        let _ = writeln!(
            out,
            "{}: {} resets, {} lost, {} wrong bytes; {} MB checked, {} short requests answered, {:.0} s",
            if self.passed() { "PASSED" } else { "FAILED" },
            sum(|s| s.reset),
            sum(|s| s.lost),
            sum(|s| s.wrong_bytes),
            self.bytes / 1_000_000,
            self.requests,
            self.seconds,
        );
        out
    }
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:02} s", milliseconds / 1000, milliseconds % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::{Outcome, StepResult};

    fn step() -> StepResult {
        StepResult {
            step: "director1 lost".to_owned(),
            alive: 2000,
            changed: 667,
            seen: 2000,
            reset: 0,
            lost: 0,
            wrong_bytes: 0,
            longest_stall_ms: 1234,
            switches_ms: None,
            complaint: None,
        }
    }

    #[test]
    fn anything_a_client_notices_fails_the_demo() {
        let outcome = |step| Outcome { steps: vec![step], requests: 1, bytes: 1, seconds: 1.0 };
        assert!(outcome(step()).passed());
        assert!(outcome(step()).table().contains("PASSED: 0 resets"));
        for bad in [
            StepResult { reset: 1, ..step() },
            StepResult { lost: 1, ..step() },
            StepResult { wrong_bytes: 1, ..step() },
            StepResult { complaint: Some("late".to_owned()), ..step() },
        ] {
            assert!(outcome(bad.clone()).table().contains("FAILED"), "{bad:?}");
            assert!(!outcome(bad).passed());
        }
        assert!(
            !Outcome { steps: Vec::new(), requests: 0, bytes: 0, seconds: 0.0 }.passed(),
            "nothing done is no success"
        );
    }
}
