//! Watches the configured devices through rtnetlink. Every event, lost ones included (ENOBUFS), leads to a
//! look at the whole state, so there is nothing to get out of step with.

use std::{collections::BTreeMap, io, net::IpAddr, time::Duration};

use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkMessage},
};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc;

use crate::speaker::{Input, InterfaceId, Link};

/// Even without an event the state is looked at this often.
const RECHECK: Duration = Duration::from_secs(10);

/// Starts to watch the devices called `names`, in the order of their interface ids. Changes go to `inputs`.
///
/// # Errors
/// The netlink socket cannot be opened.
pub(super) fn watch(names: Vec<String>, inputs: mpsc::Sender<Input>) -> io::Result<()> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr];
    let (connection, handle, messages) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    tokio::spawn(run(names, handle, messages, inputs));
    Ok(())
}

async fn run<M>(
    names: Vec<String>,
    handle: Handle,
    mut messages: UnboundedReceiver<M>,
    inputs: mpsc::Sender<Input>,
) {
    let mut known = vec![Link::default(); names.len()];
    loop {
        match look(&names, &handle).await {
            Ok(links) => {
                for (at, link) in links.into_iter().enumerate() {
                    if known[at] == link {
                        continue;
                    }
                    let input = Input::Link { interface: InterfaceId(at), link };
                    if inputs.send(input).await.is_err() {
                        return;
                    }
                    known[at] = link;
                }
            }
            Err(error) => tracing::warn!(%error, "cannot list links and addresses; trying again"),
        }
        match tokio::time::timeout(RECHECK, messages.next()).await {
            Ok(Some(_)) => while messages.try_recv().is_ok() {},
            Ok(None) => {
                tracing::error!("the netlink connection ended; link changes go unnoticed");
                return;
            }
            Err(_) => {}
        }
        if inputs.is_closed() {
            return;
        }
    }
}

/// The state of all devices now.
async fn look(names: &[String], handle: &Handle) -> Result<Vec<Link>, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    let mut primary: BTreeMap<u32, Ipv4Net> = BTreeMap::new();
    for message in addresses.iter().filter(|a| a.header.family == AddressFamily::Inet) {
        let secondary = message.header.flags.contains(AddressHeaderFlags::Secondary);
        if let Some(net) = address(message).filter(|_| !secondary) {
            primary.entry(message.header.index).or_insert(net);
        }
    }
    Ok(names.iter().map(|name| state(name, &links, &primary)).collect())
}

fn state(name: &str, links: &[LinkMessage], primary: &BTreeMap<u32, Ipv4Net>) -> Link {
    let named = |link: &&LinkMessage| {
        link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::IfName(n) if n == name))
    };
    let Some(link) = links.iter().find(named) else { return Link::default() };
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Link {
        up: link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        index: link.header.index,
        mtu: mtu.map_or(0, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX)),
        address: primary.get(&link.header.index).copied(),
    }
}

/// The own address of the message: `Local` where there is one (the other is then the peer's).
fn address(message: &AddressMessage) -> Option<Ipv4Net> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) if local => Some(*address),
            AddressAttribute::Address(IpAddr::V4(address)) if !local => Some(*address),
            _ => None,
        })
    };
    Ipv4Net::new(find(true).or_else(|| find(false))?, message.header.prefix_len).ok()
}
