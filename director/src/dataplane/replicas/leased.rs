//! Full NAT: what other directors tell of connections with leases, put in force where it counts.

use director_common::pin::Pin;
use director_common::tables::{Config, FlowKey};

use super::{Kind, PinReport, Replica};
use crate::dataplane::Dataplane;
use crate::dataplane::sweep::Owners;
use crate::dataplane::views::View;

/// A connection with a lease, as another director tells of it.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) flow: FlowKey,
    pub(super) pin: Pin,
    /// Seconds since the lease was taken.
    pub(super) age: u32,
    pub(super) replica: Replica,
}

impl Dataplane {
    /// Puts a connection with a lease in force, in place of another view of it and of the connection that has had the lease,
    /// if it overrules both.
    pub(super) fn put_leased(
        &mut self,
        owners: &Owners,
        config: &Config,
        leased: &Leased,
        now: u32,
        report: &mut PinReport,
    ) {
        let Leased { flow, pin, age, replica } = leased;
        let (lease, from) = (replica.lease, replica.owner);
        let Some((trace, owner)) = self.lease_traces(owners, config, (flow, pin, lease)) else {
            report.refused += 1;
            return;
        };
        let known = self.maps.pins.entry_of(flow);
        // One that has just begun here is found behind what is put in front of it.
        let own = known.or_else(|| self.maps.half_open.entry_of(flow));
        match &own {
            Some(own) if replica.is(own) && !self.replicas.is_idle(flow, &own.pin) => {
                // Ours, and the other director's as well: it lives as long as either says.
                let until = self.replicas.until(flow).unwrap_or(0).max(replica.until);
                let ours = Replica { kind: Kind::Ours, seen: own.pin.seen, until, ..*replica };
                self.replicas.known.insert(*flow, ours);
                return self.rejuvenate(owners, config, own, *age, now);
            }
            Some(own) if !replica.is(own) && !self.replicas.is_told_by(from, own) => {
                let end = |lease| self.numbering.end(lease).map(|end| (end.address, end.port));
                let told = View { age: *age, key: end(lease) };
                let is_overruled = self
                    .lease_age(owners, config, own, now)
                    .is_none_or(|age| told.overrules(&View { age, key: end(own.lease) }));
                if !is_overruled {
                    report.conflicts += 1;
                    return;
                }
            }
            _ => {}
        }
        let holder = self.holder(&trace, &owner, now);
        if let Some((entry, held_for)) = &holder {
            let (told, held) = (View { age: *age, key: flow }, View { age: *held_for, key: &entry.flow });
            if !self.replicas.is_told_by(from, entry) && !told.overrules(&held) {
                report.conflicts += 1;
                return;
            }
        }
        if own.is_none() && holder.is_none() && self.replicas.known.len() >= self.replicas.room {
            report.refused += 1;
            return;
        }
        // The program may change its entry meanwhile, but not for ever.
        while let Some((entry, _)) = self.holder(&trace, &owner, now) {
            report.removed += usize::from(self.oust(owners, &entry));
        }
        if known.is_some() {
            self.remove_pins(owners, config, &[*flow]);
            self.replicas.forget(flow);
            report.removed += 1;
        }
        if self.add_leased((flow, pin, lease), (&trace, owner), now.wrapping_sub(*age)) {
            self.count(owners, flow, pin);
            self.replicas.known.insert(*flow, *replica);
            report.added += 1;
        } else {
            report.refused += 1;
        }
    }
}
