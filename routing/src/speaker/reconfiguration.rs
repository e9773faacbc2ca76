//! Another configuration while the speaker runs. What it may change is [`Config::changes_to`]'s to judge; none of it
//! takes an adjacency down by itself, but for those on an interface that is left out.
//!
//! Timers are the neighbour's business as well: Hellos that disagree about them are refused (RFC 2328 section 10.5), so
//! an adjacency lives on if the neighbour follows within the dead interval that it has counted from the last Hello that
//! was accepted.

use super::{Extent, Interface, InterfaceId, InterfaceState, Machine, Protocol, Scope, Trigger};
use crate::{
    announce::{AnnounceAs, aggregated},
    config::{Config, InterfaceConfig},
};

impl<V: Protocol> Machine<V> {
    /// Follows another configuration; one that cannot be followed changes nothing.
    pub(super) fn reconfigure(&mut self, next: Config) {
        if self.config.changes_to(&next).is_err() {
            return;
        }
        let ids = self.places.admit(&next.interfaces);
        for gone in self.interface_ids().into_iter().filter(|id| !ids.contains(id)) {
            self.remove_interface(gone);
        }
        for (id, interface) in ids.into_iter().zip(&next.interfaces) {
            // A new one comes up when its link is known.
            self.interfaces.entry(id).or_insert_with(|| Interface::new(interface.clone()));
            self.reconfigure_interface(id, interface.clone());
        }
        self.spf.reconfigure(next.spf);
        self.config = next;
        self.tell_announced();
        self.request_spf(Extent::Selection, Trigger::Configuration);
    }

    /// Takes leave of the neighbours on an interface, and of an area if it was the last one there.
    fn remove_interface(&mut self, id: InterfaceId) {
        self.send_hello_listing(id, Vec::new());
        self.interface_down(id);
        let Some(interface) = self.interfaces.remove(&id) else { return };
        let area = interface.config.area;
        if self.interfaces.values().all(|other| other.config.area != area) {
            self.databases.remove(&Scope::Area(area));
        }
        self.request_spf(Extent::Full, Trigger::Interface(interface.config.name));
    }

    fn reconfigure_interface(&mut self, id: InterfaceId, next: InterfaceConfig) {
        let now = self.now;
        let Some(interface) = self.interfaces.get_mut(&id) else { return };
        if interface.config == next {
            return;
        }
        if interface.config.authentication != next.authentication {
            interface.guard.replace(next.authentication.clone());
        }
        let before = std::mem::replace(&mut interface.config, next);
        let after = &interface.config;
        let hello = |config: &InterfaceConfig| (config.hello_interval, config.dead_interval, config.priority);
        if hello(&before) != hello(after) && interface.hello_at.is_some() {
            interface.hello_at = Some(now); // the neighbours hear of it at once
        }
        let (priority, waiting) = (after.priority, interface.state == InterfaceState::Waiting);
        if before.priority != priority {
            match (waiting, priority) {
                (true, 0) => self.end_waiting(id),
                (true, _) => {}
                (false, _) => self.neighbor_change(id),
            }
        }
        self.request_spf_for(id);
    }

    /// What was announced, as the configuration wants it told.
    pub(super) fn tell_announced(&mut self) {
        self.announced = aggregated(self.wishes.clone(), &self.config.aggregates);
        let boundary = self.announced_as(AnnounceAs::External).next().is_some();
        self.boundary |= boundary;
        V::note_announced(self);
    }
}
