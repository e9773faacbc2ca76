//! Numbers for what records repeat: targets and servers. Both ends of a stream count alike, since it is in order.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use director_common::tables::FlowKey;
use director_proto::pins::{Batch, Server, Target};

/// The writer's side. When all numbers are in use, the oldest gets another meaning.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    targets: Ring<Target>,
    servers: Ring<ByPlace>,
}

#[derive(Debug)]
struct Ring<T> {
    numbers: HashMap<T, u16>,
    owners: Vec<T>,
    next: u16,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), owners: Vec::new(), next: 0 }
    }
}

impl<T: Clone + Eq + Hash> Ring<T> {
    /// The number of `value`, and whether it is new.
    fn number(&mut self, value: &T) -> (u16, bool) {
        if let Some(number) = self.numbers.get(value) {
            return (*number, false);
        }
        let number = self.next;
        self.next = number.wrapping_add(1);
        match self.owners.get_mut(usize::from(number)) {
            Some(owner) => {
                self.numbers.remove(owner);
                *owner = value.clone();
            }
            None => self.owners.push(value.clone()),
        }
        self.numbers.insert(value.clone(), number);
        (number, true)
    }
}

/// A server by where it is in memory: quick to find, and kept there as long as it has a number. One that is in two
/// places has two numbers, which harms nobody.
#[derive(Clone, Debug)]
struct ByPlace(Arc<Server>);

impl PartialEq for ByPlace {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ByPlace {}

impl Hash for ByPlace {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (Arc::as_ptr(&self.0) as usize).hash(state);
    }
}

/// Bytes that the definition of a target, or of a server without its name, takes at most.
const DEFINITION: usize = 40;

impl Numbers {
    /// Bytes that the definitions of a batch take at most.
    pub(super) fn size(batch: &Batch) -> usize {
        let names: usize = batch.servers.iter().map(|(_, server)| server.service.len()).sum();
        names + DEFINITION * (batch.targets.len() + batch.servers.len())
    }

    /// The number of a flow's target, which is defined if it is new.
    pub(super) fn target(&mut self, flow: &FlowKey, defined: &mut Vec<(u16, Target)>) -> u16 {
        let target =
            Target { protocol: flow.protocol, address: flow.destination, port: flow.destination_port };
        let (number, is_new) = self.targets.number(&target);
        if is_new {
            defined.push((number, target));
        }
        number
    }

    /// The number of a server, which is defined if it is new.
    pub(super) fn server(&mut self, server: &Arc<Server>, defined: &mut Vec<(u16, Server)>) -> u16 {
        let (number, is_new) = self.servers.number(&ByPlace(Arc::clone(server)));
        if is_new {
            defined.push((number, Server::clone(server)));
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_number_gets_another_meaning() {
        let mut numbers = Numbers::default();
        let mut defined = Vec::new();
        let flow = |port: u32| FlowKey {
            destination_port: port as u16,
            protocol: (port >> 16) as u8,
            ..FlowKey::default()
        };
        for port in 0..=u32::from(u16::MAX) {
            assert_eq!(u32::from(numbers.target(&flow(port), &mut defined)), port);
        }
        assert_eq!(numbers.target(&flow(1), &mut defined), 1);
        assert_eq!(defined.len(), 65_536);
        assert_eq!(numbers.target(&flow(65_536), &mut defined), 0);
        assert_eq!(numbers.target(&flow(0), &mut defined), 1, "its own was given away");
        assert_eq!(defined.len(), 65_538);
    }
}
