//! Which interface has which id.

use serde::{Deserialize, Serialize};

use super::InterfaceConfig;
use crate::speaker::InterfaceId;

/// The names of interfaces by their ids. An interface keeps its id for as long as the speaker lives, through all that
/// comes and goes in its configuration, and gets it again when it comes back. Whoever is told the same configurations in
/// the same order counts alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Places(Vec<String>);

impl Places {
    pub(crate) fn new(interfaces: &[InterfaceConfig]) -> Self {
        let mut places = Self::default();
        places.admit(interfaces);
        places
    }

    /// The ids of these interfaces, in their order; new ones get the next.
    pub(crate) fn admit(&mut self, interfaces: &[InterfaceConfig]) -> Vec<InterfaceId> {
        let place = |interface: &InterfaceConfig| {
            let known = self.0.iter().position(|name| *name == interface.name);
            InterfaceId(known.unwrap_or_else(|| {
                self.0.push(interface.name.clone());
                self.0.len() - 1
            }))
        };
        interfaces.iter().map(place).collect()
    }

    /// Every name that there ever was, in the order of the ids.
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Network;

    #[test]
    fn an_interface_keeps_its_id_and_gets_it_back() {
        let all = |names: &[&str]| -> Vec<InterfaceConfig> {
            names.iter().map(|name| InterfaceConfig::new(*name, Network::Broadcast)).collect()
        };
        let mut places = Places::new(&all(&["eth1", "eth2"]));
        let ids = |ids: Vec<InterfaceId>| ids.into_iter().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(ids(places.admit(&all(&["eth3", "eth2"]))), [2, 1]);
        assert_eq!(ids(places.admit(&all(&["eth1"]))), [0]);
        assert_eq!(places.names(), ["eth1", "eth2", "eth3"]);
    }
}
