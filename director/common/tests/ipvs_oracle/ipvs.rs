//! Asking IPVS: services by `ipvsadm`, segments by a raw socket, choices from its table of connections.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::Answers;
use super::cases::{Case, Step, client, port};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN: u8 = 0x01;

fn run(program: &str, arguments: &str) -> Result<(), String> {
    let output = Command::new(program).args(arguments.split_whitespace()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Whether this is a machine that was started for such tests: no other is changed.
pub(super) fn is_guest() -> bool {
    std::path::Path::new("/.guest").exists()
}

/// Makes this machine a director with IPVS.
pub(super) fn prepare() -> Result<(), String> {
    run("modprobe", "ip_vs")?;
    run("modprobe", "dummy")?;
    run("ip", "link add servers type dummy")?;
    run("ip", "addr add 10.0.2.1/24 dev servers")?;
    run("ip", "link set servers up arp off")?;
    for vip in 10..40 {
        run("ip", &format!("addr add 203.0.113.{vip}/32 dev lo"))?;
    }
    // Finished connections are forgotten soon, but not before the next table of them is read.
    run("ipvsadm", "--set 900 3 300")
}

fn vip(case: &Case, id: u32) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, 10 + (id % case.vips) as u8)
}

fn real(server: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, 11 + server as u8)
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes()
}

fn segment(source: ([u8; 4], u16), destination: (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
    let (to, port) = (destination.0.octets(), destination.1);
    let mut tcp = Vec::new();
    tcp.extend(source.1.to_be_bytes());
    tcp.extend(port.to_be_bytes());
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0x10, 0, 0, 0, 0, 0]);
    let mut pseudo = [source.0, to].concat();
    pseudo.extend([0, 6, 0, tcp.len() as u8]);
    pseudo.extend(&tcp);
    tcp[16..18].copy_from_slice(&checksum(&pseudo));
    let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0];
    packet.extend([source.0, to].concat());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(tcp);
    packet
}

/// A connection's client, and VIP and port, as in the table.
type Ends = (String, String);

fn ends(case: &Case, id: u32, port: u16) -> Ends {
    let (source, source_port) = client(id);
    let hexadecimal = |address: Ipv4Addr, port: u16| format!("{:08X} {port:04X}", u32::from(address));
    (hexadecimal(source.into(), source_port), hexadecimal(vip(case, id), port))
}

/// Server and state of every connection that IPVS knows.
fn table() -> BTreeMap<Ends, (usize, String)> {
    let text = read_to_string("/proc/net/ip_vs_conn").expect("IPVS's table");
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, from, from_port, to, to_port, server, _, state, ..] = words[..] else { return None };
        let server = u32::from_str_radix(server, 16).ok()?;
        let server = server.checked_sub(u32::from(real(0)))? as usize;
        Some(((format!("{from} {from_port}"), format!("{to} {to_port}")), (server, state.to_owned())))
    };
    text.lines().filter_map(row).collect()
}

/// The answers to a case.
pub(super) fn ask(case: &Case) -> Answers {
    let must = |arguments: &str| run("ipvsadm", arguments).expect("ipvsadm");
    let port = port(case.number);
    must("-C");
    let services: Vec<String> = (0..case.vips).map(|id| format!("{}:{port}", vip(case, id))).collect();
    let flags = if case.flags.is_empty() { String::new() } else { format!("-b {}", case.flags) };
    let mut rules = String::new();
    for service in &services {
        rules += &format!("-A -t {service} -s {} {flags}\n", case.scheduler);
        for (server, given) in case.servers.iter().enumerate() {
            let (weight, upper, lower) = (given.weight, given.upper, given.lower);
            rules += &format!("-a -t {service} -r {} -g -w {weight} -x {upper} -y {lower}\n", real(server));
        }
    }
    restore(&rules);
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).expect("raw socket");
    let send = |id: u32, flags: u8| {
        let packet = segment(client(id), (vip(case, id), port), flags);
        let to = SocketAddr::V4(SocketAddrV4::new(vip(case, id), 0));
        // Nobody to choose: IPVS refuses the packet, and the answer says so.
        let _ = socket.send_to(&packet, &to.into());
    };
    let (mut opened, mut known) = (Vec::new(), BTreeMap::new());
    for step in &case.steps {
        match *step {
            Step::Open(id) => {
                opened.push(id);
                send(id, SYN);
                send(id, ACK);
            }
            Step::Finish(id) => send(id, FIN | ACK),
            Step::Expire => {
                known.extend(table());
                expire(port);
            }
            Step::Weight(server, weight) => {
                let given = &case.servers[server];
                for service in &services {
                    let (upper, lower) = (given.upper, given.lower);
                    must(&format!(
                        "-e -t {service} -r {} -g -w {weight} -x {upper} -y {lower}",
                        real(server)
                    ));
                }
            }
        }
    }
    known.extend(table());
    let answer = |id: u32| known.get(&ends(case, id, port)).map(|(server, _)| *server);
    opened.into_iter().map(answer).collect()
}

/// Sets up all of a case at once.
fn restore(rules: &str) {
    let file = std::env::temp_dir().join("rules");
    std::fs::write(&file, rules).expect("rules");
    let status = Command::new("ipvsadm").arg("-R").stdin(std::fs::File::open(&file).expect("rules")).status();
    assert!(status.expect("ipvsadm").success(), "ipvsadm refuses:\n{rules}");
}

/// Waits until IPVS has forgotten all that is finished.
fn expire(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let suffix = format!(" {port:04X}");
    let finished = || {
        let is_finished = |(ends, (_, state)): (&Ends, &(usize, String))| {
            ends.1.ends_with(&suffix) && state != "ESTABLISHED"
        };
        table().iter().any(is_finished)
    };
    while finished() {
        assert!(Instant::now() < deadline, "finished connections stay");
        std::thread::sleep(Duration::from_millis(50));
    }
}
