//! NAT: whether every packet of a real server is an answer of one VIP and port at most.

use std::ops::Range;

use director_common::schedulers::Thresholds;
use director_common::tables::MAX_REPLY_KEYS;

use super::service::{Forwarding, Service};
use super::{ConfigError, Ports, Real, Source};
use crate::dataplane::{self, ReplyClaim, reply_conflict};

/// What services with NAT have of real servers' ports, and where that is written.
#[derive(Default)]
pub(super) struct Claims {
    claims: Vec<ReplyClaim>,
    owners: Vec<(String, Range<usize>)>,
}

impl Claims {
    /// Adds those of a service, whose real servers are written at `places`.
    pub(super) fn add(&mut self, name: &str, service: &Service, places: &[Range<usize>]) {
        if service.forwarding != Forwarding::Nat {
            return;
        }
        for (real, place) in service.reals.iter().zip(places) {
            for address in &service.addresses {
                let Ports { first, last } = address.ports;
                self.claims.push(ReplyClaim {
                    real: real.address,
                    protocol: address.protocol.number(),
                    port: if service.one_port().is_some() { real.port } else { 0 },
                    vip: address.prefix.addr(),
                    ports: dataplane::Ports { first, last },
                });
                self.owners.push((name.to_owned(), place.clone()));
            }
        }
    }

    /// Adds those of a service's sorry server, which is written at `place`.
    pub(super) fn add_sorry(&mut self, name: &str, service: &Service, place: Range<usize>) {
        let Some(address) = service.tracking.and_then(|tracking| tracking.sorry_server) else { return };
        let real = Real {
            address,
            port: service.port(),
            weight: 0,
            thresholds: Thresholds::default(),
            quic_id: None,
        };
        self.add(name, &Service { reals: vec![real], ..service.clone() }, &[place]);
    }

    /// Refuses a port of a real server that two VIPs or two of their ports have: an answer from there could be
    /// either one's, and no director remembers what was asked.
    pub(super) fn check(self, source: &Source<'_>) -> Result<(), ConfigError> {
        let mut taken = 0;
        for (claim, (name, place)) in self.claims.iter().zip(&self.owners) {
            taken += claim.keys_taken();
            if taken + self.claims.len() > MAX_REPLY_KEYS {
                let message = format!(
                    "service {name:?}: real servers with NAT have more than {MAX_REPLY_KEYS} ports in all; narrow the \
                     ranges, or take all ports (port = 0)"
                );
                return Err(source.error(Some(place.clone()), message));
            }
        }
        let Some((one, other)) = reply_conflict(&self.claims) else { return Ok(()) };
        let (ReplyClaim { real, port, ports, .. }, (first, _)) = (self.claims[one], &self.owners[one]);
        let (second, place) = &self.owners[other];
        let from = if port == 0 { ports } else { dataplane::Ports::one(port) };
        let whose = match first == second {
            true => format!("two addresses of service {first:?}"),
            false => format!("services {first:?} and {second:?}"),
        };
        let message = format!(
            "{whose} send to {from} of real server {real} by NAT: nobody could tell whose its answers are; give the \
             real server another port or address for one of them"
        );
        Err(source.error(Some(place.clone()), message))
    }
}
