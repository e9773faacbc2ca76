extern crate std;
use std::vec::Vec;

use proptest::prelude::*;

use super::wheel::turn;
use super::*;
use crate::tables::{Address, Roster};

fn server(weight: u32, active: u32, inactive: u32) -> Server {
    Server { weight, active, inactive, overloaded: 0 }
}

fn order(weights: &[u32]) -> Vec<u16> {
    Wheel::new(weights).entries().map(|(place, _)| place).collect()
}

#[test]
fn heavier_servers_have_their_turns_first_and_a_turn_is_as_long_as_the_weights() {
    assert_eq!(order(&[1, 1, 1]), [0, 1, 2]);
    assert_eq!(order(&[1, 3]), [1, 1, 0, 1]);
    assert_eq!(order(&[4, 2, 6]), [2, 0, 2, 0, 1, 2], "by their common divisor");
    assert_eq!(order(&[0, 5]), [1]);
    assert_eq!(order(&[0, 0]), [0; 0]);
    assert_eq!(order(&[]), [0; 0]);
}

#[test]
fn light_servers_have_an_entry_each_of_a_turn_that_is_scaled_down() {
    for (heavy, light) in [(8, 60), (1, 4_000), (63, 1), (4_000, 96), (1, 4_095)] {
        let weights = [std::vec![1_000; heavy], std::vec![1; light]].concat();
        assert!(!Wheel::new(&weights).is_exact());
        let order = order(&weights);
        assert!((MAX_WHEEL - heavy..=MAX_WHEEL).contains(&order.len()), "{heavy}, {light}: {}", order.len());
        let mut turns = std::vec![0; weights.len()];
        order.iter().for_each(|place| turns[usize::from(*place)] += 1);
        let each = (MAX_WHEEL - light) / heavy;
        assert!(turns[..heavy].iter().all(|turns| *turns == each), "{heavy}, {light}");
        assert!(turns[heavy..].iter().all(|turns| *turns == 1), "{heavy}, {light}");
    }
}

#[test]
fn of_more_servers_than_entries_each_has_one_at_most() {
    for weights in [std::vec![1; MAX_WHEEL + 5], [std::vec![1_000], std::vec![1; MAX_WHEEL]].concat()] {
        let mut wheel = [0; MAX_WHEEL];
        assert_eq!(Wheel::new(&weights).fill(&mut wheel) as usize, MAX_WHEEL);
        assert!((0..).zip(wheel).all(|(place, entry)| place == entry));
    }
}

#[test]
fn a_change_goes_on_at_the_level_that_was() {
    let wheel = Wheel::new(&[1, 3]);
    assert_eq!([0, 1, 4, 3].map(|level| wheel.adopt(Level(level)).0), [3, 1, 3, 3]);
    assert_eq!([3, 2, 1].map(|level| wheel.begin(Level(level))), [0, 1, 2]);
    assert_eq!(Wheel::new(&[4, 2, 6]).adopt(Level(3)), Level(3));
    assert_eq!(Wheel::new(&[4, 2, 6]).top(), Level(5));
}

#[test]
fn methods_weigh_connections_as_ipvs_does() {
    use Method::*;
    let pool = [server(1, 1, 0), server(4, 2, 100), server(2, 0, 300), server(0, 0, 0)];
    for (method, expected) in [
        (LeastConnection, 0),
        (WeightedLeastConnection, 2),
        (ShortestExpectedDelay, 2),
        (NeverQueue, 2),
        (Failover, 1),
        (Overflow, 1),
    ] {
        assert_eq!(least(method, &pool[..], &Scan::default()), expected, "{method:?}");
    }
    assert_eq!(
        least(Overflow, &[server(2, 3, 0), server(1, 1, 0)][..], &Scan::default()),
        1,
        "its weight is its room"
    );
    assert_eq!(least(LeastConnection, &[server(0, 0, 0)][..], &Scan::default()), u32::MAX);
    let overloaded = Server { overloaded: 1, ..server(9, 0, 0) };
    for method in Method::ALL {
        assert_eq!(least(method, &[overloaded, server(1, 1, 1)][..], &Scan::default()), 1, "{method:?}");
    }
}

#[test]
fn a_server_is_overloaded_from_its_upper_threshold_to_its_lower_one() {
    let plain = Thresholds { upper: 8, lower: 0 };
    assert!(plain.after_arrival(false, 8) && !plain.after_arrival(false, 7) && plain.after_arrival(true, 7));
    assert!(plain.after_departure(true, 6) && !plain.after_departure(true, 5));
    let lower = Thresholds { upper: 8, lower: 2 };
    assert!(lower.after_departure(true, 2) && !lower.after_departure(true, 1));
    assert!(!Thresholds::default().after_arrival(false, u64::MAX));
    assert!(!plain.after_change(&Thresholds { upper: 9, lower: 0 }, true));
    assert!(plain.after_change(&Thresholds { upper: 8, lower: 3 }, true));
}

#[test]
fn a_turn_gets_past_any_number_of_overloaded_servers() {
    let mut roster = Roster { count: 64, sorry: 900, ..Roster::EMPTY };
    roster.length = Wheel::new(&[1; 200]).fill(&mut roster.wheel);
    (0..).zip(&mut roster.candidates).for_each(|(at, entry)| *entry = at);
    // Everybody but the last one is.
    let load = |position| Some(Server { overloaded: u32::from(position != 199), ..server(1, 0, 0) });
    for method in [Method::RoundRobin, Method::WeightedRoundRobin] {
        let mut cursor = 0;
        let chosen: Vec<u32> = (0..8)
            .map(|_| {
                let (position, moves) = choose(method, &roster, cursor, [0, 0], &Scan::default(), load);
                cursor += u64::from(moves);
                position
            })
            .collect();
        assert_eq!(chosen, [900, 900, 900, 199, 900, 900, 900, 199], "{method:?}");
    }
    // Of few servers none is left out, and the turn stays where it is.
    let few = Roster { length: 3, ..roster };
    assert_eq!(choose(Method::RoundRobin, &few, 1, [0, 0], &Scan::default(), load), (900, 0));
}

#[test]
fn names_lead_back_to_their_method() {
    for method in Method::ALL {
        assert_eq!(Method::from_name(method.name()), Some(method));
    }
    assert_eq!(Method::from_name("mh"), None);
}

#[test]
fn maglev_gives_every_entry_to_somebody_by_weight() {
    let members: Vec<maglev::Member> = (0..5)
        .map(|last| maglev::Member {
            address: Address::from_ipv4([10, 0, 2, last]),
            port: 80,
            weight: u32::from(last),
        })
        .collect();
    let (mut table, mut walks) = ([0; maglev::ENTRIES], [maglev::Walk::default(); 5]);
    maglev::deal(&members, &mut walks, &mut table);
    for (place, member) in (0..).zip(&members) {
        let share = table.iter().filter(|owner| **owner == place).count() as u32;
        assert!(share.abs_diff(maglev::ENTRIES as u32 * member.weight / 10) <= 4, "{place}: {share}");
    }
}

proptest! {
    #[test]
    fn every_server_has_its_share_of_a_turn(weights in prop::collection::vec(0_u32..500, 1..40)) {
        let mut wheel = [0; MAX_WHEEL];
        let length = Wheel::new(&weights).fill(&mut wheel) as usize;
        let total: u32 = weights.iter().sum();
        for (place, weight) in (0_u16..).zip(&weights) {
            let count = wheel[..length].iter().filter(|entry| **entry == place).count() as u64;
            prop_assert_eq!(count == 0, *weight == 0);
            let (ours, ideal) = (count * u64::from(total), u64::from(*weight) * length as u64);
            // Exact where the turn fits; else within one entry, and one for having one at all.
            let bound = if Wheel::new(&weights).is_exact() { 0 } else { 2 * u64::from(total) };
            prop_assert!(ours.abs_diff(ideal) <= bound, "{place}: {count} of {length}");
        }
    }

    #[test]
    fn who_is_passed_over_changes_nothing_for_the_others(
        weights in prop::collection::vec(1_u32..9, 2..9),
        busy in any::<prop::sample::Index>(),
    ) {
        let busy = busy.index(weights.len());
        let mut pool: Vec<Server> = weights.iter().map(|weight| server(*weight, 0, 0)).collect();
        let wheel = order(&weights);
        let expected: Vec<u16> = wheel.iter().copied().filter(|place| usize::from(*place) != busy).collect();
        pool[busy].overloaded = 1;
        let mut cursor = 0;
        let turns: Vec<u16> =
            (0..expected.len()).map(|_| turn(&wheel, &mut cursor, &pool[..]) as u16).collect();
        prop_assert_eq!(turns, expected);
    }
}
