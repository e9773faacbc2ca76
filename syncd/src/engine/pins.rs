//! Pins between the node, the machine that replicates them, and the network.

use std::future::pending;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use director_common::tables::Address;
use tokio::sync::mpsc;

use super::{Engine, Stopped};
use crate::config::Config;
use crate::pins::{Delivery, PinInput, Pins};
use crate::replica::Replica;

/// Inputs of the node that wait for the engine.
const INPUTS: usize = 16;
/// Deliveries that wait for the node. More wait in the machine, at most those that peers may send ahead.
const DELIVERIES: usize = 8;

/// The node's end of the exchange of pins.
#[derive(Debug)]
pub struct PinPort {
    inputs: mpsc::Sender<PinInput>,
    deliveries: mpsc::Receiver<Delivery>,
    whole: Arc<AtomicU64>,
    /// How often everything was asked for again.
    rejoins: u64,
}

impl PinPort {
    /// [`Pins::is_whole`].
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Relaxed) == self.rejoins + 1
    }

    /// Asks for all pins again: they are not whole until all have come.
    ///
    /// # Errors
    /// [`Stopped`] if replication has ended.
    pub async fn rejoin(&mut self) -> Result<(), Stopped> {
        self.rejoins += 1;
        self.send(PinInput::Rejoin).await
    }

    /// Whether [`Self::send`] will find room now: if not, what is to be said now can be said later as well.
    pub fn has_room(&self) -> bool {
        self.inputs.capacity() > 1
    }

    /// Tells the exchange something.
    ///
    /// # Errors
    /// [`Stopped`] if replication has ended.
    pub async fn send(&self, input: PinInput) -> Result<(), Stopped> {
        self.inputs.send(input).await.map_err(|_| Stopped)
    }

    /// The next delivery; each is to be answered by [`PinInput::Applied`]. `None` if replication has ended.
    pub async fn delivery(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }
}

/// Where the port waits for the node.
#[derive(Clone, Debug)]
pub(super) struct Lent(Arc<Mutex<Option<PinPort>>>);

impl Lent {
    pub(super) fn take(&self) -> Option<PinPort> {
        self.0.lock().ok()?.take()
    }
}

/// The engine's end.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) machine: Pins,
    inputs: mpsc::Receiver<PinInput>,
    deliveries: mpsc::Sender<Delivery>,
    /// Taken out of the channel, for the engine to handle.
    input: Option<PinInput>,
    /// Taken out of the machine, for the node.
    delivery: Option<Delivery>,
    /// One more than the number of the last [`PinInput::Rejoin`] that has come to its end; the start is number 0.
    whole: Arc<AtomicU64>,
}

impl Exchange {
    pub(super) fn new(replica: &Replica, config: &Config) -> (Lent, Self) {
        let (to_engine, inputs) = mpsc::channel(INPUTS);
        let (deliveries, to_node) = mpsc::channel(DELIVERIES);
        let whole = Arc::new(AtomicU64::new(0));
        let port = PinPort { inputs: to_engine, deliveries: to_node, whole: Arc::clone(&whole), rejoins: 0 };
        let settings = replica.settings();
        let address = |address: &IpAddr| match address {
            IpAddr::V4(v4) => Address::from_ipv4(v4.octets()),
            IpAddr::V6(v6) => Address(v6.octets()),
        };
        let machine = Pins::new(Instant::now(), settings.router_id, settings.boot_id)
            .expecting(config.peers.len())
            .with_locals(config.local_addresses.iter().map(address).collect());
        let exchange = Self { machine, inputs, deliveries, input: None, delivery: None, whole };
        (Lent(Arc::new(Mutex::new(Some(port)))), exchange)
    }

    /// The earlier of the machine's next deadline and another one.
    pub(super) fn deadline(&self, other: Instant) -> Instant {
        self.machine.next_deadline().map_or(other, |deadline| deadline.min(other))
    }

    /// Waits until the node has said something, or has room for a delivery that waits.
    pub(super) async fn ready(&mut self) {
        let Self { machine, inputs, deliveries, input, delivery, .. } = self;
        if delivery.is_none() {
            *delivery = machine.poll_delivery();
        }
        let idle = delivery.is_none();
        let room = async {
            match deliveries.reserve().await {
                Ok(permit) if !idle => permit,
                // Nobody listens any more, or there is nothing to say.
                _ => pending().await,
            }
        };
        tokio::select! {
            permit = room, if !idle => {
                if let Some(delivery) = delivery.take() {
                    permit.send(delivery);
                }
            }
            Some(told) = inputs.recv() => *input = Some(told),
            else => pending().await,
        }
    }
}

impl Engine {
    /// Lets the machine handle what the node said, and sends what it wants to be sent.
    pub(super) fn exchange_pins(&mut self) {
        let now = Instant::now();
        let live = self.replica.members().filter(|(_, member)| member.is_live());
        let live: Vec<_> = live.map(|(router_id, member)| (router_id, member.boot_id())).collect();
        let hash_key = self.replica.tables().map(|tables| tables.hash_key);
        self.pins.machine.handle_members(now, live, hash_key);
        if self.pins.machine.is_whole() {
            self.pins.whole.store(self.pins.machine.rejoins() + 1, Ordering::Relaxed);
        }
        if let Some(input) = self.pins.input.take() {
            let replica = &self.replica;
            let same = |peer: Ipv4Addr| {
                let theirs = replica.members().find(|(router_id, _)| *router_id == peer);
                theirs.is_some_and(|(_, member)| {
                    member.tables().is_some() && member.tables() == replica.version()
                })
            };
            self.pins.machine.handle_node(now, input, same);
        }
        while let Some((to, message)) = self.pins.machine.poll_message(now) {
            self.links.send_pins(to, message);
        }
    }
}
