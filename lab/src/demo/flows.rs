//! Which director carries which flow, by the directors' own counters: a flow belongs to those whose packet count for it
//! grew during an interval.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::deploy::Lab;

/// Packets per flow, by the client's address.
type Counts = BTreeMap<SocketAddr, u64>;

/// For each flow the directors that carried it, by their place in the list of directors.
pub(super) type Carriers = BTreeMap<SocketAddr, BTreeSet<usize>>;

#[derive(serde::Deserialize)]
struct Flow {
    source: SocketAddr,
    packets: u64,
}

/// What `director connections --json` says on one node.
fn counts(lab: &Lab, director: &str) -> Result<Counts> {
    let output = lab.exec(director, &["director", "connections", "--json"])?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{director}: director connections --json failed ({}): {}", output.status, said.trim());
    }
    parse(&output.stdout).with_context(|| format!("{director}: what director connections --json printed"))
}

fn parse(text: &[u8]) -> Result<Counts> {
    let flows: Vec<Flow> = serde_json::from_slice(text)?;
    let mut counts = Counts::new();
    for flow in flows {
        *counts.entry(flow.source).or_default() += flow.packets;
    }
    Ok(counts)
}

/// Watches the directors that are alive for `interval` and tells which flow each carried.
pub(super) fn carriers(lab: &Lab, directors: &[(usize, &str)], interval: Duration) -> Result<Carriers> {
    let snapshot = || directors.iter().map(|(_, name)| counts(lab, name)).collect::<Result<Vec<_>>>();
    let before = snapshot()?;
    std::thread::sleep(interval);
    let after = snapshot()?;
    let mut carriers = Carriers::new();
    for ((index, _), (before, after)) in directors.iter().zip(before.iter().zip(&after)) {
        for source in grown(before, after) {
            carriers.entry(source).or_default().insert(*index);
        }
    }
    Ok(carriers)
}

/// Flows whose count grew. A count below the one before has begun anew; what it has now is growth.
fn grown(before: &Counts, after: &Counts) -> Vec<SocketAddr> {
    let grew = |(source, count): (&SocketAddr, &u64)| {
        let known = before.get(source).copied().unwrap_or(0);
        (*count != known && *count > 0).then_some(*source)
    };
    after.iter().filter_map(grew).collect()
}

/// Of the given flows: how many were seen both times, and how many of these by other directors than before.
pub(super) fn compare(sources: &[SocketAddr], before: &Carriers, after: &Carriers) -> (u64, u64) {
    let both = sources.iter().filter_map(|source| before.get(source).zip(after.get(source)));
    both.fold((0, 0), |(seen, changed), (before, after)| (seen + 1, changed + u64::from(before != after)))
}

#[cfg(test)]
mod tests {
    use super::{Carriers, compare, grown, parse};

    #[test]
    fn only_growth_makes_a_carrier() {
        let text = br#"[{"protocol":"tcp","source":"1.2.3.4:5","destination":"9.9.9.9:80","packets":7,"bytes":1},
                        {"protocol":"tcp","source":"1.2.3.4:6","destination":"9.9.9.9:80","packets":3,"bytes":1}]"#;
        let before = parse(text).unwrap();
        let mut after = before.clone();
        assert!(grown(&before, &after).is_empty());
        let [still, moving] = ["1.2.3.4:5", "1.2.3.4:6"].map(|s| s.parse().unwrap());
        after.insert(moving, 4);
        assert_eq!(grown(&before, &after), [moving]);
        let seen = Carriers::from([(still, [0].into()), (moving, [1].into())]);
        let later = Carriers::from([(still, [0].into()), (moving, [2].into())]);
        assert_eq!(compare(&[still, moving], &seen, &later), (2, 1));
        assert_eq!(compare(&[still, moving], &seen, &Carriers::new()), (0, 0));
    }
}
