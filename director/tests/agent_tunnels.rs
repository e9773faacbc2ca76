//! Real packets through real tunnels: TCP from a client by the director to a real server whose agent ends them.

mod agent_fixture;
mod dataplane_fixture;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use agent_fixture::{
    VIPS, agent_options, block_on, build, connect, director, exchange, forwarding, with_agent, within,
};
use dataplane_fixture::{isolated, run};
use director::agent::{Agent, AgentError, Change, Mode, Options, Tunnel};
use director::dataplane::{Dataplane, Forwarding};
use director_common::decapsulate::Reception;
use director_common::verdict::{AnswerReason, DropReason, Outcome};

const KINDS: [Tunnel; 3] = [Tunnel::Ipip, Tunnel::Gre, Tunnel::Gue { port: 6080 }];

/// Everything the agent may touch on the real server, as text.
fn state() -> String {
    let settings =
        ["arp_ignore", "arp_announce", "rp_filter"].map(|name| format!("net.ipv4.conf.all.{name}"));
    let inside = |command: String| run("ip", &format!("netns exec real {command}"));
    [
        inside(format!("sysctl {}", settings.join(" "))),
        inside("ip -o addr show dev lo".to_owned()),
        inside("ip rule".to_owned()),
        inside("ip -6 rule".to_owned()),
        // The kernel's own fallback devices stay once their module is loaded; they are down.
        inside("ip -br link show up".to_owned()),
        inside("ip route show table all type unicast".to_owned()),
    ]
    .join("\n")
}

fn outcome(dataplane: &Dataplane, wanted: Outcome) -> u64 {
    let counters = dataplane.counters().expect("counters");
    counters.outcomes.into_iter().find(|(outcome, _)| *outcome == wanted).expect("outcome").1
}

fn count(agent: &Agent, wanted: Reception) -> u64 {
    let counters = agent.counters().expect("counters").expect("tunnels");
    counters.into_iter().find(|(reception, _)| *reception == wanted).expect("every outcome").1
}

/// Bytes in front of the inner packet.
fn overhead(tunnel: Tunnel, over_v6: bool) -> u32 {
    let shim = match tunnel {
        Tunnel::Ipip => 0,
        Tunnel::Gre => 4,
        Tunnel::Gue { .. } => 12,
    };
    shim + if over_v6 { 40 } else { 20 }
}

/// Both VIPs work by this tunnel over both families, with no segment that does not fit in `mtu`.
fn works(mode: Mode, tunnel: Tunnel, mtu: u32) {
    let before = state();
    for over_v6 in [false, true] {
        let options = Options { mode, ..agent_options(tunnel) };
        let dataplane = director(forwarding(tunnel), over_v6);
        let (by_devices, taken) = with_agent(options, move |agent| {
            for (number, vip) in VIPS.into_iter().enumerate() {
                let (mut stream, segment) = connect(vip);
                // Room for the wider of the two outer headers, whichever the director uses.
                let headers = if number == 0 { 40 } else { 60 };
                assert!(segment <= mtu - overhead(tunnel, true) - headers, "{tunnel:?} {vip}: {segment}");
                exchange(&mut stream, 1);
                exchange(&mut stream, 2);
            }
            let by_devices = agent.changes().iter().any(|change| matches!(change, Change::Device(_)));
            let taken = if by_devices { Reception::LeftToDevice } else { Reception::Decapsulated };
            (by_devices, count(agent, taken))
        });
        assert!(taken > 100, "{tunnel:?} over_v6={over_v6} by_devices={by_devices}: {taken} packets");
        assert!(!(mode == Mode::Xdp && by_devices));
        for too_big in [Outcome::Answered(AnswerReason::TooBig), Outcome::Dropped(DropReason::TooBig)] {
            assert_eq!(outcome(&dataplane, too_big), 0, "{tunnel:?} over_v6={over_v6}");
        }
        dataplane.detach().expect("detach");
        assert_eq!(state(), before, "{tunnel:?}: the agent leaves nothing behind");
    }
}

#[test]
fn every_tunnel_carries_both_families_over_both() {
    isolated(|| {
        build();
        for tunnel in KINDS {
            works(Mode::Xdp, tunnel, 1500);
        }
    });
}

/// With devices of the kernel where it has them, which `Mode::Auto` finds out.
#[test]
fn every_tunnel_works_by_what_the_kernel_offers() {
    isolated(|| {
        build();
        let has_devices =
            Command::new("ip").args(["link", "add", "probe", "type", "ipip", "external"]).output();
        let has_devices = has_devices.expect("ip").status.success();
        println!("tunnel devices: {has_devices}");
        for tunnel in KINDS {
            works(Mode::Auto, tunnel, 1500);
        }
        let options = Options { mode: Mode::Kernel, ..agent_options(Tunnel::Ipip) };
        let prepared = within("real", move || {
            block_on(async {
                match Agent::prepare(options).await {
                    Ok(agent) => agent.undo().await.map(|_| true),
                    Err(AgentError::Device { .. }) => Ok(false),
                    Err(error) => Err(error),
                }
            })
        });
        assert_eq!(prepared.join().expect("agent's thread").expect("agent"), has_devices);
    });
}

#[test]
fn a_narrow_way_to_the_real_server_is_not_exceeded() {
    isolated(|| {
        build();
        run("ip", "-n router link set rr mtu 1400");
        run("ip", "-n real link set r0 mtu 1400");
        works(Mode::Xdp, Tunnel::Gre, 1400);
    });
}

/// The router cannot pass on what the real server sends, and says so to the VIP: to the director, that is, who sends
/// it through the tunnel.
#[test]
fn a_narrow_way_to_the_client_is_found_out_through_the_tunnel() {
    isolated(|| {
        build();
        // Only on the way out, so that the client, too, believes that 1500 bytes pass.
        run("ip", "-n router route add 192.0.2.2/32 dev rc mtu lock 1280");
        run("ip", "-n router -6 route add 2001:db8:c::2/128 dev rc mtu lock 1280");
        for (tunnel, over_v6) in [(Tunnel::Ipip, false), (Tunnel::Gue { port: 6080 }, true)] {
            let dataplane = director(forwarding(tunnel), over_v6);
            let options = Options { mode: Mode::Xdp, ..agent_options(tunnel) };
            with_agent(options, |_| {
                for vip in VIPS {
                    let (mut stream, _) = connect(vip);
                    exchange(&mut stream, 1);
                }
            });
            dataplane.detach().expect("detach");
        }
        // Without these nothing would have come: nobody else says what fits, and nobody probes.
        let told = run("ip", "netns exec router nstat -as IcmpOutDestUnreachs Icmp6OutPktTooBigs");
        for name in ["IcmpOutDestUnreachs", "Icmp6OutPktTooBigs"] {
            let line = told.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            let count = line.split_whitespace().nth(1).and_then(|count| count.parse::<u32>().ok());
            assert!(count.is_some_and(|count| count > 0), "{name}: {told}");
        }
    });
}

#[test]
fn a_stranger_gets_nothing_through() {
    isolated(|| {
        build();
        let mut options = Options { mode: Mode::Xdp, ..agent_options(Tunnel::Ipip) };
        options.from = vec!["192.0.9.0/24".parse().expect("prefix")];
        let _dataplane = director(Forwarding::Ipip, false);
        with_agent(options, |agent| {
            let address = (VIPS[0].parse::<std::net::IpAddr>().expect("vip"), 80).into();
            let refused = within("client", move || {
                std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_secs(1)).is_err()
            });
            assert!(refused.join().expect("client"), "a connection came through");
            assert!(count(agent, Reception::SourceUnlisted) > 0);
            assert_eq!(count(agent, Reception::Decapsulated), 0);
        });
    });
}

/// Whether the router's neighbour discovery (ARP, or a solicitation) finds the address on the real server's link.
fn is_found(address: &str) -> bool {
    let host = if address.contains(':') { "128" } else { "32" };
    run("ip", &format!("-n router route replace {address}/{host} dev rr"));
    // The first packet begins the question; whether it is answered is told by the neighbour's entry.
    let ping = format!("netns exec router ping -n -c 1 -W 4 {address}");
    let _ = Command::new("ip").args(ping.split_whitespace()).output().expect("ping");
    let entry = run("ip", &format!("-n router neigh show {address} dev rr"));
    run("ip", &format!("-n router route del {address}/{host} dev rr"));
    entry.contains("lladdr")
}

#[test]
fn nobody_learns_of_a_vip_on_the_real_servers_link() {
    isolated(|| {
        build();
        let options = Options::new(VIPS.map(|vip| vip.parse().expect("vip")));
        with_agent(options, |_| {
            for (vip, control) in VIPS.into_iter().zip(["10.0.2.12/24", "2001:db8:2::12/64"]) {
                assert!(!is_found(vip), "{vip} is answered for");
                let nodad = if control.contains(':') { " nodad" } else { "" };
                run("ip", &format!("-n real addr add {control} dev r0{nodad}"));
                let address = control.split('/').next().expect("address");
                assert!(is_found(address), "the question itself works: {address}");
            }
        });
    });
}

#[test]
fn a_vip_on_the_link_is_refused() {
    isolated(|| {
        build();
        run("ip", &format!("-n real addr add {}/32 dev r0", VIPS[0]));
        let options = agent_options(Tunnel::Ipip);
        let error = within("real", move || block_on(Agent::prepare(options)).expect_err("refused"));
        let error = error.join().expect("agent's thread").to_string();
        assert!(error.contains("ip address del 203.0.113.10 dev r0"), "{error}");
    });
}

/// A process that ends at the latest with the test.
struct Killed(Child);

impl Killed {
    fn end(&mut self) {
        self.0.kill().expect("kill -9");
        self.0.wait().expect("its end");
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn a_killed_agent_is_taken_over_and_undone() {
    isolated(|| {
        build();
        let before = state();
        let _dataplane = director(Forwarding::Gre, false);
        let arguments =
            "agent --vip 203.0.113.10 --vip 2001:db8::10 --tunnel gre --mode xdp --from 192.0.3.0/24";
        let starting = within("real", move || {
            let mut agent = Command::new(env!("CARGO_BIN_EXE_director"))
                .args(arguments.split_whitespace())
                .stdout(Stdio::piped())
                .spawn()
                .expect("agent");
            let lines = BufReader::new(agent.stdout.take().expect("piped")).lines();
            // The last thing it does, in the order of addresses.
            let ready = lines.map_while(Result::ok).any(|line| line.contains("2001:db8::10/128 is on"));
            assert!(ready, "the agent ended early");
            Killed(agent)
        });
        let mut killed = starting.join().expect("agent's thread");
        let second = within("real", || block_on(Agent::prepare(agent_options(Tunnel::Gre))).map(drop));
        let second = second.join().expect("agent's thread");
        assert!(matches!(second, Err(AgentError::Running(pid)) if pid == killed.0.id()), "{second:?}");
        let (mut stream, _) = connect(VIPS[0]);
        exchange(&mut stream, 1);
        killed.end();
        exchange(&mut stream, 2);

        // The next run has the same VIPs but one; the connection goes on.
        let mut options = Options { mode: Mode::Xdp, ..agent_options(Tunnel::Gre) };
        options.vips.retain(std::net::IpAddr::is_ipv4);
        let next = within("real", move || {
            let changes = block_on(async {
                let agent = Agent::prepare(options).await.expect("agent");
                agent.changes().to_vec()
            });
            exchange(&mut stream, 3);
            changes
        });
        let changes = next.join().expect("agent's thread");
        let named = |vip: &str| changes.iter().filter(|change| change.to_string().contains(vip)).count();
        assert_eq!((named("203.0.113.10"), named("2001:db8::10")), (2, 0), "{changes:?}");

        // That one is gone too, without a word. What all of them did is undone.
        let undoing = within("real", || {
            Command::new(env!("CARGO_BIN_EXE_director")).args(["agent", "--undo"]).output().expect("undo")
        });
        let output = undoing.join().expect("agent's thread");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), changes.len(), "{output:?}");
        assert_eq!(state(), before);
        assert!(!run("ip", "-n real -d link show dev r0").contains("xdp"));
    });
}
