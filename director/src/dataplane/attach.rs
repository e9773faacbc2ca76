//! Interfaces, and the programs on them.

use std::io;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode as AyaMode};
use aya::programs::{ProgramError, Xdp};
use nix::ifaddrs::getifaddrs;

use super::error::{AttachError, OpenError};
use super::{Dataplane, PROGRAM, XdpMode, pins};

/// How the program runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// In the kernel's network stack.
    Generic,
}

impl AttachedMode {
    /// `native` or `generic`, as in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// An interface with the program on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedInterface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its link address.
    pub mac: [u8; 6],
    /// How the program runs there.
    pub mode: AttachedMode,
}

/// An Ethernet interface of this namespace.
struct Device {
    ifindex: u32,
    mac: [u8; 6],
}

fn device(name: &str) -> Result<Device, AttachError> {
    let mut seen = false;
    for interface in getifaddrs().map_err(io::Error::from).map_err(AttachError::List)? {
        if interface.interface_name != name {
            continue;
        }
        seen = true;
        let link = interface.address.as_ref().and_then(|address| address.as_link_addr());
        if let Some((link, mac)) = link.and_then(|link| Some((link, link.addr()?)))
            && mac != [0; 6]
        {
            return Ok(Device { ifindex: link.ifindex() as u32, mac });
        }
    }
    Err(if seen {
        AttachError::NoAddress(name.to_owned())
    } else {
        AttachError::NoInterface(name.to_owned())
    })
}

impl Dataplane {
    /// Puts the program on every interface of the options that does not have it yet, and takes it off those
    /// that are not among them any more. From here on packets are forwarded.
    ///
    /// May be called again, after an interface came or changed its address.
    ///
    /// # Errors
    /// [`AttachError`] of the first interface that fails; those before it have the program.
    pub fn attach(&mut self) -> Result<Vec<AttachedInterface>, AttachError> {
        for name in self.options.interfaces.clone() {
            self.attach_one(&name)?;
        }
        let stale: Vec<String> =
            self.links.keys().filter(|name| !self.options.interfaces.contains(name)).cloned().collect();
        for name in stale {
            self.detach_one(&name)?;
        }
        Ok(self.interfaces())
    }

    /// The interfaces that have the program.
    pub fn interfaces(&self) -> Vec<AttachedInterface> {
        self.links.values().map(|(interface, _)| interface.clone()).collect()
    }

    /// The first pin that is missing of those by which packets are forwarded without this process; none if all are
    /// there.
    pub fn missing_pin(&self) -> Option<std::path::PathBuf> {
        let folder = &self.options.pin_dir;
        let links = self
            .links
            .values()
            .map(|(interface, _)| pins::link_path(folder, &interface.name, interface.ifindex));
        links.chain(pins::maps(folder)).find(|path| !path.exists())
    }

    fn attach_one(&mut self, name: &str) -> Result<(), AttachError> {
        let device = device(name)?;
        if let Some((attached, _)) = self.links.get_mut(name) {
            if attached.ifindex == device.ifindex && fits(self.options.mode, attached.mode) {
                attached.mac = device.mac;
                let native = attached.mode == AttachedMode::Native;
                return Ok(self.maps.set_interface(device.ifindex, device.mac, native)?);
            }
            self.detach_one(name)?;
        }
        let first =
            if self.options.mode == XdpMode::Generic { AttachedMode::Generic } else { AttachedMode::Native };
        let (link, mode) = match self.link(name, &device, first) {
            Err(AttachError::Refused { source, .. }) if self.options.mode == XdpMode::Auto => {
                tracing::info!(interface = name, reason = %cause(&source), "no native XDP here, using generic");
                (self.link(name, &device, AttachedMode::Generic)?, AttachedMode::Generic)
            }
            other => (other?, first),
        };
        let interface =
            AttachedInterface { name: name.to_owned(), ifindex: device.ifindex, mac: device.mac, mode };
        self.links.insert(name.to_owned(), (interface, link));
        Ok(())
    }

    /// Attaches and pins. The program learns the interface's address first: until then it would pass packets.
    fn link(&mut self, name: &str, device: &Device, mode: AttachedMode) -> Result<PinnedLink, AttachError> {
        self.maps.set_interface(device.ifindex, device.mac, mode == AttachedMode::Native)?;
        let refused = |source| AttachError::Refused { interface: name.to_owned(), mode: mode.name(), source };
        let aya_mode = match mode {
            AttachedMode::Native => AyaMode::Driver,
            AttachedMode::Generic => AyaMode::Skb,
        };
        let program = program_mut(&mut self.ebpf).map_err(refused)?;
        let id = program.attach_to_if_index(device.ifindex, aya_mode).map_err(refused)?;
        let link = program.take_link(id).map_err(refused)?;
        let pin = |source| AttachError::Pin { interface: name.to_owned(), source };
        let link = FdLink::try_from(link).map_err(|error| pin(Box::new(error)))?;
        let path = pins::link_path(&self.options.pin_dir, name, device.ifindex);
        link.pin(path).map_err(|error| pin(Box::new(error)))
    }

    fn detach_one(&mut self, name: &str) -> Result<(), AttachError> {
        if let Some((interface, link)) = self.links.remove(name) {
            link.unpin()
                .map_err(|error| AttachError::Pin { interface: name.to_owned(), source: Box::new(error) })?;
            self.maps.remove_interface(interface.ifindex);
        }
        Ok(())
    }

    /// Takes over the links an earlier process pinned: each then runs this process's program, which the kernel
    /// exchanges between two packets. A link whose interface is gone is forgotten.
    pub(super) fn adopt_links(&mut self) -> Result<(), OpenError> {
        let folder = self.options.pin_dir.clone();
        let links = pins::links(&folder).map_err(|source| OpenError::PinFolder {
            path: folder,
            what: "listing it",
            source,
        })?;
        for (path, name, ifindex) in links {
            let live = device(&name).ok().filter(|device| device.ifindex == ifindex);
            let told = self.maps.interface(ifindex);
            let adopted = match (live, told) {
                (Some(device), Some(told)) => self.exchange(&path, &device).map(|link| (device, told, link)),
                _ => None,
            };
            let Some((device, told, link)) = adopted else {
                tracing::warn!(interface = name, "forgetting a link whose interface is gone");
                let removed = std::fs::remove_file(&path);
                removed.map_err(|source| OpenError::PinFolder {
                    path,
                    what: "removing a dead link",
                    source,
                })?;
                self.maps.remove_interface(ifindex);
                continue;
            };
            let mode = if told.is_native() { AttachedMode::Native } else { AttachedMode::Generic };
            let interface = AttachedInterface { name: name.clone(), ifindex, mac: device.mac, mode };
            self.links.insert(name, (interface, link));
        }
        Ok(())
    }

    fn exchange(&mut self, path: &std::path::Path, device: &Device) -> Option<PinnedLink> {
        let link: FdLink = PinnedLink::from_pin(path).ok()?.into();
        let link = XdpLink::try_from(link).ok()?;
        let program = program_mut(&mut self.ebpf).ok()?;
        let id = program.attach_to_link(link).ok()?;
        // The link's own handle may go: the pin keeps the link.
        drop(program.take_link(id).ok()?);
        tracing::debug!(ifindex = device.ifindex, "adopted a link");
        PinnedLink::from_pin(path).ok()
    }
}

const fn fits(wanted: XdpMode, attached: AttachedMode) -> bool {
    matches!(
        (wanted, attached),
        (XdpMode::Auto, _)
            | (XdpMode::Native, AttachedMode::Native)
            | (XdpMode::Generic, AttachedMode::Generic)
    )
}

fn program_mut(ebpf: &mut aya::Ebpf) -> Result<&mut Xdp, ProgramError> {
    ebpf.program_mut(PROGRAM).ok_or(ProgramError::NotLoaded)?.try_into()
}

/// The innermost reason of an error.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
