//! The directors agree on their services, whatever their files say: a difference is shown, a change through one director
//! is everywhere or nowhere, and what is agreed outlives a restart. And certificates change while the cluster works.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cluster_tests::ecmp::{CONFIG, DIRECTORS, Ecmp, in_a_lab, wait};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const REAL3: &str = "10.0.2.13";
/// Real server 3 of all services gets a smaller share.
const LIGHTER: &str = r#"/^address = "10\.0\.2\.13"/,/^weight/s/^weight = .*/weight = 50/"#;
/// Real server 3 of all services gets none.
const DRAINED: &str = r#"/^address = "10\.0\.2\.13"/,/^weight/s/^weight = .*/weight = 0/"#;
/// One of the services gets a real server in a network of its own.
const FAR: &str =
    r#"/^name = "web"$/,$ {0,/^address = "10\.0\.2\.13"/s/^address = "10\.0\.2\.13"/address = "10.0.9.13"/}"#;

fn serving(ecmp: &Ecmp) -> Result<()> {
    wait("all serve one epoch", PATIENCE, || {
        let mut epochs = Vec::new();
        for director in DIRECTORS {
            let (status, peers) = (ecmp.ask(director, "status")?, ecmp.ask(director, "peers")?);
            let others = peers["peers"].as_array().cloned().unwrap_or_default();
            let all_up = others.len() == 2 && others.iter().all(|peer| peer["state"] == "up");
            let serves = status["state"] == "serving" && peers["phase"] == "settled" && all_up;
            epochs.push(if serves { status["epoch"].clone() } else { Value::Null });
        }
        Ok(!epochs[0].is_null() && epochs.iter().all(|epoch| *epoch == epochs[0]))
    })
}

fn epoch(ecmp: &Ecmp, director: &str) -> Result<String> {
    Ok(ecmp.ask(director, "status")?["epoch"].as_str().unwrap_or_default().to_owned())
}

/// Weight of a real server of the service `web` in the tables that a director has.
fn weight(ecmp: &Ecmp, director: &str, real: &str) -> Result<Option<u64>> {
    let services = ecmp.ask(director, "services")?;
    let all = services["services"].as_array().cloned().unwrap_or_default();
    let web = all.iter().find(|service| service["name"] == "web").context("web")?;
    let reals = web["reals"].as_array().cloned().unwrap_or_default();
    Ok(reals.iter().find(|server| server["address"] == real).and_then(|server| server["weight"].as_u64()))
}

fn weights(ecmp: &Ecmp, real: &str, wanted: u64) -> Result<()> {
    for director in DIRECTORS {
        let found = weight(ecmp, director, real)?;
        ensure!(found == Some(wanted), "{director}: {real} has {found:?}, not {wanted}");
    }
    Ok(())
}

fn lines(value: &Value) -> Vec<String> {
    let lines = value.as_array().cloned().unwrap_or_default();
    lines.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// How a director shows that another one's file differs from its own.
fn differences(ecmp: &Ecmp, director: &str, router_id: &str) -> Result<Vec<String>> {
    let peers = ecmp.ask(director, "peers")?;
    let all = peers["peers"].as_array().cloned().unwrap_or_default();
    let peer = all.iter().find(|peer| peer["router_id"] == router_id).context("the peer")?;
    Ok(lines(&peer["differences"]))
}

#[test]
fn services_change_through_any_director_everywhere_or_nowhere() -> Result<()> {
    in_a_lab("agreed", |ecmp| {
        serving(ecmp)?;
        let before = epoch(ecmp, "director1")?;
        a_preview_changes_nothing(ecmp)?;
        ensure!(epoch(ecmp, "director2")? == before, "a preview has changed the tables");
        a_difference_is_shown(ecmp)?;
        ensure!(epoch(ecmp, "director2")? == before, "a follower's file has changed the tables");
        one_director_changes_all(ecmp)?;
        a_restart_goes_back_to_nothing(ecmp)?;
        one_director_refuses_for_all(ecmp)
    })
}

fn a_preview_changes_nothing(ecmp: &Ecmp) -> Result<()> {
    ecmp.edit("director2", LIGHTER)?;
    let preview = ecmp.ask("director2", "reload --dry-run")?;
    let moved = preview["slots_moved"].as_f64().unwrap_or_default();
    ensure!((0.001..0.5).contains(&moved), "{preview}");
    let services = preview["services"].as_array().cloned().unwrap_or_default();
    let web = services.iter().find(|service| service["name"] == "web").context("web changes")?;
    let line = "service \"web\": real server 10.0.2.13 weight 100 -> 50";
    ensure!(web["what"] == "changed" && lines(&web["changes"]) == [line], "{preview}");
    // Half of a third of the slots is given up, and shared by the two others by their weights.
    let share = web["slots_moved"].as_f64().unwrap_or_default();
    ensure!((0.12..0.14).contains(&share), "{preview}");
    ensure!(web["flows_moving"].is_u64(), "{preview}");
    let shown = ecmp.lab.sh("director2", &format!("director check --config {CONFIG} --preview"))?;
    ensure!(shown.contains(line) && shown.contains("nothing has been changed yet"), "{shown}");
    weights(ecmp, REAL3, 100)
}

fn a_difference_is_shown(ecmp: &Ecmp) -> Result<()> {
    let reply = ecmp.ask("director2", "reload")?;
    let notes = lines(&reply["notes"]).join("; ");
    ensure!(notes.contains("`director reload --cluster` here"), "{reply}");
    let here = lines(&ecmp.ask("director2", "status")?["file_differs"]);
    let line = "service \"web\": real server 10.0.2.13 weight 100 -> 50".to_owned();
    ensure!(here.contains(&line), "{here:?}");
    ensure!(lines(&ecmp.ask("director1", "status")?["file_differs"]).is_empty());
    let seen = "service \"web\": real server 10.0.2.13 weight 50 -> 100".to_owned();
    for director in ["director1", "director3"] {
        wait(&format!("{director} shows the difference"), PATIENCE, || {
            Ok(differences(ecmp, director, "10.255.0.2")?.contains(&seen))
        })?;
    }
    let told =
        ecmp.lab.sh("director1", "grep -c \"peer has other services in its file\" /var/log/director.log")?;
    ensure!(told.trim() == "1", "said {told} times");
    Ok(())
}

fn one_director_changes_all(ecmp: &Ecmp) -> Result<()> {
    let reply = ecmp.ask("director2", "reload --cluster")?;
    ensure!(reply["epoch"].as_str().is_some_and(|epoch| epoch.ends_with("@10.255.0.1")), "{reply}");
    ensure!(reply["services"].as_array().is_some_and(|services| !services.is_empty()), "{reply}");
    serving(ecmp)?;
    weights(ecmp, REAL3, 50)?;
    ensure!(lines(&ecmp.ask("director2", "status")?["file_differs"]).is_empty());
    for director in ["director1", "director3"] {
        let status = ecmp.ask(director, "status")?;
        let line = "service \"web\": real server 10.0.2.13 weight 50 -> 100".to_owned();
        ensure!(lines(&status["file_differs"]).contains(&line), "{status}");
    }
    let again = ecmp.ask("director2", "reload --cluster")?;
    ensure!(lines(&again["notes"]).join("").contains("in force already"), "{again}");
    // A file that is read again and has not changed is no reason to go back.
    ecmp.ask("director1", "reload")?;
    weights(ecmp, REAL3, 50)
}

/// The leader, whose file says something else, is started again, and so are all.
fn a_restart_goes_back_to_nothing(ecmp: &Ecmp) -> Result<()> {
    ecmp.end_and_start("director1")?;
    serving(ecmp)?;
    weights(ecmp, REAL3, 50)?;
    for director in DIRECTORS {
        ecmp.end(director, "TERM")?;
    }
    for director in DIRECTORS {
        ecmp.start(director)?;
    }
    serving(ecmp)?;
    weights(ecmp, REAL3, 50)?;
    let status = ecmp.ask("director1", "status")?;
    ensure!(!lines(&status["file_differs"]).is_empty(), "{status}");
    Ok(())
}

/// A real server to which director3 alone has no route.
fn one_director_refuses_for_all(ecmp: &Ecmp) -> Result<()> {
    for director in ["director1", "director2"] {
        ecmp.lab.sh(director, "ip route add 10.0.9.0/24 via 10.0.2.13")?;
    }
    ecmp.lab.sh("director3", "ip route add unreachable 10.0.9.0/24")?;
    let before = epoch(ecmp, "director1")?;
    ecmp.edit("director2", FAR)?;
    let refused = ecmp.ask("director2", "reload --cluster").expect_err("no route").to_string();
    for part in [
        "nothing has changed",
        "10.255.0.3",
        "service \"web\"",
        "no route from here to real server 10.0.9.13",
    ] {
        ensure!(refused.contains(part), "{part:?} is not in {refused}");
    }
    serving(ecmp)?;
    ensure!(epoch(ecmp, "director1")? == before, "an epoch was refused and has come into force");
    weights(ecmp, REAL3, 50)?;
    ecmp.lab
        .sh("director3", "ip route del unreachable 10.0.9.0/24; ip route add 10.0.9.0/24 via 10.0.2.13")?;
    // The cluster remembers for ten seconds that it has refused these tables.
    wait("the wish is granted", PATIENCE, || Ok(ecmp.ask("director2", "reload --cluster").is_ok()))?;
    serving(ecmp)?;
    weights(ecmp, "10.0.9.13", 50)?;
    // And the leader's own file is put in force by the leader, once it is changed.
    ecmp.edit("director1", DRAINED)?;
    let reply = ecmp.ask("director1", "reload")?;
    ensure!(reply["epoch"] != "", "{reply}");
    wait("the leader's file is in force", PATIENCE, || Ok(weights(ecmp, REAL3, 0).is_ok()))
}

fn openssl(folder: &Path, arguments: &str) -> Result<()> {
    let output = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output()?;
    ensure!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A certificate for all directors, and its key, by an authority of its own.
fn certificate(folder: &Path, name: &str) -> Result<[String; 3]> {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3";
    openssl(
        folder,
        &format!(
            "req -x509 {key} -subj /CN={name} -keyout {name}-ca.key -out {name}-ca.pem -addext keyUsage=critical,keyCertSign"
        ),
    )?;
    openssl(
        folder,
        &format!(
            "req -x509 {key} -subj /CN={name}-node -CA {name}-ca.pem -CAkey {name}-ca.key -keyout {name}.key -out {name}.pem \
             -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:director.ecmp"
        ),
    )?;
    let read = |file: String| std::fs::read_to_string(folder.join(file)).map_err(anyhow::Error::from);
    Ok([read(format!("{name}-ca.pem"))?, read(format!("{name}.pem"))?, read(format!("{name}.key"))?])
}

const FILES: [&str; 3] = ["ca.pem", "node.pem", "node.key"];

fn install(ecmp: &Ecmp, director: &str, file: &str, text: &str) -> Result<()> {
    let path = format!("/etc/director/own/{file}");
    ecmp.lab.sh(director, &format!("cat >{path}.new <<'END'\n{text}END\nmv {path}.new {path}")).map(drop)
}

/// Whom the others know a director as: another run of it has another boot id, and a peer that was lost is shown.
fn boots(ecmp: &Ecmp) -> Result<Vec<Value>> {
    let mut boots = Vec::new();
    for director in DIRECTORS {
        let peers = ecmp.ask(director, "peers")?;
        for peer in peers["peers"].as_array().cloned().unwrap_or_default() {
            ensure!(peer["state"] == "up", "{director}: {peer}");
            boots.push(peer["boot_id"].clone());
        }
    }
    Ok(boots)
}

fn subject(ecmp: &Ecmp, director: &str) -> Result<String> {
    let number = director.trim_start_matches("director");
    let script = format!(
        "openssl s_client -connect 10.0.2.{number}:7000 </dev/null 2>/dev/null | grep '^subject' || true"
    );
    ecmp.lab.sh(director, &script)
}

#[test]
fn certificates_and_their_authority_change_while_the_cluster_works() -> Result<()> {
    in_a_lab("certs", |ecmp| {
        let folder = tempfile::tempdir()?;
        let old: Vec<String> = {
            let script = "mkdir -p /etc/director/own; cp /etc/director/tls/* /etc/director/own/; \
                          cat /etc/director/own/ca.pem";
            DIRECTORS.iter().map(|director| ecmp.lab.sh(director, script)).collect::<Result<_>>()?
        };
        for director in DIRECTORS {
            ecmp.edit(director, "s#/etc/director/tls/#/etc/director/own/#g")?;
            ecmp.end_and_start(director)?;
        }
        serving(ecmp)?;
        let (before, epoch_before) = (boots(ecmp)?, epoch(ecmp, "director1")?);
        let new = certificate(folder.path(), "new")?;
        for (director, old) in DIRECTORS.iter().zip(&old) {
            install(ecmp, director, "ca.pem", &format!("{old}{}", new[0]))?;
            let reply = ecmp.ask(director, "reload")?;
            // They may have been seen to change already.
            ensure!(
                lines(&reply["changes"]).iter().all(|line| line.contains("certificates reloaded")),
                "{reply}"
            );
        }
        for director in DIRECTORS {
            for (file, text) in FILES.iter().zip(&new).skip(1) {
                install(ecmp, director, file, text)?;
            }
        }
        // Nobody tells the last one.
        for director in &DIRECTORS[..2] {
            ecmp.ask(director, "reload")?;
        }
        wait("all present the new certificate", PATIENCE, || {
            let shown: Vec<String> =
                DIRECTORS.iter().map(|director| subject(ecmp, director)).collect::<Result<_>>()?;
            Ok(shown.iter().all(|subject| subject.contains("new-node")))
        })?;
        ensure!(
            boots(ecmp)? == before && epoch(ecmp, "director1")? == epoch_before,
            "a stream was interrupted"
        );
        for director in DIRECTORS {
            let silent = ecmp.lab.sh(director, "grep -c 'taken for dead' /var/log/director.log || true")?;
            println!("{director}: {} silences since its start", silent.trim());
        }
        // One that nobody vouches for is refused, and the one before goes on.
        let stranger = certificate(folder.path(), "stranger")?;
        for (file, text) in FILES.iter().zip(&stranger).skip(1) {
            install(ecmp, "director2", file, text)?;
        }
        let refused = ecmp.ask("director2", "reload").expect_err("a stranger's certificate").to_string();
        for part in ["/etc/director/own/node.pem", "do not vouch for it", "stay in use"] {
            ensure!(refused.contains(part), "{part:?} is not in {refused}");
        }
        ensure!(subject(ecmp, "director2")?.contains("new-node"));
        for (file, text) in FILES.iter().zip(&new).skip(1) {
            install(ecmp, "director2", file, text)?;
        }
        // A director that starts now has no connection from before.
        ecmp.end("director3", "KILL")?;
        ecmp.start("director3")?;
        serving(ecmp)?;
        boots(ecmp).map(drop)
    })
}
