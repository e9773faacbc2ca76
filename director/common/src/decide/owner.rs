//! Which service a destination belongs to: the most specific one.
//!
//! An exact address and port before everything, by one look-up in a hash; then the longest prefix of the address
//! that has a service for the port, and within it the narrowest range. See [`crate::tables::RangeKey`].

use crate::tables::{Address, Config, FlowKey, RangeKey, ServiceEntry, ServiceKey, Tables};
use crate::verdict::{PassReason, Verdict};

/// The service that has the flow's destination.
#[inline(always)]
pub(crate) fn find_owner<'a>(
    flow: &FlowKey,
    config: &Config,
    tables: &'a impl Tables,
) -> Option<&'a ServiceEntry> {
    let key = ServiceKey::service(flow.destination, flow.protocol, flow.destination_port);
    if let Some(found) = tables.service(&key) {
        return Some(found);
    }
    // All ports of one address. Where it has ranges too, these come first and all of them are in its class.
    if config.has(Config::FLAG_ANY_PORT)
        && let Some(found) = tables.service(&ServiceKey { port: 0, ..key })
    {
        return Some(found);
    }
    let class = class_of(&flow.destination, config, tables)?;
    tables.range(&RangeKey::port(*class, flow.protocol, flow.destination_port))
}

/// The service of the flow's address and protocol that takes fragments without ports: there is one where it has
/// them to itself.
#[inline(always)]
pub(super) fn find_fragment_owner<'a>(
    flow: &FlowKey,
    config: &Config,
    tables: &'a impl Tables,
) -> Option<&'a ServiceEntry> {
    if let Some(found) = tables.service(&ServiceKey::fragment(flow.destination, flow.protocol)) {
        return Some(found);
    }
    let class = class_of(&flow.destination, config, tables)?;
    // An address with services of its own shares it with those of its prefixes.
    if tables.service(&ServiceKey::vip(flow.destination)).is_some() {
        return None;
    }
    tables.range(&RangeKey::fragment(*class, flow.protocol))
}

/// The marker of `address`, if it is a VIP: by itself or by a prefix.
#[inline(always)]
pub(super) fn find_vip<'a>(
    address: &Address,
    config: &Config,
    tables: &'a impl Tables,
) -> Option<&'a ServiceEntry> {
    if let Some(found) = tables.service(&ServiceKey::vip(*address)) {
        return Some(found);
    }
    let class = class_of(address, config, tables)?;
    tables.range(&RangeKey::vip(*class))
}

/// `verdict` if `address` is a VIP, else the packet is none of ours.
#[inline(always)]
pub(super) fn unless_vip(
    address: &Address,
    config: &Config,
    tables: &impl Tables,
    verdict: Verdict,
) -> Verdict {
    match find_vip(address, config, tables) {
        Some(_) => verdict,
        None => Verdict::Pass(PassReason::NoService),
    }
}

#[inline(always)]
fn class_of<'a>(address: &Address, config: &Config, tables: &'a impl Tables) -> Option<&'a u32> {
    if config.has(Config::FLAG_CLASSES) { tables.class(address) } else { None }
}
