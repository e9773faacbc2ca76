use std::time::Duration;

use director_proto::definitions::Definitions;
use director_proto::health::{Health, RealId};
use director_proto::sync::{BootId, Message, PROTOCOL, Phase};
use director_proto::tables::Digest;

use super::simulation::{Cluster, Refuses, Weather, id, real, services};
use super::*;

mod wishes;

const SECOND: Duration = Duration::from_secs(1);

fn agreed(seed: u64, size: usize) -> Cluster {
    let mut cluster = Cluster::new(seed, size);
    cluster.start_all();
    cluster.run_until(5 * SECOND, "agreement", Cluster::agrees);
    // Everybody knows that everybody agrees.
    cluster.run_for(SECOND / 2);
    cluster
}

fn propose(cluster: &mut Cluster, node: usize, salt: u64) -> Result<Epoch, ProposeError> {
    cluster.with(node, |replica, now| replica.propose(now, services(salt), [0; 16], "a test".into()))
}

fn events(cluster: &Cluster, node: usize, wanted: fn(&Event) -> bool) -> usize {
    cluster.nodes[node].events.iter().filter(|event| wanted(event)).count()
}

#[test]
fn a_director_alone_seeds_after_the_grace_time_and_not_before() {
    let mut cluster = Cluster::new(1, 2);
    cluster.start(0);
    cluster.run_for(Duration::from_millis(2990));
    assert_eq!(cluster.replica(0).standing(), Standing::Joining);
    cluster.run_for(Duration::from_millis(20));
    assert_eq!(cluster.replica(0).standing(), Standing::Current);
}

#[test]
fn a_director_that_is_refused_and_heard_by_nobody_does_not_seed() {
    let mut cluster = Cluster::new(1, 2);
    cluster.start(0);
    cluster.with(0, |replica, now| replica.handle(now, Input::Refused(true)));
    cluster.run_for(Duration::from_secs(10));
    assert_eq!(cluster.replica(0).standing(), Standing::Joining);
    cluster.with(0, |replica, now| replica.handle(now, Input::Refused(false)));
    cluster.run_for(Duration::from_millis(20));
    assert_eq!(cluster.replica(0).standing(), Standing::Current);
}

#[test]
fn a_director_that_is_refused_by_one_seeds_with_another() {
    let mut cluster = Cluster::new(2, 3);
    cluster.start(0);
    cluster.start(1);
    cluster.with(0, |replica, now| replica.handle(now, Input::Refused(true)));
    cluster.run_until(5 * SECOND, "agreement", Cluster::agrees);
}

#[test]
fn directors_that_all_meet_do_not_wait_for_the_grace_time() {
    let mut cluster = Cluster::new(2, 3);
    cluster.start_all();
    cluster.run_until(SECOND, "agreement", Cluster::agrees);
    assert_eq!(cluster.replica(2).leader(), Some(id(0)), "the lowest router id leads");
    let epoch = Epoch { number: 1, leader: id(0) };
    assert_eq!(cluster.replica(2).version().map(|version| version.epoch), Some(epoch));
    let asked: Vec<usize> = (0..3)
        .map(|node| events(&cluster, node, |event| matches!(event, Event::NeedTables { .. })))
        .collect();
    assert_eq!(asked, [1, 0, 0], "one director seeds");
}

#[test]
fn a_joiner_is_not_current_before_it_holds_the_tables() {
    let mut cluster = Cluster::new(3, 3);
    cluster.start(1);
    cluster.start(2);
    cluster.run_until(5 * SECOND, "seeded by two", Cluster::agrees);
    let version = cluster.replica(1).version();
    cluster.start(0);
    assert_eq!(cluster.replica(0).standing(), Standing::Joining);
    cluster.run_until(SECOND, "joined", Cluster::agrees);
    assert_eq!(cluster.replica(0).version(), version, "the joiner takes the tables there are");
    assert_eq!(events(&cluster, 0, |event| matches!(event, Event::NeedTables { .. })), 0);
    assert_eq!(cluster.replica(1).leader(), Some(id(0)), "and leads once it holds them");
}

#[test]
fn a_change_reaches_everybody_as_a_delta() {
    let mut cluster = agreed(4, 3);
    cluster.nodes.iter_mut().for_each(|node| node.sent.clear());
    let epoch = propose(&mut cluster, 0, 77).expect("the leader proposes");
    cluster.run_until(SECOND / 2, "the change", |cluster| cluster.forwards_by(epoch));
    let sent = cluster.nodes.iter().flat_map(|node| &node.sent);
    assert_eq!(sent.filter(|(_, message)| matches!(message, Message::Chunk(_))).count(), 0);
    assert!([1, 2].iter().all(|node| !cluster.replica(0).awaits(id(*node))));
    for node in 0..3 {
        assert_eq!(events(&cluster, node, |event| matches!(event, Event::Finished { .. })), 1);
    }
}

#[test]
fn proposing_what_is_in_force_changes_nothing() {
    let mut cluster = agreed(5, 2);
    let epoch = propose(&mut cluster, 0, 5).expect("leader");
    assert_eq!(propose(&mut cluster, 0, 5), Ok(epoch));
}

#[test]
fn only_the_leader_proposes_and_the_refusal_names_it() {
    let mut cluster = agreed(6, 3);
    assert_eq!(propose(&mut cluster, 2, 6), Err(ProposeError::NotLeader { leader: id(0) }));
}

#[test]
fn a_joining_director_cannot_propose() {
    let mut cluster = Cluster::new(7, 2);
    cluster.start(0);
    assert_eq!(propose(&mut cluster, 0, 7), Err(ProposeError::Joining));
}

#[test]
fn unusable_tables_are_refused() {
    let mut cluster = agreed(8, 2);
    let mut wrong = services(1);
    wrong.get_mut("web").expect("service").slots = vec![0; 7].into();
    let result = cluster.with(0, |replica, now| replica.propose(now, wrong, [0; 16], String::new()));
    assert!(matches!(result, Err(ProposeError::Tables(_))), "{result:?}");
}

#[test]
fn a_lost_step_is_repeated() {
    let mut cluster = agreed(9, 2);
    cluster.weather.loss = 100;
    let epoch = propose(&mut cluster, 0, 9).expect("leader");
    assert!(cluster.replica(0).awaits(id(1)));
    cluster.weather.loss = 0;
    cluster.run_until(SECOND, "repaired", |cluster| cluster.forwards_by(epoch));
}

#[test]
fn a_step_that_comes_twice_is_answered_twice_and_done_once() {
    let mut cluster = agreed(20, 2);
    propose(&mut cluster, 0, 9).expect("leader");
    let prepare = cluster.nodes[0].sent.last().expect("a step").1.clone();
    let hello = cluster.replica(0).hello();
    let (from, boot_id) = (hello.router_id, hello.boot_id);
    cluster.run_until(SECOND, "loaded", |cluster| cluster.replica(1).phase() == Phase::Prepared);
    let Message::Prepare(step) = &prepare else { panic!("{prepare:?}") };
    let answer = (id(0), Message::Prepared(step.to));
    cluster.nodes[1].sent.clear();
    for _ in 0..2 {
        let message = prepare.clone();
        cluster.with(1, |replica, now| replica.handle(now, Input::Message { from, boot_id, message }));
    }
    assert_eq!(cluster.nodes[1].sent, [answer.clone(), answer]);
    assert_eq!(events(&cluster, 1, |event| matches!(event, Event::Prepare { .. })), 1);
}

#[test]
fn a_heartbeat_that_was_overtaken_changes_nothing() {
    let mut cluster = agreed(21, 2);
    let hello = cluster.replica(1).hello();
    let report = cluster.with(1, |replica, _| replica.report());
    let epoch = propose(&mut cluster, 0, 10).expect("leader");
    cluster.run_until(SECOND, "the change", |cluster| cluster.forwards_by(epoch));
    let (from, boot_id) = (hello.router_id, hello.boot_id);
    cluster.with(0, |replica, now| replica.handle(now, Input::Report { from, boot_id, report }));
    let known = cluster.replica(0).members().next().and_then(|(_, member)| member.tables());
    assert_eq!(known, cluster.replica(0).version());
}

#[test]
fn a_step_of_a_director_that_does_not_lead_is_answered_by_abort() {
    let mut cluster = agreed(22, 3);
    cluster.weather.loss = 100;
    propose(&mut cluster, 0, 9).expect("leader");
    let message = cluster.nodes[0].sent.last().expect("a step").1.clone();
    let hello = cluster.replica(1).hello();
    let (from, boot_id) = (hello.router_id, hello.boot_id);
    cluster.nodes[2].sent.clear();
    cluster.with(2, |replica, now| replica.handle(now, Input::Message { from, boot_id, message }));
    assert!(matches!(cluster.nodes[2].sent[..], [(to, Message::Abort(_))] if to == from));
    assert_eq!(cluster.replica(2).prepared(), None);
}

#[test]
fn a_corrupted_step_leads_to_a_snapshot() {
    let mut cluster = agreed(10, 2);
    cluster.weather.corruption = 100;
    let epoch = propose(&mut cluster, 0, 10).expect("leader");
    cluster.weather.corruption = 0;
    cluster.run_until(SECOND, "repaired", |cluster| cluster.forwards_by(epoch));
    assert_eq!(events(&cluster, 1, |event| matches!(event, Event::TransferFailed { .. })), 1);
    let asked = |(_, message): &(Ipv4Addr, Message)| matches!(message, Message::Request(_));
    assert!(cluster.nodes[1].sent.iter().any(asked));
}

#[test]
fn the_higher_epoch_wins_after_a_partition() {
    let mut cluster = Cluster::new(11, 4);
    cluster.isolation = Isolation::Serve;
    cluster.start_all();
    cluster.run_until(5 * SECOND, "agreement", Cluster::agrees);
    cluster.run_for(SECOND / 2);
    cluster.part(&[0, 1]);
    cluster.run_for(2 * SECOND);
    propose(&mut cluster, 0, 20).expect("leads its side");
    propose(&mut cluster, 2, 21).expect("leads the other");
    cluster.run_for(4 * SECOND);
    propose(&mut cluster, 2, 22).expect("leads the other");
    cluster.run_for(4 * SECOND);
    let winner = cluster.replica(2).version();
    cluster.cut.clear();
    cluster.run_until(2 * SECOND, "healed", Cluster::agrees);
    assert_eq!(cluster.replica(0).version(), winner);
    assert_eq!(cluster.replica(3).leader(), Some(id(0)), "any holder may lead again");
}

#[test]
fn a_director_that_cannot_follow_says_that_it_is_behind() {
    let mut cluster = agreed(12, 2);
    propose(&mut cluster, 0, 30).expect("leader");
    // Heartbeats arrive, nothing else does: the tables never come.
    let report = cluster.with(0, |replica, _| replica.report());
    let mut lonely = Cluster::new(12, 2);
    lonely.start(1);
    lonely.run_for(4 * SECOND);
    let hello = cluster.replica(0).hello();
    let higher = Report {
        tables: report.tables.map(|version| Version {
            epoch: Epoch { number: version.epoch.number + 5, ..version.epoch },
            ..version
        }),
        ..report
    };
    lonely.with(1, |replica, now| replica.admit(now, &hello)).expect("admitted");
    let (from, boot_id) = (hello.router_id, hello.boot_id);
    for _ in 0..8 {
        let report = higher.clone();
        lonely.with(1, |replica, now| replica.handle(now, Input::Report { from, boot_id, report }));
        lonely.run_for(Duration::from_millis(200));
    }
    assert_eq!(lonely.replica(1).standing(), Standing::Behind);
    assert_eq!(events(&lonely, 1, |event| matches!(event, Event::TablesDiffer { .. })), 1, "told once");
    assert_eq!(lonely.replica(1).leader(), Some(id(0)));
}

#[test]
fn two_contents_under_one_epoch_are_seen_and_settled() {
    let mut cluster = Cluster::new(13, 2);
    cluster.disks_may_fail = true;
    // The first seeds alone and lends its epoch to the second, then loses its disk and seeds the same epoch.
    cluster.start(0);
    cluster.run_for(4 * SECOND);
    cluster.start(1);
    cluster.run_until(SECOND, "joined", Cluster::agrees);
    cluster.part(&[0]);
    cluster.crash(0);
    cluster.nodes[0].disk = None;
    cluster.start(0);
    cluster.run_for(4 * SECOND);
    let epoch = |cluster: &Cluster, node: usize| cluster.replica(node).version().map(|version| version.epoch);
    assert_eq!(epoch(&cluster, 0), epoch(&cluster, 1));
    cluster.cut.clear();
    cluster
        .run_until(SECOND, "divergence seen", |cluster| cluster.replica(1).standing() == Standing::Diverged);
    cluster.run_until(2 * SECOND, "settled", Cluster::agrees);
    assert_eq!(epoch(&cluster, 1), Some(Epoch { number: 2, leader: id(0) }), "one of the two speaks");
}

#[test]
fn a_cluster_that_restarts_as_a_whole_comes_back_with_the_highest_tables_from_disk() {
    let mut cluster = agreed(14, 3);
    cluster.crash(1);
    cluster.run_for(2 * SECOND);
    let epoch = propose(&mut cluster, 0, 40).expect("leader");
    cluster.run_until(4 * SECOND, "agreement of two", |cluster| cluster.forwards_by(epoch));
    let version = cluster.replica(0).version();
    cluster.crash(0);
    cluster.crash(2);
    cluster.start_all();
    cluster.run_until(SECOND, "agreement", Cluster::agrees);
    assert_eq!(cluster.replica(1).version(), version);
}

#[test]
fn a_restarted_director_with_the_same_tables_on_disk_needs_no_snapshot() {
    let mut cluster = agreed(15, 2);
    let version = cluster.replica(0).version();
    cluster.crash(1);
    cluster.nodes[0].sent.clear();
    cluster.start(1);
    cluster.run_until(SECOND, "rejoined", Cluster::agrees);
    assert_eq!(cluster.replica(1).version(), version);
    assert!(!cluster.nodes[0].sent.iter().any(|(_, message)| matches!(message, Message::Chunk(_))));
}

#[test]
fn a_silent_peer_is_taken_for_dead_and_leadership_passes() {
    let mut cluster = agreed(16, 3);
    cluster.crash(0);
    cluster.run_for(Duration::from_millis(1300));
    assert_eq!(events(&cluster, 1, |event| matches!(event, Event::PeerDown { .. })), 1);
    assert_eq!(cluster.replica(2).leader(), Some(id(1)));
    propose(&mut cluster, 1, 50).expect("the next one leads");
}

#[test]
fn a_source_that_dies_during_a_snapshot_is_left_for_another() {
    let mut cluster = Cluster::new(17, 3);
    cluster.start(0);
    cluster.start(1);
    cluster.run_until(5 * SECOND, "seeded", Cluster::agrees);
    cluster.weather = Weather { longest_delay_ms: 1, ..Weather::default() };
    cluster.start(2);
    cluster.run_until(SECOND, "the joiner asks", |cluster| !cluster.nodes[2].sent.is_empty());
    let source = usize::from(cluster.nodes[2].sent[0].0 == id(1));
    cluster.crash(source);
    cluster.run_until(5 * SECOND, "joined", Cluster::agrees);
    assert_eq!(cluster.replica(2).leader(), Some(id(1 - source)));
}

#[test]
fn a_source_that_never_answers_is_left_for_another() {
    let mut cluster = Cluster::new(23, 3);
    cluster.start(0);
    cluster.start(1);
    cluster.run_until(5 * SECOND, "seeded", Cluster::agrees);
    cluster.stalled.insert((0, 2));
    cluster.cut.insert((1, 2));
    cluster.start(2);
    cluster.run_until(SECOND, "the joiner asks the only one it hears", |cluster| {
        !cluster.nodes[2].sent.is_empty()
    });
    cluster.cut.clear();
    cluster.run_until(5 * SECOND, "joined", Cluster::agrees);
    assert_eq!(events(&cluster, 2, |event| matches!(event, Event::TransferFailed { .. })), 1);
}

fn configured(number: u8) -> Input {
    let text: Arc<str> = format!("name = {number}").into();
    let definitions = Arc::new(BTreeMap::from([("web".to_owned(), text)]));
    Input::Configured { digest: Digest([number; 32]), definitions }
}

#[test]
fn a_configuration_that_differs_is_told_once_per_change() {
    let mut cluster = agreed(18, 2);
    let differ = |event: &Event| matches!(event, Event::Configuration { same: false, .. });
    let agree = |event: &Event| matches!(event, Event::Configuration { same: true, .. });
    cluster.with(1, |replica, now| replica.handle(now, configured(1)));
    cluster.run_for(2 * SECOND);
    assert_eq!((events(&cluster, 0, differ), events(&cluster, 1, differ)), (1, 1));
    cluster.with(0, |replica, now| replica.handle(now, configured(1)));
    cluster.run_for(2 * SECOND);
    assert_eq!((events(&cluster, 0, agree), events(&cluster, 1, agree)), (1, 1));
}

#[test]
fn tables_above_a_discarded_candidate_get_a_number_of_their_own() {
    let mut cluster = Cluster::new(19, 3);
    cluster.isolation = Isolation::Serve;
    cluster.start_all();
    cluster.run_until(5 * SECOND, "agreement", Cluster::agrees);
    cluster.part(&[0]);
    cluster.run_for(2 * SECOND);
    let lost = propose(&mut cluster, 0, 60).expect("leads alone");
    cluster.run_for(4 * SECOND);
    cluster.crash(0);
    cluster.cut.clear();
    cluster.start(0);
    cluster.run_until(2 * SECOND, "joined the others", Cluster::agrees);
    assert!(
        cluster.replica(0).version().is_some_and(|version| version.epoch < lost),
        "the live cluster counts"
    );
    cluster.crash(0);
    cluster.start(0);
    cluster.run_until(2 * SECOND, "rejoined", Cluster::agrees);
    let next = propose(&mut cluster, 0, 61).expect("leader");
    assert!(next > lost, "{next} after {lost}");
}

mod admission {
    use super::*;

    fn refusal(change: impl FnOnce(&mut director_proto::sync::Hello)) -> String {
        let mut cluster = agreed(30, 2);
        let mut hello = cluster.replica(1).hello();
        change(&mut hello);
        cluster.with(0, |replica, now| replica.admit(now, &hello)).expect_err("refused").to_string()
    }

    #[test]
    fn another_protocol_is_refused() {
        let text = refusal(|hello| hello.protocol = PROTOCOL + 1);
        let (theirs, ours) = (PROTOCOL + 1, PROTOCOL);
        let expected = format!("10.255.0.2 speaks sync protocol {theirs}, 10.255.0.1 speaks {ours}");
        assert!(text.starts_with(&expected), "{text}");
    }

    #[test]
    fn another_cluster_is_refused() {
        let text = refusal(|hello| hello.cluster = "core".into());
        assert!(
            text.starts_with(r#"10.255.0.2 is of cluster "core", 10.255.0.1 is of cluster "edge""#),
            "{text}"
        );
    }

    #[test]
    fn our_own_router_id_is_refused() {
        let text = refusal(|hello| hello.router_id = id(0));
        assert!(text.starts_with("router id 10.255.0.1 of the director at"), "{text}");
    }

    #[test]
    fn our_own_process_is_refused() {
        let mut cluster = agreed(31, 2);
        let hello = cluster.replica(0).hello();
        let error = cluster.with(0, |replica, now| replica.admit(now, &hello));
        assert_eq!(error, Err(Refusal::Itself { router_id: id(0) }));
    }

    #[test]
    fn a_second_director_with_a_living_peers_router_id_is_refused() {
        let text = refusal(|hello| {
            hello.boot_id = BootId(7);
            hello.endpoint = "10.255.0.9:7000".into();
        });
        assert!(text.contains("belongs to another one"), "{text}");
    }

    #[test]
    fn a_restart_is_admitted_and_its_former_run_is_not() {
        let mut cluster = agreed(32, 2);
        let former = cluster.replica(1).hello();
        cluster.crash(1);
        cluster.start(1);
        cluster.run_until(SECOND, "rejoined", Cluster::agrees);
        let error = cluster.with(0, |replica, now| replica.admit(now, &former));
        assert!(matches!(error, Err(Refusal::DuplicateRouterId { .. })), "{error:?}");
    }

    #[test]
    fn a_router_id_is_free_again_once_its_owner_is_silent() {
        let mut cluster = agreed(33, 2);
        let mut hello = cluster.replica(1).hello();
        hello.boot_id = BootId(7);
        hello.endpoint = "10.255.0.9:7000".into();
        cluster.crash(1);
        cluster.run_for(2 * SECOND);
        assert_eq!(cluster.with(0, |replica, now| replica.admit(now, &hello)), Ok(()));
    }
}

#[test]
fn a_real_server_is_dead_when_more_directors_say_so_than_not() {
    let mut cluster = agreed(30, 3);
    let verdict = |cluster: &Cluster, node: usize| {
        cluster.replica(node).health().get(&real(0)).map_or(Health::Unknown, |votes| votes.verdict())
    };
    for node in 0..3 {
        cluster.observe(node, real(0), Health::Up);
    }
    cluster.observe(1, real(0), Health::Down);
    cluster.run_for(SECOND / 2);
    assert_eq!([0, 1, 2].map(|node| verdict(&cluster, node)), [Health::Up; 3], "one of three");
    cluster.observe(2, real(0), Health::Down);
    cluster.run_for(SECOND / 2);
    assert_eq!([0, 1, 2].map(|node| verdict(&cluster, node)), [Health::Down; 3], "two of three");
    // One of the two that said so is lost: a tie counts as up.
    cluster.crash(2);
    cluster.run_for(2 * SECOND);
    assert_eq!([0, 1].map(|node| verdict(&cluster, node)), [Health::Up; 2], "one of two");
}

#[test]
fn a_director_without_an_opinion_has_no_vote() {
    let mut cluster = agreed(31, 2);
    cluster.observe(0, real(0), Health::Down);
    cluster.run_for(SECOND / 2);
    let votes = cluster.replica(1).health().get(&real(0)).copied();
    assert_eq!(votes, Some(Votes { up: 0, down: 1 }));
    assert_eq!(votes.map(Votes::verdict), Some(Health::Down));
    cluster.observe(0, real(0), Health::Unknown);
    cluster.run_for(SECOND / 2);
    assert!(cluster.replica(1).health().is_empty(), "what is no longer checked is forgotten");
}

#[test]
fn a_joiner_learns_thousands_of_observations() {
    let mut cluster = Cluster::new(32, 2);
    cluster.start(0);
    cluster.run_until(5 * SECOND, "seeding", Cluster::agrees);
    let many: BTreeMap<RealId, Health> = (0..5_000_u32)
        .map(|number| {
            let address = Ipv4Addr::from(0x0a00_0000 + number).into();
            (RealId { service: "web".into(), address, port: 80 }, Health::Down)
        })
        .collect();
    cluster.nodes[0].observed = many.clone();
    cluster.with(0, |replica, now| replica.handle(now, Input::Observed(many)));
    cluster.weather.longest_delay_ms = 100;
    cluster.start(1);
    cluster.run_until(5 * SECOND, "observations", |cluster| cluster.replica(1).health().len() == 5_000);
}

mod epochs {
    use super::*;

    /// A change of [`agreed`] directors, and its epoch.
    fn changing(seed: u64, size: usize) -> (Cluster, Epoch) {
        let mut cluster = agreed(seed, size);
        let epoch = propose(&mut cluster, 0, 90).expect("leader");
        (cluster, epoch)
    }

    fn all_prepared(cluster: &Cluster) -> bool {
        (0..cluster.nodes.len()).all(|node| cluster.replica(node).phase() == Phase::Prepared)
    }

    #[test]
    fn nobody_puts_in_force_what_not_all_have_loaded() {
        let (mut cluster, epoch) = changing(40, 3);
        cluster.nodes[2].stuck_until = Some(cluster.now + SECOND / 2);
        cluster.run_for(SECOND / 4);
        for node in 0..3 {
            assert!(cluster.replica(node).version().is_some_and(|version| version.epoch < epoch));
        }
        cluster.run_until(SECOND, "the change", |cluster| cluster.forwards_by(epoch));
    }

    #[test]
    fn a_stuck_director_withdraws_before_the_others_go_on_and_follows_when_it_can() {
        let mut cluster = agreed(41, 3);
        let stuck_until = cluster.now + 20 * SECOND;
        cluster.nodes[2].stuck_until = Some(stuck_until);
        let epoch = propose(&mut cluster, 0, 91).expect("leader");
        cluster.run_until(2 * SECOND, "its withdrawal", |cluster| {
            cluster.replica(2).standing() == Standing::Behind
        });
        let before = |cluster: &Cluster| cluster.replica(0).version().is_some_and(|held| held.epoch < epoch);
        assert!(before(&cluster), "the others wait for it");
        cluster.run_until(2 * SECOND, "the change without it", |cluster| !before(cluster));
        assert_eq!(events(&cluster, 0, |event| matches!(event, Event::PassedOver { .. })), 1);
        cluster.run_until(25 * SECOND, "its return", |cluster| cluster.forwards_by(epoch));
    }

    /// Three directors of which the second has prepared an epoch that it is cut off from, and the third saw a later one
    /// in force at the first: the two go on without the first from now on.
    fn forked(seed: u64) -> (Cluster, Epoch) {
        let mut cluster = agreed(seed, 3);
        cluster.stalled.extend([(0, 2), (2, 0)]);
        propose(&mut cluster, 0, 93).expect("leader");
        cluster.run_until(SECOND, "PREPARE", |cluster| cluster.replica(1).phase() == Phase::Prepared);
        cluster.cut.extend([(0, 1), (1, 0)]);
        let settled = |cluster: &Cluster| cluster.replica(0).phase() == Phase::Settled;
        cluster.run_until(10 * SECOND, "the change without the others", settled);
        let later = propose(&mut cluster, 0, 94).expect("leader");
        let in_force =
            |cluster: &Cluster| cluster.replica(0).version().is_some_and(|held| held.epoch == later);
        cluster.run_until(10 * SECOND, "the next one", |cluster| in_force(cluster) && settled(cluster));
        cluster.run_for(SECOND / 2);
        assert_eq!(cluster.replica(1).phase(), Phase::Prepared);
        assert_eq!(cluster.replica(2).standing(), Standing::Behind);
        cluster.stalled.clear();
        cluster.cut.extend([(0, 2), (2, 0)]);
        (cluster, later)
    }

    #[test]
    fn a_director_that_lacked_what_a_silent_one_had_waits_until_that_one_has_withdrawn() {
        let (mut cluster, later) = forked(48);
        let (parted, settings) = (cluster.now, cluster.replica(2).settings().clone());
        let serves = |cluster: &Cluster| cluster.replica(2).standing() == Standing::Current;
        let follows = |cluster: &Cluster| cluster.replica(2).version().is_some_and(|held| held.epoch > later);
        cluster.run_until(10 * SECOND, "an epoch without the first", follows);
        assert!(!serves(&cluster), "a higher epoch says nothing of the one that was lacking");
        cluster.run_until(10 * SECOND, "its return", serves);
        let waited = cluster.now - parted;
        assert!(waited >= settings.dead + settings.prepare_time() - settings.heartbeat, "{waited:?}");
        assert_eq!(cluster.replica(0).standing(), Standing::Isolated);
    }

    #[test]
    fn a_director_that_lacked_what_a_silent_one_had_serves_when_it_hears_it_and_follows() {
        let (mut cluster, _) = forked(49);
        cluster.run_for(2 * SECOND);
        assert_ne!(cluster.replica(2).standing(), Standing::Current);
        cluster.cut.clear();
        cluster.run_until(3 * SECOND, "agreement", Cluster::agrees);
    }

    #[test]
    fn what_a_new_leader_resumes_is_above_all_that_anybody_saw_in_force() {
        let (mut cluster, later) = forked(50);
        let resumed = |cluster: &Cluster| {
            cluster.replica(1).tables().is_some_and(|tables| tables.services == services(93))
        };
        cluster.run_until(10 * SECOND, "what was prepared", resumed);
        let epoch = cluster.replica(1).version().expect("tables").epoch;
        assert!(epoch > later && epoch.leader == id(1), "{epoch} after {later}");
    }

    #[test]
    fn a_director_that_has_lost_the_others_asks_them_how_slots_stand_when_it_hears_them_again() {
        for size in [2, 3] {
            let mut cluster = agreed(51, size);
            cluster.part(&[0]);
            cluster.run_for(5 * SECOND);
            let isolated = cluster.replica(0).standing() == Standing::Isolated;
            assert_eq!(isolated, size == 3, "of two each takes itself for the survivor");
            let version = cluster.replica(0).version().expect("tables");
            // Its kernel lost the tables, and has them again.
            let input = Input::Applied { version, result: Ok(Fed::Afresh) };
            cluster.with(0, |replica, now| replica.handle(now, input));
            cluster.run_for(5 * SECOND);
            assert!(!cluster.replica(0).knows_windows(), "there may be others to ask");
            cluster.cut.clear();
            cluster.run_until(5 * SECOND, "how slots stand", |cluster| cluster.replica(0).knows_windows());
            let told = |event: &Event| matches!(event, Event::Windows { windows: Some(_), .. });
            assert_eq!(events(&cluster, 0, told), 1, "of {size}");
        }
    }

    #[test]
    fn of_directors_that_all_miss_how_slots_stand_the_others_ask_the_leader() {
        let mut cluster = agreed(52, 3);
        let version = cluster.replica(0).version().expect("tables");
        for node in 0..3 {
            cluster.nodes[node].events.clear();
            let input = Input::Applied { version, result: Ok(Fed::Afresh) };
            cluster.with(node, |replica, now| replica.handle(now, input));
        }
        let all_know = |cluster: &Cluster| (0..3).all(|node| cluster.replica(node).knows_windows());
        cluster.run_until(40 * SECOND, "how slots stand", all_know);
        let alone = |event: &Event| matches!(event, Event::Windows { windows: None, .. });
        assert!((1..3).all(|node| events(&cluster, node, alone) == 0), "{}", cluster.describe());
    }

    #[test]
    fn what_one_director_cannot_load_comes_into_force_nowhere() {
        let mut cluster = agreed(42, 3);
        let before = cluster.replica(0).version();
        cluster.nodes[1].refuses = Refuses::ToLoad;
        propose(&mut cluster, 0, 92).expect("leader");
        cluster.run_for(2 * SECOND);
        assert!(cluster.agrees() && cluster.replica(0).version() == before, "{}", cluster.describe());
        let told = |event: &Event| matches!(event, Event::RolledBack { reason, .. } if reason == "10.255.0.2: no room");
        assert_eq!(events(&cluster, 0, told), 1);
        let again = propose(&mut cluster, 0, 92);
        assert!(matches!(again, Err(ProposeError::Rejected { .. })), "{again:?}");
        cluster.nodes[1].refuses = Refuses::Nothing;
        cluster.run_for(10 * SECOND);
        let epoch = propose(&mut cluster, 0, 92).expect("time for another attempt");
        cluster.run_until(SECOND, "the change", |cluster| cluster.forwards_by(epoch));
    }

    #[test]
    fn what_one_director_cannot_put_in_force_is_put_back_everywhere() {
        let mut cluster = agreed(43, 3);
        let before = cluster.replica(0).tables().expect("in force").services.clone();
        let epoch = propose(&mut cluster, 0, 93).expect("leader");
        cluster.run_until(SECOND, "prepared", all_prepared);
        cluster.nodes[2].refuses = Refuses::ToApply;
        cluster.run_until(SECOND, "its refusal", |cluster| {
            events(cluster, 0, |event| matches!(event, Event::NotInForce { .. })) == 1
        });
        cluster.nodes[2].refuses = Refuses::Nothing;
        let next = Epoch { number: epoch.number + 1, ..epoch };
        cluster.run_until(SECOND, "the tables from before", |cluster| cluster.forwards_by(next));
        assert_eq!(cluster.replica(1).tables().expect("in force").services, before);
        let why = |event: &Event| matches!(event, Event::TablesInForce { cause, .. } if cause.contains("put back: 10.255.0.3: no room"));
        assert_eq!(events(&cluster, 1, why), 1);
    }

    #[test]
    fn directors_that_all_load_slowly_go_on_serving() {
        let mut cluster = agreed(57, 4);
        cluster.nodes.iter_mut().for_each(|node| node.events.clear());
        let load_until = cluster.now + SECOND * 4 / 5;
        cluster.nodes.iter_mut().for_each(|node| node.stuck_until = Some(load_until));
        let epoch = propose(&mut cluster, 0, 104).expect("leader");
        cluster.run_until(2 * SECOND, "the change", |cluster| cluster.forwards_by(epoch));
        assert!(cluster.now > load_until);
        for node in 0..4 {
            let standing = |event: &Event| matches!(event, Event::Standing(_));
            assert_eq!(events(&cluster, node, standing), 0, "{node} has served all the while");
        }
    }

    #[test]
    fn an_epoch_that_a_snapshot_overtakes_ends_for_the_node() {
        let (mut cluster, epoch) = changing(58, 3);
        cluster.run_until(SECOND, "PREPARE", |cluster| cluster.replica(2).phase() == Phase::Prepared);
        cluster.part(&[2]);
        let done = |cluster: &Cluster, epoch: Epoch| {
            let leader = cluster.replica(0);
            leader.version().is_some_and(|held| held.epoch == epoch) && leader.phase() == Phase::Settled
        };
        cluster.run_until(10 * SECOND, "the change without it", |cluster| done(cluster, epoch));
        let later = propose(&mut cluster, 0, 105).expect("leader");
        cluster.run_until(10 * SECOND, "the next one", |cluster| done(cluster, later));
        assert_eq!(cluster.replica(2).prepared().map(|version| version.epoch), Some(epoch));
        cluster.nodes[2].events.clear();
        cluster.cut.clear();
        cluster.run_until(5 * SECOND, "the later tables", |cluster| cluster.forwards_by(later));
        let place = |wanted: &dyn Fn(&Event) -> bool| cluster.nodes[2].events.iter().position(wanted);
        let in_force = place(&|event| matches!(event, Event::TablesInForce { .. })).expect("told");
        let end = place(&|event| matches!(event, Event::Finished { version } if version.epoch == epoch));
        assert_eq!(end, Some(in_force + 1), "{:?}", cluster.nodes[2].events);
    }

    #[test]
    fn tables_that_are_refused_again_and_again_are_proposed_ever_more_rarely() {
        let mut cluster = agreed(59, 3);
        cluster.nodes[1].refuses = Refuses::ToLoad;
        for pause in [10, 20, 40, 80, 160, 300, 300] {
            propose(&mut cluster, 0, 106).expect("time for another attempt");
            cluster.run_for(2 * SECOND);
            cluster.run_for((pause - 3) * SECOND);
            let early = propose(&mut cluster, 0, 106);
            assert!(matches!(early, Err(ProposeError::Rejected { .. })), "{early:?} before {pause} s");
            cluster.run_for(2 * SECOND);
        }
        propose(&mut cluster, 0, 107).expect("other tables");
        cluster.run_for(2 * SECOND);
        cluster.run_for(9 * SECOND);
        cluster.nodes[1].refuses = Refuses::Nothing;
        let epoch = propose(&mut cluster, 0, 107).expect("they begin at the shortest pause");
        cluster.run_until(SECOND, "the change", |cluster| cluster.forwards_by(epoch));
    }

    #[test]
    fn what_cannot_be_kept_loaded_is_refused() {
        let mut cluster = agreed(60, 3);
        let before = cluster.replica(0).version();
        cluster.nodes[0].stuck_until = Some(cluster.now + SECOND / 2);
        propose(&mut cluster, 0, 108).expect("leader");
        cluster.run_until(SECOND / 4, "PREPARE", |cluster| cluster.replica(1).phase() == Phase::Prepared);
        let version = cluster.replica(1).prepared().expect("loaded");
        let input = Input::Loaded { version, result: Err("no room any more".to_owned()) };
        cluster.with(1, |replica, now| replica.handle(now, input));
        cluster.run_for(3 * SECOND);
        assert!(cluster.agrees() && cluster.replica(0).version() == before, "{}", cluster.describe());
        let told = |event: &Event| matches!(event, Event::RolledBack { reason, .. } if reason == "10.255.0.2: no room any more");
        assert_eq!(events(&cluster, 0, told), 1);
    }

    /// Three directors, of which the kernel of one takes nothing and does not forward.
    fn in_trouble(seed: u64, node: usize) -> Cluster {
        let mut cluster = agreed(seed, 3);
        cluster.nodes[node].refuses = Refuses::ToLoad;
        let version = cluster.replica(node).version().expect("tables");
        let input = Input::Applied { version, result: Err("no room".to_owned()) };
        cluster.with(node, |replica, now| replica.handle(now, input));
        // The others know.
        cluster.run_for(2 * SECOND);
        cluster
    }

    #[test]
    fn a_director_that_does_not_serve_vetoes_nothing() {
        let mut cluster = in_trouble(53, 1);
        let epoch = propose(&mut cluster, 0, 100).expect("leader");
        let in_force = |cluster: &Cluster, node: usize| {
            cluster.replica(node).version().is_some_and(|held| held.epoch == epoch)
        };
        cluster.run_until(4 * SECOND, "its withdrawal", |cluster| {
            cluster.replica(1).standing() == Standing::Behind
        });
        assert!(!in_force(&cluster, 0), "it has its time as a silent one has");
        cluster.run_until(4 * SECOND, "the change", |cluster| in_force(cluster, 0) && in_force(cluster, 2));
        let passed_over =
            Event::PassedOver { router_id: id(1), version: cluster.replica(0).version().expect("tables") };
        assert!(cluster.nodes[0].events.contains(&passed_over));
        let rolled_back =
            |event: &Event| matches!(event, Event::RolledBack { .. } | Event::NotInForce { .. });
        assert_eq!(events(&cluster, 0, rolled_back), 0);
        cluster.nodes[1].refuses = Refuses::Nothing;
        cluster.run_until(5 * SECOND, "its return", |cluster| cluster.forwards_by(epoch));
        let afresh = |event: &Event| matches!(event, Event::TablesInForce { follows: None, .. });
        assert!(events(&cluster, 1, afresh) >= 1, "it learns how slots stand before it serves");
    }

    #[test]
    fn a_leader_that_does_not_serve_leads_the_others_through_a_change_all_the_same() {
        let mut cluster = in_trouble(54, 0);
        cluster.nodes[0].events.clear();
        let epoch = propose(&mut cluster, 0, 101).expect("leader");
        cluster.run_until(5 * SECOND, "the change", |cluster| {
            [1, 2].iter().all(|node| cluster.replica(*node).version().is_some_and(|held| held.epoch == epoch))
        });
        let follows = |event: &Event| matches!(event, Event::TablesInForce { follows: Some(_), .. });
        assert_eq!(events(&cluster, 0, follows), 0, "it has not held the slots that change");
        cluster.run_until(5 * SECOND, "the end", |cluster| cluster.forwards_by(epoch));
    }

    #[test]
    fn what_a_leader_that_serves_cannot_load_comes_into_force_nowhere() {
        let mut cluster = agreed(55, 3);
        let before = cluster.replica(0).version();
        cluster.nodes[0].refuses = Refuses::ToLoad;
        propose(&mut cluster, 0, 102).expect("leader");
        cluster.run_for(4 * SECOND);
        assert!(cluster.agrees() && cluster.replica(0).version() == before, "{}", cluster.describe());
    }

    #[test]
    fn a_leader_that_does_not_serve_and_cannot_put_a_change_in_force_does_not_put_it_back() {
        let mut cluster = in_trouble(56, 0);
        cluster.nodes[0].refuses = Refuses::ToApply;
        let epoch = propose(&mut cluster, 0, 103).expect("leader");
        cluster.run_for(6 * SECOND);
        let held = |node: usize| cluster.replica(node).version().map(|held| held.epoch);
        assert_eq!([0, 1, 2].map(held), [Some(epoch); 3]);
        assert_eq!(events(&cluster, 0, |event| matches!(event, Event::NotInForce { .. })), 0);
    }

    #[test]
    fn what_a_leader_that_died_had_prepared_is_finished_by_the_next() {
        let (mut cluster, epoch) = changing(44, 3);
        cluster.nodes[0].stuck_until = Some(cluster.now + 20 * SECOND);
        cluster.run_until(SECOND, "prepared by the others", |cluster| {
            [1, 2].iter().all(|node| cluster.replica(*node).phase() == Phase::Prepared)
        });
        cluster.crash(0);
        cluster.run_until(8 * SECOND, "the change", |cluster| cluster.forwards_by(epoch));
    }

    #[test]
    fn what_nobody_leads_any_more_is_rolled_back() {
        let mut cluster = agreed(45, 3);
        cluster.stalled.insert((0, 1));
        let before = cluster.replica(1).version();
        propose(&mut cluster, 0, 94).expect("leader");
        cluster.run_until(SECOND, "prepared by one", |cluster| cluster.replica(2).phase() == Phase::Prepared);
        cluster.crash(0);
        cluster.run_until(5 * SECOND, "roll-back", |cluster| cluster.replica(2).phase() == Phase::Settled);
        assert_eq!(cluster.replica(2).version(), before);
        assert_eq!(events(&cluster, 2, |event| matches!(event, Event::RolledBack { .. })), 1);
    }

    #[test]
    fn a_commit_that_reached_one_director_reaches_all() {
        let mut cluster = agreed(46, 3);
        cluster.nodes.iter_mut().for_each(|node| node.sent.clear());
        let epoch = propose(&mut cluster, 0, 95).expect("leader");
        cluster.run_until(SECOND, "prepared", all_prepared);
        cluster.stalled.extend([(0, 1), (0, 2)]);
        cluster.run_until(SECOND, "the leader's own", |cluster| {
            cluster.replica(0).version().is_some_and(|version| version.epoch == epoch)
        });
        cluster.run_until(8 * SECOND, "everybody's", |cluster| cluster.forwards_by(epoch));
        assert_eq!(events(&cluster, 1, |event| matches!(event, Event::TransferFailed { .. })), 0);
        let asked = |(_, message): &(Ipv4Addr, Message)| matches!(message, Message::Request(_));
        assert!(!cluster.nodes[1].sent.iter().any(asked), "what is loaded needs no snapshot");
    }

    #[test]
    fn a_director_that_has_lost_most_of_the_others_withdraws_and_changes_nothing() {
        let mut cluster = agreed(47, 3);
        cluster.part(&[0]);
        cluster.run_for(Duration::from_millis(1700));
        assert_eq!(cluster.replica(0).standing(), Standing::Isolated);
        assert_eq!(propose(&mut cluster, 0, 96), Err(ProposeError::Isolated));
        let epoch = propose(&mut cluster, 1, 97).expect("most of them");
        cluster.run_for(4 * SECOND);
        assert_eq!(cluster.replica(1).version().map(|version| version.epoch), Some(epoch));
        cluster.cut.clear();
        cluster.run_until(4 * SECOND, "healed", |cluster| cluster.forwards_by(epoch));
    }

    #[test]
    fn a_lone_survivor_goes_on_unless_it_hears_of_others() {
        let mut cluster = Cluster::new(47, 5);
        cluster.isolation = Isolation::Serve;
        cluster.start_all();
        cluster.run_until(5 * SECOND, "agreement", Cluster::agrees);
        cluster.run_for(SECOND);
        // It hears one of the others, which hears all of them.
        cluster.part(&[4]);
        cluster.cut.retain(|pair| !matches!(pair, (3, 4) | (4, 3)));
        cluster.run_for(2 * SECOND);
        assert_ne!(cluster.replica(4).standing(), Standing::Current);
        assert_eq!([0, 1, 2].map(|node| cluster.replica(node).standing()), [Standing::Current; 3]);
        cluster.cut.clear();
        cluster.run_until(4 * SECOND, "healed", Cluster::agrees);
        (0..4).for_each(|node| cluster.crash(node));
        cluster.run_for(3 * SECOND);
        assert_eq!(cluster.replica(4).standing(), Standing::Current);
        let epoch = propose(&mut cluster, 4, 99).expect("alone");
        cluster.run_until(4 * SECOND, "a change by itself", |cluster| cluster.forwards_by(epoch));
    }

    #[test]
    fn who_survives_most_of_the_others_serves_all_the_while() {
        for seed in 0..20 {
            for (size, dead) in
                [(4, [0, 1, 2]), (4, [1, 2, 3]), (5, [0, 1, 2]), (5, [2, 3, 4]), (5, [0, 2, 4])]
            {
                let mut cluster = Cluster::new(seed, size);
                cluster.isolation = Isolation::Serve;
                cluster.start_all();
                cluster.run_until(5 * SECOND, "agreement", Cluster::agrees);
                cluster.run_for(SECOND + Duration::from_millis(seed * 37 % 200));
                cluster.nodes.iter_mut().for_each(|node| node.events.clear());
                dead.iter().for_each(|node| cluster.crash(*node));
                cluster.run_for(10 * SECOND);
                for survivor in (0..size).filter(|node| !dead.contains(node)) {
                    let standing = |event: &Event| matches!(event, Event::Standing(_));
                    assert_eq!(events(&cluster, survivor, standing), 0, "{survivor} of {size}, seed {seed}");
                }
            }
        }
    }

    #[test]
    fn a_cluster_shrinks_to_one_director_one_by_one() {
        let mut cluster = agreed(48, 4);
        for node in 0..3 {
            cluster.crash(node);
            cluster.run_for(3 * SECOND);
            assert_eq!(cluster.replica(3).standing(), Standing::Current, "without {node}");
        }
        let epoch = propose(&mut cluster, 3, 98).expect("alone");
        cluster.run_until(SECOND, "a change by itself", |cluster| cluster.forwards_by(epoch));
    }

    #[test]
    fn of_two_halves_the_one_with_the_lowest_router_id_goes_on() {
        let mut cluster = agreed(49, 4);
        cluster.part(&[0, 3]);
        cluster.run_for(2 * SECOND);
        let standing = |node: usize| cluster.replica(node).standing();
        assert_eq!([0, 3].map(standing), [Standing::Current; 2]);
        assert_eq!([1, 2].map(standing), [Standing::Isolated; 2]);
    }

    #[test]
    fn tables_too_different_for_one_frame_are_loaded_from_a_snapshot() {
        let mut cluster = agreed(50, 3);
        let table = services(1)["web"].clone();
        let many: BTreeMap<String, ServiceTable> =
            (0..60).map(|number| (format!("web{number}"), table.clone())).chain(services(7)).collect();
        let epoch = cluster
            .with(0, |replica, now| replica.propose(now, many, [0; 16], "many".into()))
            .expect("leader");
        cluster.run_until(2 * SECOND, "the change", |cluster| cluster.forwards_by(epoch));
        assert_eq!(events(&cluster, 1, |event| matches!(event, Event::Prepare { .. })), 1);
    }
}
