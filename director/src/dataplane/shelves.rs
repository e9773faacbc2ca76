//! Slot tables on their shelves (see [`director_common::tables::shelf_of`]): one [`Shelves`] for each size.

use std::collections::BTreeSet;
use std::io;

use aya::maps::{Array, ArrayOfMaps, MapData, MapError};

/// Shelves of tables with `N` slots. A table is known by its place, counted over all shelves.
pub(super) struct Shelves<const N: usize> {
    outer: ArrayOfMaps<MapData, Array<MapData, [u32; N]>>,
    /// Tables of a shelf.
    places: u32,
    /// Shelves that are in the kernel.
    standing: BTreeSet<u32>,
    /// The shelf that was used last, to ask the kernel for it once and not for each of its tables.
    open: Option<(u32, Array<MapData, [u32; N]>)>,
    /// Takes the place of shelves that are gone: all share it.
    nothing: Option<Array<MapData, [u32; N]>>,
}

impl<const N: usize> Shelves<N> {
    pub(super) fn new(outer: ArrayOfMaps<MapData, Array<MapData, [u32; N]>>, places: usize) -> Self {
        let places = u32::try_from(places).expect("invariant: a shelf has few places");
        Self { outer, places, standing: BTreeSet::new(), open: None, nothing: None }
    }

    /// Reads a table; `None` where its shelf was never made.
    pub(super) fn read(&mut self, place: u32) -> Result<Option<Box<[u32]>>, MapError> {
        let (shelf, place) = (place / self.places, place % self.places);
        match self.shelf(shelf) {
            Ok(tables) => {
                let table = tables.get(&place, 0)?;
                self.standing.insert(shelf);
                Ok(Some(Box::new(table)))
            }
            Err(MapError::KeyNotFound) => Ok(None),
            Err(MapError::SyscallError(error)) if is_missing(&error.io_error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Self::read`], but remembers nothing.
    pub(super) fn peek(&self, place: u32) -> Result<Option<Box<[u32]>>, MapError> {
        let (shelf, place) = (place / self.places, place % self.places);
        match self.outer.get(&shelf, 0).and_then(|tables| tables.get(&place, 0)) {
            Ok(table) => Ok(Some(Box::new(table))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(MapError::SyscallError(error)) if is_missing(&error.io_error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a complete table to a place that no service uses. The kernel waits for a grace period in this if
    /// the shelf is new.
    pub(super) fn write(&mut self, place: u32, slots: &[u32; N]) -> Result<(), MapError> {
        let (shelf, place) = (place / self.places, place % self.places);
        if self.standing.contains(&shelf) {
            return self.shelf(shelf)?.set(place, slots, 0);
        }
        let mut tables = Array::create(self.places, 0)?;
        tables.set(place, slots, 0)?;
        self.outer.set(shelf, &tables, 0)?;
        self.standing.insert(shelf);
        self.open = Some((shelf, tables));
        Ok(())
    }

    /// Takes away shelves without a table in `used`, but for some that the next change will want. True if it
    /// did: then the kernel has waited for a grace period.
    pub(super) fn trim(&mut self, used: impl Iterator<Item = u32>) -> Result<bool, MapError> {
        let used: BTreeSet<u32> = used.map(|place| place / self.places).collect();
        let spare = used.len() / 4 + 1;
        let empty: Vec<u32> = self.standing.difference(&used).copied().skip(spare).collect();
        for shelf in &empty {
            let nothing = match self.nothing.take() {
                Some(nothing) => nothing,
                None => Array::create(self.places, 0)?,
            };
            let replaced = self.outer.set(*shelf, &nothing, 0);
            self.nothing = Some(nothing);
            replaced?;
            self.standing.remove(shelf);
            self.open = None;
        }
        Ok(!empty.is_empty())
    }

    /// Returns after every program that ran when this was called has ended; false if there is no shelf to do it by.
    ///
    /// The kernel waits for a grace period whenever user space changes a map of maps, also if by the same map.
    pub(super) fn wait(&mut self) -> Result<bool, MapError> {
        let Some(shelf) = self.standing.first().copied() else { return Ok(false) };
        let tables = self.outer.get(&shelf, 0)?;
        self.outer.set(shelf, &tables, 0)?;
        Ok(true)
    }

    fn shelf(&mut self, shelf: u32) -> Result<&mut Array<MapData, [u32; N]>, MapError> {
        let tables = match self.open.take() {
            Some((open, tables)) if open == shelf => tables,
            _ => self.outer.get(&shelf, 0)?,
        };
        Ok(&mut self.open.insert((shelf, tables)).1)
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}
