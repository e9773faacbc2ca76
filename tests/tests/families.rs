//! One director between a client and a real server, all real: IPv6 by direct return, and tunnels between any two
//! families. What arrives at the real server is read off the wire there.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_tests::ecmp::binary;
use cluster_tests::netns::{Namespace, Process, until};
use cluster_tests::requirement::{Requirement, met};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
const SOURCE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 255, 0, 1));
const SOURCE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1));
const PAYLOAD: &[u8] = b"what the client said";

/// client --- eth1 director eth2 --- real server
struct Site {
    client: Namespace,
    director: Namespace,
    real: Namespace,
    _daemon: Process,
    folder: tempfile::TempDir,
}

impl Site {
    fn up() -> Result<Self> {
        let [client, director, real] = ["fam-c", "fam-d", "fam-r"].map(Namespace::new);
        let (client, director, real) = (client?, director?, real?);
        director.veth("eth1", "192.0.2.1/24", &client, "eth0", "192.0.2.2/24")?;
        director.veth("eth2", "10.0.2.1/24", &real, "eth0", "10.0.2.11/24")?;
        for (namespace, device, address) in [
            (&director, "eth1", "2001:db8:1::1/64"),
            (&client, "eth0", "2001:db8:1::2/64"),
            (&director, "eth2", "2001:db8:2::1/64"),
            (&real, "eth0", "2001:db8:2::11/64"),
            (&real, "eth0", "10.0.2.12/24"),
            (&director, "lo", "10.255.0.1/32"),
            (&director, "lo", "2001:db8:ff::1/128"),
            (&real, "lo", "2001:db8:f::10/128"),
        ] {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            namespace.ip(&format!("addr add {address} dev {device}{nodad}"))?;
        }
        for (namespace, v4, v6) in
            [(&client, "192.0.2.1", "2001:db8:1::1"), (&real, "10.0.2.1", "2001:db8:2::1")]
        {
            namespace.ip(&format!("route add default via {v4}"))?;
            namespace.ip(&format!("-6 route add default via {v6}"))?;
            // Partial checksums do not survive a redirect; its target needs NAPI, which GRO turns on.
            run(namespace, "ethtool", &["-K", "eth0", "tx", "off", "gro", "on"])?;
        }
        for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            run(&director, "sysctl", &["-q", "-w", setting])?;
        }
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("director.toml"), config(folder.path(), REALS, "ipip"))?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = director.command(binary("director")?);
        command.args(["run", "--config"]).arg(folder.path().join("director.toml"));
        command.stderr(Stdio::from(log));
        let daemon = Process::quiet(command)?;
        Ok(Self { client, director, real, _daemon: daemon, folder })
    }

    /// What `director QUESTION --json` says.
    fn ask(&self, question: &str) -> Result<Value> {
        let director = binary("director")?;
        let text = run(&self.director, director.to_str().context("UTF-8")?, &[question, "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("{question}: {text}"))
    }

    fn service(&self, name: &str) -> Result<Value> {
        let services = self.ask("services")?;
        let found =
            services["services"].as_array().and_then(|all| all.iter().find(|one| one["name"] == name));
        found.cloned().with_context(|| format!("no service {name}: {services}"))
    }

    /// Waits until every real server has a way.
    fn ready(&self) -> Result<()> {
        let reachable = |service: &Value| {
            let reals = service["reals"].as_array().filter(|reals| !reals.is_empty());
            reals.is_some_and(|reals| reals.iter().all(|real| real["next_hop"] != ""))
        };
        until("ways to all real servers", PATIENCE, || {
            let Ok(services) = self.ask("services") else { return Ok(false) };
            Ok(services["services"].as_array().is_some_and(|all| all.iter().all(reachable)))
        })?;
        Ok(())
    }

    /// Puts another configuration in force and returns the lines that say what changed.
    fn reload(&self, reals: &str, tunnel: &str) -> Result<Vec<String>> {
        let text = config(self.folder.path(), reals, tunnel);
        std::fs::write(self.folder.path().join("director.toml"), text)?;
        let reply = self.ask("reload")?;
        let changes = reply["changes"].as_array().context("changes")?;
        Ok(changes.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// Has the client send until a packet arrives at the real server as `wanted`; returns it.
    fn arrival(&self, vip: SocketAddr, udp: bool, wanted: impl Fn(&Seen<'_>) -> bool) -> Result<Vec<u8>> {
        let wire = within(&self.real, listen)?;
        let begin = Instant::now();
        let mut frame = vec![0; 4096];
        while begin.elapsed() < PATIENCE {
            within(&self.client, || send(vip, udp))?;
            while let Ok(length) = recv(wire.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                if let Some(seen) = Seen::parse(&frame[..length])
                    && wanted(&seen)
                {
                    frame.truncate(length);
                    return Ok(frame);
                }
            }
        }
        bail!("nothing for {vip} arrived as it should within {PATIENCE:?}")
    }
}

const REALS: &str = "[[service.real]]\naddress = \"10.0.2.11\"\n";

/// The service `changing` has these real servers and this tunnel.
fn config(folder: &Path, reals: &str, tunnel: &str) -> String {
    let folder = folder.display();
    format!(
        r#"
[node]
router_id = "10.255.0.1"
interfaces = ["eth1"]
pin_dir = "{folder}/bpf"
state_dir = "{folder}/state"
tunnel_source = ["{SOURCE_V4}", "{SOURCE_V6}"]
[metrics]
listen = "127.0.0.1:9900"
[[service]]
name = "direct"
vip = "2001:db8:f::10"
port = 80
[[service.real]]
address = "2001:db8:2::11"
[[service]]
name = "gre"
vip = "2001:db8:f::11"
port = 5300
protocol = "udp"
forwarding = "tunnel"
tunnel = {{ type = "gre" }}
[[service.real]]
address = "10.0.2.11"
[[service]]
name = "gue"
vip = "203.0.113.11"
port = 5300
protocol = "udp"
forwarding = "tunnel"
tunnel = {{ type = "gue", port = 6081 }}
[[service.real]]
address = "2001:db8:2::11"
[[service]]
name = "six"
vip = "2001:db8:f::12"
port = 5300
protocol = "udp"
forwarding = "tunnel"
[[service.real]]
address = "2001:db8:2::11"
[[service]]
name = "changing"
vip = "203.0.113.10"
port = 80
forwarding = "tunnel"
tunnel = {{ type = "{tunnel}" }}
{reals}"#
    )
}

/// Runs a program in a namespace; it must succeed. Returns what it prints.
fn run(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<String> {
    let output = namespace.command(program).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `body` in a thread inside a namespace.
fn within<T: Send>(namespace: &Namespace, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(format!("/run/netns/{}", namespace.name()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A socket that hears every frame of its namespace, for a while.
fn listen() -> Result<OwnedFd> {
    let every = SockProtocol::EthAll;
    let wire = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, every)?;
    setsockopt(&wire, sockopt::ReceiveTimeout, &TimeVal::new(0, 200_000))?;
    Ok(wire)
}

/// A datagram, or an attempt at a connection: that nobody answers it is none of this function's business.
fn send(vip: SocketAddr, udp: bool) -> Result<()> {
    if udp {
        let any: IpAddr =
            if vip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        UdpSocket::bind((any, 0))?.send_to(PAYLOAD, vip)?;
    } else {
        let _unanswered = TcpStream::connect_timeout(&vip, Duration::from_millis(50));
    }
    Ok(())
}

/// An IP packet on the wire.
#[derive(Debug)]
struct Seen<'a> {
    protocol: u8,
    hop_limit: u8,
    source: IpAddr,
    destination: IpAddr,
    payload: &'a [u8],
}

impl<'a> Seen<'a> {
    /// The packet in an Ethernet frame.
    fn parse(frame: &'a [u8]) -> Option<Self> {
        match frame.get(12..14)? {
            [0x08, 0x00] | [0x86, 0xdd] => Self::parse_ip(frame.get(14..)?),
            _ => None,
        }
    }

    fn parse_ip(ip: &'a [u8]) -> Option<Self> {
        match ip.first()? >> 4 {
            4 => Some(Self {
                protocol: *ip.get(9)?,
                hop_limit: *ip.get(8)?,
                source: <[u8; 4]>::try_from(ip.get(12..16)?).ok()?.into(),
                destination: <[u8; 4]>::try_from(ip.get(16..20)?).ok()?.into(),
                payload: ip.get(usize::from(ip[0] & 15) * 4..)?,
            }),
            6 => Some(Self {
                protocol: *ip.get(6)?,
                hop_limit: *ip.get(7)?,
                source: <[u8; 16]>::try_from(ip.get(8..24)?).ok()?.into(),
                destination: <[u8; 16]>::try_from(ip.get(24..40)?).ok()?.into(),
                payload: ip.get(40..)?,
            }),
            _ => None,
        }
    }
}

#[test]
fn ipv6_and_tunnels_work_from_end_to_end() -> Result<()> {
    if !met(&[Requirement::Root]) || !met(&["ethtool", "sysctl", "curl"].map(Requirement::Program)) {
        return Ok(());
    }
    let site = Site::up()?;
    let told = story(&site);
    if told.is_err() {
        eprintln!("{}", std::fs::read_to_string(site.folder.path().join("log")).unwrap_or_default());
    }
    told
}

fn story(site: &Site) -> Result<()> {
    site.ready()?;
    an_ipv6_connection_goes_direct(site)?;
    packets_arrive_in_their_tunnels(site)?;
    views_name_family_and_tunnel(site)?;
    a_drained_server_takes_no_new_connection(site)?;
    a_tunnel_changes_by_reload(site)
}

fn an_ipv6_connection_goes_direct(site: &Site) -> Result<()> {
    let vip: SocketAddr = "[2001:db8:f::10]:80".parse()?;
    let listener = within(&site.real, || Ok(TcpListener::bind(vip)?))?;
    let mut client = within(&site.client, || Ok(TcpStream::connect_timeout(&vip, PATIENCE)?))?;
    let (mut server, peer) = listener.accept()?;
    ensure!(peer.ip() == "2001:db8:1::2".parse::<IpAddr>()?, "the real server sees {peer}");
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    let mut heard = vec![0; PAYLOAD.len()];
    std::io::Write::write_all(&mut client, PAYLOAD)?;
    std::io::Read::read_exact(&mut server, &mut heard)?;
    std::io::Write::write_all(&mut server, &heard)?;
    heard.fill(0);
    std::io::Read::read_exact(&mut client, &mut heard)?;
    ensure!(heard == PAYLOAD);
    // It was the director's program that forwarded it, not the kernel, which has no route to the VIP.
    let traffic = site.service("direct")?["traffic"].clone();
    ensure!(traffic["connections"].as_u64() >= Some(1), "{traffic}");
    Ok(())
}

fn packets_arrive_in_their_tunnels(site: &Site) -> Result<()> {
    let v4: IpAddr = "10.0.2.11".parse()?;
    let v6: IpAddr = "2001:db8:2::11".parse()?;
    // VIP, whether it is asked by UDP, source and destination of the tunnel, protocol, bytes between the headers.
    for (vip, udp, source, real, protocol, shim) in [
        ("203.0.113.10:80", false, SOURCE_V4, v4, 4, 0),
        ("[2001:db8:f::11]:5300", true, SOURCE_V4, v4, 47, 4),
        ("203.0.113.11:5300", true, SOURCE_V6, v6, 17, 12),
        ("[2001:db8:f::12]:5300", true, SOURCE_V6, v6, 41, 0),
    ] {
        let vip: SocketAddr = vip.parse()?;
        let frame = site.arrival(vip, udp, |seen| (seen.source, seen.destination) == (source, real))?;
        let outer = Seen::parse(&frame).context("outer packet")?;
        ensure!((outer.protocol, outer.hop_limit) == (protocol, 64), "{vip}: {outer:?}");
        let inner = Seen::parse_ip(&outer.payload[shim..]).context("inner packet")?;
        ensure!(inner.destination == vip.ip(), "{vip}: {inner:?}");
        ensure!(inner.hop_limit == 63, "a hop counts once: {inner:?}");
        ensure!(!udp || inner.payload.ends_with(PAYLOAD), "{vip}: {inner:?}");
        if protocol == 17 {
            ensure!(outer.payload[2..4] == 6081_u16.to_be_bytes(), "{outer:?}");
        }
    }
    Ok(())
}

fn views_name_family_and_tunnel(site: &Site) -> Result<()> {
    for (name, family, forwarding, address) in [
        ("direct", "IPv6", "dr", "tcp [2001:db8:f::10]:80"),
        ("gre", "IPv6", "tunnel gre", "udp [2001:db8:f::11]:5300"),
        ("gue", "IPv4", "tunnel gue port 6081", "udp 203.0.113.11:5300"),
        ("changing", "IPv4", "tunnel ipip", "tcp 203.0.113.10:80"),
    ] {
        let service = site.service(name)?;
        ensure!(service["family"] == family && service["forwarding"] == forwarding, "{service}");
        ensure!(service["addresses"][0] == address && service["reals"][0]["state"] == "active", "{service}");
    }
    let metrics = run(&site.director, "curl", &["-sf", "http://127.0.0.1:9900/metrics"])?;
    for line in [
        "director_service_info{service=\"gre\",vip=\"2001:db8:f::11\",family=\"IPv6\",forwarding=\"tunnel gre\",\
         scheduler=\"mh\"} 1",
        "director_real_reachable{service=\"direct\",real=\"[2001:db8:2::11]:80\"} 1",
    ] {
        ensure!(metrics.contains(line), "no {line} in {metrics}");
    }
    Ok(())
}

fn a_drained_server_takes_no_new_connection(site: &Site) -> Result<()> {
    let reals = format!("{REALS}weight = 0\n[[service.real]]\naddress = \"10.0.2.12\"\n");
    let changes = site.reload(&reals, "ipip")?;
    let expected = ["10.0.2.11 weight 1 -> 0 (draining)", "10.0.2.12 added, weight 1"];
    ensure!(
        changes.len() == 2 && changes.iter().zip(expected).all(|(line, end)| line.ends_with(end)),
        "{changes:?}"
    );
    site.ready()?;
    let service = site.service("changing")?;
    let states: Vec<_> = service["reals"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|real| (&real["address"], &real["state"]))
        .collect();
    ensure!(
        states == [(&"10.0.2.11".into(), &"draining".into()), (&"10.0.2.12".into(), &"active".into())],
        "{states:?}"
    );
    let shown = run(&site.director, binary("director")?.to_str().context("UTF-8")?, &["services"])?;
    ensure!(shown.contains("0 (draining)"), "{shown}");
    let new: IpAddr = "10.0.2.12".parse()?;
    let tunnelled = |seen: &Seen<'_>| seen.source == SOURCE_V4 && seen.protocol == 4;
    for _ in 0..3 {
        let frame = site.arrival("203.0.113.10:80".parse()?, false, tunnelled)?;
        let outer = Seen::parse(&frame).context("outer packet")?;
        ensure!(outer.destination == new, "a new connection went to the drained server: {outer:?}");
    }
    Ok(())
}

fn a_tunnel_changes_by_reload(site: &Site) -> Result<()> {
    let changes = site.reload("[[service.real]]\naddress = \"10.0.2.12\"\n", "gre")?;
    ensure!(
        changes
            == [
                "service \"changing\": real server 10.0.2.11 removed",
                "service \"changing\": forwarding: tunnel ipip -> tunnel gre",
            ],
        "{changes:?}"
    );
    site.ready()?;
    let new: IpAddr = "10.0.2.12".parse()?;
    let wanted = |seen: &Seen<'_>| seen.destination == new && seen.source == SOURCE_V4;
    let frame = site.arrival("203.0.113.10:80".parse()?, false, wanted)?;
    let outer = Seen::parse(&frame).context("outer packet")?;
    ensure!(outer.protocol == 47, "{outer:?}");
    // What a reload refuses leaves everything as it is.
    let text = config(site.folder.path(), REALS, "gre").replace("tunnel_source", "#");
    std::fs::write(site.folder.path().join("director.toml"), text)?;
    let refused = site.ask("reload").expect_err("no tunnel source").to_string();
    ensure!(refused.contains("tunnel_source in [node]"), "{refused}");
    ensure!(site.service("changing")?["forwarding"] == "tunnel gre");
    Ok(())
}
