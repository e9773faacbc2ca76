//! Builds the XDP programs in `director/ebpf` and leaves the object where the library embeds it.

#[path = "build/toolchain.rs"]
mod toolchain;

use std::env;
use std::path::PathBuf;
use std::process::exit;

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
    let object = objects.join("director");
    if let Err(error) = std::fs::copy(&object, out.join("director.bpf.o")) {
        fail(&format!("cannot copy {}: {error}", object.display()));
    }
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    exit(1)
}
