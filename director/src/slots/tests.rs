use std::net::Ipv4Addr;

use director_proto::tables::{NO_REAL, SLOTS, SMALL_SLOTS, ServiceTable};
use proptest::prelude::*;

use super::{Member, Scheduler, counts, deal, share_moved};

fn member(number: u8, weight: u32) -> Member {
    Member { address: Ipv4Addr::new(10, 0, 2, number).into(), port: 80, weight, dead: false }
}

fn owner(table: &ServiceTable, slot: usize) -> Option<&director_proto::tables::TableReal> {
    table.reals.get(usize::from(table.slots[slot]))
}

/// Greatest distance of a count from the weighted ideal, in slots.
fn deviation(table: &ServiceTable) -> f64 {
    let total: f64 = table.reals.iter().map(|real| f64::from(real.weight)).sum();
    counts(table)
        .iter()
        .zip(&table.reals)
        .map(|(count, real)| (*count as f64 - f64::from(real.weight) * SLOTS as f64 / total).abs())
        .fold(0.0, f64::max)
}

fn members() -> impl Strategy<Value = Vec<Member>> {
    proptest::collection::btree_map(1u8..60, 1u32..200, 1..40)
        .prop_map(|map| map.into_iter().map(|(number, weight)| member(number, weight)).collect())
}

#[test]
fn no_server_of_positive_weight_leaves_every_slot_empty() {
    for scheduler in [Scheduler::Maglev, Scheduler::Ring] {
        for members in [vec![], vec![member(1, 0)]] {
            let table = deal(scheduler, SLOTS, None, &members);
            assert!(table.slots.iter().all(|slot| *slot == NO_REAL));
            let full = deal(scheduler, SLOTS, Some(&table), &[member(1, 1)]);
            assert!(full.slots.iter().all(|slot| owner(&full, usize::from(*slot)).is_some()));
            let empty = deal(scheduler, SLOTS, Some(&full), &members);
            assert!(empty.slots.iter().all(|slot| *slot == NO_REAL));
        }
    }
}

#[test]
fn a_position_is_reused_only_after_its_last_slot_has_gone() {
    let first = deal(Scheduler::Maglev, SLOTS, None, &[member(1, 1), member(2, 1)]);
    let second = deal(Scheduler::Maglev, SLOTS, Some(&first), &[member(2, 1), member(3, 1)]);
    assert_eq!(second.reals.len(), 3, "position of server 1 is still named by the table before");
    let third = deal(Scheduler::Maglev, SLOTS, Some(&second), &[member(2, 1), member(3, 1), member(4, 1)]);
    assert_eq!(third.reals.len(), 3);
    assert_eq!(third.reals[0].address, Ipv4Addr::new(10, 0, 2, 4));
}

#[test]
fn unwanted_positions_at_the_end_are_dropped_in_time() {
    let first = deal(Scheduler::Maglev, SLOTS, None, &[member(1, 1), member(2, 1)]);
    let second = deal(Scheduler::Maglev, SLOTS, Some(&first), &[member(1, 1)]);
    let third = deal(Scheduler::Maglev, SLOTS, Some(&second), &[member(1, 1)]);
    assert_eq!(third.reals.len(), 1);
    assert_eq!(share_moved(&second, &third), 0.0);
}

#[test]
fn another_scheduler_deals_anew() {
    let maglev = deal(Scheduler::Maglev, SLOTS, None, &[member(1, 1), member(2, 1)]);
    let ring = deal(Scheduler::Ring, SLOTS, Some(&maglev), &[member(1, 1), member(2, 1)]);
    assert_eq!(ring, deal(Scheduler::Ring, SLOTS, None, &[member(1, 1), member(2, 1)]));
}

#[test]
fn a_thousand_servers_share_evenly() {
    let members: Vec<Member> = (0..1000u16)
        .map(|n| Member {
            address: Ipv4Addr::from(0x0a00_0000 + u32::from(n)).into(),
            port: 80,
            weight: 1,
            dead: false,
        })
        .collect();
    let table = deal(Scheduler::Maglev, SLOTS, None, &members);
    assert!(deviation(&table) < 1.0);
    let fewer = deal(Scheduler::Maglev, SLOTS, Some(&table), &members[..999]);
    assert!(deviation(&fewer) < 1.0);
    let back = deal(Scheduler::Maglev, SLOTS, Some(&fewer), &members);
    assert!(deviation(&back) < 1.0);
}

/// The ring's own promise is weaker; this pins what is documented for it.
#[test]
fn the_ring_is_balanced_within_a_quarter() {
    let members: Vec<Member> = (1..=50).map(|n| member(n, 1)).collect();
    let table = deal(Scheduler::Ring, SLOTS, None, &members);
    let ideal = SLOTS as f64 / 50.0;
    assert!(deviation(&table) < ideal / 4.0, "off by {} of {ideal}", deviation(&table));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn seeding_is_within_one_slot_of_the_weights(members in members()) {
        let table = deal(Scheduler::Maglev, SLOTS, None, &members);
        prop_assert!(deviation(&table) < 1.0, "off by {}", deviation(&table));
        prop_assert!(table.slots.iter().all(|slot| usize::from(*slot) < members.len()));
    }

    #[test]
    fn equal_input_gives_equal_bytes_whatever_the_order(members in members(), ring: bool) {
        let scheduler = if ring { Scheduler::Ring } else { Scheduler::Maglev };
        let mut reversed = members.clone();
        reversed.reverse();
        let table = deal(scheduler, SLOTS, None, &members);
        prop_assert_eq!(table.digest(), deal(scheduler, SLOTS, None, &reversed).digest());
        let without = &members[members.len() / 2..];
        let mut reversed = without.to_vec();
        reversed.reverse();
        prop_assert_eq!(
            deal(scheduler, SLOTS, Some(&table), without).digest(),
            deal(scheduler, SLOTS, Some(&table), &reversed).digest()
        );
    }

    #[test]
    fn only_slots_of_a_leaving_server_move(members in members(), pick: prop::sample::Index, ring: bool) {
        prop_assume!(members.len() > 1);
        let scheduler = if ring { Scheduler::Ring } else { Scheduler::Maglev };
        let leaving = pick.get(&members).clone();
        let before = deal(scheduler, SLOTS, None, &members);
        let rest: Vec<Member> = members.iter().filter(|member| **member != leaving).cloned().collect();
        let after = deal(scheduler, SLOTS, Some(&before), &rest);
        // A ring whose heaviest server leaves may change its unit, and with it everybody's share.
        let unit = |members: &[Member]| members.iter().map(|member| member.weight.ilog2()).max();
        prop_assume!(!ring || unit(&members) == unit(&rest));
        for slot in 0..SLOTS {
            let old = owner(&before, slot).expect("dealt");
            let new = owner(&after, slot).expect("dealt");
            if old.address == leaving.address {
                prop_assert_ne!(new.address, leaving.address);
            } else {
                prop_assert_eq!(old.address, new.address);
            }
        }
    }

    #[test]
    fn slots_move_only_to_a_server_that_comes(members in members(), weight in 1u32..200) {
        let comer = member(200, weight);
        let before = deal(Scheduler::Maglev, SLOTS, None, &members);
        let mut more = members.clone();
        more.push(comer.clone());
        let after = deal(Scheduler::Maglev, SLOTS, Some(&before), &more);
        for slot in 0..SLOTS {
            let (old, new) = (owner(&before, slot).expect("dealt"), owner(&after, slot).expect("dealt"));
            prop_assert!(new.address == comer.address || new.address == old.address);
        }
        prop_assert!(deviation(&after) <= 1.0, "off by {}", deviation(&after));
    }

    /// Over a whole history of arrivals, departures and weight changes: no slot ever moves between two
    /// servers that the step does not concern, and shares stay near the weights.
    #[test]
    fn histories_move_nothing_without_cause(
        start in members(),
        steps in proptest::collection::vec((1u8..60, 0u32..200), 1..12),
    ) {
        let mut now: std::collections::BTreeMap<u8, u32> = start
            .iter()
            .map(|member| match member.address {
                std::net::IpAddr::V4(address) => (address.octets()[3], member.weight),
                std::net::IpAddr::V6(_) => unreachable!(),
            })
            .collect();
        let mut table = deal(Scheduler::Maglev, SLOTS, None, &start);
        for (number, weight) in steps {
            let before = now.get(&number).copied().unwrap_or(0);
            if weight == 0 { now.remove(&number); } else { now.insert(number, weight); }
            if now.is_empty() { break; }
            let members: Vec<Member> = now.iter().map(|(number, weight)| member(*number, *weight)).collect();
            let next = deal(Scheduler::Maglev, SLOTS, Some(&table), &members);
            let concerned = member(number, 0).address;
            for slot in 0..SLOTS {
                let (old, new) = (owner(&table, slot).expect("dealt"), owner(&next, slot).expect("dealt"));
                if old.address != new.address {
                    let party = if weight > before { new.address } else { old.address };
                    prop_assert_eq!(party, concerned);
                }
            }
            prop_assert!(deviation(&next) < 2.0, "off by {}", deviation(&next));
            table = next;
        }
    }
}

#[test]
fn a_small_table_is_dealt_evenly_and_changed_minimally_like_a_large_one() {
    for scheduler in [Scheduler::Maglev, Scheduler::Ring] {
        let members: Vec<Member> = (1..=5).map(|number| member(number, 1)).collect();
        let full = deal(scheduler, SMALL_SLOTS, None, &members);
        assert_eq!(full.slots.len(), SMALL_SLOTS);
        let without = deal(scheduler, SMALL_SLOTS, Some(&full), &members[1..]);
        for slot in 0..SMALL_SLOTS {
            let (before, after) = (owner(&full, slot), owner(&without, slot));
            assert!(after.is_some());
            assert!(before == after || before.is_some_and(|real| real.address == members[0].address));
        }
        if scheduler == Scheduler::Maglev {
            let counts: Vec<usize> = counts(&without).into_iter().filter(|count| *count > 0).collect();
            assert!(counts.iter().all(|count| count.abs_diff(SMALL_SLOTS / 4) <= 1), "{counts:?}");
        }
        // Another size starts anew.
        assert_eq!(deal(scheduler, SLOTS, Some(&full), &members), deal(scheduler, SLOTS, None, &members));
    }
}
