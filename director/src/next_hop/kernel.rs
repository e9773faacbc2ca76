//! What the kernel says about links, routes and neighbours (rtnetlink).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{
    Error, Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
};

use super::resolve::{Link, Neighbour, Route, Ways};

/// Sockets to the kernel: one for events, one for questions, so that a flood of the former cannot lose an answer.
pub(super) struct Kernel {
    pub(super) events: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    handle: Handle,
}

/// Those of some addresses to which there is no route now.
pub(super) async fn without_route(addresses: BTreeSet<IpAddr>) -> io::Result<Vec<IpAddr>> {
    // A socket for answers alone, which nothing comes to unasked; its task ends with the handle.
    let (connection, handle, _) = new_connection()?;
    tokio::spawn(connection);
    let mut without = Vec::new();
    for address in addresses {
        if route_to(&handle, address).await.map_err(io::Error::other)?.is_none() {
            without.push(address);
        }
    }
    Ok(without)
}

impl Kernel {
    pub(super) fn open() -> io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, events) = new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        let (connection, handle, _) = new_connection()?;
        tokio::spawn(connection);
        Ok(Self { events, handle })
    }

    /// Everything that concerns the ways to `addresses`.
    pub(super) async fn ways(&self, addresses: &BTreeSet<IpAddr>) -> Result<Ways, Error> {
        let links: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await?;
        let neighbours: Vec<NeighbourMessage> =
            self.handle.neighbours().get().execute().try_collect().await?;
        let mut routes = BTreeMap::new();
        for address in addresses {
            if let Some(route) = route_to(&self.handle, *address).await? {
                routes.insert(*address, route);
            }
        }
        Ok(Ways {
            links: links.iter().filter_map(link).collect(),
            neighbours: neighbours.iter().filter_map(neighbour).collect(),
            routes,
        })
    }

    /// Tells the kernel that a neighbour is in use: it resolves one it does not know and probes a stale one.
    pub(super) async fn touch(&self, ifindex: u32, address: IpAddr) -> Result<(), Error> {
        let request = self.handle.neighbours().add(ifindex, address).replace();
        request.state(NeighbourState::None).flags(NeighbourFlags::Use).execute().await
    }
}

async fn route_to(handle: &Handle, address: IpAddr) -> Result<Option<Route>, Error> {
    let question = match address {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build(),
        IpAddr::V6(address) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build()
        }
    };
    let mut answers = std::pin::pin!(handle.route().get(question).execute());
    match answers.try_next().await {
        Ok(answer) => Ok(answer.and_then(|message| route(address, &message))),
        // No route to it: ENETUNREACH, EHOSTUNREACH and the like, which are answers too.
        Err(Error::NetlinkError(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn mac(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok()
}

fn link(message: &LinkMessage) -> Option<(u32, Link)> {
    let mut found = Link { mac: [0; 6], mtu: 0, running: false, generic_only: false };
    let mut has_mac = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => {
                found.mac = mac(bytes)?;
                has_mac = true;
            }
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => found.generic_only = infos.iter().any(is_generic_only),
            _ => {}
        }
    }
    found.running = message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    has_mac.then_some((message.header.index, found))
}

/// Devices on top of others, which have no way of their own to send an XDP frame.
fn is_generic_only(info: &LinkInfo) -> bool {
    use InfoKind::{Bridge, Dummy, IpVlan, MacVlan, Vlan};
    matches!(info, LinkInfo::Kind(Bridge | Dummy | IpVlan | MacVlan | Vlan))
}

fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    let mut address = None;
    let mut link_address = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(IpAddr::V4(*found))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => {
                address = Some(IpAddr::V6(*found))
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => link_address = mac(bytes),
            _ => {}
        }
    }
    let known = |fresh| link_address.map(|mac| Neighbour::Known { mac, fresh });
    let state = match message.header.state {
        NeighbourState::Reachable
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Permanent
        | NeighbourState::Noarp => known(true)?,
        NeighbourState::Stale => known(false)?,
        NeighbourState::Failed => Neighbour::Failed,
        NeighbourState::Incomplete => Neighbour::Resolving,
        _ => return None,
    };
    Some(((message.header.ifindex, address?), state))
}

/// Where the answer to a route look-up leads; `None` where packets for `address` do not leave this node.
///
/// The kernel has chosen among several next hops already. A gateway may be of the other family (RFC 8950), and an
/// IPv6 one is link-local more often than not: the neighbour is looked for on the route's own interface, so that is
/// no ambiguity.
fn route(address: IpAddr, message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut ifindex = None;
    let mut gateway = address;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address))
            | RouteAttribute::Via(RouteVia::Inet(address)) => gateway = IpAddr::V4(*address),
            RouteAttribute::Gateway(RouteAddress::Inet6(address))
            | RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = IpAddr::V6(*address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(Route { ifindex: ifindex?, gateway, mtu })
}
