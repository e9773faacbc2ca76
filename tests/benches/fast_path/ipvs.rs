//! The data plane beside the kernel's IPVS, in Debian's stock kernel: direct return, scheduler `mh`, one generator
//! and one sink for both.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_tests::netns::ip;
use serde_json::{Value, json};

use crate::measure::middle;
use crate::paths::{self, REAL_SERVERS, real_mac};
use crate::rig::{Link, Rig};
use crate::stream::{Family, Flows};
use crate::workspace;

/// Seconds for the guest: software emulation is slow, and this machine may have other work.
const TIMEOUT_SECONDS: &str = "900";
/// Environment variable that tells the guest how many rounds it measures.
const ROUNDS: &str = "FAST_PATH_ROUNDS";
/// Packets of a turn, so many that what it takes to begin and to end one is no part of a packet's time; and every flow
/// comes four times.
const PACKETS: u32 = 4 << paths::FLOWS;

/// Packets per second of both, as the sink counts them.
pub(crate) enum Outcome {
    /// Measured.
    Measured {
        /// Release of the guest's kernel.
        kernel: String,
        /// The data plane's.
        ours: f64,
        /// The kernel's.
        ipvs: f64,
        /// A program that only sends back.
        floor: f64,
        /// The least that a balancer does.
        reference: f64,
    },
    /// Not measured, and why.
    Skipped(String),
}

/// Boots the stock kernel and compares there.
pub(crate) fn compare_in_guest(object: &Path, quick: bool) -> Result<Outcome> {
    let tool = workspace().join("tests/stock-kernel.sh");
    let check = Command::new(&tool).arg("--check").output().context("tests/stock-kernel.sh")?;
    if !check.status.success() {
        return Ok(Outcome::Skipped(String::from_utf8_lossy(&check.stderr).trim().to_owned()));
    }
    let rounds = if quick { "1" } else { "9" };
    let output = Command::new(&tool)
        .args(["--timeout", TIMEOUT_SECONDS, "--memory", "2048", "env"])
        .arg(format!("{ROUNDS}={rounds}"))
        .arg(std::env::current_exe()?)
        .args(["--ipvs-here", "--programs"])
        .arg(object.canonicalize()?)
        .stderr(Stdio::inherit())
        .output()
        .context("tests/stock-kernel.sh")?;
    ensure!(output.status.success(), "the comparison in the stock kernel failed ({})", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let result: Value = serde_json::from_str(text.trim()).with_context(|| text.into_owned())?;
    let number = |name: &str| result[name].as_f64().with_context(|| format!("no {name} in {result}"));
    Ok(Outcome::Measured {
        kernel: result["kernel"].as_str().unwrap_or_default().to_owned(),
        ours: number("ours")?,
        ipvs: number("ipvs")?,
        floor: number("floor")?,
        reference: number("reference")?,
    })
}

/// Compares in this kernel and prints the result for [`compare_in_guest`].
pub(crate) fn compare_here(object: &Path, processor: usize) -> Result<()> {
    let rounds: usize = std::env::var(ROUNDS).ok().and_then(|text| text.parse().ok()).unwrap_or(9);
    let mut rig = Rig::new(object, processor)?;
    paths::fill_references(&mut rig)?;
    let floor = rig.link()?;
    rig.attach("floor", &floor)?;
    let reference = rig.link()?;
    rig.attach("reference", &reference)?;
    let ours = paths::alone(&mut rig)?;
    let kernels = rig.link()?;
    let flows = Flows { family: Family::V4, bits: paths::FLOWS, vip: paths::VIP.to_bits(), vips: 1 };
    set_up(&kernels)?;
    let mut rates = [const { Vec::new() }; 4];
    // One round more: in the first, caches and connection tables are filled.
    for round in 0..=rounds {
        for (link, rates) in [&floor, &reference, &ours, &kernels].into_iter().zip(&mut rates) {
            let (before, begin) = (rig.arrived_in_all()?, std::time::Instant::now());
            rig.send(link, &flows, 0, PACKETS)?;
            let came = rig.arrived_in_all()? - before;
            let rate = came as f64 / begin.elapsed().as_secs_f64();
            ensure!(
                came >= u64::from(PACKETS) / 2,
                "{came} of {PACKETS} packets came through {}: {}",
                link.name,
                state()
            );
            if round != 0 {
                rates.push(rate);
            }
        }
    }
    let [floor, reference, ours, ipvs] = rates.map(middle);
    let kernel = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let rates =
        json!({ "kernel": kernel, "floor": floor, "reference": reference, "ours": ours, "ipvs": ipvs });
    println!("{rates}");
    Ok(())
}

/// Makes the kernel a director: real servers behind the link that clients come by.
fn set_up(link: &Link) -> Result<()> {
    run("modprobe", "-a ip_vs ip_vs_mh")?;
    // Frames that are not for a program are delivered by NAPI only with this.
    run("ethtool", &format!("-K {} gro on", link.name))?;
    for setting in
        ["ip_forward=1", "conf.all.rp_filter=0", "conf.default.rp_filter=0", "conf.all.send_redirects=0"]
    {
        run("sysctl", &format!("-q -w net.ipv4.{setting}"))?;
    }
    // A connection that it has not seen begin is a connection here too, as it is for the data plane.
    run("sysctl", "-q -w net.ipv4.vs.sloppy_tcp=1")?;
    for setting in ["rp_filter", "send_redirects"] {
        run("sysctl", &format!("-q -w net.ipv4.conf.{}.{setting}=0", link.name))?;
    }
    ip(["addr", "add", "10.1.0.250/24", "dev", &link.name])?;
    ip(["addr", "add", &format!("{}/32", paths::VIP), "dev", "lo"])?;
    ip(["route", "add", "16.0.0.0/8", "via", "10.1.0.1", "dev", &link.name])?;
    let vip = format!("{}:80", paths::VIP);
    run("ipvsadm", &format!("-A -t {vip} -s mh -b mh-port"))?;
    for number in 0..REAL_SERVERS {
        let (mac, real) = (real_mac(1, number), paths::real_v4(0, number));
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        let (real, name) = (real.to_string(), link.name.as_str());
        ip(["neigh", "replace", &real, "lladdr", &mac, "dev", name, "nud", "permanent"])?;
        run("ipvsadm", &format!("-a -t {vip} -r {real}:80 -g -w 1"))?;
    }
    Ok(())
}

fn run(program: &str, arguments: &str) -> Result<()> {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .with_context(|| format!("{program}: lab/setup.sh installs what is needed"))?;
    if !output.status.success() {
        bail!("{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// What the kernel says of its balancer, for an error's text.
fn state() -> String {
    let output = Command::new("ipvsadm").args(["-L", "-n", "--stats"]).output();
    output.map_or_else(
        |error| error.to_string(),
        |output| String::from_utf8_lossy(&output.stdout).lines().take(5).collect::<Vec<_>>().join("\n"),
    )
}
