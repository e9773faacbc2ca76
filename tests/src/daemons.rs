//! The routing daemons of others, as Debian has them: a suite of FRR or a BIRD in a namespace, gone with the value.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::netns::{Namespace, Process, until};

/// How long a daemon may take until it listens.
const START: Duration = Duration::from_secs(10);

/// The processes of one suite with the folder of their configurations and sockets.
#[derive(Debug)]
pub struct Daemons {
    namespace: String,
    folder: PathBuf,
    running: Vec<(String, Process)>,
}

impl Daemons {
    /// A suite with nothing running, whose files are in a folder of its own below the temporary one.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(namespace: &Namespace) -> Result<Self> {
        let namespace = namespace.name().to_owned();
        let folder = std::env::temp_dir().join(&namespace);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { namespace, folder, running: Vec::new() })
    }

    /// The folder with configurations and sockets.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Starts daemons of FRR by their names and configurations, in this order: `zebra` is the first.
    ///
    /// # Errors
    /// One does not start, or does not listen within ten seconds.
    pub fn start_frr(&mut self, configurations: &[(&str, String)]) -> Result<()> {
        for (daemon, configuration) in configurations {
            std::fs::write(self.folder.join(format!("{daemon}.conf")), configuration)?;
        }
        let chown = Command::new("chown").args(["-R", "frr:frr"]).arg(&self.folder).status()?;
        ensure!(chown.success(), "chown frr:frr: is FRR installed?");
        configurations.iter().try_for_each(|(daemon, _)| self.start_frr_daemon(daemon))
    }

    /// Starts one daemon of FRR with the configuration it has in the folder.
    ///
    /// # Errors
    /// It does not start, or does not listen within ten seconds.
    pub fn start_frr_daemon(&mut self, daemon: &str) -> Result<()> {
        let folder = self.folder.to_str().context("utf-8")?;
        let mut command = self.inside(&format!("/usr/lib/frr/{daemon}"));
        command.args(["-u", "frr", "-g", "frr", "-f", &format!("{folder}/{daemon}.conf")]);
        command.args(["--vty_socket", folder, "-i", &format!("{folder}/{daemon}.pid"), "-P", "0"]);
        command.args(["-z", &format!("{folder}/zserv.api")]);
        if daemon == "bfdd" {
            command.args(["--bfdctl", &format!("{folder}/bfdd.sock")]);
        }
        let socket = self.folder.join(format!("{daemon}.vty"));
        let _ = std::fs::remove_file(&socket); // one that was killed leaves it behind
        self.running.push((daemon.to_owned(), Process::quiet(command)?));
        until("FRR listens", START, || Ok(socket.exists())).map(drop)
    }

    /// Starts BIRD with a configuration.
    ///
    /// # Errors
    /// It does not start, or does not listen within ten seconds.
    pub fn start_bird(&mut self, configuration: &str, options: &[&str]) -> Result<()> {
        let (path, socket) = (self.folder.join("bird.conf"), self.folder.join("ctl"));
        std::fs::write(&path, configuration)?;
        let _ = std::fs::remove_file(&socket); // one that was killed leaves it behind
        let mut command = self.inside("bird");
        command.arg("-f").args(options).arg("-c").arg(path).arg("-s").arg(&socket);
        command.arg("-P").arg(self.folder.join("pid"));
        self.running.push(("bird".to_owned(), Process::quiet(command)?));
        until("BIRD listens", START, || Ok(socket.exists())).map(drop)
    }

    /// Gives a running BIRD another configuration.
    ///
    /// # Errors
    /// BIRD does not take it; what it says is in the error.
    pub fn configure_bird(&self, configuration: &str) -> Result<()> {
        std::fs::write(self.folder.join("bird.conf"), configuration)?;
        let said = self.birdc(&["configure"])?;
        let taken = said.contains("Reconfigured") || said.contains("Reconfiguration in progress");
        ensure!(taken, "birdc: {said}");
        Ok(())
    }

    /// What BIRD says to a command.
    ///
    /// # Errors
    /// It does not run.
    pub fn birdc(&self, words: &[&str]) -> Result<String> {
        let mut command = self.inside("birdc");
        let output = command.arg("-s").arg(self.folder.join("ctl")).args(words).output()?;
        ensure!(output.status.success(), "birdc {words:?}: {}", String::from_utf8_lossy(&output.stdout));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What FRR says to commands, one after the other.
    ///
    /// # Errors
    /// It does not run, or complains.
    pub fn vtysh(&self, commands: &[&str]) -> Result<String> {
        let mut command = self.inside("vtysh");
        command.arg("--vty_socket").arg(&self.folder);
        for line in commands {
            command.args(["-c", line]);
        }
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && !said.contains("\n%") && !said.starts_with('%'), "vtysh: {said}");
        Ok(said)
    }

    /// Kills one daemon, if it runs.
    pub fn kill(&mut self, daemon: &str) {
        self.running.retain(|(name, _)| name != daemon);
    }

    /// Ids of the processes that were started and not killed, the last one first.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.running.iter().rev().map(|(_, process)| process.0.id()).collect()
    }

    /// The processes that were started and not killed.
    pub fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.running.iter_mut().map(|(_, process)| process)
    }

    /// Forgets the processes, killing those that still run.
    pub fn clear(&mut self) {
        self.running.clear();
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        self.clear();
        let _ = std::fs::remove_dir_all(&self.folder); // in the temporary folder anyway
    }
}
