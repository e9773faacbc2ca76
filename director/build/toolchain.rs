//! The compiler and linker for programs that run in the kernel, and how a crate of such programs is built with
//! them. Debian's compiler (`rustc-web`, `rust-web-src`) is taken where it is recent enough, else rustup's nightly
//! with `rust-src`: `core` is built from source, by a linker of the same LLVM.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Oldest compiler that `aya-ebpf` and the programs accept.
const MIN_MINOR: u32 = 88;
const TARGET: &str = "bpfel-unknown-none";
/// Where `lab/setup.sh` installs the linker that matches Debian's compiler.
const OWN_LINKER_DIR: &str = "/usr/local/lib/director-toolchain/bin";
/// What to do about most errors.
const REMEDY: &str = "run lab/setup.sh as root, which installs the eBPF toolchain, and build again";

/// Builds the crate in `folder`, optimised, and returns the folder that its objects are in, by name.
///
/// # Errors
/// What is missing or failed, and the remedy. The compiler's own complaints go to standard error.
pub(crate) fn build(folder: &Path, target_dir: &Path) -> Result<PathBuf, String> {
    let compiler = Compiler::find().ok_or_else(|| {
        format!(
            "no compiler for BPF: neither Debian's rustc-web with rust-web-src (1.{MIN_MINOR} or later) nor \
             rustup's nightly with rust-src; {REMEDY}"
        )
    })?;
    let linker = find_linker()
        .ok_or_else(|| format!("bpf-linker is neither in PATH nor installed by set-up; {REMEDY}"))?;
    let mut build = compiler.cargo();
    build
        .current_dir(folder)
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(&linker));
    match build.status() {
        Ok(status) if status.success() => Ok(target_dir.join(TARGET).join("release")),
        Ok(status) => Err(format!("building {} failed ({status}); {REMEDY}", folder.display())),
        Err(error) => Err(format!("cannot start {:?}: {error}; {REMEDY}", build.get_program())),
    }
}

/// Flags separated as cargo wants them, so that a path may hold spaces.
fn rust_flags(linker: &Path) -> String {
    let linker = format!("linker={}", linker.display());
    let flags = [
        "link-arg=--btf",
        // Else LLVM leaves every memset, however short, to a loop over bytes.
        "link-arg=--disable-expand-memcpy-in-order",
        // v3: 32-bit registers and jumps, in every kernel since 5.1.
        "target-cpu=v3",
        &linker,
    ];
    flags.map(|flag| format!("-C{flag}")).join("\u{1f}")
}

/// A cargo and the compiler it uses.
enum Compiler {
    Debian,
    Nightly { cargo: PathBuf },
}

impl Compiler {
    fn find() -> Option<Self> {
        if debian_minor().is_some_and(|minor| minor >= MIN_MINOR) {
            return Some(Self::Debian);
        }
        let has_source = Path::new(&output("rustc", &["+nightly", "--print", "sysroot"])?)
            .join("lib/rustlib/src/rust/library/core")
            .is_dir();
        let cargo = PathBuf::from(output("rustup", &["which", "--toolchain", "nightly", "cargo"])?);
        has_source.then_some(Self::Nightly { cargo })
    }

    /// A cargo that inherits nothing of the outer one's choice of compiler, flags and folders.
    fn cargo(&self) -> Command {
        let mut command = match self {
            Self::Debian => Command::new("/usr/bin/cargo"),
            Self::Nightly { cargo } => Command::new(cargo),
        };
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            let inherited =
                (text.starts_with("CARGO") && text != "CARGO_HOME" && !text.starts_with("CARGO_HTTP_"))
                    || text.starts_with("RUST") && text != "RUSTUP_HOME";
            if inherited {
                command.env_remove(name);
            }
        }
        match self {
            Self::Debian => command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1"),
            Self::Nightly { cargo } => command.env("RUSTC", cargo.with_file_name("rustc")),
        };
        command
    }
}

/// Minor version of Debian's compiler, if it and the source of `core` are there.
fn debian_minor() -> Option<u32> {
    if !Path::new("/usr/bin/cargo").exists() {
        return None;
    }
    let sysroot = output("/usr/bin/rustc", &["--print", "sysroot"])?;
    if !Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir() {
        return None;
    }
    let version = output("/usr/bin/rustc", &["--version"])?;
    version.split_whitespace().nth(1)?.split('.').nth(1)?.parse().ok()
}

fn find_linker() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from(OWN_LINKER_DIR)])
        .map(|folder| folder.join("bpf-linker"))
        .find(|linker| linker.is_file())
}

/// What a command that succeeds prints, without the final newline.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    // The outer cargo pins its own toolchain by this.
    command.args(arguments).env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC");
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
