//! `[node] local_addresses`, `local_ports`: what full NAT puts in the place of clients.

use std::net::IpAddr;

use director_common::tables::MAX_LOCALS;
use ipnet::IpNet;
use toml::Spanned;

use super::address::{self, Ports, family};
use super::{Cluster, ConfigError, Forwarding, Ospf, Service, Source};

/// Ports where nothing else is said: those that Linux does not give to sockets by itself
/// (`net.ipv4.ip_local_port_range` begins at 32,768), nor wants root for.
const PORTS: Ports = Ports { first: 1_024, last: 32_767 };

/// Addresses and ports of this node that stand for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locals {
    /// Addresses of this director alone: real servers answer to them.
    pub addresses: Vec<IpAddr>,
    /// The ports of each.
    pub ports: Ports,
}

impl Locals {
    /// Whether there is an address of the family of `address`.
    pub fn reaches(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|local| local.is_ipv4() == address.is_ipv4())
    }
}

/// The local addresses as they are written, for what is only known later.
pub(super) struct Written(Vec<Spanned<IpAddr>>);

/// Checks them by themselves.
pub(super) fn locals(
    source: &Source<'_>,
    addresses: Vec<Spanned<IpAddr>>,
    ports: Option<&Spanned<String>>,
) -> Result<(Locals, Written), ConfigError> {
    if let (Some(ports), true) = (ports, addresses.is_empty()) {
        return Err(
            source.at(ports, "local_ports are ports of local_addresses, and there are none: add them")
        );
    }
    let mut seen: Vec<IpAddr> = Vec::new();
    for place in &addresses {
        let address = *place.get_ref();
        if let Some(why) = address::not_unicast(&IpNet::from(address)) {
            let message = format!("{address} cannot stand for clients ({why}); use an address of this node");
            return Err(source.at(place, message));
        }
        if seen.contains(&address) {
            return Err(source.at(place, format!("local address {address} is listed twice")));
        }
        if seen.iter().filter(|other| other.is_ipv4() == address.is_ipv4()).count() == MAX_LOCALS {
            let message = format!("at most {MAX_LOCALS} {} local_addresses are possible", family(address));
            return Err(source.at(place, message));
        }
        seen.push(address);
    }
    let ports = address::ports(source, None, ports)?.unwrap_or(PORTS);
    Ok((Locals { addresses: seen, ports }, Written(addresses)))
}

impl Written {
    /// Checks them against everything else that has an address.
    pub(super) fn check<'a>(
        &self,
        source: &Source<'_>,
        services: impl IntoIterator<Item = (&'a String, &'a Service)>,
        cluster: &Cluster,
        ospf: Option<&Ospf>,
    ) -> Result<(), ConfigError> {
        let services: Vec<_> = services.into_iter().collect();
        for place in &self.0 {
            let address = *place.get_ref();
            let refused = |what: String| {
                let remedy = "a local address stands for clients and is this director's alone; use another";
                Err(source.at(place, format!("{address} is {what}: {remedy}")))
            };
            for (name, service) in &services {
                if service.addresses.iter().any(|vip| vip.prefix.contains(&address)) {
                    return refused(format!("a VIP of service {name:?}"));
                }
                let sorry = service.sorry_server() == Some(address);
                if sorry || service.reals.iter().any(|real| real.address == address) {
                    return refused(format!("a real server of service {name:?}"));
                }
            }
            if cluster.peers.iter().any(|peer| peer.ip() == address) {
                return refused("an address of another director (peers in [cluster])".to_owned());
            }
            let aggregates = ospf.map(|ospf| ospf.aggregates.as_slice()).unwrap_or_default();
            if let Some(aggregate) = aggregates.iter().find(|aggregate| aggregate.contains(&address)) {
                let message = format!(
                    "{address} is inside the aggregate {aggregate}, which every director announces: what real servers send \
                     to it must come to this one alone; use an address outside"
                );
                return Err(source.at(place, message));
            }
        }
        Ok(())
    }
}

/// Refuses a service with full NAT for which there is no local address.
pub(super) fn check_service(
    source: &Source<'_>,
    forwarding: Forwarding,
    locals: &Locals,
    vip: IpAddr,
    place: &Spanned<super::file::Forwarding>,
) -> Result<(), ConfigError> {
    if forwarding != Forwarding::FullNat || locals.reaches(vip) {
        return Ok(());
    }
    let message = format!(
        "fullnat puts an address of this director in the place of clients: add an {family} one that it has to itself to \
         local_addresses in [node]",
        family = family(vip)
    );
    Err(source.at(place, message))
}
