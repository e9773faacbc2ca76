//! The tables, as Markdown.

use std::{fmt::Write as _, process::Command, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    calculation::Calculation,
    place::Brand,
    samples::{Event, Sample, Samples},
};

/// What the calculation of the large domain is to stay below.
const CALCULATION: Duration = Duration::from_millis(20);
/// What BIRD as the switch may take longer than FRR: the tick of its calculation.
const TICK: Duration = Duration::from_secs(1);

/// Date, kernel, processors, versions, and how busy the machine is beside this.
pub(crate) fn machine(load_before: &str) -> Result<String> {
    let said = |program: &str, arguments: &[&str]| -> Result<String> {
        let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
        let both = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&both).lines().next().unwrap_or_default().trim().to_owned())
    };
    let processors = std::thread::available_parallelism()?;
    Ok(format!(
        "{}, Linux {}, {processors} processors; {}; {}; load of the machine before: {load_before}.",
        said("date", &["-u", "+%Y-%m-%d"])?,
        said("uname", &["-r"])?,
        said("/usr/lib/frr/zebra", &["--version"])?.replace("zebra version", "FRR"),
        said("bird", &["--version"])?.replace("version ", ""),
    ))
}

/// The load averages of the last minutes.
pub(crate) fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(", "))
}

/// A span as people read it.
fn span(span: Duration) -> String {
    let milliseconds = span.as_secs_f64() * 1e3;
    match milliseconds {
        below if below < 10.0 => format!("{below:.1} ms"),
        below if below < 1000.0 => format!("{below:.0} ms"),
        _ => format!("{:.2} s", span.as_secs_f64()),
    }
}

/// Of what happened in time: the median; nothing if most did not.
fn median(samples: &[Sample]) -> Option<Duration> {
    let mut all: Vec<Duration> = samples.iter().map(|sample| sample.took.unwrap_or(Duration::MAX)).collect();
    all.sort_unstable();
    all.get(all.len().saturating_sub(1) / 2).copied().filter(|median| *median != Duration::MAX)
}

/// Median and worst, and what else happened.
fn cell(event: Event, samples: &[Sample]) -> String {
    if samples.is_empty() {
        return "not measured".to_owned();
    }
    let missing = samples.iter().filter(|sample| sample.took.is_none()).count();
    let worst = samples.iter().filter_map(|sample| sample.took).max();
    let show = |moment: Option<Duration>| moment.map_or_else(|| "never".to_owned(), span);
    let mut text = format!("{} / {}", show(median(samples)), show(worst));
    let count = samples.len();
    let mut note = |note: String| write!(text, ", {note}").expect("invariant: a string takes all");
    if missing > 0 {
        note(format!("{missing} of {count} never"));
    }
    let harmed = samples.iter().filter(|sample| sample.harm > 0).count();
    match event {
        Event::Restarted | Event::RestartedLater => note(format!("lost again in {harmed} of {count}")),
        Event::PoolExternal | Event::PoolStub if harmed > 0 => {
            note(format!("others touched in {harmed} of {count}"));
        }
        _ => {}
    }
    text
}

/// What happens to routes.
pub(crate) fn events(samples: &Samples) -> String {
    let mut text = String::from(
        "| event | target | switch | this project | BIRD in our place | FRR in our place | met |\n\
         |---|---:|---|---:|---:|---:|---|\n",
    );
    for event in Event::ALL {
        for switch in Brand::SWITCHES {
            let tick = if switch == Brand::Bird { TICK } else { Duration::ZERO };
            let target = event.target().map(|target| target + tick);
            let cells = Brand::ALL.map(|place| cell(event, &samples.of((event, place, switch))));
            let ours = samples.of((event, Brand::Ours, switch));
            let harmless = ours.iter().all(|sample| sample.harm == 0);
            let met = match (target, median(&ours)) {
                (Some(target), Some(median)) if median <= target && harmless => "yes",
                (None, Some(_)) if harmless => "",
                _ => "**no**",
            };
            let target = target.map_or_else(|| "stated".to_owned(), span);
            let title = event.title();
            let cells = cells.join(" | ");
            writeln!(text, "| {title} | {target} | {switch} | {cells} | {met} |")
                .expect("invariant: a string takes all");
        }
    }
    for failure in samples.failures() {
        writeln!(text, "\nNot all was measured: {failure}").expect("invariant: a string takes all");
    }
    text
}

/// What the calculation costs.
pub(crate) fn calculation(result: &Calculation) -> String {
    let Calculation { spans, memory, routes } = result;
    let (median, worst) = (spans[(spans.len() - 1) / 2], spans[spans.len() - 1]);
    let met = if median < CALCULATION { "met" } else { "**not met**" };
    format!(
        "Calculation of 1,000 routers with 10,000 prefixes ({routes} routes): {} / {} (target: below {}, {met}); \
         the database and the routes take {:.1} MB.\n",
        span(median),
        span(worst),
        span(CALCULATION),
        *memory as f64 / 1e6
    )
}
