//! Runs one BFD session by hand and prints what happens to it.
//!
//! ```text
//! cargo run -p routing --example bfd -- eth1 192.0.2.1 192.0.2.2 50 3
//! ```
//!
//! Commands on standard input: `interval MS`, `disable`, `enable`, `status`, `quit` (tells the peer AdminDown).
//! The end of input is not a command: the session goes on until the process is killed.

use std::error::Error;
use std::io::BufRead;
use std::num::NonZeroU8;
use std::time::{Duration, Instant};

use routing::bfd::{Bfd, Config, Handle, Parameters, SessionKey};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [interface, local, peer, interval, multiplier] = arguments.as_slice() else {
        return Err("usage: bfd INTERFACE LOCAL PEER INTERVAL_MS MULTIPLIER".into());
    };
    let key = SessionKey { interface: interface.clone(), local: local.parse()?, peer: peer.parse()? };
    let multiplier: NonZeroU8 = multiplier.parse()?;
    let (bfd, mut events) = Bfd::spawn(Config::default())?;
    bfd.add(key.clone(), Parameters::symmetric(Duration::from_millis(interval.parse()?), multiplier))?;

    let start = Instant::now();
    let printer = std::thread::spawn(move || {
        while let Some(event) = events.blocking_recv() {
            println!(
                "{:10.3} s  {} ({}), path {:?}; peer {} ({})",
                (event.at - start).as_secs_f64(),
                event.state,
                event.diagnostic,
                event.path,
                event.remote_state,
                event.remote_diagnostic,
            );
        }
    });
    for line in std::io::stdin().lock().lines() {
        if line.as_deref().is_ok_and(|line| line.trim() == "quit") {
            bfd.shutdown();
            break;
        }
        if let Err(error) = obey(&bfd, &key, multiplier, &line?) {
            eprintln!("{error}");
        }
    }
    printer.join().map_err(|_| "the printing thread panicked".into())
}

/// Does what a line of input says.
fn obey(bfd: &Handle, key: &SessionKey, multiplier: NonZeroU8, line: &str) -> Result<(), Box<dyn Error>> {
    match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        [] => {}
        ["interval", interval] => {
            let interval = Duration::from_millis(interval.parse()?);
            bfd.update(key, Parameters::symmetric(interval, multiplier))?;
        }
        ["disable"] => bfd.disable(key)?,
        ["enable"] => bfd.enable(key)?,
        ["status"] => println!("{:#?}", bfd.status()?),
        _ => return Err(format!("unknown command {line:?}").into()),
    }
    Ok(())
}
