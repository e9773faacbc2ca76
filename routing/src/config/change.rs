//! From one configuration to the next while the speaker runs: what it can follow without losing an adjacency, and what
//! it cannot.

use std::{fmt::Display, net::Ipv4Addr};

use super::{AreaKind, BfdConfig, Config, InterfaceConfig};

/// A setting that a running speaker cannot follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// A setting that all neighbours know us by, or that is taken at the start alone.
    #[error(
        "{setting} changes from {from} to {to}, and no adjacency outlives that; restart this director \
         (forwarding goes on meanwhile)"
    )]
    Fixed {
        /// The setting.
        setting: &'static str,
        /// What it was.
        from: String,
        /// What it is to be.
        to: String,
    },
    /// A setting that the neighbours on one interface know us by.
    #[error(
        "{place}{setting} changes from {from} to {to}, and no adjacency on it outlives that; leave the interface out and \
         reload, then put it back and reload: the others are not touched"
    )]
    FixedOnInterface {
        /// The interface with a colon and a blank behind it.
        place: String,
        /// The setting.
        setting: &'static str,
        /// What it was.
        from: String,
        /// What it is to be.
        to: String,
    },
    /// BFD is taken off an interface. The session would end in AdminDown, on which some neighbours (FRR 8.4) drop the
    /// adjacency, against RFC 5882 section 3.2.
    #[error(
        "interface {interface:?}: bfd is gone, and a neighbour that still watches us by BFD may drop the adjacency; \
         take BFD off at the switch first, then restart this director (forwarding goes on meanwhile)"
    )]
    BfdGone {
        /// The interface.
        interface: String,
    },
}

/// The differences found so far, one line each.
#[derive(Default)]
struct Lines {
    place: String,
    lines: Vec<String>,
}

impl Lines {
    fn at(place: String) -> Self {
        Self { place, lines: Vec::new() }
    }

    /// Notes a setting that may change.
    fn free<T: PartialEq>(&mut self, setting: &str, from: &T, to: &T, show: impl Fn(&T) -> String) {
        if from != to {
            self.lines.push(format!("{}{setting}: {} -> {}", self.place, show(from), show(to)));
        }
    }

    /// Notes a setting whose values are not to be shown, or too long for it.
    fn silent<T: PartialEq>(&mut self, setting: &str, from: &T, to: &T) {
        if from != to {
            self.lines.push(format!("{}{setting} changed", self.place));
        }
    }

    /// Refuses a setting that may not change.
    fn fixed<T: PartialEq + Display>(
        &self,
        setting: &'static str,
        from: T,
        to: T,
    ) -> Result<(), ChangeError> {
        if from == to {
            return Ok(());
        }
        let (from, to) = (from.to_string(), to.to_string());
        if self.place.is_empty() {
            return Err(ChangeError::Fixed { setting, from, to });
        }
        Err(ChangeError::FixedOnInterface { place: self.place.clone(), setting, from, to })
    }
}

impl Config {
    /// What a running speaker changes to follow `next`, one line for each setting; none if nothing does. The order of
    /// the interfaces does not count.
    ///
    /// # Errors
    /// It cannot; nothing else of `next` counts then.
    pub fn changes_to(&self, next: &Self) -> Result<Vec<String>, ChangeError> {
        // The patterns are exhaustive on purpose: a new setting must be put into one of the two groups.
        let Self { router_id, ipv4, ipv6, interfaces, import, import6, table, protocol, .. } = self;
        let Self { kernel_metric, max_paths, external, aggregates, spf, .. } = self;
        let mut all = Lines::default();
        all.fixed::<Ipv4Addr>("router_id", *router_id, next.router_id)?;
        all.fixed("ipv4", *ipv4, next.ipv4)?;
        all.fixed("ipv6", *ipv6, next.ipv6)?;
        all.fixed("table", *table, next.table)?;
        all.fixed("protocol", *protocol, next.protocol)?;
        all.fixed("kernel_metric", *kernel_metric, next.kernel_metric)?;
        all.silent("import", &(import, import6), &(&next.import, &next.import6));
        all.free("max_paths", max_paths, &next.max_paths, ToString::to_string);
        all.free("external", external, &next.external, |external| {
            let number = match external.metric_type {
                super::MetricType::One => 1,
                super::MetricType::Two => 2,
            };
            format!("type {number}, tag {}", external.tag)
        });
        all.silent("aggregate", aggregates, &next.aggregates);
        all.silent("spf", spf, &next.spf);
        for before in interfaces {
            match next.interface(&before.name) {
                Some(after) => all.lines.extend(before.changes_to(after)?),
                None => all.lines.push(format!("interface {:?} removed", before.name)),
            }
        }
        let new = next.interfaces.iter().filter(|interface| self.interface(&interface.name).is_none());
        all.lines.extend(new.map(|new| format!("interface {:?} added", new.name)));
        Ok(all.lines)
    }

    pub(crate) fn interface(&self, name: &str) -> Option<&InterfaceConfig> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }
}

impl InterfaceConfig {
    fn changes_to(&self, next: &Self) -> Result<Vec<String>, ChangeError> {
        let Self { name, network, area, area_kind, cost, hello_interval, dead_interval, .. } = self;
        let Self { retransmit_interval, priority, passive, mtu_ignore, instance, bfd, .. } = self;
        let Self { authentication, ttl_security, unnumbered, .. } = self;
        let mut lines = Lines::at(format!("interface {name:?}: "));
        lines.fixed("network", network.name(), next.network.name())?;
        lines.fixed("area", *area, next.area)?;
        // A totally stubby area is a stub area to the neighbours.
        lines.fixed("area_type", area_kind.name(), next.area_kind.name())?;
        lines.fixed("passive", *passive, next.passive)?;
        lines.fixed("instance", *instance, next.instance)?;
        lines.fixed("ttl_security", *ttl_security, next.ttl_security)?;
        lines.fixed("unnumbered", *unnumbered, next.unnumbered)?;
        lines.free("area_type", area_kind, &next.area_kind, |kind| {
            if *kind == AreaKind::TotallyStubby { "totally-stubby" } else { "stub" }.to_owned()
        });
        lines.free("cost", cost, &next.cost, ToString::to_string);
        lines.free("hello_interval", hello_interval, &next.hello_interval, ToString::to_string);
        lines.free("dead_interval", dead_interval, &next.dead_interval, ToString::to_string);
        lines.free(
            "retransmit_interval",
            retransmit_interval,
            &next.retransmit_interval,
            ToString::to_string,
        );
        lines.free("priority", priority, &next.priority, ToString::to_string);
        lines.free("mtu_ignore", mtu_ignore, &next.mtu_ignore, ToString::to_string);
        if bfd.is_some() && next.bfd.is_none() {
            return Err(ChangeError::BfdGone { interface: name.clone() });
        }
        lines.free("bfd", bfd, &next.bfd, |bfd| {
            bfd.map_or_else(
                || "none".to_owned(),
                |BfdConfig { interval, multiplier }| format!("{} ms x {multiplier}", interval.as_millis()),
            )
        });
        lines.silent("authentication", authentication, &next.authentication);
        Ok(lines.lines)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::super::{AreaKind, BfdConfig, Config, InterfaceConfig, Network};
    use crate::auth::{Authentication, Secret};

    fn config() -> Config {
        let area = |interface| InterfaceConfig {
            area: Ipv4Addr::new(0, 0, 0, 1),
            area_kind: AreaKind::Stub,
            ..interface
        };
        let interfaces = ["eth1", "eth2"].map(|name| area(InterfaceConfig::new(name, Network::Broadcast)));
        Config::new(Ipv4Addr::new(10, 255, 0, 1), interfaces.to_vec())
    }

    fn changes(change: impl FnOnce(&mut Config)) -> Result<Vec<String>, String> {
        let (old, mut new) = (config(), config());
        change(&mut new);
        old.changes_to(&new).map_err(|error| error.to_string())
    }

    #[test]
    fn what_neighbours_need_not_agree_to_changes_and_is_told() {
        type Change = fn(&mut InterfaceConfig);
        let rows: [(Change, &str); 9] = [
            (|i| i.cost = 20, "cost: 10 -> 20"),
            (|i| i.hello_interval = 1, "hello_interval: 10 -> 1"),
            (|i| i.dead_interval = 4, "dead_interval: 40 -> 4"),
            (|i| i.retransmit_interval = 5, "retransmit_interval: 2 -> 5"),
            (|i| i.priority = 7, "priority: 0 -> 7"),
            (|i| i.mtu_ignore = true, "mtu_ignore: false -> true"),
            (|i| i.bfd = Some(BfdConfig::default()), "bfd: none -> 300 ms x 3"),
            (|i| i.area_kind = AreaKind::TotallyStubby, "area_type: stub -> totally-stubby"),
            (|i| i.authentication = Authentication::Simple(Secret::new("x")), "authentication changed"),
        ];
        for (change, line) in rows {
            assert_eq!(
                changes(|c| change(&mut c.interfaces[0])),
                Ok(vec![format!("interface \"eth1\": {line}")])
            );
        }
        assert_eq!(changes(|c| c.max_paths = 4), Ok(vec!["max_paths: 16 -> 4".to_owned()]));
        assert_eq!(
            changes(|c| c.external.tag = 7),
            Ok(vec!["external: type 2, tag 0 -> type 2, tag 7".to_owned()])
        );
        assert_eq!(changes(|c| c.import.clear()), Ok(vec!["import changed".to_owned()]));
        assert_eq!(changes(|c| c.interfaces.reverse()), Ok(vec![]), "the order does not count");
    }

    #[test]
    fn bfd_comes_and_changes_but_does_not_go() {
        let slow = BfdConfig { interval: Duration::from_secs(1), ..BfdConfig::default() };
        let change = |from, to| {
            let (mut old, mut new) = (config(), config());
            (old.interfaces[1].bfd, new.interfaces[1].bfd) = (from, to);
            old.changes_to(&new).map_err(|error| error.to_string())
        };
        let usual = Some(BfdConfig::default());
        for (from, to, line) in
            [(None, usual, "bfd: none -> 300 ms x 3"), (usual, Some(slow), "bfd: 300 ms x 3 -> 1000 ms x 3")]
        {
            assert_eq!(change(from, to), Ok(vec![format!("interface \"eth2\": {line}")]));
        }
        let refused = change(usual, None).expect_err("the neighbour may drop the adjacency");
        assert!(refused.starts_with("interface \"eth2\": bfd is gone"), "{refused}");
        assert!(
            refused.contains("take BFD off at the switch first, then restart this director"),
            "{refused}"
        );
        assert_eq!(change(None, None), Ok(vec![]));
    }

    #[test]
    fn interfaces_come_and_go() {
        assert_eq!(changes(|c| drop(c.interfaces.pop())), Ok(vec!["interface \"eth2\" removed".to_owned()]));
        let new = InterfaceConfig::new("eth3", Network::PointToPoint);
        assert_eq!(changes(|c| c.interfaces.push(new)), Ok(vec!["interface \"eth3\" added".to_owned()]));
    }

    #[test]
    fn what_cannot_change_is_refused_by_name_with_the_remedy() {
        type Change = fn(&mut Config);
        let rows: [(Change, &str); 8] = [
            (|c| c.router_id = Ipv4Addr::LOCALHOST, "router_id changes from 10.255.0.1 to 127.0.0.1"),
            (|c| c.ipv6 = true, "ipv6 changes from false to true"),
            (|c| c.table = 7, "table changes from 254 to 7"),
            (|c| c.interfaces[0].area = Ipv4Addr::UNSPECIFIED, "interface \"eth1\": area changes"),
            (
                |c| c.interfaces[1].area_kind = AreaKind::Nssa,
                "interface \"eth2\": area_type changes from stub to NSSA",
            ),
            (
                |c| c.interfaces[0].network = Network::PointToPoint,
                "network changes from broadcast to point-to-point",
            ),
            (|c| c.interfaces[0].ttl_security = true, "ttl_security changes"),
            (|c| c.interfaces[0].unnumbered = true, "interface \"eth1\": unnumbered changes"),
        ];
        for (change, said) in rows {
            let refused = changes(change).expect_err(said);
            let remedy = if said.contains("eth") || said.contains("ttl") || said.contains("network") {
                "leave the interface out and reload"
            } else {
                "restart this director"
            };
            assert!(refused.contains(said) && refused.contains(remedy), "{refused}");
        }
    }
}
