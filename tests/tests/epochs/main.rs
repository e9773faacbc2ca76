//! What clients notice when the tables change and a director is lost in the middle of it: nothing.

mod cluster;
mod idle;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cluster::{
    ADD_REAL4, DRAIN_REAL3, EPOCH, PATIENCE, agreement, bring_back, edit, edit_all, judge, lines, load,
    lose_after, tables,
};
use cluster_tests::ecmp::{DIRECTORS, VIP, in_a_lab, wait};
use idle::Idle;

const REAL3: &str = "10.0.2.13";
const REAL4: &str = "10.0.2.14";
/// Connections that fall silent.
const IDLE: usize = 1000;

/// After COMMIT connections are only where pins say, and these are a moment old.
#[test]
fn a_director_is_lost_100_ms_after_commit() -> Result<()> {
    in_a_lab("commit", |ecmp| {
        ecmp.until_next_hops(3, PATIENCE)?;
        let load = load(ecmp)?;
        // One that is led.
        let mut killer = lose_after(ecmp, "director2", EPOCH, 100)?;
        edit_all(ecmp, ADD_REAL4)?;
        ensure!(killer.wait()?.success(), "director2 has put nothing in force");
        ecmp.until_next_hops(2, PATIENCE)?;
        agreement(ecmp, &["director1", "director3"], REAL4, true)?;
        bring_back(ecmp, "director2")?;
        agreement(ecmp, &DIRECTORS, REAL4, true)?;
        // The one that leads.
        let mut killer = lose_after(ecmp, "director1", EPOCH, 100)?;
        edit_all(ecmp, DRAIN_REAL3)?;
        ensure!(killer.wait()?.success(), "director1 has put nothing in force");
        ecmp.until_next_hops(2, PATIENCE)?;
        agreement(ecmp, &["director2", "director3"], REAL3, false)?;
        judge(
            ecmp,
            "real server added and director lost, another drained and the leader lost, 100 ms after COMMIT",
            load,
        )
    })
}

/// What was prepared is resumed by the next leader.
#[test]
fn the_leader_is_lost_between_prepare_and_commit() -> Result<()> {
    in_a_lab("prepare", |ecmp| {
        ecmp.until_next_hops(3, PATIENCE)?;
        let load = load(ecmp)?;
        edit(ecmp, &["director3", "director2"], ADD_REAL4)?;
        let (before, ..) = tables(ecmp, "director2")?;
        // It does not answer to PREPARE, so there is no COMMIT before its time is up.
        ecmp.lab.sh("director3", "kill -STOP $(cat /run/director.pid)")?;
        edit(ecmp, &["director1"], ADD_REAL4)?;
        wait("director2 has prepared", Duration::from_secs(2), || {
            Ok(tables(ecmp, "director2")?.2 == "prepared")
        })?;
        ecmp.lose("director1")?;
        let phase = tables(ecmp, "director2")?;
        ecmp.lab.sh("director3", "kill -CONT $(cat /run/director.pid)")?;
        ensure!(phase.0 == before && phase.2 == "prepared", "COMMIT came first: {phase:?}, before {before}");
        ecmp.until_next_hops(2, PATIENCE)?;
        agreement(ecmp, &["director2", "director3"], REAL4, true)?;
        let resumed = lines(ecmp, "director2", "cause.*begun by 10.255.0.1")?;
        ensure!(resumed == 1, "the epoch was not resumed but begun anew");
        judge(ecmp, "leader lost between PREPARE and COMMIT", load)
    })
}

/// Nobody has a pin of a connection that has said nothing since before the director that carried it was lost.
#[test]
fn idle_connections_wake_after_a_loss_and_a_change() -> Result<()> {
    in_a_lab("idle", |ecmp| {
        ecmp.until_next_hops(3, PATIENCE)?;
        // Longer than the silence: that is what the service promises its clients.
        edit_all(ecmp, r#"/^name = "web"$/,$ s/established = 8/established = 300/"#)?;
        let client = ecmp.lab.network_namespace("client")?;
        let mut idle = Idle::open(&client, format!("{VIP}:80").parse()?, IDLE)?;
        let silent = Instant::now();
        ecmp.lose("director2")?;
        ecmp.until_next_hops(2, PATIENCE)?;
        wait("30 s of silence", PATIENCE, || Ok(silent.elapsed() >= Duration::from_secs(30)))?;
        edit(ecmp, &["director3", "director1"], ADD_REAL4)?;
        agreement(ecmp, &["director1", "director3"], REAL4, true)?;
        let silence = silent.elapsed();
        let answered = idle.wake();
        println!(
            "director lost, real server added: after {silence:?} of silence {answered} of {IDLE} answer (criterion: all)"
        );
        ensure!(answered == IDLE);
        Ok(())
    })
}

/// A director that is cut off from the others withdraws, and the change that it is asked for waits.
#[test]
fn a_partition_of_the_sync_network_with_a_change_on_each_side() -> Result<()> {
    in_a_lab("parted", |ecmp| {
        for director in DIRECTORS {
            ecmp.edit(director, r#"s/^name = "ecmp"/&\nisolated = "withdraw"/"#)?;
            ecmp.end_and_start(director)?;
        }
        wait("all serve", PATIENCE, || {
            let states = DIRECTORS
                .map(|director| ecmp.ask(director, "status").map(|status| status["state"] == "serving"));
            Ok(states.into_iter().all(|state| state.unwrap_or(false)))
        })?;
        ecmp.until_next_hops(3, PATIENCE)?;
        let load = load(ecmp)?;
        // Only what the directors say to each other is lost; packets take other ways.
        let part = |verb: &str| {
            let script = format!("for n in 2 3; do ip route {verb} blackhole 10.0.2.$n/32; done");
            ecmp.lab.sh("director1", &script).map(drop)
        };
        let parted = Instant::now();
        part("add")?;
        wait("director1 is isolated", PATIENCE, || {
            Ok(ecmp.ask("director1", "status")?["state"] == "isolated")
        })?;
        ecmp.until_next_hops(2, PATIENCE)?;
        edit(ecmp, &["director1"], DRAIN_REAL3)?;
        edit(ecmp, &["director3", "director2"], ADD_REAL4)?;
        agreement(ecmp, &["director2", "director3"], REAL4, true)?;
        wait("60 s of partition", PATIENCE, || Ok(parted.elapsed() >= Duration::from_secs(60)))?;
        let status = ecmp.ask("director1", "status")?;
        ensure!(status["state"] == "isolated", "director1 went on by itself: {status}");
        part("del")?;
        ecmp.until_next_hops(3, PATIENCE)?;
        // Files that differ change nothing; then they are made equal.
        agreement(ecmp, &DIRECTORS, REAL4, true)?;
        edit(ecmp, &["director3", "director2"], DRAIN_REAL3)?;
        edit(ecmp, &["director1"], ADD_REAL4)?;
        agreement(ecmp, &DIRECTORS, REAL3, false)?;
        agreement(ecmp, &DIRECTORS, REAL4, true)?;
        judge(ecmp, "60 s partition of the sync network, a change on each side", load)
    })
}
