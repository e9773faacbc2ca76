//! Learned routes in the kernel, under our own protocol number. Each pass compares what is wanted with a
//! dump of what is there: routes of an earlier run are adopted, what somebody removed comes back, and a
//! route of another protocol is never touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags,
        RouteProtocol, RouteType,
    },
};
use rtnetlink::{Handle, RouteMessageBuilder, RouteNextHopBuilder};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};

/// Time between two looks at the kernel's table when nothing changes.
const VERIFY: Duration = Duration::from_secs(10);

/// A next hop as the kernel knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hop {
    /// Index of the device.
    pub(super) index: u32,
    /// Address of the neighbour.
    pub(super) gateway: IpAddr,
    /// The kernel need not find the address on the link by a route: that is how an unnumbered link is.
    pub(super) onlink: bool,
}

/// Next hops of one route.
pub(super) type Hops = BTreeSet<Hop>;

/// What should be in the kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) routes: BTreeMap<IpNet, Hops>,
    /// Whether routes of an earlier run that are not wanted go away. Before the databases are complete
    /// nobody can tell; those of this run go as soon as they are not wanted any more.
    pub(super) complete: bool,
}

/// What became of the wishes.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    /// What the kernel has.
    pub(super) installed: BTreeSet<IpNet>,
    /// What it does not have, and why.
    pub(super) refused: BTreeMap<IpNet, String>,
}

/// Where our routes live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) family: AddressFamily,
    pub(super) table: u32,
    pub(super) protocol: u8,
    pub(super) metric: u32,
}

/// What earlier comparisons leave for later ones.
#[derive(Debug, Default)]
struct Memory {
    /// What was complained about, and how.
    refused: BTreeMap<IpNet, String>,
    /// What is in the kernel as wanted.
    installed: BTreeSet<IpNet>,
    /// What this run wanted, and so may remove before [`Wanted::complete`].
    own: BTreeSet<IpNet>,
}

/// Keeps the kernel in line with `wanted` until told to end, by `Some` of whether to remove all routes.
pub(super) async fn run(
    place: Place,
    handle: Handle,
    mut wanted: watch::Receiver<Wanted>,
    report: watch::Sender<Report>,
    mut end: oneshot::Receiver<bool>,
) {
    let mut memory = Memory::default();
    loop {
        let target = wanted.borrow_and_update().clone();
        if let Err(error) = reconcile(place, &handle, &target, &mut memory).await {
            tracing::warn!(%error, "cannot list kernel routes; trying again");
        }
        let Memory { installed, refused, .. } = &memory;
        report.send_replace(Report { installed: installed.clone(), refused: refused.clone() });
        let verify = Instant::now() + VERIFY;
        tokio::select! {
            biased;
            remove = &mut end => {
                if remove.unwrap_or(false) {
                    let nothing = Wanted { complete: true, ..Wanted::default() };
                    if let Err(error) = reconcile(place, &handle, &nothing, &mut memory).await {
                        tracing::error!(%error, "learned routes stay in the kernel");
                    }
                }
                return;
            }
            changed = timeout_at(verify, wanted.changed()) => {
                if matches!(changed, Ok(Err(_))) {
                    // The driver is gone without a word; leave the routes to its successor.
                    return;
                }
            }
        }
    }
}

/// One comparison of wish and reality.
async fn reconcile(
    place: Place,
    handle: &Handle,
    wanted: &Wanted,
    memory: &mut Memory,
) -> Result<(), rtnetlink::Error> {
    let Memory { refused, installed, own } = memory;
    own.extend(wanted.routes.keys());
    let (ours, foreign) = dump(place, handle).await?;
    refused.retain(|prefix, _| wanted.routes.contains_key(prefix));
    installed.clear();
    for (prefix, hops) in &wanted.routes {
        let done = match ours.get(prefix) {
            _ if foreign.contains(prefix) => {
                Err(format!("another protocol has this route with metric {}", place.metric))
            }
            Some(there) if there == hops => Ok(()),
            _ => install(place, handle, *prefix, hops).await,
        };
        match done {
            Ok(()) => {
                refused.remove(prefix);
                installed.insert(*prefix);
            }
            Err(reason) => {
                if refused.get(prefix) != Some(&reason) {
                    tracing::warn!(%prefix, reason, "route not installed");
                }
                refused.insert(*prefix, reason);
            }
        }
    }
    for (prefix, hops) in ours.iter().filter(|(prefix, _)| !wanted.routes.contains_key(prefix)) {
        if !(wanted.complete || own.contains(prefix)) {
            continue;
        }
        let Some(route) = message(place, *prefix, hops) else { continue };
        if let Err(error) = handle.route().del(route).execute().await {
            tracing::debug!(%prefix, %error, "route was gone already");
        }
    }
    if wanted.complete {
        own.clear(); // nothing is spared any more
    }
    Ok(())
}

/// Puts a route into the kernel; an error says why that cannot be done.
async fn install(place: Place, handle: &Handle, prefix: IpNet, hops: &Hops) -> Result<(), String> {
    let route = message(place, prefix, hops).ok_or("prefix and next hops are of different families")?;
    let refusal = |error| format!("the kernel refuses it: {error}");
    handle.route().add(route).replace().execute().await.map_err(refusal)
}

/// Our routes, and the prefixes that others hold with our metric.
async fn dump(
    place: Place,
    handle: &Handle,
) -> Result<(BTreeMap<IpNet, Hops>, BTreeSet<IpNet>), rtnetlink::Error> {
    let filter = match place.family {
        AddressFamily::Inet6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        _ => RouteMessageBuilder::<Ipv4Addr>::new().build(),
    };
    let mut routes = Box::pin(handle.route().get(filter).execute());
    let (mut ours, mut foreign) = (BTreeMap::new(), BTreeSet::new());
    while let Some(route) = routes.try_next().await? {
        if table(&route) != place.table || route.header.kind != RouteType::Unicast {
            continue;
        }
        let Some(prefix) = prefix(&route) else { continue };
        if route.header.protocol == RouteProtocol::Other(place.protocol) {
            if metric(&route) == place.metric {
                ours.insert(prefix, hops(&route));
            }
        } else if metric(&route) == place.metric {
            foreign.insert(prefix);
        }
    }
    Ok((ours, foreign))
}

/// The route as the kernel takes it; none if the families of prefix and next hops differ.
fn message(place: Place, prefix: IpNet, hops: &Hops) -> Option<RouteMessage> {
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.network(), prefix.prefix_len())
        .ok()?
        .table_id(place.table)
        .protocol(RouteProtocol::Other(place.protocol))
        .priority(place.metric);
    let mut single = hops.iter();
    match (single.next(), single.next()) {
        (Some(Hop { index, gateway, onlink }), None) => {
            let route = route.output_interface(*index).gateway(*gateway).ok()?;
            Some(if *onlink { route.onlink() } else { route }.build())
        }
        _ => Some(route.multipath(hops.iter().map(next_hop).collect::<Option<_>>()?).build()),
    }
}

fn next_hop(Hop { index, gateway, onlink }: &Hop) -> Option<RouteNextHop> {
    let hop = match gateway {
        IpAddr::V4(_) => RouteNextHopBuilder::new_ipv4(),
        IpAddr::V6(_) => RouteNextHopBuilder::new_ipv6(),
    };
    let hop = hop.interface(*index).via(*gateway).ok()?;
    Some(if *onlink { hop.onlink() } else { hop }.build())
}

fn table(route: &RouteMessage) -> u32 {
    let long = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    long.unwrap_or(u32::from(route.header.table))
}

fn metric(route: &RouteMessage) -> u32 {
    let metric = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    metric.unwrap_or(0)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn prefix(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let default = match route.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    IpNet::new(address.unwrap_or(default), route.header.destination_prefix_length).ok()
}

fn hops(route: &RouteMessage) -> Hops {
    let gateway = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            _ => None,
        })
    };
    let mut hops = Hops::new();
    let device = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let onlink = route.header.flags.contains(RouteFlags::Onlink);
    let single = device.zip(gateway(&route.attributes));
    hops.extend(single.map(|(index, gateway)| Hop { index, gateway, onlink }));
    for attribute in &route.attributes {
        if let RouteAttribute::MultiPath(paths) = attribute {
            let hop = |path: &RouteNextHop| {
                let onlink = path.flags.contains(RouteNextHopFlags::Onlink);
                Some(Hop { index: path.interface_index, gateway: gateway(&path.attributes)?, onlink })
            };
            hops.extend(paths.iter().filter_map(hop));
        }
    }
    hops
}

#[cfg(test)]
mod tests;
