//! Which director carries which flow, by the directors' own counters: a flow belongs to those whose packet count for it
//! grew during an interval.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

use crate::deploy::Lab;

/// A flow: the client's address and the service's.
pub(super) type Flow = (SocketAddr, SocketAddr);

/// Packets per flow.
type Counts = BTreeMap<Flow, u64>;

/// For each flow the directors that carried it, by their place in the list of directors.
pub(super) type Carriers = BTreeMap<Flow, BTreeSet<usize>>;

#[derive(serde::Deserialize)]
struct Row {
    source: SocketAddr,
    destination: SocketAddr,
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
    let rows: Vec<Row> = serde_json::from_slice(text)?;
    let mut counts = Counts::new();
    for row in rows {
        *counts.entry((row.source, row.destination)).or_default() += row.packets;
    }
    Ok(counts)
}

/// The counters as last seen on each director, kept while one is away.
#[derive(Debug)]
pub(super) struct Ledger {
    known: Vec<Counts>,
}

impl Ledger {
    /// A ledger of `directors` nodes that knows nothing yet.
    pub(super) fn new(directors: usize) -> Self {
        Self { known: vec![Counts::new(); directors] }
    }

    /// Which flows each of these directors carried since it was last asked.
    pub(super) fn carriers(&mut self, lab: &Lab, directors: &[(usize, &str)]) -> Result<Carriers> {
        let mut carriers = Carriers::new();
        for (index, name) in directors {
            let now = counts(lab, name)?;
            for flow in grown(&self.known[*index], &now) {
                carriers.entry(flow).or_default().insert(*index);
            }
            self.known[*index] = now;
        }
        Ok(carriers)
    }
}

/// Flows whose count grew. A count below the one before has begun anew; what it has now is growth.
fn grown(before: &Counts, after: &Counts) -> Vec<Flow> {
    let grew = |(flow, count): (&Flow, &u64)| {
        let known = before.get(flow).copied().unwrap_or(0);
        (*count != known && *count > 0).then_some(*flow)
    };
    after.iter().filter_map(grew).collect()
}

/// Of the given flows: how many were carried both before and at the end of a step, and how many of these by a director
/// during the step, if only for a packet, that had not carried them before.
pub(super) fn compare<'a>(
    flows: impl IntoIterator<Item = &'a Flow>,
    before: &Carriers,
    during: &Carriers,
    end: &Carriers,
) -> (u64, u64) {
    let none = BTreeSet::new();
    let mut result = (0, 0);
    for flow in flows {
        let (Some(before), Some(end)) = (before.get(flow), end.get(flow)) else { continue };
        let during = during.get(flow).unwrap_or(&none);
        result.0 += 1;
        result.1 += u64::from(during.union(end).any(|director| !before.contains(director)));
    }
    result
}

#[cfg(test)]
mod tests {
    use super::{Carriers, compare, grown, parse};

    #[test]
    fn only_growth_makes_a_carrier() {
        let text = br#"[{"protocol":"tcp","source":"1.2.3.4:5","destination":"9.9.9.9:80","packets":7,"bytes":1},
                        {"protocol":"tcp","source":"1.2.3.4:5","destination":"[2001:db8::1]:80","packets":3,"bytes":1}]"#;
        let before = parse(text).unwrap();
        let mut after = before.clone();
        assert!(grown(&before, &after).is_empty());
        // One client port on two services is two flows.
        let [still, moving] =
            ["9.9.9.9:80", "[2001:db8::1]:80"].map(|to| ("1.2.3.4:5".parse().unwrap(), to.parse().unwrap()));
        after.insert(moving, 4);
        assert_eq!(grown(&before, &after), [moving]);
        let seen = Carriers::from([(still, [0].into()), (moving, [1].into())]);
        let moved = Carriers::from([(still, [0].into()), (moving, [2].into())]);
        let both = [still, moving];
        assert_eq!(compare(&both, &seen, &seen, &seen), (2, 0));
        assert_eq!(compare(&both, &seen, &seen, &moved), (2, 1));
        assert_eq!(compare(&both, &seen, &moved, &seen), (2, 1), "there and back is a change");
        assert_eq!(compare(&both, &seen, &seen, &Carriers::new()), (0, 0));
    }
}
