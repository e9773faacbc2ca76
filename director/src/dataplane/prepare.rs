//! PREPARE of an epoch: the tables that may come next are checked against the kernel's room, and every slot that they
//! give to another server looks its connections up from now on and pins them, while all of them still go where they
//! went. Whatever another director then does first, a pin says where a connection lives.
//!
//! Nothing has to be undone if the tables never come: to [`Dataplane::apply`] what is in force once more ends it, and the
//! slots settle when a sweep finds no connection elsewhere.

use super::apply::{full, tracks};
use super::error::ApplyError;
use super::free::Free;
use super::seats::Seating;
use super::spec::{ServiceSpec, check};
use super::{Dataplane, monotonic_seconds};
use director_common::tables::{MAX_REALS, MAX_SERVICES, MAX_TABLES};

impl Dataplane {
    /// Makes ready for these services to be applied, and returns the number of slots that will change. Returns after a
    /// grace period of the kernel (some 10 ms) if there are any: no packet is under way then that was not looked up.
    ///
    /// # Errors
    /// [`ApplyError::Spec`] or [`ApplyError::Full`] before anything is changed, if they could not be applied;
    /// [`ApplyError::Map`] if the kernel refuses.
    pub fn prepare(&mut self, services: &[ServiceSpec<'_>]) -> Result<usize, ApplyError> {
        check(services, &self.options.tunnel_sources, &self.options.locals, &self.plan.classes)?;
        // It may take the place of another.
        self.end_epoch()?;
        let now = monotonic_seconds();
        self.under_way = Some(now);
        // Generations are given when servers take their seats.
        let (mut free, mut generation) = (Free::of(&self.plan), self.plan.generation);
        let mut seatings = Vec::new();
        for service in services {
            let old = self.plan.services.get(service.name);
            let seating = Seating::new(old, service, &mut generation);
            self.check_room(&mut free, service, &seating)?;
            seatings.push(seating);
        }
        let (mut slots, mut changed) = (0, Vec::new());
        for (service, seating) in services.iter().zip(&seatings) {
            let Some(placement) = self.plan.services.get_mut(service.name) else { continue };
            if !tracks(service) || placement.hash != service.hash {
                continue;
            }
            let held = placement.slots.hold(&seating.owners, |position| seating.is_gone(position), now);
            if held > 0 {
                // Noted before the slots change, as with every window.
                placement.window.opened = placement.slots.opened().unwrap_or(0);
                self.maps.set_window(placement.index, placement.window)?;
                changed.push(service.name.to_owned());
                slots += held;
            }
        }
        self.rewrite_tables(changed)?;
        Ok(slots)
    }

    /// The epoch that was prepared is over, and with it the time for which nothing ends that has begun since. What it has
    /// made slots hold they go on holding for a margin: another director may still put in force what is given up here.
    ///
    /// # Errors
    /// [`ApplyError::Map`] if the kernel refuses; the epoch is not over then.
    pub fn end_epoch(&mut self) -> Result<(), ApplyError> {
        let Some(since) = self.under_way else { return Ok(()) };
        let now = monotonic_seconds();
        for placement in self.plan.services.values_mut() {
            if placement.slots.prolong(since, now) {
                placement.window.opened = placement.slots.opened().unwrap_or(0);
                self.maps.set_window(placement.index, placement.window)?;
            }
        }
        self.under_way = None;
        Ok(())
    }

    /// Takes out of `free` what the service will need.
    fn check_room(
        &self,
        free: &mut Free,
        service: &ServiceSpec<'_>,
        seating: &Seating,
    ) -> Result<(), ApplyError> {
        let old = self.plan.services.get(service.name);
        if old.is_none() {
            free.index().ok_or_else(|| full(service, "service indices", MAX_SERVICES))?;
        }
        if old.is_none_or(|old| seating.size() > old.block.count as usize) {
            free.block(seating.size()).ok_or_else(|| full(service, "real servers", MAX_REALS))?;
        }
        free.table(service.slots.len()).ok_or_else(|| full(service, "slot tables", MAX_TABLES))?;
        Ok(())
    }
}
