//! Watches the configured devices through rtnetlink. Every event, lost ones included (ENOBUFS), leads to a
//! look at the whole state, so there is nothing to get out of step with.

use std::{io, net::Ipv4Addr, time::Duration};

use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_route::{
    address::AddressMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::{mpsc, watch};

use super::transport::Transport;
use crate::speaker::{Input, InterfaceId, Link};

/// Even without an event the state is looked at this often.
const RECHECK: Duration = Duration::from_secs(10);

/// A device to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// Its name.
    pub(super) name: String,
    /// Without an address of its own it borrows one.
    pub(super) unnumbered: bool,
}

/// Starts to watch devices, in the order of their interface ids; more may follow behind them. Changes go to `inputs`.
/// `router` is our router id.
///
/// # Errors
/// The netlink socket cannot be opened.
pub(super) fn watch<V: Transport>(
    router: Ipv4Addr,
    names: watch::Receiver<Vec<Named>>,
    inputs: mpsc::Sender<Input<V>>,
) -> io::Result<()> {
    let groups = [MulticastGroup::Link, V::ADDRESS_GROUP];
    let (connection, handle, messages) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    tokio::spawn(run(router, names, handle, messages, inputs));
    Ok(())
}

async fn run<V: Transport, M>(
    router: Ipv4Addr,
    mut names: watch::Receiver<Vec<Named>>,
    handle: Handle,
    mut messages: UnboundedReceiver<M>,
    inputs: mpsc::Sender<Input<V>>,
) {
    let mut known = Vec::<Link<V>>::new();
    loop {
        let watched = names.borrow_and_update().clone();
        known.resize(watched.len(), Link::default());
        match look(router, &watched, &handle).await {
            Ok(links) => {
                for (at, link) in links.into_iter().enumerate() {
                    if known[at] == link {
                        continue;
                    }
                    let input = Input::Link { interface: InterfaceId(at), link: link.clone() };
                    if inputs.send(input).await.is_err() {
                        return;
                    }
                    known[at] = link;
                }
            }
            Err(error) => tracing::warn!(%error, "cannot list links and addresses; trying again"),
        }
        tokio::select! {
            message = messages.next() => match message {
                Some(_) => while messages.try_recv().is_ok() {},
                None => {
                    tracing::error!("the netlink connection ended; link changes go unnoticed");
                    return;
                }
            },
            changed = names.changed() => if changed.is_err() {
                return; // so is the driver
            },
            () = tokio::time::sleep(RECHECK) => {}
        }
        if inputs.is_closed() {
            return;
        }
    }
}

/// The state of all devices now.
pub(super) async fn look<V: Transport>(
    router: Ipv4Addr,
    names: &[Named],
    handle: &Handle,
) -> Result<Vec<Link<V>>, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    Ok(names.iter().map(|named| state(router, named, &links, &addresses)).collect())
}

fn state<V: Transport>(
    router: Ipv4Addr,
    Named { name, unnumbered }: &Named,
    links: &[LinkMessage],
    addresses: &[AddressMessage],
) -> Link<V> {
    let named = |link: &&LinkMessage| {
        link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::IfName(n) if n == name))
    };
    let Some(link) = links.iter().find(named) else { return Link::default() };
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let index = link.header.index;
    let all = || addresses.iter().filter(|address| address.header.family == V::FAMILY);
    let on_loopback = |address: &AddressMessage| {
        let there = links.iter().find(|link| link.header.index == address.header.index);
        there.is_some_and(|link| link.header.flags.contains(LinkFlags::Loopback))
    };
    let borrowed = || V::borrowed(router, all().map(|address| (on_loopback(address), address)));
    let own = V::attached(all().filter(|address| address.header.index == index));
    Link {
        up: link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        index,
        mtu: mtu.map_or(0, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX)),
        address: own.or_else(|| unnumbered.then(borrowed).flatten()),
    }
}
