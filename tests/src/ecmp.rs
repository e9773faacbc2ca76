//! The lab's `ecmp` topology with the real director, for tests: up, down, and questions to its nodes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::deploy::{Lab, Options};
use lab::topology::Topology;
use serde_json::Value;

use crate::requirement::{Requirement, met};

/// The virtual IP of the topology.
pub const VIP: &str = "203.0.113.10";
/// All that its directors announce for services.
pub const VIPS: [&str; 5] = [VIP, "203.0.113.20", "203.0.113.30", "2001:db8:113::10", "2001:db8:113::30"];
/// The topology's switches: the first is FRR, the second BIRD.
pub const SWITCHES: [&str; 2] = ["switch1", "switch2"];

/// The topology's directors.
pub const DIRECTORS: [&str; 3] = ["director1", "director2", "director3"];
/// Where each director's configuration is, on its node: a file of its own, that may be edited.
pub const CONFIG: &str = "/etc/director/director.toml";
/// What a node's shell does to lose its director.
pub const LOSE: &str = "kill -9 $(cat /run/director.pid); for i in 1 2 3; do ip link set eth$i down; done";
/// How long a daemon may take to end.
const END: Duration = Duration::from_secs(20);

/// The running lab; dropping it takes it down.
pub struct Ecmp {
    /// The lab itself.
    pub lab: Lab,
}

/// Lets `history` happen in a lab of that name, where there is all it takes; the directors' logs are shown if it fails.
///
/// # Errors
/// Those of the lab, and what `history` says.
pub fn in_a_lab(name: &str, history: impl FnOnce(&Ecmp) -> Result<()>) -> Result<()> {
    let programs = ["bird", "nginx", "curl", "openssl", "ethtool"].map(Requirement::Program);
    if !met(&[Requirement::Root]) || !met(&programs) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let ecmp = Ecmp::up(&format!("{name}-{}", std::process::id()), folder.path())?;
    let told = history(&ecmp);
    if told.is_err() {
        for director in DIRECTORS {
            let log = ecmp.lab.sh(director, "tail -n 40 /var/log/director.log").unwrap_or_default();
            eprintln!("--- {director}\n{log}");
        }
    }
    told
}

impl Ecmp {
    /// Makes certificates and content in `folder`, and brings the topology up as lab `name`.
    ///
    /// # Errors
    /// Whatever of that fails.
    pub fn up(name: &str, folder: &Path) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let (director, lab) = (binary("director")?, binary("lab")?);
        let data = folder.join("data");
        let prepared =
            Command::new(root.join("lab/ecmp/prepare.sh")).arg(&data).env("LAB", &lab).status()?.success();
        if !prepared {
            bail!("lab/ecmp/prepare.sh failed");
        }
        let topology = Topology::load_with(root.join("lab/ecmp.clab.yml"), &|variable| match variable {
            "DIRECTOR" => Some(director.display().to_string()),
            "ECMP_DATA" => Some(data.display().to_string()),
            other => std::env::var(other).ok(),
        })?
        .renamed(name)?;
        Ok(Self { lab: Lab::up(&topology, &Options::default())? })
    }

    /// What `director QUESTION --json` says on a node.
    ///
    /// # Errors
    /// If the director there does not answer.
    pub fn ask(&self, node: &str, question: &str) -> Result<Value> {
        let text = self.lab.sh(node, &format!("director {question} --json"))?;
        serde_json::from_str(&text).with_context(|| format!("{node}, {question}: {text}"))
    }

    /// What a director says of the services of these names, of which it has every one.
    ///
    /// # Errors
    /// If it does not answer, or lacks one.
    pub fn services(&self, director: &str, names: &[&str]) -> Result<Vec<Value>> {
        let said = self.ask(director, "services")?;
        let all = said["services"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found: Vec<Value> =
            all.iter().filter(|service| names.iter().any(|name| service["name"] == *name)).cloned().collect();
        if found.len() != names.len() {
            bail!("{director} has not all of {names:?}: {said}");
        }
        Ok(found)
    }

    /// Edits a director's configuration by a script of `sed`, and tells nobody.
    ///
    /// # Errors
    /// If the script changes nothing.
    pub fn edit(&self, director: &str, sed: &str) -> Result<()> {
        let script = format!(
            "sed '{sed}' {CONFIG} >/tmp/edited.toml && ! cmp -s /tmp/edited.toml {CONFIG} && cat /tmp/edited.toml >{CONFIG}"
        );
        self.lab.sh(director, &script).with_context(|| format!("{director}: sed '{sed}'")).map(drop)
    }

    /// Starts a director's daemon, which does not run.
    ///
    /// # Errors
    /// If the node has no such program.
    pub fn start(&self, director: &str) -> Result<()> {
        self.lab.sh(director, &format!("start director director run --config {CONFIG}")).map(drop)
    }

    /// Sends a director's daemon the signal of this name that ends it, and waits for its end.
    ///
    /// # Errors
    /// If it does not run, or does not end.
    pub fn end(&self, director: &str, signal: &str) -> Result<()> {
        self.lab.sh(director, &format!("kill -{signal} $(cat /run/director.pid)"))?;
        wait(&format!("the end of {director}'s daemon"), END, || {
            let there = "kill -0 $(cat /run/director.pid) 2>/dev/null && echo there || true";
            Ok(self.lab.sh(director, there)?.is_empty())
        })
    }

    /// A director's daemon ends cleanly, and is started again.
    ///
    /// # Errors
    /// As [`Self::end`] and [`Self::start`].
    pub fn end_and_start(&self, director: &str) -> Result<()> {
        self.end(director, "TERM")?;
        self.start(director)
    }

    /// A director loses its process and its links.
    ///
    /// # Errors
    /// If its daemon does not run.
    pub fn lose(&self, director: &str) -> Result<()> {
        self.lab.sh(director, LOSE).map(drop)
    }

    /// A lost director gets its links back, and is started again.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn bring_back(&self, director: &str) -> Result<()> {
        self.lab.sh(director, "for i in 1 2 3; do ip link set eth$i up; done")?;
        self.start(director)
    }

    /// Next hops for each of [`VIPS`] in a switch's kernel.
    ///
    /// # Errors
    /// If the switch cannot be asked.
    pub fn next_hops(&self, switch: &str) -> Result<Vec<usize>> {
        VIPS.iter().map(|vip| self.next_hops_to(switch, vip)).collect()
    }

    fn next_hops_to(&self, switch: &str, vip: &str) -> Result<usize> {
        let family = if vip.contains(':') { "-6" } else { "-4" };
        let text = self.lab.sh(switch, &format!("ip {family} -j route show {vip}"))?;
        let routes: Vec<Value> = serde_json::from_str(&text)?;
        let usable =
            |hop: &Value| !hop["flags"].as_array().is_some_and(|flags| flags.iter().any(|f| f == "dead"));
        let hops = |route: &Value| match route["nexthops"].as_array() {
            Some(hops) => hops.iter().filter(|hop| usable(hop)).count(),
            None => usize::from(usable(route)),
        };
        Ok(routes.iter().map(hops).sum())
    }

    /// Whether both switches have so many next hops for every one of [`VIPS`].
    ///
    /// # Errors
    /// If a switch cannot be asked.
    pub fn has_next_hops(&self, count: usize) -> Result<bool> {
        let all = SWITCHES.iter().map(|switch| self.next_hops(switch)).collect::<Result<Vec<_>>>()?;
        Ok(all.iter().flatten().all(|hops| *hops == count))
    }

    /// Waits until both switches have so many next hops for every one of [`VIPS`].
    ///
    /// # Errors
    /// If they have not within `patience`: what they have.
    pub fn until_next_hops(&self, count: usize, patience: Duration) -> Result<()> {
        let what = format!("{count} next hops on both switches for each of {VIPS:?}");
        wait(&what, patience, || self.has_next_hops(count)).with_context(|| {
            let has = |switch: &&str| format!("{switch} has {:?}", self.next_hops(switch));
            SWITCHES.iter().map(has).collect::<Vec<_>>().join(", ")
        })
    }

    /// Digest of the first service's table on a node.
    ///
    /// # Errors
    /// If the director there does not answer.
    pub fn digest(&self, node: &str) -> Result<String> {
        let services = self.ask(node, "services")?;
        Ok(services["services"][0]["table_digest"].as_str().unwrap_or_default().to_owned())
    }
}

/// Waits until `condition` holds.
///
/// # Errors
/// If it still does not after `limit`; the last error of the condition, if it had one.
pub fn wait(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    loop {
        match condition() {
            Ok(true) => return Ok(()),
            last if begin.elapsed() > limit => {
                last.with_context(|| format!("waiting for: {what}"))?;
                bail!("{what}: not so after {limit:?}");
            }
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The binary of this workspace called `name`, beside the folder of test executables.
///
/// # Errors
/// If it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("the test's build folder")?;
    let path = folder.join(name);
    if !path.exists() {
        bail!("no {}: run cargo build --workspace --bins first (tests/run.sh does)", path.display());
    }
    Ok(path)
}
