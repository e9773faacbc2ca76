use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::tables::{Epoch, SLOTS};

fn table(reals: u8, salt: u16) -> ServiceTable {
    let real =
        |index| TableReal { address: IpAddr::from([10, 0, 0, index]), port: 80, weight: 1, dead: false };
    let count = u16::from(reals);
    let slots = (0u16..=u16::MAX).chain([0]).map(|slot| (slot ^ salt) % count).collect();
    ServiceTable {
        scheduler: "mh".into(),
        reals: (0..reals).map(real).collect(),
        slots,
        definition: "".into(),
    }
}

fn set(number: u64, services: impl IntoIterator<Item = (&'static str, ServiceTable)>) -> TableSet {
    TableSet {
        epoch: Epoch { number, leader: Ipv4Addr::new(10, 0, 0, 1) },
        hash_key: [7; 16],
        services: services.into_iter().map(|(name, table)| (name.to_owned(), table)).collect(),
    }
}

fn between(old: &TableSet, new: &TableSet) -> Delta {
    Delta::between((old, old.version()), (new, new.version())).expect("same key")
}

#[test]
fn delta_carries_added_changed_and_removed_services() {
    let old = set(1, [("web", table(3, 0)), ("dns", table(2, 0))]);
    let mut web = table(3, 0);
    web.slots[17] = 2;
    web.slots[65_536] = 1;
    let new = set(2, [("web", web), ("mail", table(4, 1))]);
    let delta = between(&old, &new);
    assert!(delta.patched["web"].slots.len() <= 2, "only what changed travels");
    assert_eq!(delta.apply(&old, old.version()), Ok(new));
}

#[test]
fn another_key_needs_a_snapshot() {
    let old = set(1, []);
    let new = TableSet { hash_key: [8; 16], ..set(2, []) };
    assert_eq!(Delta::between((&old, old.version()), (&new, new.version())), None);
}

#[test]
fn delta_of_another_base_is_refused() {
    let (old, new) = (set(1, []), set(2, [("web", table(1, 0))]));
    let error = between(&old, &new).apply(&new, new.version());
    assert!(matches!(error, Err(DeltaError::OtherBase { .. })), "{error:?}");
}

#[test]
fn corrupted_delta_is_noticed_by_the_digest() {
    let old = set(1, [("web", table(3, 0))]);
    let mut web = table(3, 0);
    web.slots[17] ^= 1;
    let new = set(2, [("web", web)]);
    let mut delta = between(&old, &new);
    delta.patched.get_mut("web").expect("patched").slots[0].1 ^= 3;
    assert!(matches!(delta.apply(&old, old.version()), Err(DeltaError::OtherResult { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn applying_the_difference_gives_the_new_tables(
        counts in prop::array::uniform4(1u8..9),
        changes in prop::collection::vec((0usize..SLOTS, 0u16..9), 0..200),
        grown in any::<bool>(),
    ) {
        let old = set(3, [("a", table(counts[0], 0)), ("b", table(counts[1], 0))]);
        let mut changed = table(counts[0], 0);
        for (slot, position) in changes {
            changed.slots[slot] = position % u16::from(counts[0]);
        }
        let other = if grown { ("c", table(counts[2], 0)) } else { ("b", table(counts[3], 1)) };
        let new = set(4, [("a", changed), other]);
        prop_assert_eq!(between(&old, &new).apply(&old, old.version()), Ok(new));
    }
}
