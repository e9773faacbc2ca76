//! The interface machine, RFC 2328 section 9.3, entry by entry with its sentence. LoopInd and UnloopInd have no place here:
//! a loopback device is a passive interface.

use std::time::Duration;

use super::{
    fast, lan, p2p, seconds,
    simulator::{Simulator, id},
};
use crate::{
    config::{InterfaceConfig, Network},
    speaker::{Event, InterfaceState as S, NeighborEvent, NeighborState},
};

/// What an interface of this kind is once it is up.
fn after_up(config: InterfaceConfig) -> S {
    let mut sim = Simulator::new(61);
    sim.segment(&[(0, config)]);
    sim.start();
    sim.status(0).interfaces[0].state
}

fn changes(sim: &Simulator, node: usize) -> Vec<(S, S)> {
    let change = |event: &Event| match event {
        Event::Interface { from, to, .. } => Some((*from, *to)),
        _ => None,
    };
    sim.events(node).iter().filter_map(change).collect()
}

/// "If the attached network is a physical point-to-point network, Point-to-MultiPoint network or virtual link, the
/// interface state transitions to Point-to-Point."
#[test]
fn interface_up_on_a_point_to_point_network() {
    assert_eq!(after_up(p2p()), S::PointToPoint);
}

/// "Else, if the router is not eligible to become Designated Router the interface state transitions to DR Other."
#[test]
fn interface_up_without_eligibility() {
    assert_eq!(after_up(lan(0)), S::DrOther);
}

/// "Otherwise, the attached network is a broadcast or NBMA network and the router is eligible to become Designated Router.
/// In this case, in an attempt to discover the attached network's Designated Router the interface state is set to Waiting
/// and the single shot Wait Timer is started."
#[test]
fn interface_up_with_eligibility() {
    let mut sim = Simulator::new(62);
    sim.segment(&[(0, lan(1))]);
    sim.start();
    let interface = &sim.status(0).interfaces[0];
    assert_eq!((interface.state, interface.wait_in_ms), (S::Waiting, Some(4000)));
    sim.run(Duration::from_millis(3900));
    assert_eq!(sim.status(0).interfaces[0].state, S::Waiting);
}

/// A passive interface is advertised and speaks to nobody.
#[test]
fn interface_up_where_it_is_passive() {
    assert_eq!(after_up(InterfaceConfig { passive: true, ..lan(1) }), S::Passive);
}

/// WaitTimer: "Calculate the attached network's Backup Designated Router and Designated Router, as shown in Section 9.4. As
/// a result of this calculation, the new state of the interface will be either DR Other, Backup or DR."
#[test]
fn wait_timer_ends_in_an_election() {
    let mut sim = Simulator::new(63);
    sim.segment(&[(0, lan(1)), (1, lan(2))]);
    sim.start();
    sim.run(Duration::from_millis(4200));
    assert_eq!((sim.status(0).interfaces[0].state, sim.status(1).interfaces[0].state), (S::Backup, S::Dr));
}

/// BackupSeen: the same, "signalling an end to the Waiting state", as soon as a neighbour declares itself Backup, or
/// Designated Router without one.
#[test]
fn backup_seen_ends_the_waiting_early() {
    let mut sim = Simulator::new(64);
    sim.segment(&[(0, lan(1)), (1, lan(2)), (2, lan(1))]);
    for node in [0, 1] {
        sim.restart(node);
    }
    sim.until(seconds(10), |sim| sim.status(1).interfaces[0].state == S::Dr);
    sim.run(seconds(2));
    sim.restart(2);
    sim.until(seconds(2), |sim| sim.status(2).interfaces[0].state == S::DrOther);
    assert_eq!(changes(&sim, 2), [(S::Down, S::Waiting), (S::Waiting, S::DrOther)]);
}

/// NeighborChange: "Recalculate the attached network's Backup Designated Router and Designated Router, as shown in Section
/// 9.4. As a result of this calculation, the new state of the interface will be either DR Other, Backup or DR."
#[test]
fn neighbor_change_elects_anew() {
    let mut sim = Simulator::new(65);
    sim.segment(&[(0, lan(1)), (1, lan(2)), (2, lan(3))]);
    sim.start();
    sim.until(seconds(10), |sim| sim.status(2).interfaces[0].state == S::Dr && sim.all_full(6));
    assert_eq!(sim.status(0).interfaces[0].state, S::DrOther);
    sim.kill(2);
    sim.until(seconds(6), |sim| sim.status(0).interfaces[0].state == S::Backup);
    assert_eq!(sim.status(1).interfaces[0].state, S::Dr);
    sim.kill(1);
    sim.until(seconds(6), |sim| sim.status(0).interfaces[0].state == S::Dr);
}

/// InterfaceDown: "All interface variables are reset, and interface timers disabled. Also, all neighbor connections
/// associated with the interface are destroyed." From every state.
#[test]
fn interface_down_resets_everything() {
    let kinds = [p2p(), lan(0), lan(1), lan(9), InterfaceConfig { passive: true, ..p2p() }];
    for config in kinds {
        for wait in [0, 1, 8] {
            let mut sim = Simulator::new(66);
            let other = fast(config.network, if config.network == Network::Broadcast { 5 } else { 0 });
            sim.segment(&[(0, config.clone()), (1, other)]);
            sim.start();
            sim.run(seconds(wait));
            let had_neighbor = !sim.status(0).neighbors.is_empty();
            sim.set_link(0, false);
            let status = sim.status(0);
            let interface = &status.interfaces[0];
            assert_eq!((interface.state, interface.wait_in_ms, interface.hello_in_ms), (S::Down, None, None));
            assert!(
                interface.dr.is_unspecified()
                    && interface.bdr.is_unspecified()
                    && status.neighbors.is_empty()
            );
            let killed = |event: &Event| matches!(event, Event::Neighbor { router, to: NeighborState::Down, event: NeighborEvent::LinkDown, .. } if *router == id(1));
            assert_eq!(sim.events(0).iter().any(killed), had_neighbor);
        }
    }
}
