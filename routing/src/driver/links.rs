//! Watches the configured devices through rtnetlink. Every event, lost ones included (ENOBUFS), leads to a
//! look at the whole state, so there is nothing to get out of step with.

use std::{io, time::Duration};

use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_route::{
    address::AddressMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc;

use super::transport::Transport;
use crate::speaker::{Input, InterfaceId, Link};

/// Even without an event the state is looked at this often.
const RECHECK: Duration = Duration::from_secs(10);

/// Starts to watch the devices called `names`, in the order of their interface ids. Changes go to `inputs`.
///
/// # Errors
/// The netlink socket cannot be opened.
pub(super) fn watch<V: Transport>(names: Vec<String>, inputs: mpsc::Sender<Input<V>>) -> io::Result<()> {
    let groups = [MulticastGroup::Link, V::ADDRESS_GROUP];
    let (connection, handle, messages) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    tokio::spawn(run(names, handle, messages, inputs));
    Ok(())
}

async fn run<V: Transport, M>(
    names: Vec<String>,
    handle: Handle,
    mut messages: UnboundedReceiver<M>,
    inputs: mpsc::Sender<Input<V>>,
) {
    let mut known = vec![Link::<V>::default(); names.len()];
    loop {
        match look(&names, &handle).await {
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
async fn look<V: Transport>(names: &[String], handle: &Handle) -> Result<Vec<Link<V>>, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let addresses: Vec<AddressMessage> = handle.address().get().execute().try_collect().await?;
    Ok(names.iter().map(|name| state(name, &links, &addresses)).collect())
}

fn state<V: Transport>(name: &str, links: &[LinkMessage], addresses: &[AddressMessage]) -> Link<V> {
    let named = |link: &&LinkMessage| {
        link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::IfName(n) if n == name))
    };
    let Some(link) = links.iter().find(named) else { return Link::default() };
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let index = link.header.index;
    let own = addresses.iter().filter(|a| a.header.index == index && a.header.family == V::FAMILY);
    Link {
        up: link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        index,
        mtu: mtu.map_or(0, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX)),
        address: V::attached(own),
    }
}
