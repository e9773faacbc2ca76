//! Slot tables as the kernel holds them.
//!
//! A table is one big value instead of one element per slot, which an array map would round up to 8 bytes each.
//! Values are bare arrays, not structs: so their BTF has no fields, and an inner map created without BTF is accepted
//! by the outer map also on Linux 6.1.
//!
//! Tables stand on *shelves*: inner maps of about 1 MiB with [`SHELF`] tables of [`SLOTS`], or [`SMALL_SHELF`] of
//! [`SMALL_SLOTS`]. A new table is written to a free place of a shelf, so most changes exchange no inner map: that
//! costs
//! a grace period of the kernel, which many services that change at once must not pay one by one. And a small
//! table by itself would take twice its size, since the kernel's allocator rounds 16 KiB and a header up to 32.

use crate::slot::{SLOTS, SMALL_SLOTS};

/// A table of [`SLOTS`], by packed [`Slot`](crate::Slot)s.
pub type SlotTable = [u32; SLOTS];

/// A table of [`SMALL_SLOTS`], by packed [`Slot`](crate::Slot)s.
pub type SmallTable = [u32; SMALL_SLOTS];

/// Places of a shelf of [`SlotTable`]s: a power of two.
pub const SHELF: usize = 4;

/// Places of a shelf of [`SmallTable`]s: a power of two.
pub const SMALL_SHELF: usize = 64;
const _: () = assert!(SHELF.is_power_of_two() && SMALL_SHELF.is_power_of_two());

/// Bit of a table's index that says that it is a small one. The rest counts the places of all shelves of its size.
pub const SMALL_TABLE: u32 = 1 << 31;

/// Whether a table is a small one, by its index.
#[inline(always)]
pub const fn is_small(table: u32) -> bool {
    table & SMALL_TABLE != 0
}

/// Shelf and place of a table, by its index.
#[inline(always)]
pub const fn shelf_of(table: u32) -> (u32, u32) {
    let (index, places) =
        if is_small(table) { (table & !SMALL_TABLE, SMALL_SHELF as u32) } else { (table, SHELF as u32) };
    (index.wrapping_shr(places.trailing_zeros()), index & places.wrapping_sub(1))
}

/// How many slots a table has, by its index.
#[inline(always)]
pub const fn table_slots(table: u32) -> u32 {
    if is_small(table) { SMALL_SLOTS as u32 } else { SLOTS as u32 }
}
