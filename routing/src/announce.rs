//! What is announced: with which metric and in which kind of LSA, and which prefixes stand for many.

use std::collections::{BTreeMap, btree_map::Entry};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{ExternalConfig, Metric};

/// The kind of LSA that carries an announced prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnnounceAs {
    /// A stub link of the Router-LSA (RFC 2328 section 12.4.1); in OSPFv3 an Intra-Area-Prefix-LSA. Known in
    /// every area, stub areas included.
    #[default]
    Stub,
    /// An AS-external-LSA of its own (RFC 2328 section 12.4.4), in an NSSA an NSSA-LSA (RFC 3101). Its changes
    /// have a pace of their own and cost the switches no calculation of the tree. Stub areas do not hear it.
    External,
}

/// How one prefix is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Announcement {
    /// Metric of the stub link or of the external route.
    pub metric: Metric,
    /// Kind of LSA.
    #[serde(rename = "as")]
    pub kind: AnnounceAs,
    /// Metric type and tag as an external route, where they are not those of all ([`crate::Config::external`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalConfig>,
}

impl Announcement {
    /// A stub link.
    #[must_use]
    pub const fn stub(metric: Metric) -> Self {
        Self { metric, kind: AnnounceAs::Stub, external: None }
    }

    /// An external route.
    #[must_use]
    pub const fn external(metric: Metric) -> Self {
        Self { metric, kind: AnnounceAs::External, external: None }
    }
}

impl From<Metric> for Announcement {
    fn from(metric: Metric) -> Self {
        Self::stub(metric)
    }
}

/// The prefixes to tell others: one for all that lie in an aggregate, the rest as they are. An aggregate has the
/// lowest metric of those it stands for, and is a stub link if one of them is; metric type and tag are theirs where all agree,
/// or else those of the configuration.
pub(crate) fn aggregated(
    prefixes: BTreeMap<IpNet, Announcement>,
    aggregates: &[IpNet],
) -> BTreeMap<IpNet, Announcement> {
    let mut all = BTreeMap::new();
    for (prefix, announcement) in prefixes {
        let prefix = prefix.trunc();
        // The shortest of nested aggregates: it says all that a longer one would.
        let within = aggregates.iter().filter(|aggregate| aggregate.contains(&prefix));
        let told = within.min_by_key(|aggregate| aggregate.prefix_len()).map_or(prefix, IpNet::trunc);
        match all.entry(told) {
            Entry::Vacant(place) => drop(place.insert(announcement)),
            Entry::Occupied(mut place) => {
                let present: &mut Announcement = place.get_mut();
                present.metric = present.metric.min(announcement.metric);
                present.kind = present.kind.min(announcement.kind);
                present.external = present.external.filter(|ours| announcement.external == Some(*ours));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn all(rows: &[(&str, Announcement)]) -> BTreeMap<IpNet, Announcement> {
        rows.iter().map(|(prefix, announcement)| (net(prefix), *announcement)).collect()
    }

    #[test]
    fn aggregate_stands_for_those_inside_it_and_for_no_others() {
        let pool = [net("203.0.113.0/24"), net("203.0.113.0/25")];
        let told = aggregated(
            all(&[
                ("203.0.113.10/32", Announcement::external(30)),
                ("203.0.113.11/32", Announcement::external(20)),
                ("192.0.2.1/32", Announcement::stub(5)),
                ("2001:db8::1/128", Announcement::stub(6)),
            ]),
            &pool,
        );
        let expected = all(&[
            ("203.0.113.0/24", Announcement::external(20)),
            ("192.0.2.1/32", Announcement::stub(5)),
            ("2001:db8::1/128", Announcement::stub(6)),
        ]);
        assert_eq!(told, expected);
        assert!(aggregated(BTreeMap::new(), &pool).is_empty(), "nothing inside, nothing told");
    }

    #[test]
    fn aggregate_has_the_type_and_tag_that_all_inside_it_have() {
        let with = |tag| {
            let external = Some(ExternalConfig { tag, ..ExternalConfig::default() });
            Announcement { external, ..Announcement::external(1) }
        };
        let pool = [net("203.0.113.0/24")];
        for (one, other, told) in [
            (with(7), with(7), with(7)),
            (with(7), with(8), Announcement::external(1)),
            (with(7), Announcement::external(1), Announcement::external(1)),
            (Announcement::external(1), with(7), Announcement::external(1)),
        ] {
            let inside = all(&[("203.0.113.1/32", one), ("203.0.113.2/32", other)]);
            assert_eq!(aggregated(inside, &pool), all(&[("203.0.113.0/24", told)]));
        }
    }

    #[test]
    fn aggregate_of_a_stub_link_and_an_external_is_a_stub_link() {
        let inside =
            all(&[("203.0.113.1/32", Announcement::external(1)), ("203.0.113.2/32", Announcement::stub(9))]);
        let told = aggregated(inside, &[net("203.0.113.0/24")]);
        assert_eq!(told, all(&[("203.0.113.0/24", Announcement::stub(1))]));
    }
}
