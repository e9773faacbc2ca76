//! Builds the XDP programs in `director/ebpf` and leaves the objects where the library embeds them.

#[path = "build/toolchain.rs"]
mod toolchain;

use std::env;
use std::path::PathBuf;
use std::process::exit;

/// The director's, and that of the real server's end of a tunnel.
const PROGRAMS: [&str; 2] = ["director", "agent"];

fn main() {
    let manifest = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    for path in [
        "build.rs",
        "build/toolchain.rs",
        "ebpf/src",
        "ebpf/Cargo.toml",
        "ebpf/Cargo.lock",
        "common/src",
        "common/Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", manifest.join(path).display());
    }
    let out = PathBuf::from(var("OUT_DIR"));
    let objects =
        toolchain::build(&manifest.join("ebpf"), &out.join("ebpf")).unwrap_or_else(|error| fail(&error));
    for program in PROGRAMS {
        let object = objects.join(program);
        if let Err(error) = std::fs::copy(&object, out.join(format!("{program}.bpf.o"))) {
            fail(&format!("cannot copy {}: {error}", object.display()));
        }
    }
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    exit(1)
}
