//! Our BFD against FRR's bfdd and BIRD's, over a veth cable between two network namespaces. Needs root.

mod fixture;

use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use routing::bfd::{
    Bfd, Config, Diagnostic, Event, Handle, Parameters, Path, SessionKey, SessionStatus, State,
};

use fixture::{Bird, Cable, Frr, INTERFACE, Namespace, Process, Sniffed, ready, wait_for};

/// Enough for two slow starts on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// How much later than the protocol says a busy virtual machine with two processors may notice something.
const SLACK: Duration = Duration::from_millis(100);

const FRR_50X3: &str = "bfd
 peer 192.0.2.1 interface bf0
  receive-interval 50
  transmit-interval 50
  detect-multiplier 3
  no shutdown
";

const BIRD_50X3: &str = r#"router id 192.0.2.2;
protocol device {}
protocol bfd bfd1 {
  interface "bf0" { min rx interval 50 ms; min tx interval 50 ms; idle tx interval 1 s; multiplier 3; };
  neighbor 192.0.2.1 dev "bf0" local 192.0.2.2;
}
"#;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn symmetric(milliseconds: u64) -> Parameters {
    Parameters {
        desired_min_tx: ms(milliseconds),
        required_min_rx: ms(milliseconds),
        ..Parameters::default()
    }
}

fn key() -> SessionKey {
    SessionKey {
        interface: INTERFACE.to_owned(),
        local: "192.0.2.1".parse().expect("an address"),
        peer: "192.0.2.2".parse().expect("an address"),
    }
}

/// Our end of the cable, with one session.
struct Ours {
    handle: Handle,
    events: Receiver<Event>,
    key: SessionKey,
}

impl Ours {
    fn start(namespace: &Namespace, key: SessionKey, parameters: Parameters) -> Result<Self> {
        let (handle, mut arriving) = namespace.enter(|| Bfd::spawn(Config::default()))??;
        handle.add(key.clone(), parameters)?;
        let (sender, events) = channel();
        std::thread::spawn(move || {
            while let Some(event) = arriving.blocking_recv() {
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        Ok(Self { handle, events, key })
    }

    /// The next event in which the path is `path`.
    fn path(&self, path: Path) -> Result<Event> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) if event.path == path => return Ok(event),
                Ok(_) => {}
                Err(_) => bail!("path not {path:?} in time; {:?}", self.handle.status()),
            }
        }
    }

    fn status(&self) -> Result<SessionStatus> {
        let mut sessions = self.handle.status()?.sessions;
        ensure!(sessions.len() == 1 && sessions[0].key == self.key, "one session: {sessions:?}");
        Ok(sessions.remove(0))
    }

    /// Waits until the intervals are what they should be and no Poll Sequence runs.
    fn negotiated(&self, transmit: Duration, detection: Duration) -> Result<()> {
        let agreed = wait_for("negotiated intervals", PATIENCE, || {
            let status = self.status().ok()?;
            let right = status.transmit_interval == transmit && status.detection_time == detection;
            (right && !status.polling).then_some(())
        });
        agreed.with_context(|| format!("{:#?}", self.status()))
    }

    /// Fails if the session changes within `time`.
    fn quiet_for(&self, time: Duration) -> Result<()> {
        match self.events.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            other => bail!("not quiet: {other:?}; {:#?}", self.handle.status()),
        }
    }
}

fn is_down_from_theirs(sniffed: &Sniffed) -> bool {
    !sniffed.is_ours && sniffed.packet.state == State::Down
}

fn is_admin_down_from_ours(sniffed: &Sniffed) -> bool {
    sniffed.is_ours && sniffed.packet.state == State::AdminDown
}

/// Seconds since the epoch, tcpdump's clock.
fn wall_clock() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// The test below, by name.
const CHILD: &str = "our_end_alone";

/// Not a test: the process that [`peer_notices_our_death`] kills.
#[test]
#[ignore = "started by other tests in a process of its own"]
fn our_end_alone() -> Result<()> {
    let Ok(interval) = std::env::var("BFD_TEST_INTERVAL") else { return Ok(()) };
    let (handle, mut events) = Bfd::spawn(Config::default())?;
    handle.add(key(), symmetric(interval.parse()?))?;
    while let Some(event) = events.blocking_recv() {
        println!("path {:?}", event.path);
    }
    Ok(())
}

fn spawn_child(cable: &Cable, interval: u64) -> Result<Process> {
    let mut command = cable.ours.command(std::env::current_exe()?);
    command
        .args(["--exact", CHILD, "--ignored", "--nocapture"])
        .env("BFD_TEST_INTERVAL", interval.to_string());
    let mut child = Process::spawn(command.stdout(Stdio::piped()))?;
    let lines = child.lines()?;
    wait_for("our process is up", PATIENCE, || lines.try_iter().find(|line| line.contains("path Up")))?;
    Ok(child)
}

/// Kills our process and returns how long the far end took to say Down.
fn peer_notices_our_death(cable: &Cable, interval: u64) -> Result<Duration> {
    let mut sniffer = cable.sniff()?;
    let mut child = spawn_child(cable, interval)?;
    sniffer.next("both up", PATIENCE, |p| p.is_ours && p.packet.final_)?;
    std::thread::sleep(ms(interval * 10));
    let killed = wall_clock();
    child.kill()?;
    let down = sniffer.next("their Down", PATIENCE, |p| p.time >= killed && is_down_from_theirs(p))?;
    ensure!(down.packet.diagnostic == Diagnostic::DETECTION_TIME_EXPIRED, "{down:?}");
    Ok(Duration::from_secs_f64(down.time - killed))
}

#[test]
fn frr_comes_up_and_agrees_on_intervals() -> Result<()> {
    if !ready(&Frr::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let slower = FRR_50X3.replace("receive-interval 50", "receive-interval 60");
    let slower = slower
        .replace("transmit-interval 50", "transmit-interval 70")
        .replace("multiplier 3", "multiplier 4");
    let frr = Frr::start(&cable, &slower)?;
    let ours = Ours::start(&cable.ours, key(), symmetric(50))?;
    ours.path(Path::Up)?;
    ours.negotiated(ms(60), ms(280))?;
    let peer = wait_for("FRR agrees", PATIENCE, || {
        frr.peer().filter(|peer| peer["status"] == "up" && peer["remote-transmit-interval"] == 50)
    })?;
    ensure!(peer["remote-receive-interval"] == 50 && peer["remote-detect-multiplier"] == 3, "{peer:#}");
    ensure!(peer["remote-id"] == ours.status()?.discriminator, "{peer:#}");
    ours.quiet_for(ms(500))
}

#[test]
fn bird_comes_up_and_agrees_on_intervals() -> Result<()> {
    if !ready(&Bird::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let slower = BIRD_50X3.replace("min rx interval 50", "min rx interval 60");
    let slower =
        slower.replace("min tx interval 50", "min tx interval 70").replace("multiplier 3", "multiplier 4");
    let bird = Bird::start(&cable, &slower)?;
    let ours = Ours::start(&cable.ours, key(), symmetric(50))?;
    ours.path(Path::Up)?;
    ours.negotiated(ms(60), ms(280))?;
    // Address, interface, state, since, interval, timeout.
    let row = wait_for("BIRD agrees", PATIENCE, || {
        let sessions = bird.birdc("show bfd sessions").ok()?;
        sessions.lines().find(|l| l.contains("192.0.2.1") && l.contains("Up")).map(str::to_owned)
    })?;
    ensure!(row.contains("0.070") && row.contains("0.180"), "{row}");
    ours.quiet_for(ms(500))
}

#[test]
fn bird_comes_up_over_link_local_ipv6() -> Result<()> {
    if !ready(&Bird::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let v6 = BIRD_50X3.replace("192.0.2.1 dev", "fe80::1 dev").replace("local 192.0.2.2", "local fe80::2");
    let _bird = Bird::start(&cable, &v6)?;
    let key = SessionKey { local: "fe80::1".parse()?, peer: "fe80::2".parse()?, ..key() };
    let ours = Ours::start(&cable.ours, key, symmetric(50))?;
    ours.path(Path::Up)?;
    ours.negotiated(ms(50), ms(150))?;
    ours.quiet_for(ms(500))
}

#[test]
fn frr_notices_our_death_within_its_detection_time() -> Result<()> {
    if !ready(&Frr::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let _frr = Frr::start(&cable, FRR_50X3)?;
    let took = peer_notices_our_death(&cable, 50)?;
    eprintln!("FRR noticed after {took:?}");
    ensure!((ms(95)..=ms(150) + SLACK).contains(&took), "{took:?}");
    Ok(())
}

#[test]
fn bird_notices_our_death_within_its_detection_time() -> Result<()> {
    if !ready(&Bird::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let _bird = Bird::start(&cable, BIRD_50X3)?;
    let took = peer_notices_our_death(&cable, 50)?;
    eprintln!("BIRD noticed after {took:?}");
    ensure!((ms(95)..=ms(150) + SLACK).contains(&took), "{took:?}");
    Ok(())
}

#[test]
fn our_death_is_noticed_fast_at_the_shortest_interval() -> Result<()> {
    if !ready(&Bird::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let _bird = Bird::start(&cable, &BIRD_50X3.replace("interval 50 ms", "interval 10 ms"))?;
    let took = peer_notices_our_death(&cable, 10)?;
    eprintln!("BIRD noticed after {took:?}");
    ensure!((ms(15)..=ms(30) + SLACK).contains(&took), "{took:?}");
    Ok(())
}

/// Kills the far end and checks when and why we noticed.
fn we_notice(ours: &Ours, theirs: &mut Process) -> Result<()> {
    ours.path(Path::Up)?;
    ours.negotiated(ms(50), ms(150))?;
    let killed = Instant::now();
    theirs.kill()?;
    let event = ours.path(Path::Down)?;
    let took = event.at - killed;
    eprintln!("noticed after {took:?}");
    ensure!((ms(95)..=ms(150) + SLACK).contains(&took), "{took:?}");
    ensure!(event.diagnostic == Diagnostic::DETECTION_TIME_EXPIRED, "{event:?}");
    let last = ours.status()?.last_down.context("the fall is remembered")?;
    ensure!(last.diagnostic == Diagnostic::DETECTION_TIME_EXPIRED, "{last:?}");
    Ok(())
}

#[test]
fn we_notice_the_death_of_frr() -> Result<()> {
    if !ready(&Frr::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let mut frr = Frr::start(&cable, FRR_50X3)?;
    let ours = Ours::start(&cable.ours, key(), symmetric(50))?;
    we_notice(&ours, &mut frr.bfdd)
}

#[test]
fn we_notice_the_death_of_bird() -> Result<()> {
    if !ready(&Bird::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let mut bird = Bird::start(&cable, BIRD_50X3)?;
    let ours = Ours::start(&cable.ours, key(), symmetric(50))?;
    we_notice(&ours, &mut bird.bird)
}

#[test]
fn intervals_change_by_poll_in_both_directions_without_a_flap() -> Result<()> {
    if !ready(&Frr::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let frr = Frr::start(&cable, FRR_50X3)?;
    let ours = Ours::start(&cable.ours, key(), symmetric(50))?;
    ours.path(Path::Up)?;
    ours.negotiated(ms(50), ms(150))?;
    let mut sniffer = cable.sniff()?;

    frr.vtysh(&[
        "configure terminal",
        "bfd",
        "peer 192.0.2.1 interface bf0",
        "receive-interval 200",
        "transmit-interval 200",
    ])?;
    let poll = sniffer.next("their Poll", PATIENCE, |p| !p.is_ours && p.packet.poll)?;
    let answer = sniffer.next("our Final", PATIENCE, |p| p.is_ours && p.packet.final_)?;
    ensure!(answer.time - poll.time < 0.02, "answered after {} s", answer.time - poll.time);
    ours.negotiated(ms(200), ms(600))?;

    ours.handle.update(&ours.key, symmetric(400))?;
    sniffer.next("our Poll", PATIENCE, |p| p.is_ours && p.packet.poll)?;
    sniffer.next("their Final", PATIENCE, |p| !p.is_ours && p.packet.final_)?;
    ours.negotiated(ms(400), ms(1200))?;
    wait_for("FRR agrees", PATIENCE, || frr.peer().filter(|peer| peer["remote-transmit-interval"] == 400))?;
    ours.quiet_for(ms(2000))
}

#[test]
fn admin_down_of_frr_leaves_the_path_unknown_and_heals() -> Result<()> {
    if !ready(&Frr::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let frr = Frr::start(&cable, FRR_50X3)?;
    let ours = Ours::start(&cable.ours, key(), symmetric(50))?;
    ours.path(Path::Up)?;
    ours.negotiated(ms(50), ms(150))?;
    let session = ["configure terminal", "bfd", "peer 192.0.2.1 interface bf0"];
    frr.vtysh(&[session.as_slice(), &["shutdown"]].concat())?;
    let event = ours.events.recv_timeout(PATIENCE)?;
    ensure!((event.state, event.path) == (State::Down, Path::Unknown), "{event:?}");
    ensure!(event.remote_state == State::AdminDown, "{event:?}");
    ours.quiet_for(ms(1000))?;
    frr.vtysh(&[session.as_slice(), &["no shutdown"]].concat())?;
    ours.path(Path::Up)?;
    Ok(())
}

#[test]
fn our_admin_down_is_understood_by_frr_and_heals() -> Result<()> {
    if !ready(&Frr::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let frr = Frr::start(&cable, FRR_50X3)?;
    let ours = Ours::start(&cable.ours, key(), symmetric(50))?;
    ours.path(Path::Up)?;
    ours.negotiated(ms(50), ms(150))?;
    ours.handle.disable(&ours.key)?;
    ensure!(ours.path(Path::Unknown)?.state == State::AdminDown);
    let peer = wait_for("FRR is down", PATIENCE, || frr.peer().filter(|peer| peer["status"] == "down"))?;
    ensure!(peer["diagnostic"] == "neighbor signaled session down", "{peer:#}");
    ensure!(peer["remote-diagnostic"] == "administratively down", "{peer:#}");
    ours.handle.enable(&ours.key)?;
    ours.path(Path::Up)?;

    let mut sniffer = cable.sniff()?;
    ours.handle.remove(&ours.key)?;
    for count in 1..=3 {
        let what = format!("AdminDown {count}");
        sniffer.next(&what, PATIENCE, is_admin_down_from_ours)?;
    }
    ensure!(ours.handle.status()?.sessions.is_empty());
    ours.handle.add(ours.key.clone(), symmetric(50))?;
    ours.path(Path::Up)?;
    Ok(())
}

#[test]
fn bird_leaves_and_returns() -> Result<()> {
    if !ready(&Bird::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let bird = Bird::start(&cable, BIRD_50X3)?;
    let ours = Ours::start(&cable.ours, key(), symmetric(50))?;
    ours.path(Path::Up)?;
    ours.negotiated(ms(50), ms(150))?;
    ours.handle.disable(&ours.key)?;
    wait_for("BIRD is down", PATIENCE, || {
        bird.birdc("show bfd sessions")
            .ok()?
            .lines()
            .any(|l| l.contains("192.0.2.1") && l.contains("Down"))
            .then_some(())
    })?;
    ours.handle.enable(&ours.key)?;
    ours.path(Path::Up)?;
    bird.birdc("disable bfd1")?;
    let event = ours.events.recv_timeout(PATIENCE)?;
    // BIRD 2.0 does not say AdminDown, it falls silent.
    ensure!((event.state, event.path) == (State::Down, Path::Down), "{event:?}");
    bird.birdc("enable bfd1")?;
    ours.path(Path::Up)?;
    Ok(())
}

#[test]
fn dropped_handle_tells_the_peer_at_once_and_shutdown_says_admin_down() -> Result<()> {
    if !ready(&Frr::TOOLS) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let _frr = Frr::start(&cable, FRR_50X3)?;
    let ours = Ours::start(&cable.ours, key(), symmetric(50))?;
    ours.path(Path::Up)?;
    ours.negotiated(ms(50), ms(150))?;
    let mut sniffer = cable.sniff()?;
    let dropped = wall_clock();
    drop(ours);
    let down = sniffer.next("their Down", PATIENCE, is_down_from_theirs)?;
    ensure!(down.packet.diagnostic == Diagnostic::NEIGHBOR_SIGNALED_DOWN, "{down:?}");
    let took = Duration::from_secs_f64(down.time - dropped);
    eprintln!("told after {took:?}");
    ensure!(took < ms(50), "{took:?}");

    let ours = Ours::start(&cable.ours, key(), symmetric(50))?;
    ours.path(Path::Up)?;
    ours.handle.shutdown();
    let last = sniffer.next("AdminDown", PATIENCE, is_admin_down_from_ours)?;
    ensure!(last.packet.diagnostic == Diagnostic::ADMINISTRATIVELY_DOWN, "{last:?}");
    ensure!(ours.handle.status().is_err(), "the thread has ended");
    Ok(())
}

#[test]
fn packet_with_another_time_to_live_is_refused_and_counted() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let ours = Ours::start(&cable.ours, key(), symmetric(50))?;
    // A Down packet that would move us to Init.
    let mut packet = [0_u8; 24];
    packet[..8].copy_from_slice(&[0x20, 0x40, 3, 24, 0, 0, 0, 7]);
    let send = |time_to_live: u32| -> Result<()> {
        cable.theirs.enter(|| -> Result<()> {
            let socket = std::net::UdpSocket::bind("192.0.2.2:50000")?;
            socket.set_ttl(time_to_live)?;
            socket.send_to(&packet, "192.0.2.1:3784")?;
            Ok(())
        })?
    };
    send(254)?;
    let discards = wait_for("the packet is counted", PATIENCE, || {
        let discards = ours.handle.status().ok()?.endpoint.discards;
        (discards.get(routing::bfd::Discard::TimeToLive) == 1).then_some(discards)
    })?;
    ensure!(ours.status()?.state == State::Down, "{discards:?}");
    send(255)?;
    let event = ours.events.recv_timeout(PATIENCE)?;
    ensure!(event.state == State::Init, "{event:?}");
    Ok(())
}

#[test]
fn session_that_cannot_be_is_refused_with_the_reason() -> Result<()> {
    if !ready(&[]) {
        return Ok(());
    }
    let cable = Cable::lay()?;
    let ours = Ours::start(&cable.ours, key(), symmetric(50))?;
    let refusal = |key: SessionKey| ours.handle.add(key, symmetric(50)).map_err(|e| e.to_string());
    let cases = [
        (key(), "there is a session with 192.0.2.2 on bf0 already"),
        (SessionKey { interface: "bf9".into(), ..key() }, "interface bf9 does not exist"),
        (
            SessionKey { local: "192.0.2.9".parse()?, peer: "192.0.2.8".parse()?, ..key() },
            "cannot send from 192.0.2.9 on bf0: is the address configured there?",
        ),
        (
            SessionKey { peer: "fe80::2".parse()?, ..key() },
            "192.0.2.1 and fe80::2 are not of one address family",
        ),
    ];
    for (key, reason) in cases {
        let refused = refusal(key);
        ensure!(refused == Err(reason.to_owned()), "{refused:?} instead of {reason}");
    }
    let (second, _events) = cable.ours.enter(|| Bfd::spawn(Config::default()))??;
    let taken = second.add(key(), symmetric(50)).map_err(|e| e.to_string());
    let expected = "cannot listen on port 3784 of bf0: is another BFD daemon running?";
    ensure!(taken == Err(expected.to_owned()), "{taken:?}");
    Ok(())
}

/// A loop that uses a processor until it is dropped.
struct Burner(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Burner {
    fn start() -> Self {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = stop.clone();
        std::thread::spawn(move || {
            while !seen.load(std::sync::atomic::Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Self(stop)
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// `BFD_TEST_SECONDS` and `BFD_TEST_INTERVAL_MS` lengthen the run and change the interval.
#[test]
fn busy_processors_cause_no_flap_in_half_a_minute() -> Result<()> {
    if !ready(&Bird::TOOLS) {
        return Ok(());
    }
    let number = |name: &str, default: u64| std::env::var(name).map_or(Ok(default), |text| text.parse());
    let (seconds, interval) = (number("BFD_TEST_SECONDS", 30)?, number("BFD_TEST_INTERVAL_MS", 50)?);
    let cable = Cable::lay()?;
    let bird = BIRD_50X3.replace("interval 50 ms", &format!("interval {interval} ms"));
    let _bird = Bird::start(&cable, &bird)?;
    let ours = Ours::start(&cable.ours, key(), symmetric(interval))?;
    ours.path(Path::Up)?;
    ours.negotiated(ms(interval), ms(interval * 3))?;
    let _burners = [Burner::start(), Burner::start()];
    let outcome = ours.quiet_for(Duration::from_secs(seconds));
    eprintln!("{:#?}", ours.handle.status()?);
    outcome
}
