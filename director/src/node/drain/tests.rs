use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use routing::speaker::PathKind;
use tokio::time::Instant;

use super::super::plan::BACKUP_METRIC;
use super::{
    Announcement, Drain, METRIC, Phase, Purpose, Rule, Sight, Step, alone, is_of_others, save, told,
};

fn announcement(service: &str, metric: u16) -> Announcement {
    let purpose = match service {
        "" => Purpose::Node,
        "local" => Purpose::Local,
        "backup" => Purpose::Backup,
        name => Purpose::Service(name.to_owned()),
    };
    Announcement { metric, announce: routing::AnnounceAs::Stub, external: None, purpose }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn after(phase: Phase, aggregates: &[&str]) -> Vec<(String, u16)> {
    let mut wanted = BTreeMap::from([
        (net("10.255.0.1/32"), announcement("", 0)),
        (net("203.0.113.10/32"), announcement("web", 10)),
        (net("203.0.113.99/32"), announcement("", 0)),
    ]);
    let aggregates: Vec<IpNet> = aggregates.iter().map(|text| net(text)).collect();
    phase.apply(&mut wanted, &aggregates);
    wanted.iter().map(|(prefix, announcement)| (prefix.to_string(), announcement.metric)).collect()
}

#[test]
fn vips_lose_their_attraction_and_the_nodes_own_prefixes_do_not() {
    let own = [("10.255.0.1/32".to_owned(), 0), ("203.0.113.99/32".to_owned(), 0)];
    let vip = ("203.0.113.10/32".to_owned(), METRIC);
    assert_eq!(after(Phase::Raised, &[]), [own[0].clone(), vip.clone(), own[1].clone()]);
    assert_eq!(after(Phase::Withdrawn, &[]), own);
    // Inside the pool it would speak for the pool, at the lowest metric.
    let hidden = ("203.0.113.99/32".to_owned(), METRIC);
    assert_eq!(after(Phase::Raised, &["203.0.113.0/24"]), [own[0].clone(), vip, hidden]);
    assert_eq!(after(Phase::Withdrawn, &["203.0.113.0/24"]), own[..1]);
}

#[test]
fn local_addresses_move_with_the_vips_and_a_backup_is_better_than_a_director_that_is_drained() {
    let prefixes = ["10.8.0.1/32", "10.8.0.2/32"];
    let wanted = || {
        let [own, other] = prefixes.map(net);
        BTreeMap::from([(own, announcement("local", 0)), (other, announcement("backup", BACKUP_METRIC))])
    };
    const { assert!(BACKUP_METRIC < METRIC) };
    let mut raised = wanted();
    Phase::Raised.apply(&mut raised, &[]);
    assert!(raised.len() == 2 && raised.values().all(|announcement| announcement.metric == METRIC));
    let mut withdrawn = wanted();
    Phase::Withdrawn.apply(&mut withdrawn, &[]);
    assert!(withdrawn.is_empty());
}

/// Looks every 100 ms; `packets` says how many have come by a moment, `acknowledged` since when neighbours know of a
/// phase that began at a moment. Milliseconds; the steps but for waiting.
fn steps(
    force: bool,
    packets: impl Fn(u64) -> u64,
    acknowledged: impl Fn(u64) -> u64,
    until: u64,
) -> Vec<(u64, Step)> {
    let start = Instant::now();
    let mut rule = Rule::new(start, packets(0), Duration::from_secs(5), force);
    let (mut steps, mut phase_began) = (Vec::new(), 0);
    for at in (0..=until).step_by(100) {
        let now = start + Duration::from_millis(at);
        let sight = Sight { packets: packets(at), acknowledged: at >= acknowledged(phase_began) };
        let step = rule.step(now, sight);
        if step == Step::Withdraw {
            rule.withdraw(now);
            phase_began = at;
        }
        if step != Step::Wait {
            steps.push((at, step));
        }
        if matches!(step, Step::Finish | Step::GiveUp) {
            break;
        }
    }
    steps
}

#[test]
fn withdrawal_waits_for_the_switches_and_for_the_last_packet() {
    let soon = |began| began + 100;
    let idle = steps(false, |_| 7, soon, 20_000);
    assert_eq!(
        idle,
        [(2_100, Step::Withdraw), (3_200, Step::Finish)],
        "no traffic: time enough for a slow switch"
    );
    let late = steps(false, |at| at.min(2_500), soon, 20_000);
    assert_eq!(late, [(3_500, Step::Withdraw), (4_600, Step::Finish)], "a second after the last packet");
    let deaf = steps(false, |_| 7, |began| began + 2_000, 20_000);
    assert_eq!(deaf, [(4_000, Step::Withdraw), (7_000, Step::Finish)], "counted from the acknowledgement");
}

#[test]
fn traffic_that_does_not_move_keeps_the_vips_unless_forced() {
    let soon = |began| began + 100;
    assert_eq!(steps(false, |at| at, soon, 20_000), [(5_000, Step::GiveUp)]);
    assert_eq!(steps(false, |_| 0, |_| u64::MAX, 20_000), [(5_000, Step::GiveUp)], "nobody acknowledges");
    let forced = steps(true, |at| at.min(6_000), soon, 20_000);
    assert_eq!(forced, [(5_000, Step::Withdraw), (7_000, Step::Finish)]);
    let endless = steps(true, |at| at, soon, 20_000);
    assert_eq!(endless, [(5_000, Step::Withdraw), (15_000, Step::GiveUp)], "it ends all the same");
}

#[test]
fn a_withdrawal_that_does_not_work_is_no_success_and_says_what_is_missing() {
    let once = |began| if began == 0 { 100 } else { u64::MAX };
    let unheard = steps(false, |_| 0, once, 20_000);
    assert_eq!(unheard, [(2_100, Step::Withdraw), (12_100, Step::GiveUp)]);
    let in_time = |began| if began == 0 { 100 } else { began + 9_500 };
    let late = steps(false, |_| 0, in_time, 20_000);
    assert_eq!(
        late,
        [(2_100, Step::Withdraw), (12_600, Step::Finish)],
        "known, and the last second is quiet"
    );
    let start = Instant::now();
    let mut rule = Rule::new(start, 100, Duration::from_secs(5), true);
    let at = |millis| start + Duration::from_millis(millis);
    rule.step(at(100), Sight { packets: 130, acknowledged: true });
    rule.withdraw(at(200));
    rule.step(at(300), Sight { packets: 140, acknowledged: false });
    assert_eq!(rule.objection(at(300)), "a neighbour has not acknowledged the withdrawal");
    assert_eq!(rule.step(at(10_200), Sight { packets: 150, acknowledged: true }), Step::GiveUp);
    assert_eq!(rule.objection(at(10_200)), "20 packets passed since the VIPs were withdrawn, and still do");
    assert_eq!(rule.phase, Phase::Withdrawn, "it can be looked at again");
}

#[test]
fn progress_counts_what_still_arrived() {
    let start = Instant::now();
    let mut rule = Rule::new(start, 100, Duration::from_secs(5), false);
    let at = |millis| start + Duration::from_millis(millis);
    let look =
        |rule: &mut Rule, millis, packets| rule.step(at(millis), Sight { packets, acknowledged: true });
    look(&mut rule, 40, 130);
    assert_eq!(look(&mut rule, 2_100, 130), Step::Withdraw);
    rule.withdraw(at(2_100));
    look(&mut rule, 2_200, 133);
    let progress = rule.progress(at(2_300), "drained");
    assert_eq!((progress.packets, progress.last_packet_ms), (33, Some(2_200)));
    assert_eq!((progress.packets_after_withdrawal, progress.elapsed_ms), (Some(3), 2_300));
}

#[test]
fn the_reason_for_giving_up_is_the_one_that_held() {
    let start = Instant::now();
    let mut rule = Rule::new(start, 100, Duration::from_secs(5), false);
    let at = |millis| start + Duration::from_millis(millis);
    rule.step(at(100), Sight { packets: 130, acknowledged: false });
    assert!(rule.objection(at(200)).contains("not acknowledged"));
    rule.step(at(300), Sight { packets: 140, acknowledged: true });
    assert!(rule.objection(at(400)).starts_with("40 packets passed"), "{}", rule.objection(at(400)));
    assert!(rule.objection(at(1_400)).contains("less than 2s"), "{}", rule.objection(at(1_400)));
}

#[test]
fn a_vip_that_only_this_director_announces_by_then_is_not_withdrawn() {
    let start = Instant::now();
    let mut rule = Rule::new(start, 0, Duration::from_secs(5), false);
    let at = |millis| start + Duration::from_millis(millis);
    let look = |rule: &mut Rule, millis| rule.step(at(millis), Sight { packets: 0, acknowledged: true });
    let why = || alone(&["203.0.113.10/32".to_owned()]).expect("one is enough");
    look(&mut rule, 0);
    for (millis, step) in [(2_000, Step::Wait), (4_900, Step::Wait), (5_000, Step::GiveUp)] {
        assert_eq!(look(&mut rule, millis), Step::Withdraw, "the traffic has moved");
        assert_eq!(rule.refuse(at(millis), why()), step);
        assert!(rule.objection(at(millis)).starts_with("nobody else announces 203.0.113.10/32"));
        assert_eq!(rule.phase, Phase::Raised);
    }
    // It holds for one look alone: somebody may be back.
    assert_eq!(look(&mut rule, 5_100), Step::Withdraw);
    assert!(!rule.objection(at(5_100)).contains("nobody else"));
    assert_eq!(alone(&[]), None);
}

#[test]
fn others_are_told_of_the_vip_or_of_its_aggregate_and_not_of_what_is_around_them() {
    let told = |announced: &[&str]| {
        let announced: Vec<IpNet> = announced.iter().map(|text| net(text)).collect();
        told(&net("203.0.113.10/32"), announced.iter()).to_string()
    };
    assert_eq!(
        told(&["203.0.113.0/24", "203.0.113.10/32"]),
        "203.0.113.10/32",
        "the node's own is around it"
    );
    assert_eq!(told(&["203.0.0.0/16", "203.0.113.0/24"]), "203.0.113.0/24", "the aggregate");
    assert_eq!(told(&["10.255.0.1/32"]), "203.0.113.10/32", "not told yet");
}

#[test]
fn a_summary_may_be_of_our_own_vip_where_we_are_in_several_areas() {
    let raised = u32::from(METRIC);
    for (kind, cost, several, others) in [
        (PathKind::IntraArea, 20, false, true),
        (PathKind::IntraArea, 20, true, true),
        (PathKind::IntraArea, raised + 10, false, false),
        (PathKind::InterArea, 20, false, true),
        (PathKind::InterArea, 20, true, false),
        (PathKind::External2, 20, true, true),
    ] {
        assert_eq!(is_of_others(kind, cost, several), others, "{kind:?} {cost} {several}");
    }
}

#[test]
fn what_was_wanted_outlives_the_process() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let state = folder.path().join("state");
    let phase = || Drain::load(&state).map(|drain| drain.phase());
    assert_eq!(phase().expect("nothing there"), None);
    for wanted in [Some(Phase::Raised), Some(Phase::Withdrawn), None, None] {
        save(&state.join("drain"), wanted).expect("written");
        assert_eq!(phase().expect("read"), wanted);
    }
    std::fs::write(state.join("drain"), "paused\n").expect("written");
    let refused = phase().expect_err("unknown").to_string();
    assert!(refused.contains("\"paused\"") && refused.contains("remove the file"), "{refused}");
}
