//! The folder of pins: its file system, the layout check, removal.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapInfo};
use director_common::tables::{CONFIG_MAGIC, Config, LAYOUT_VERSION};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

use super::error::OpenError;
use super::maps::{NAMES, Shared, shape};

/// Type of the BPF file system (`BPF_FS_MAGIC` in `linux/magic.h`).
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);
/// Prefix of the pin of an interface's link; no map is named like this.
const LINK_PREFIX: &str = "link-";

/// Path of a map's pin.
pub(super) fn map_path(folder: &Path, map: &str) -> PathBuf {
    folder.join(map)
}

/// Path of the pin of the link on an interface. The index is in the name because a link outlives its interface:
/// an interface made anew has the same name and another index.
pub(crate) fn link_path(folder: &Path, interface: &str, ifindex: u32) -> PathBuf {
    folder.join(format!("{LINK_PREFIX}{ifindex}-{interface}"))
}

/// Every pinned link: path, interface's name and index.
pub(super) fn links(folder: &Path) -> io::Result<Vec<(PathBuf, String, u32)>> {
    let mut links = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let parsed = name
            .to_str()
            .and_then(|name| name.strip_prefix(LINK_PREFIX))
            .and_then(|name| name.split_once('-'))
            .and_then(|(index, interface)| Some((interface.to_owned(), index.parse().ok()?)));
        if let Some((interface, ifindex)) = parsed {
            links.push((entry.path(), interface, ifindex));
        }
    }
    Ok(links)
}

fn failed<'a>(path: &'a Path, what: &'static str) -> impl Fn(io::Error) -> OpenError + 'a {
    move |source| OpenError::PinFolder { path: path.to_owned(), what, source }
}

/// Makes the folder, and mounts a BPF file system on it if it is not on one.
pub(crate) fn prepare(folder: &Path) -> Result<(), OpenError> {
    fs::create_dir_all(folder).map_err(failed(folder, "creating it"))?;
    let system = statfs(folder).map_err(io::Error::from).map_err(failed(folder, "asking its file system"))?;
    if system.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(Some("bpf"), folder, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(io::Error::from)
        .map_err(failed(folder, "mounting a BPF file system on it (needs root)"))?;
    let own = fs::read_link("/proc/thread-self/ns/mnt").ok();
    if own != fs::read_link("/proc/1/ns/mnt").ok() {
        tracing::warn!(
            folder = %folder.display(),
            "mounted a BPF file system in a private mount namespace: the pins, and forwarding, last only as \
             long as some process stays in it; mount one there beforehand to survive a crash"
        );
    }
    Ok(())
}

/// Whether there is something to adopt; an error if it is there but not ours to read.
pub(super) fn check(folder: &Path) -> Result<bool, OpenError> {
    let config = map_path(folder, "CONFIG");
    if !config.exists() || !is_written(&config)? {
        // A process died while it made the maps. Nothing was ever attached to them.
        remove_all(folder)?;
        return Ok(false);
    }
    for name in NAMES {
        let path = map_path(folder, name);
        if path.exists() {
            check_shape(&path, name)?;
        }
    }
    Ok(true)
}

fn check_shape(path: &Path, name: &str) -> Result<(), OpenError> {
    let info = MapInfo::from_pin(path)?;
    let found = (info.key_size(), info.value_size(), info.max_entries());
    let expected = shape(name);
    let fits =
        (found.0, found.1) == (expected.0, expected.1) && expected.2.is_none_or(|entries| entries == found.2);
    if fits {
        return Ok(());
    }
    Err(OpenError::Layout {
        path: path.to_owned(),
        found: format!("key {}, value {}, {} entries", found.0, found.1, found.2),
        expected: format!(
            "key {}, value {}, {} entries",
            expected.0,
            expected.1,
            expected.2.map_or("any number of".to_owned(), |n| n.to_string())
        ),
    })
}

/// Whether the settings are written, and by this version.
fn is_written(path: &Path) -> Result<bool, OpenError> {
    check_shape(path, "CONFIG")?;
    let map = Map::Array(MapData::from_pin(path)?);
    let config: Array<MapData, Shared<Config>> = map.try_into()?;
    let Shared(config) = config.get(&0, 0)?;
    match (config.magic, config.layout) {
        (0, 0) => Ok(false),
        (CONFIG_MAGIC, LAYOUT_VERSION) => Ok(true),
        (magic, layout) => Err(OpenError::Layout {
            path: path.to_owned(),
            found: format!("version {layout} with magic {magic:#x}"),
            expected: format!("version {LAYOUT_VERSION} with magic {CONFIG_MAGIC:#x}"),
        }),
    }
}

/// Where every map is pinned.
pub(super) fn maps(folder: &Path) -> impl Iterator<Item = PathBuf> {
    NAMES.into_iter().map(|name| map_path(folder, name))
}

/// Number of entries of a map that is there.
pub(super) fn size_of_map(folder: &Path, name: &str) -> Result<Option<u32>, OpenError> {
    let path = map_path(folder, name);
    if path.exists() { Ok(Some(MapInfo::from_pin(&path)?.max_entries())) } else { Ok(None) }
}

/// Removes the pin of a map whose content is dispensable if it has another number of entries than wanted.
pub(super) fn drop_resized(folder: &Path, name: &str, entries: u32) -> Result<(), OpenError> {
    let path = map_path(folder, name);
    if size_of_map(folder, name)?.is_some_and(|found| found != entries) {
        fs::remove_file(&path).map_err(failed(&path, "removing a map of another size"))?;
    }
    Ok(())
}

/// Removes every pin of ours: links first, so that no packet meets maps that go away.
pub(super) fn remove_all(folder: &Path) -> Result<(), OpenError> {
    for (path, ..) in links(folder).map_err(failed(folder, "listing it"))? {
        fs::remove_file(&path).map_err(failed(&path, "removing the pin of a link"))?;
    }
    for name in NAMES {
        let path = map_path(folder, name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&path, "removing the pin of a map")(error));
            }
            _ => {}
        }
    }
    Ok(())
}
