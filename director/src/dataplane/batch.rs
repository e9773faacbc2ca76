//! The pins, many at a time: one system call for thousands (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6), where one by one a
//! full map would take seconds.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{Map, MapData, MapError};
use director_common::pin::Pin;
use director_common::tables::FlowKey;

/// Commands of `bpf(2)` (`enum bpf_cmd`).
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_DELETE_BATCH: libc::c_long = 27;
/// `BPF_NOEXIST`: not in place of another.
const NO_EXIST: u64 = 1;
/// Most pins in one call. The kernel holds a lock for each bucket only; more would not be quicker.
pub(super) const BATCH: usize = 4_096;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The member of `union bpf_attr` for one element.
#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<()> {
    // SAFETY: the attributes are those of the command, and what they point to outlives the call.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The map of pins.
#[derive(Debug)]
pub(super) struct PinMap(MapData);

/// Where a walk through the map goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Cursor {
    #[default]
    Start,
    At(u32),
    End,
}

impl TryFrom<Map> for PinMap {
    type Error = MapError;

    fn try_from(map: Map) -> Result<Self, MapError> {
        match map {
            Map::HashMap(data) => Ok(Self(data)),
            _ => Err(MapError::IoError(io::Error::other("the map of pins is no hash map"))),
        }
    }
}

impl PinMap {
    fn fd(&self) -> u32 {
        self.0.fd().as_fd().as_raw_fd() as u32
    }

    /// Appends the next pins to `pins`, some [`BATCH`] of them.
    pub(super) fn read(&self, cursor: Cursor, pins: &mut Vec<(FlowKey, Pin)>) -> Result<Cursor, MapError> {
        let mut room = BATCH;
        loop {
            match self.read_into(cursor, room, pins) {
                // A bucket holds more than that.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => room *= 4,
                result => return result.map_err(MapError::IoError),
            }
        }
    }

    fn read_into(&self, cursor: Cursor, room: usize, pins: &mut Vec<(FlowKey, Pin)>) -> io::Result<Cursor> {
        let start = match cursor {
            Cursor::Start => None,
            Cursor::At(bucket) => Some(bucket),
            Cursor::End => return Ok(Cursor::End),
        };
        let mut next = 0_u32;
        let mut keys = vec![FlowKey::default(); room];
        let mut values = vec![Pin::default(); room];
        let mut attributes = BatchAttributes {
            in_batch: start.as_ref().map_or(0, |bucket| std::ptr::from_ref(bucket) as u64),
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map_fd: self.fd(),
            elem_flags: 0,
            flags: 0,
        };
        let cursor = match bpf(MAP_LOOKUP_BATCH, &mut attributes) {
            Ok(()) => Cursor::At(next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Cursor::End,
            Err(error) => return Err(error),
        };
        let count = attributes.count as usize;
        pins.extend(keys.into_iter().zip(values).take(count));
        Ok(cursor)
    }

    /// Removes these pins; one that is not there any more is no error.
    pub(super) fn remove(&mut self, mut keys: &[FlowKey]) -> Result<(), MapError> {
        while !keys.is_empty() {
            let mut attributes = BatchAttributes {
                in_batch: 0,
                out_batch: 0,
                keys: keys.as_ptr() as u64,
                values: 0,
                count: keys.len() as u32,
                map_fd: self.fd(),
                elem_flags: 0,
                flags: 0,
            };
            match bpf(MAP_DELETE_BATCH, &mut attributes) {
                Ok(()) => return Ok(()),
                // It stops at one that is not there, having counted those before.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    keys = keys.get(attributes.count as usize + 1..).unwrap_or_default();
                }
                Err(error) => return Err(MapError::IoError(error)),
            }
        }
        Ok(())
    }

    /// Does `command` with one pin.
    fn element(&self, command: libc::c_long, key: &FlowKey, pin: *mut Pin, flags: u64) -> io::Result<()> {
        let key = std::ptr::from_ref(key) as u64;
        bpf(command, &mut ElementAttributes { map_fd: self.fd(), padding: 0, key, value: pin as u64, flags })
    }

    /// The pin of a flow.
    ///
    /// # Errors
    /// [`MapError::KeyNotFound`] if it has none.
    pub(super) fn get(&self, key: &FlowKey) -> Result<Pin, MapError> {
        let mut pin = Pin::default();
        match self.element(MAP_LOOKUP_ELEM, key, &mut pin, 0) {
            Ok(()) => Ok(pin),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Err(MapError::KeyNotFound),
            Err(error) => Err(MapError::IoError(error)),
        }
    }

    /// Removes the pin of a flow and returns what it was, if it had one (Linux 5.14).
    pub(super) fn take(&mut self, key: &FlowKey) -> Result<Option<Pin>, MapError> {
        let mut pin = Pin::default();
        match self.element(MAP_LOOKUP_AND_DELETE_ELEM, key, &mut pin, 0) {
            Ok(()) => Ok(Some(pin)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(MapError::IoError(error)),
        }
    }

    /// Adds a pin for a flow that has none: false if it has one, or there is no room.
    pub(super) fn add(&mut self, key: &FlowKey, pin: &Pin) -> Result<bool, MapError> {
        let mut pin = *pin;
        match self.element(MAP_UPDATE_ELEM, key, &mut pin, NO_EXIST) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::E2BIG | libc::ENOMEM)) => {
                Ok(false)
            }
            Err(error) => Err(MapError::IoError(error)),
        }
    }
}
