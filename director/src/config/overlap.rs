//! Whether every packet has one service at most: of two addresses that both match, one must be more specific.

use std::cmp::Reverse;
use std::ops::Range;

use super::{ConfigError, Ports, Source, VirtualAddress};

/// One address of a service, and where it is written.
pub(super) struct Claim {
    pub(super) address: VirtualAddress,
    pub(super) service: String,
    pub(super) place: Range<usize>,
}

/// Refuses addresses that are claimed twice, and ranges of ports that cross. A range within another, one port
/// within a range and a prefix within another are no conflict: the more specific one has the packet.
pub(super) fn check(source: &Source<'_>, mut claims: Vec<Claim>) -> Result<(), ConfigError> {
    let rank = |claim: &Claim| {
        let VirtualAddress { prefix, protocol, ports: Ports { first, last } } = claim.address;
        (prefix, protocol, first, Reverse(last), claim.place.start)
    };
    claims.sort_by_key(rank);
    // Ranges that hold the one before them and may still hold the next.
    let mut around: Vec<&Claim> = Vec::new();
    for claim in &claims {
        let VirtualAddress { prefix, protocol, ports } = claim.address;
        let disjoint = |outer: &Claim| {
            (outer.address.prefix, outer.address.protocol) != (prefix, protocol)
                || outer.address.ports.last < ports.first
        };
        while around.pop_if(|outer| disjoint(outer)).is_some() {}
        if let Some(outer) = around.last()
            && (outer.address.ports == ports || outer.address.ports.last < ports.last)
        {
            return Err(conflict(source, outer, claim));
        }
        around.push(claim);
    }
    Ok(())
}

fn conflict(source: &Source<'_>, one: &Claim, other: &Claim) -> ConfigError {
    let (first, second) = if one.place.start <= other.place.start { (one, other) } else { (other, one) };
    let message = match (first.service == second.service, first.address.ports == second.address.ports) {
        (true, true) => format!("service {:?} lists {} twice", first.service, first.address),
        (false, true) => format!(
            "services {:?} and {:?} have the same address: {}; change one of them",
            first.service, second.service, first.address
        ),
        (_, false) => format!(
            "{} of service {:?} and {} of service {:?} overlap, and neither is within the other; change one of them",
            first.address, first.service, second.address, second.service
        ),
    };
    source.error(Some(second.place.clone()), message)
}
