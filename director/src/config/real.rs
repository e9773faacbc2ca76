//! `[[service.real]]`: real servers, checked against the service they are of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use director_common::schedulers::Thresholds;
use director_proto::tables::MAX_REALS;
use ipnet::IpNet;
use toml::Spanned;

use super::address::{self, Ports, VirtualAddress, family};
use super::service::{Datagrams, Forwarding, Service};
use super::{ConfigError, Source, TunnelSources, file};

/// `[[service.real]]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Real {
    /// Its address.
    pub address: IpAddr,
    /// Its port; that which the service is known by where packets keep theirs.
    pub port: u16,
    /// Share of new flows relative to the others; 0 takes none: it is drained.
    pub weight: u32,
    /// How many connections it takes.
    pub thresholds: Thresholds,
    /// What connection ids name it by; only, and always, in a QUIC service.
    pub quic_id: Option<u32>,
}

/// The real servers of `service`, of which everything else is known.
pub(super) fn reals(
    source: &Source<'_>,
    service: &Service,
    list: Vec<file::Real>,
    sorry: Option<&Spanned<IpAddr>>,
    tunnel_sources: &TunnelSources,
) -> Result<Vec<Real>, ConfigError> {
    if let Some(real) = list.get(MAX_REALS) {
        let message = format!("at most {MAX_REALS} real servers of one service are possible");
        return Err(source.at(&real.address, message));
    }
    let mut seen = BTreeSet::new();
    let mut quic_ids = BTreeMap::new();
    let mut reals = Vec::new();
    for real in list {
        let address = *real.address.get_ref();
        real_address(source, service, &real.address, tunnel_sources)?;
        if !seen.insert(address) {
            return Err(source.at(&real.address, format!("real server {address} is listed twice")));
        }
        let port = match &real.port {
            Some(port) => real_port(source, service, port)?,
            None => service.port(),
        };
        if *real.weight.get_ref() > 65_535 {
            return Err(source.at(&real.weight, "weight must be from 0 to 65535"));
        }
        let quic_id = quic_id(source, service.datagrams, &real)?;
        if let (Some(id), Some(place)) = (quic_id, &real.quic_id)
            && let Some(other) = quic_ids.insert(id, address)
        {
            let message = format!("quic_id {id} is taken by real server {other}; each needs its own");
            return Err(source.at(place, message));
        }
        let threshold = |written: &Option<Spanned<u32>>| written.as_ref().map_or(0, |it| *it.get_ref());
        let thresholds = Thresholds { upper: threshold(&real.upper), lower: threshold(&real.lower) };
        reals.push(Real { address, port, weight: *real.weight.get_ref(), thresholds, quic_id });
    }
    if let Some(sorry) = sorry {
        let address = *sorry.get_ref();
        real_address(source, service, sorry, tunnel_sources)?;
        if seen.contains(&address) {
            return Err(source.at(
                sorry,
                format!("{address} is a real server of the service; use another, or leave it out"),
            ));
        }
    }
    Ok(reals)
}

fn real_address(
    source: &Source<'_>,
    service: &Service,
    real: &Spanned<IpAddr>,
    tunnel_sources: &TunnelSources,
) -> Result<(), ConfigError> {
    let address = *real.get_ref();
    if let Some(why) = address::not_unicast(&IpNet::from(address)) {
        let message = format!("{address} cannot be a real server ({why}); use a unicast address");
        return Err(source.at(real, message));
    }
    if let Some(vip) = service.addresses.iter().find(|vip| vip.prefix.contains(&address)) {
        let message = format!(
            "{address} cannot be a real server of VIP {}, which it is itself; use the address it has without the VIP",
            vip.vip()
        );
        return Err(source.at(real, message));
    }
    match service.forwarding {
        Forwarding::Dr | Forwarding::Nat | Forwarding::FullNat => {
            let other = |vip: &&VirtualAddress| vip.prefix.addr().is_ipv4() != address.is_ipv4();
            let Some(vip) = service.addresses.iter().find(other) else { return Ok(()) };
            let message = format!(
                "{} cannot take packets for the {} VIP {} to an {} real server: use its {1} address, or forwarding = \
                 \"tunnel\"",
                service.forwarding,
                family(vip.prefix.addr()),
                vip.vip(),
                family(address),
            );
            Err(source.at(real, message))
        }
        Forwarding::Tunnel(_) if !tunnel_sources.reaches(address) => {
            let message = format!(
                "a tunnel to an {family} real server needs an address of ours: add an {family} address of this node \
                 to tunnel_source in [node]",
                family = family(address)
            );
            Err(source.at(real, message))
        }
        Forwarding::Tunnel(_) => Ok(()),
    }
}

/// The port of a real server. Neither direct return nor a tunnel changes ports: it is the service's there, if that has
/// one.
fn real_port(source: &Source<'_>, service: &Service, port: &Spanned<u16>) -> Result<u16, ConfigError> {
    if matches!(service.forwarding, Forwarding::Nat | Forwarding::FullNat) {
        return mapped_port(source, service, port);
    }
    let wanted = service.addresses.first().map_or(Ports::ALL, |address| address.ports);
    let alone = wanted.is_one() && service.addresses.iter().all(|address| address.ports == wanted);
    if alone && *port.get_ref() == wanted.first {
        return Ok(*port.get_ref());
    }
    let kind = if service.forwarding == Forwarding::Dr { "dr" } else { "a tunnel" };
    Err(source.at(
        port,
        match alone {
            true => format!(
                "{kind} does not rewrite ports: write port = {wanted}, as the service's, or leave it out"
            ),
            false => format!("{kind} does not rewrite ports, and the service has several: leave it out"),
        },
    ))
}

/// The port that NAT makes of the service's.
fn mapped_port(source: &Source<'_>, service: &Service, port: &Spanned<u16>) -> Result<u16, ConfigError> {
    if *port.get_ref() == 0 {
        return Err(source.at(port, "port 0 is no port of a real server; leave it out to keep the packet's"));
    }
    if service.one_port().is_none() {
        let message = "the service has several ports, of which NAT makes no single one: leave it out, and packets keep theirs";
        return Err(source.at(port, message));
    }
    Ok(*port.get_ref())
}

fn quic_id(source: &Source<'_>, datagrams: Datagrams, real: &file::Real) -> Result<Option<u32>, ConfigError> {
    match (datagrams, &real.quic_id) {
        (Datagrams::Quic { length, .. }, Some(id)) => {
            let most = u32::MAX >> (32 - 8 * u32::from(length));
            if *id.get_ref() > most {
                let message = format!("quic_id must fit {length} bytes: from 0 to {most}");
                return Err(source.at(id, message));
            }
            Ok(Some(*id.get_ref()))
        }
        (Datagrams::Quic { .. }, None) => {
            let message = "a real server of a QUIC service needs quic_id, the number in its connection ids";
            Err(source.at(&real.address, message))
        }
        (_, Some(id)) => Err(source.at(id, "quic_id needs quic = { offset = …, length = … } in the service")),
        (_, None) => Ok(None),
    }
}
