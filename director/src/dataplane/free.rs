//! What of the kernel's maps is not taken. Worked out once for each change: nothing becomes free while it runs.

use director_common::SMALL_SLOTS;
use director_common::tables::{MAX_REALS, MAX_SERVICES, MAX_TABLES, SMALL_TABLE};
use std::collections::BTreeSet;

use super::plan::{Block, Plan};

/// Smallest block of real servers, and what every block's size is a multiple of: room to grow in place.
const BLOCK: u32 = 4;

/// Numbers that are not taken, from the lowest.
#[derive(Debug, Default)]
struct Numbers {
    taken: BTreeSet<u32>,
    next: u32,
    end: u32,
}

impl Numbers {
    fn new(taken: impl Iterator<Item = u32>, end: usize) -> Self {
        Self { taken: taken.collect(), next: 0, end: u32::try_from(end).unwrap_or(u32::MAX) }
    }

    fn take(&mut self) -> Option<u32> {
        let number = (self.next..self.end).find(|number| !self.taken.contains(number))?;
        self.next = number.saturating_add(1);
        Some(number)
    }
}

/// Free service indices, slot tables and entries of the real-server map.
#[derive(Debug, Default)]
pub(super) struct Free {
    indices: Numbers,
    tables: Numbers,
    small_tables: Numbers,
    /// In order; the gaps between the blocks in use.
    gaps: Vec<Block>,
}

impl Free {
    /// What `plan` leaves.
    pub(super) fn of(plan: &Plan) -> Self {
        let named = plan.services.values().map(|placement| placement.index);
        let keyed = plan.keys.iter().filter(|(key, _)| !key.is_marker()).map(|(_, entry)| entry.service);
        let tables = || {
            let used = plan.services.values().map(|placement| placement.table);
            used.chain(plan.retired_tables.iter().copied())
        };
        let small = |table: &u32| table & SMALL_TABLE != 0;
        let mut taken: Vec<Block> = plan.services.values().map(|placement| placement.block).collect();
        taken.extend(plan.retired_blocks.iter().map(|(block, _)| *block));
        Self {
            indices: Numbers::new(named.chain(keyed), MAX_SERVICES),
            tables: Numbers::new(tables().filter(|table| !small(table)), MAX_TABLES),
            small_tables: Numbers::new(tables().filter(small).map(|table| table & !SMALL_TABLE), MAX_TABLES),
            gaps: gaps(taken),
        }
    }

    /// A service index.
    pub(super) fn index(&mut self) -> Option<u32> {
        self.indices.take()
    }

    /// A table for this many slots.
    pub(super) fn table(&mut self, slots: usize) -> Option<u32> {
        if slots == SMALL_SLOTS {
            self.small_tables.take().map(|place| place | SMALL_TABLE)
        } else {
            self.tables.take()
        }
    }

    /// A block for this many real servers: of the first gap that holds it.
    pub(super) fn block(&mut self, reals: usize) -> Option<Block> {
        let count = u32::try_from(reals).ok()?.max(1).checked_next_multiple_of(BLOCK)?;
        let place = self.gaps.iter().position(|gap| gap.count >= count)?;
        let gap = self.gaps.get_mut(place)?;
        let block = Block { base: gap.base, count };
        *gap = Block { base: gap.base + count, count: gap.count - count };
        if gap.count == 0 {
            self.gaps.remove(place);
        }
        Some(block)
    }
}

fn gaps(mut taken: Vec<Block>) -> Vec<Block> {
    taken.sort_unstable();
    taken.push(Block { base: MAX_REALS as u32, count: 0 });
    let mut base = 0_u32;
    let mut gaps = Vec::new();
    for block in taken {
        if block.base > base {
            gaps.push(Block { base, count: block.base - base });
        }
        base = base.max(block.base.saturating_add(block.count));
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fill_gaps_from_the_front_and_never_overlap() {
        let taken = [(4, 4), (16, 8)].map(|(base, count)| Block { base, count });
        let mut free = Free { gaps: gaps(taken.to_vec()), ..Free::default() };
        assert_eq!(free.block(5), Some(Block { base: 8, count: 8 }));
        assert_eq!(free.block(0), Some(Block { base: 0, count: 4 }));
        assert_eq!(free.block(1), Some(Block { base: 24, count: 4 }));
        assert_eq!(free.block(MAX_REALS - 28), Some(Block { base: 28, count: MAX_REALS as u32 - 28 }));
        assert_eq!(free.block(1), None);
    }

    #[test]
    fn tables_of_both_sizes_are_numbered_apart() {
        let mut free = Free { tables: Numbers::new([0, 2].into_iter(), 4), ..Free::default() };
        free.small_tables = Numbers::new(std::iter::empty(), 1);
        assert_eq!(free.table(65_537), Some(1));
        assert_eq!(free.table(65_537), Some(3));
        assert_eq!(free.table(65_537), None);
        assert_eq!(free.table(4_093), Some(SMALL_TABLE));
        assert_eq!(free.table(4_093), None);
    }
}
