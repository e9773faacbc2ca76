//! Arrays of the kernel's, mapped into our memory (`BPF_F_MMAPABLE`).

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::{self, NonNull};

use aya::maps::{Map, MapData, MapError};

/// An array of `T`s, which the kernel's program changes as well: so there are no references to them here.
pub(super) struct Mapping<T> {
    _map: MapData,
    start: NonNull<T>,
    entries: u32,
}

// SAFETY: what it points to is shared memory, and lives as long as this does; how it is accessed is up to whoever asks
// for a place.
unsafe impl<T> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapping<T> {}

/// Maps an array; an error if the map is no array of such, or the kernel refuses.
impl<T> TryFrom<Map> for Mapping<T> {
    type Error = MapError;

    fn try_from(map: Map) -> Result<Self, MapError> {
        let Map::Array(map) = map else {
            return Err(MapError::IoError(io::Error::other("a map to be shared is no array")));
        };
        let info = map.info()?;
        let (size, expected) = (info.value_size() as usize, size_of::<T>());
        if size != expected || expected % 8 != 0 {
            return Err(MapError::InvalidValueSize { size, expected });
        }
        let (fd, entries) = (map.fd().as_fd().as_raw_fd(), info.max_entries());
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let length = entries as usize * size;
        // SAFETY: a new mapping of a map that has so many bytes, at an address of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, access, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(start.cast::<T>()).filter(|_| start != libc::MAP_FAILED) {
            Some(start) => Ok(Self { _map: map, start, entries }),
            None => Err(MapError::IoError(io::Error::last_os_error())),
        }
    }
}

impl<T> Mapping<T> {
    /// Elements.
    pub(super) fn len(&self) -> u32 {
        self.entries
    }

    /// Where an element is, aligned as pages are divided by its size.
    pub(super) fn at(&self, index: u32) -> Option<NonNull<T>> {
        if index >= self.entries {
            return None;
        }
        // SAFETY: within the mapping.
        Some(unsafe { self.start.add(index as usize) })
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        let length = self.entries as usize * size_of::<T>();
        // SAFETY: mapped in `try_from`, and nobody has a place in it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), length) };
    }
}
