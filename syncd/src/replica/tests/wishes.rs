//! What directors tell each other of their files, and what they wish.

use super::*;

fn definitions_told(cluster: &Cluster, node: usize) -> Vec<Arc<Definitions>> {
    let told = |event: &Event| match event {
        Event::Definitions { definitions, .. } => Some(Arc::clone(definitions)),
        _ => None,
    };
    cluster.nodes[node].events.iter().filter_map(told).collect()
}

#[test]
fn what_another_director_has_configured_is_fetched_where_it_differs_and_once() {
    let mut cluster = agreed(50, 3);
    // Half of the questions and answers are lost.
    cluster.weather.loss = 50;
    cluster.with(1, |replica, now| replica.handle(now, configured(1)));
    cluster.run_for(60 * SECOND);
    let text = |definitions: &Definitions| definitions["web"].to_string();
    let told = definitions_told(&cluster, 0);
    assert_eq!(told.iter().map(|told| text(told)).collect::<Vec<_>>(), ["name = 1"]);
    assert_eq!(definitions_told(&cluster, 2).len(), 1);
    assert_eq!(definitions_told(&cluster, 1).len(), 2, "the others' are empty, and told");
    // More than one window of pieces.
    let large: Arc<str> = "x".repeat(1 << 20).into();
    let large: Definitions = (0..3).map(|number| (number.to_string(), Arc::clone(&large))).collect();
    let definitions = Arc::new(large.clone());
    cluster.with(1, |replica, now| {
        replica.handle(now, Input::Configured { digest: Digest([2; 32]), definitions });
    });
    cluster.weather.loss = 20;
    cluster.run_for(60 * SECOND);
    assert_eq!(definitions_told(&cluster, 0).last().map(|told| **told == large), Some(true));
}

#[test]
fn a_wish_of_any_director_is_in_force_everywhere_by_one_epoch() {
    for wisher in 0..3 {
        let mut cluster = agreed(51, 3);
        let before = cluster.replica(0).version().expect("tables");
        cluster.wish(wisher, 4711);
        cluster.run_until(5 * SECOND, "told", |cluster| !cluster.nodes[wisher].outcomes.is_empty());
        let outcome = cluster.nodes[wisher].outcomes[0].clone().expect("nobody minds");
        assert_eq!(outcome.epoch.number, before.epoch.number + 1);
        cluster.run_until(SECOND, "everywhere", |cluster| cluster.forwards_by(outcome.epoch));
        // Once more: it is in force already.
        cluster.wish(wisher, 4711);
        cluster.run_until(5 * SECOND, "told", |cluster| cluster.nodes[wisher].outcomes.len() == 2);
        assert_eq!(cluster.nodes[wisher].outcomes[1], Ok(outcome));
    }
}

#[test]
fn a_wish_that_a_serving_director_refuses_changes_nothing_and_names_it() {
    let mut cluster = agreed(52, 3);
    let before = cluster.replica(0).version();
    cluster.nodes[2].refuses = Refuses::ToLoad;
    cluster.wish(1, 4711);
    cluster.run_until(5 * SECOND, "told", |cluster| !cluster.nodes[1].outcomes.is_empty());
    let reason = cluster.nodes[1].outcomes[0].clone().expect_err("refused");
    assert_eq!(reason, format!("{}: no room", id(2)));
    cluster.nodes[2].refuses = Refuses::Nothing;
    cluster.run_for(2 * SECOND);
    assert!(cluster.agrees() && cluster.replica(0).version() == before, "{}", cluster.describe());
}

#[test]
fn a_wish_that_a_director_cannot_put_in_force_is_put_back_everywhere() {
    for guilty in 0..3 {
        let mut cluster = agreed(53, 3);
        let before = cluster.replica(0).tables().expect("tables").services.clone();
        cluster.nodes[guilty].refuses = Refuses::ToApply;
        cluster.wish(1, 4711);
        cluster.run_until(8 * SECOND, "told", |cluster| !cluster.nodes[1].outcomes.is_empty());
        let reason = cluster.nodes[1].outcomes[0].clone().expect_err("not in force");
        assert_eq!(reason, format!("{}: no room", id(guilty)));
        cluster.nodes[guilty].refuses = Refuses::Nothing;
        cluster.run_until(10 * SECOND, "put back", |cluster| {
            let tables = cluster.replica(0).tables().expect("tables");
            cluster.agrees() && tables.services == before
        });
        let definition = &cluster.replica(2).tables().expect("tables").services["web"].definition;
        assert_eq!(*definition, before["web"].definition);
    }
}

#[test]
fn a_wish_outlives_the_leader_that_was_asked() {
    let mut cluster = agreed(54, 3);
    // The leader hears the wish, and nobody hears the leader.
    cluster.stalled.extend([(0, 1), (0, 2)]);
    cluster.wish(2, 4711);
    cluster.run_for(SECOND);
    assert!(cluster.nodes[2].outcomes.is_empty());
    cluster.crash(0);
    cluster.run_until(15 * SECOND, "told", |cluster| !cluster.nodes[2].outcomes.is_empty());
    let version = cluster.nodes[2].outcomes[0].clone().expect("the next leader carries it out");
    assert_eq!(cluster.replica(2).version(), Some(version));
    assert_eq!(cluster.replica(1).version(), Some(version));
}
