//! Numbers for what records repeat: targets, servers and local addresses. Both ends of a stream count alike, since it is
//! in order.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::RangeInclusive;
use std::sync::Arc;

use director_common::tables::{Address, FlowKey};
use director_proto::pins::{Batch, Local, Server, Target};

/// The writer's side. When all numbers are in use, the oldest gets another meaning.
#[derive(Debug)]
pub(super) struct Numbers {
    targets: Ring<Target>,
    servers: Ring<ByPlace>,
    locals: Ring<Address>,
}

impl Default for Numbers {
    fn default() -> Self {
        let all = || 0..=u16::MAX;
        // Of one byte, and 0 is none.
        let few = 1..=u16::from(u8::MAX);
        Self { targets: Ring::new(all()), servers: Ring::new(all()), locals: Ring::new(few) }
    }
}

#[derive(Debug)]
struct Ring<T> {
    numbers: HashMap<T, u16>,
    owners: Vec<T>,
    next: u16,
    range: RangeInclusive<u16>,
}

impl<T> Ring<T> {
    fn new(range: RangeInclusive<u16>) -> Self {
        Self { numbers: HashMap::new(), owners: Vec::new(), next: *range.start(), range }
    }
}

impl<T: Clone + Eq + Hash> Ring<T> {
    /// Whether every number has a meaning.
    fn is_full(&self) -> bool {
        self.owners.len() == self.range.len()
    }

    /// The number of `value`, and whether it is new.
    fn number(&mut self, value: &T) -> (u16, bool) {
        if let Some(number) = self.numbers.get(value) {
            return (*number, false);
        }
        let number = self.next;
        self.next = if number == *self.range.end() { *self.range.start() } else { number + 1 };
        match self.owners.get_mut(usize::from(number - self.range.start())) {
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
        names + DEFINITION * (batch.targets.len() + batch.servers.len() + batch.locals.len())
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

    /// The number of a local address, which is defined if it is new.
    pub(super) fn local(&mut self, local: Local, defined: &mut Vec<(u8, Local)>) -> u8 {
        let (number, is_new) = self.locals.number(&local.address);
        let number = u8::try_from(number).expect("invariant: the range ends with a byte's");
        if is_new {
            defined.push((number, local));
        }
        number
    }

    /// Whether an address without a number gets one that has a meaning.
    pub(super) fn renames(&self, address: &Address) -> bool {
        self.locals.is_full() && !self.locals.numbers.contains_key(address)
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

    #[test]
    fn local_addresses_have_numbers_of_a_byte_and_none_is_0() {
        let (mut numbers, mut defined) = (Numbers::default(), Vec::new());
        let local = |last: u16| Local { address: Address([last as u8; 16]), is_own: last == 1 };
        for last in 1..=255 {
            assert_eq!(u16::from(numbers.local(local(last), &mut defined)), last);
        }
        assert_eq!(numbers.local(local(7), &mut defined), 7);
        assert_eq!(defined.len(), 255);
        assert_eq!(numbers.local(local(0), &mut defined), 1, "the oldest one gets another meaning");
        assert_eq!(defined.last(), Some(&(1, local(0))));
    }
}
