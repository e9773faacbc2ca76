//! How slots stand at one director, as others are told: what a director has to know that takes over tables without
//! having been there when they came into force.
//!
//! Tables say who owns a slot. Whether it is still moving, from whom and for how long, is their history, which a
//! director that joins, or was left behind, can only be told by one that has served all the while. Nothing here is a
//! position or a clock of one machine: servers are addresses, and time is an age.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use crate::sync::decode::{address, name, port};
use crate::sync::{FrameError, encode, wire};
use crate::tables::{MAX_SERVICES, SLOTS};

/// The only format there is.
const FORMAT: u32 = 1;

/// Bytes of one slot on the wire.
const SLOT_SIZE: usize = 6;

/// Most real servers that connections of one service may be at, those that have left included.
pub const MAX_SERVERS: usize = 1 << 15;

/// Most different states that the slots of one service may have.
pub const MAX_STATES: usize = 1 << 16;

/// How a slot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SlotWindow {
    /// It moves from the server at this place of [`ServiceWindows::servers`], for so many milliseconds so far.
    Moving {
        /// Where those go that have no pin and do not begin.
        previous: u16,
        /// Since it began to move.
        age_ms: u32,
    },
    /// It moves from its owner to the same, for so many milliseconds so far.
    Held {
        /// Since it began to.
        age_ms: u32,
    },
    /// Some connections may be at other servers than its owner.
    Pinned,
}

/// How the slots of one service stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceWindows {
    /// Real servers that connections may be at: address, and port, 0 where packets keep theirs.
    pub servers: Vec<(IpAddr, u16)>,
    /// The states there are.
    pub states: Vec<SlotWindow>,
    /// The state of each slot that is not settled, as a place in [`Self::states`].
    pub slots: BTreeMap<u32, u16>,
}

impl ServiceWindows {
    /// How a slot stands; `None` if it is settled.
    pub fn slot(&self, slot: u32) -> Option<SlotWindow> {
        self.states.get(usize::from(*self.slots.get(&slot)?)).copied()
    }
}

/// How all slots stand, by service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Services with slots that are not settled.
    pub services: BTreeMap<String, ServiceWindows>,
}

impl Windows {
    /// The encoding, which is never empty.
    pub fn encode(&self) -> Bytes {
        let services = self.services.iter().map(|(name, windows)| service(name, windows)).collect();
        wire::Windows { format: FORMAT, services }.encode_to_vec().into()
    }

    /// Decodes what [`Self::encode`] gave: every length, place and name checked.
    ///
    /// # Errors
    /// [`FrameError`] with the field that is wrong.
    pub fn decode(bytes: Bytes) -> Result<Self, FrameError> {
        let message =
            wire::Windows::decode(bytes).map_err(|error| FrameError::Encoding(error.to_string()))?;
        if message.format != FORMAT {
            return Err(FrameError::Range { field: "format", value: message.format.into() });
        }
        if message.services.len() > MAX_SERVICES {
            return Err(FrameError::Length { field: "services", length: message.services.len() });
        }
        let mut services = BTreeMap::new();
        for service in message.services {
            let name = name(service.name.clone())?;
            if services.insert(name.clone(), windows(service)?).is_some() {
                return Err(FrameError::Twice { name });
            }
        }
        Ok(Self { services })
    }
}

fn service(name: &str, windows: &ServiceWindows) -> wire::ServiceWindows {
    let mut slots = BytesMut::with_capacity(windows.slots.len().saturating_mul(SLOT_SIZE));
    for (slot, state) in &windows.slots {
        slots.put_u32_le(*slot);
        slots.put_u16_le(*state);
    }
    let server = |(address, port): &(IpAddr, u16)| wire::WindowServer {
        address: encode::address(*address),
        port: u32::from(*port),
    };
    let state = |state: &SlotWindow| match *state {
        SlotWindow::Moving { previous, age_ms } => {
            wire::WindowState { moving: true, previous: Some(previous.into()), age_ms }
        }
        SlotWindow::Held { age_ms } => wire::WindowState { moving: true, previous: None, age_ms },
        SlotWindow::Pinned => wire::WindowState::default(),
    };
    wire::ServiceWindows {
        name: name.to_owned(),
        servers: windows.servers.iter().map(server).collect(),
        states: windows.states.iter().map(state).collect(),
        slots: slots.freeze(),
    }
}

fn windows(service: wire::ServiceWindows) -> Result<ServiceWindows, FrameError> {
    let length = |field, length: usize, most: usize| match length <= most {
        true => Ok(()),
        false => Err(FrameError::Length { field, length }),
    };
    length("servers", service.servers.len(), MAX_SERVERS)?;
    length("states", service.states.len(), MAX_STATES)?;
    length("slots", service.slots.len(), SLOTS * SLOT_SIZE)?;
    if !service.slots.len().is_multiple_of(SLOT_SIZE) {
        return Err(FrameError::Length { field: "slots", length: service.slots.len() });
    }
    let server = |server: wire::WindowServer| Ok((address(&server.address)?, port(server.port)?));
    let servers = service.servers.into_iter().map(server).collect::<Result<Vec<_>, FrameError>>()?;
    let state = |state: wire::WindowState| match (state.moving, state.previous) {
        (false, _) => Ok(SlotWindow::Pinned),
        (true, None) => Ok(SlotWindow::Held { age_ms: state.age_ms }),
        (true, Some(previous)) if (previous as usize) < servers.len() => {
            // Less than `MAX_SERVERS`.
            Ok(SlotWindow::Moving { previous: previous as u16, age_ms: state.age_ms })
        }
        (true, Some(previous)) => Err(FrameError::Range { field: "previous", value: previous.into() }),
    };
    let states = service.states.into_iter().map(state).collect::<Result<Vec<_>, FrameError>>()?;
    let mut slots = BTreeMap::new();
    for mut bytes in service.slots.chunks_exact(SLOT_SIZE) {
        let (slot, state) = (bytes.get_u32_le(), bytes.get_u16_le());
        if slot as usize >= SLOTS {
            return Err(FrameError::Range { field: "slot", value: slot.into() });
        }
        if usize::from(state) >= states.len() {
            return Err(FrameError::Range { field: "state", value: state.into() });
        }
        slots.insert(slot, state);
    }
    Ok(ServiceWindows { servers, states, slots })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Windows {
        let servers = vec![("10.0.2.11".parse().expect("v4"), 80), ("fd00::1".parse().expect("v6"), 0)];
        let states = vec![
            SlotWindow::Moving { previous: 1, age_ms: 5 },
            SlotWindow::Held { age_ms: 7 },
            SlotWindow::Pinned,
        ];
        let slots = BTreeMap::from([(0, 2), (65_536, 0), (17, 1)]);
        Windows { services: BTreeMap::from([("web".into(), ServiceWindows { servers, states, slots })]) }
    }

    #[test]
    fn windows_round_trip() {
        let windows = example();
        assert_eq!(Windows::decode(windows.encode()), Ok(windows.clone()));
        let web = &windows.services["web"];
        assert_eq!(web.slot(65_536), Some(SlotWindow::Moving { previous: 1, age_ms: 5 }));
        assert_eq!(web.slot(1), None);
        assert!(!Windows::default().encode().is_empty());
        assert_eq!(Windows::decode(Windows::default().encode()), Ok(Windows::default()));
    }

    #[test]
    fn what_names_nothing_is_refused() {
        let broken = |change: fn(&mut ServiceWindows)| {
            let mut windows = example();
            windows.services.values_mut().for_each(change);
            Windows::decode(windows.encode()).expect_err("refused").to_string()
        };
        assert_eq!(broken(|web| web.servers.truncate(1)), "previous is 1, out of range");
        assert_eq!(broken(|web| web.states.truncate(2)), "state is 2, out of range");
        assert_eq!(broken(|web| web.slots.extend([(65_537, 0)])), "slot is 65537, out of range");
        let nothing = Windows::decode(Bytes::new()).expect_err("no format");
        assert_eq!(nothing.to_string(), "format is 0, out of range");
    }

    proptest! {
        #[test]
        fn a_flipped_bit_never_panics(at in 0_usize..200, bit in 0_u8..8) {
            let mut bytes = example().encode().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let _ = Windows::decode(bytes.into());
        }
    }
}
