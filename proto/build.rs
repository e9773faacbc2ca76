//! Compiles every file of `proto/` with protox: no `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir("proto")?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "proto"));
    files.sort();
    let descriptors = protox::compile(&files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .type_attribute(".director.control.v1", "#[derive(serde::Serialize)]")
        // Packets are for files of their own, never for JSON.
        .field_attribute(".director.control.v1.CapturedPacket.bytes", "#[serde(skip)]")
        .compile_fds(descriptors)?;
    Ok(())
}
