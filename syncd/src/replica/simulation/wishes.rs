//! Wishes in the simulation: how a director's node carries them out while it leads.

use super::*;

impl Cluster {
    /// A director wants its services in force everywhere.
    pub(in crate::replica) fn wish(&mut self, index: usize, salt: u64) {
        self.wishes += 1;
        let id = self.wishes;
        self.nodes[index].wish = Some((id, salt));
        let mut digest = Digest([0; 32]);
        digest.0[..8].copy_from_slice(&salt.to_le_bytes());
        let definitions = Arc::new(Definitions::from([("web".to_owned(), definition(salt))]));
        self.with(index, |replica, now| {
            replica.handle(now, Input::Configured { digest, definitions });
            replica.handle(now, Input::Wish(Some(id)));
        });
    }

    /// The leader's node proposes what is wished, and says what has become of it.
    pub(super) fn grant_wishes(&mut self) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].replica.is_none() {
                continue;
            }
            for mut wished in std::mem::take(&mut self.nodes[index].wished) {
                let (from, id, definitions, epoch) = &mut wished;
                let outcome = match epoch {
                    Some(epoch) => self.outcome(index, *epoch),
                    None => {
                        let salt = definitions["web"].trim_start_matches("salt = ").parse().expect("a salt");
                        let result = self.with(index, |replica, now| {
                            replica.propose(now, services(salt), [0; 16], format!("a wish of {from}"))
                        });
                        let version = self.replica(index).version();
                        match result {
                            Ok(begun) if version.is_some_and(|version| version.epoch == begun) => {
                                version.map(Ok)
                            }
                            Ok(begun) => {
                                *epoch = Some(begun);
                                None
                            }
                            Err(ProposeError::Busy { .. }) => None,
                            Err(error) => Some(Err(error.to_string())),
                        }
                    }
                };
                match outcome {
                    None => self.nodes[index].wished.push(wished),
                    Some(outcome) => {
                        let (from, id) = (*from, *id);
                        self.with(index, |replica, now| {
                            replica.handle(now, Input::WishDecided { from, id, outcome });
                        });
                    }
                }
            }
        }
    }

    /// What the events say of an epoch that this node led.
    fn outcome(&self, index: usize, epoch: Epoch) -> Option<Outcome> {
        self.nodes[index]
            .events
            .iter()
            .rev()
            .find_map(|event| match event {
                Event::NotInForce { version, reason } | Event::RolledBack { version, reason }
                    if version.epoch == epoch =>
                {
                    Some(Err(reason.clone()))
                }
                _ => None,
            })
            .or_else(|| {
                let events = &self.nodes[index].events;
                let in_force = events.iter().any(
                    |event| matches!(event, Event::TablesInForce { version, .. } if version.epoch == epoch),
                );
                let finished = |event: &Event| match event {
                    Event::Finished { version } if version.epoch == epoch && in_force => Some(Ok(*version)),
                    Event::Finished { version } if version.epoch == epoch => {
                        Some(Err("overtaken".to_owned()))
                    }
                    _ => None,
                };
                self.nodes[index].events.iter().find_map(finished)
            })
    }
}
