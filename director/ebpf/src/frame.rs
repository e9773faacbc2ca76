//! A frame in the hands of an XDP program.

use core::arch::asm;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use director_common::Frame;
use director_common::decapsulate::Shrink;

/// The bytes between the context's `data` and `data_end`. Every access compares with the end, in the very
/// form the verifier knows.
pub struct XdpFrame {
    context: *mut xdp_md,
    start: usize,
    end: usize,
}

/// `value`, of which the compiler then knows nothing. (`black_box` would take it through the stack.)
#[inline(always)]
pub fn opaque(mut value: usize) -> usize {
    // SAFETY: copies a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
    value
}

impl XdpFrame {
    #[inline(always)]
    pub fn new(context: &XdpContext) -> Self {
        Self { context: context.ctx, start: context.data(), end: context.data_end() }
    }

    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        // Opaque: from one access the compiler would conclude that another is within the frame, and drop the
        // comparisons; the verifier accepts no other proof.
        let offset = opaque(offset);
        // What is added to a packet's pointer must be provably small. No header we read begins further.
        if offset > 0x7fff {
            return None;
        }
        let start = self.start + offset;
        // Opaque for N = 1: as `start >= end` it would prove nothing to the verifier.
        if opaque(start + N) > self.end { None } else { Some(start as *mut [u8; N]) }
    }
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let bytes = self.at::<N>(offset)?;
        let mut out = [0_u8; N];
        // Word by word: the compiler would load each byte of an unaligned array by itself, and keep each in a
        // register or on the small stack.
        let mut at = 0;
        while at + 4 <= N {
            // SAFETY: within the N bytes, and the target has them all. Headers lie 2 bytes off a word's boundary;
            // the kernel refuses the program where a machine cannot load that (it cannot on none we run on).
            unsafe {
                *out.as_mut_ptr().add(at).cast::<[u8; 4]>() =
                    bytes.cast::<u8>().add(at).cast::<u32>().read().to_ne_bytes()
            };
            at += 4;
        }
        while at < N {
            // SAFETY: as above, one byte.
            unsafe { *out.as_mut_ptr().add(at) = bytes.cast::<u8>().add(at).read() };
            at += 1;
        }
        Some(out)
    }

    #[inline(always)]
    fn launder(&self, offset: usize) -> usize {
        // The frame's length is unknown to the verifier, and so is what is combined with it.
        let mask = self.len();
        opaque(offset ^ mask) ^ mask
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let target = self.at::<N>(offset)?.cast::<u8>();
        // Word by word, as in `read`.
        let mut at = 0;
        while at + 4 <= N {
            // SAFETY: the N bytes are within the frame, which belongs to this program while it runs.
            unsafe {
                let word = u32::from_ne_bytes(*bytes.as_ptr().add(at).cast::<[u8; 4]>());
                target.add(at).cast::<u32>().write(word);
            }
            at += 4;
        }
        while at < N {
            // SAFETY: as above, one byte.
            unsafe { target.add(at).write(*bytes.as_ptr().add(at)) };
            at += 1;
        }
        Some(())
    }

    #[inline(always)]
    fn grow<const N: usize>(&mut self) -> Option<()> {
        // SAFETY: the context is that of this run; pointers into the frame are taken anew below.
        unsafe {
            if bpf_xdp_adjust_head(self.context, -(N as i32)) != 0 {
                return None;
            }
            self.start = (*self.context).data as usize;
            self.end = (*self.context).data_end as usize;
        }
        Some(())
    }

    #[inline(always)]
    fn truncate(&mut self, len: usize) -> Option<()> {
        let excess = (self.end - self.start).checked_sub(len)?;
        // SAFETY: as in `grow`.
        unsafe {
            if bpf_xdp_adjust_tail(self.context, -(excess as i32)) != 0 {
                return None;
            }
            self.start = (*self.context).data as usize;
            self.end = (*self.context).data_end as usize;
        }
        Some(())
    }
}

impl Shrink for XdpFrame {
    #[inline(always)]
    fn shrink(&mut self, bytes: usize) -> Option<()> {
        // SAFETY: as in `grow`; the kernel refuses to cut off more than leaves an Ethernet header.
        unsafe {
            if bpf_xdp_adjust_head(self.context, bytes as i32) != 0 {
                return None;
            }
            self.start = (*self.context).data as usize;
            self.end = (*self.context).data_end as usize;
        }
        Some(())
    }
}
