//! The largest TCP segment that the VIPs ask clients for.
//!
//! What a client sends comes through a tunnel, whose headers must fit beside it. So whatever a VIP sends is routed by
//! a table of our own: the main table's routes, each with an `advmss` that leaves the room. It follows the main table;
//! where it has no answer the rules go on to that.

use std::net::IpAddr;

use futures::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use super::AgentError;
use super::change::host_bits;

/// Number of our table, and priority of the rules that lead to it.
pub(super) const TABLE: u32 = 7_410;
/// `rtm_protocol` of its routes: how other programs know that they are not theirs.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(202);
const NO_RULES: &str = "change the rules of routing (the kernel needs IP_MULTIPLE_TABLES)";

/// Both families, in the order of `Options::families`.
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// The table of our own.
#[derive(Debug, Default)]
pub(super) struct SegmentTable {
    /// What is in it; nothing is known before the first pass.
    written: Option<Vec<RouteMessage>>,
}

impl SegmentTable {
    /// Makes the table follow the main one, with these largest segments in bytes for the families that have any.
    pub(super) async fn refresh(
        &mut self,
        handle: &Handle,
        segments: [Option<u32>; 2],
    ) -> Result<(), AgentError> {
        let mut wanted = Vec::new();
        for (family, segment) in FAMILIES.into_iter().zip(segments) {
            let Some(segment) = segment else { continue };
            let main = routes(handle, family, u32::from(RouteHeader::RT_TABLE_MAIN)).await?;
            wanted.extend(main.iter().filter_map(|route| ours(route, segment)));
        }
        if self.written.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let mut present = Vec::new();
        for family in FAMILIES {
            present.extend(routes(handle, family, TABLE).await?);
        }
        for route in &wanted {
            // A route whose gateway has just gone is not taken; the main table will not have it for long either.
            if let Err(error) = handle.route().add(route.clone()).replace().execute().await {
                tracing::debug!(%error, ?route, "a route of the main table is not taken over");
            }
        }
        for stale in present.into_iter().filter(|route| !wanted.iter().any(|kept| key(kept) == key(route))) {
            remove(handle, stale).await?;
        }
        self.written = Some(wanted);
        Ok(())
    }
}

/// Empties the table; `false` if it is empty already.
pub(super) async fn flush(handle: &Handle) -> Result<bool, AgentError> {
    let mut any = false;
    for family in FAMILIES {
        for route in routes(handle, family, TABLE).await? {
            remove(handle, route).await?;
            any = true;
        }
    }
    Ok(any)
}

/// Whether the rule for a VIP is there.
pub(super) async fn has_rule(handle: &Handle, vip: IpAddr) -> Result<bool, AgentError> {
    Ok(rule(handle, vip).await?.is_some())
}

/// Adds the rule for a VIP.
pub(super) async fn add_rule(handle: &Handle, vip: IpAddr) -> Result<(), AgentError> {
    let rule = handle.rule().add().table_id(TABLE).priority(TABLE).action(RuleAction::ToTable);
    let added = match vip {
        IpAddr::V4(vip) => rule.v4().source_prefix(vip, host_bits(vip.into())).execute().await,
        IpAddr::V6(vip) => rule.v6().source_prefix(vip, host_bits(vip.into())).execute().await,
    };
    added.map_err(AgentError::netlink(NO_RULES))
}

/// Removes the rule for a VIP; `false` if it is gone already.
pub(super) async fn remove_rule(handle: &Handle, vip: IpAddr) -> Result<bool, AgentError> {
    let Some(rule) = rule(handle, vip).await? else { return Ok(false) };
    handle.rule().del(rule).execute().await.map_err(AgentError::netlink(NO_RULES))?;
    Ok(true)
}

async fn rule(handle: &Handle, vip: IpAddr) -> Result<Option<RuleMessage>, AgentError> {
    let version = if vip.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
    let rules: Vec<RuleMessage> =
        handle.rule().get(version).execute().try_collect().await.map_err(AgentError::netlink(NO_RULES))?;
    let wanted = [RuleAttribute::Source(vip), RuleAttribute::Priority(TABLE), RuleAttribute::Table(TABLE)];
    Ok(rules.into_iter().find(|rule| wanted.iter().all(|wanted| rule.attributes.contains(wanted))))
}

async fn routes(handle: &Handle, family: AddressFamily, table: u32) -> Result<Vec<RouteMessage>, AgentError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let mut all: Vec<RouteMessage> = handle
        .route()
        .get(request)
        .execute()
        .try_collect()
        .await
        .map_err(AgentError::netlink("list routes"))?;
    all.retain(|route| table_of(route) == table && !route.header.flags.contains(RouteFlags::Cloned));
    Ok(all)
}

fn table_of(route: &RouteMessage) -> u32 {
    let named = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    named.unwrap_or_else(|| u32::from(route.header.table))
}

async fn remove(handle: &Handle, route: RouteMessage) -> Result<(), AgentError> {
    /// `ESRCH`: it went with its interface.
    const GONE: i32 = -libc::ESRCH;
    match handle.route().del(route).execute().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == GONE => Ok(()),
        other => other.map_err(AgentError::netlink(format!("empty routing table {TABLE}"))),
    }
}

/// What makes a route another one: destination, type of service and metric.
fn key(route: &RouteMessage) -> (AddressFamily, u8, u8, Option<&RouteAddress>, u32) {
    let header = &route.header;
    let (mut destination, mut metric) = (None, 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = Some(address),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    (header.address_family, header.destination_prefix_length, header.tos, destination, metric)
}

/// The route of the main table as our table has it; none for what no client is reached by.
fn ours(route: &RouteMessage, segment: u32) -> Option<RouteMessage> {
    let kinds = [RouteType::Unicast, RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit];
    let link_local = route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => address.is_unicast_link_local(),
        _ => false,
    });
    if !kinds.contains(&route.header.kind) || link_local {
        return None;
    }
    let mut header = route.header.clone();
    header.table = RouteHeader::RT_TABLE_UNSPEC;
    header.protocol = PROTOCOL;
    header.flags &= RouteFlags::Onlink;
    let by_id = route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::NhId(_)));
    let mut metrics = Vec::new();
    let mut segment = segment;
    let mut attributes = vec![RouteAttribute::Table(TABLE)];
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Metrics(all) => {
                for metric in all {
                    match metric {
                        RouteMetric::Advmss(asked) => segment = segment.min(*asked),
                        other => metrics.push(other.clone()),
                    }
                }
            }
            RouteAttribute::Table(_) | RouteAttribute::CacheInfo(_) | RouteAttribute::Expires(_) => {}
            // Said by the next hop's number, and not to be said twice.
            RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::Oif(_)
            | RouteAttribute::MultiPath(_)
                if by_id => {}
            other => attributes.push(other.clone()),
        }
    }
    if header.kind == RouteType::Unicast {
        metrics.push(RouteMetric::Advmss(segment));
    }
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    let mut message = RouteMessage::default();
    message.header = header;
    message.attributes = attributes;
    Some(message)
}
