//! Interfaces and addresses of the real server, by rtnetlink.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures::TryStreamExt as _;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, CacheInfo};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::{Handle, LinkUnspec, new_connection};

use super::AgentError;
use super::change::host_bits;
use super::devices::DUMMY;

/// The loopback interface's index, the same in every network namespace.
const LOOPBACK: u32 = 1;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) ifindex: u32,
    /// Largest packet in bytes.
    pub(super) mtu: u32,
    pub(super) is_ethernet: bool,
    pub(super) is_up: bool,
    /// It tells nobody of its addresses.
    is_quiet: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) address: IpAddr,
    pub(super) ifindex: u32,
}

/// The kernel's side of addresses and interfaces.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) handle: Handle,
}

impl Host {
    /// Opens a socket to the kernel; needs a running tokio runtime.
    pub(super) fn open() -> Result<Self, AgentError> {
        let (connection, handle, _) = new_connection().map_err(AgentError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub(super) async fn interfaces(&self) -> Result<Vec<Interface>, AgentError> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(AgentError::netlink("list interfaces"))?;
        Ok(links.iter().filter_map(interface).collect())
    }

    /// Every address of this network namespace.
    pub(super) async fn addresses(&self) -> Result<Vec<Located>, AgentError> {
        Ok(self.messages().await?.iter().filter_map(located).collect())
    }

    async fn messages(&self) -> Result<Vec<AddressMessage>, AgentError> {
        let addresses = self.handle.address().get().execute();
        addresses.try_collect().await.map_err(AgentError::netlink("list addresses"))
    }

    /// The VIPs that are on an interface that keeps quiet about its addresses: lo, or a dummy.
    ///
    /// # Errors
    /// [`AgentError::Elsewhere`] if one is on another.
    pub(super) async fn vips_present(&self, vips: &BTreeSet<IpAddr>) -> Result<BTreeSet<IpAddr>, AgentError> {
        let interfaces = self.interfaces().await?;
        let mut present = BTreeSet::new();
        for Located { address, ifindex } in self.addresses().await? {
            let on = interfaces.iter().find(|interface| interface.ifindex == ifindex);
            match on {
                Some(interface) if vips.contains(&address) && !interface.is_quiet => {
                    return Err(AgentError::Elsewhere { vip: address, interface: interface.name.clone() });
                }
                _ if vips.contains(&address) => present.insert(address),
                _ => false,
            };
        }
        Ok(present)
    }

    pub(super) async fn loopback_is_up(&self) -> Result<bool, AgentError> {
        Ok(self.interfaces().await?.iter().any(|interface| interface.ifindex == LOOPBACK && interface.is_up))
    }

    pub(super) async fn set_loopback(&self, up: bool) -> Result<(), AgentError> {
        let message = LinkUnspec::new_with_index(LOOPBACK);
        let message = if up { message.up() } else { message.down() };
        let state = if up { "up" } else { "down" };
        let request = self.handle.link().set(message.build());
        request.execute().await.map_err(AgentError::netlink(format!("set interface lo {state}")))
    }

    /// Adds a VIP to lo. An IPv6 one is deprecated from the beginning, so that the machine does not take it as the
    /// source of connections of its own (RFC 6724, section 5, rule 3), and nobody is asked about duplicates.
    pub(super) async fn add(&self, vip: IpAddr) -> Result<(), AgentError> {
        let mut request = self.handle.address().add(LOOPBACK, vip, host_bits(vip));
        if vip.is_ipv6() {
            let mut lifetimes = CacheInfo::default();
            lifetimes.ifa_valid = u32::MAX;
            let attributes = &mut request.message_mut().attributes;
            attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            attributes.push(AddressAttribute::CacheInfo(lifetimes));
        }
        let what = format!("add {vip}/{} to interface lo", host_bits(vip));
        request.execute().await.map_err(AgentError::netlink(what))
    }

    /// Removes a VIP from lo; `false` if it is gone already.
    pub(super) async fn remove(&self, vip: IpAddr) -> Result<bool, AgentError> {
        let found = self.messages().await?.into_iter().find(|message| {
            message.header.prefix_len == host_bits(vip)
                && located(message) == Some(Located { address: vip, ifindex: LOOPBACK })
        });
        let Some(message) = found else { return Ok(false) };
        let what = format!("remove {vip}/{} from interface lo", host_bits(vip));
        self.handle.address().del(message).execute().await.map_err(AgentError::netlink(what))?;
        Ok(true)
    }

    /// The addresses that tunnels may end at: all but VIPs and those of one link or host.
    pub(super) async fn tunnel_ends(&self, vips: &BTreeSet<IpAddr>) -> Result<Vec<Located>, AgentError> {
        let mut addresses = self.addresses().await?;
        addresses.retain(|Located { address, .. }| {
            let own = match address {
                IpAddr::V4(address) => address.is_link_local() || *address == DUMMY,
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            !own && !address.is_loopback() && !vips.contains(address)
        });
        Ok(addresses)
    }
}

fn interface(message: &LinkMessage) -> Option<Interface> {
    let mut found = Interface {
        name: String::new(),
        ifindex: message.header.index,
        mtu: 0,
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_quiet: message.header.flags.intersects(LinkFlags::Noarp | LinkFlags::Loopback),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            _ => {}
        }
    }
    (!found.name.is_empty()).then_some(found)
}

/// IPv4 names its own address "local", IPv6 only where it has a peer.
fn located(message: &AddressMessage) -> Option<Located> {
    let (mut local, mut plain) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => plain = Some(*address),
            _ => {}
        }
    }
    Some(Located { address: local.or(plain)?, ifindex: message.header.index })
}
