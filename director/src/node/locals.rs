//! Local addresses of full NAT: when this director takes leases of its own, and which of the others' it announces.
//!
//! Every director announces its own at the lowest metric and those of the others at a high one, so the switches bring what
//! comes for a director that is lost to those who know its connections, and back when it serves again; nobody has to
//! decide. Own ones are announced, and leases taken, only when all that the others know is known here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Node;

impl Node {
    /// Does what follows from what the other directors have told of local addresses.
    pub(super) fn follow_locals(&mut self) {
        let allowed = !self.seclusion.is_cut_off();
        // A process that has just taken over goes on with what it found.
        let is_known = self.exchange.is_whole() || !allowed;
        if is_known && self.leases_allowed != Some(allowed) {
            match self.dataplane.allow_leases(allowed) {
                Ok(()) => self.leases_allowed = Some(allowed),
                Err(error) if allowed => {
                    tracing::error!(%error, "no connection of a service with full NAT can begin");
                }
                Err(error) => {
                    tracing::error!(%error, "ports are still taken that another director's connection may have");
                }
            }
        }
        self.settle_contests();
        let others = self.dataplane.other_locals();
        if others == self.other_locals {
            return;
        }
        for address in others.difference(&self.other_locals) {
            tracing::info!(%address, "local address of another director: taken over if that is lost");
        }
        self.other_locals = others;
        self.announce();
    }

    /// Of two directors that have the same local address, the one with the higher router id takes no leases of it.
    fn settle_contests(&mut self) {
        let contested = self.dataplane.contested_locals();
        let own = self.file.node.router_id;
        let ceded: BTreeSet<IpAddr> =
            contested.iter().filter(|(other, _)| **other < own).flat_map(|(_, all)| all).copied().collect();
        if contested == self.contested {
            return;
        }
        for (router_id, addresses) in &contested {
            for address in addresses {
                let taker = own.min(*router_id);
                tracing::error!(
                    %address,
                    peer = %router_id,
                    "this local address is another director's as well: only {taker} takes ports of it; give each director \
                     local_addresses of its own"
                );
            }
        }
        match self.dataplane.cede_locals(&ceded) {
            Ok(()) => self.contested = contested,
            Err(error) => {
                tracing::error!(%error, "local addresses that another director has are still used here")
            }
        }
    }
}
