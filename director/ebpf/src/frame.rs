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

/// The furthest a header begins that is ever read.
const MAX_OFFSET: usize = 0x7fff;

/// `offset`, which is at most [`MAX_OFFSET`].
#[inline(always)]
fn masked(mut offset: usize) -> usize {
    // SAFETY: changes a register.
    unsafe {
        asm!("{0} &= 0x7fff", inout(reg) offset, options(pure, nomem, nostack, preserves_flags));
    }
    offset
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
        // What is added to a packet's pointer must be provably small. No header we read begins further. The comparison
        // may be made with a copy, of which the verifier of Linux 6.1 does not know that it is one: so it is told once
        // more, by an instruction that the compiler does not know to be idle.
        if offset > MAX_OFFSET {
            return None;
        }
        let start = self.start + masked(offset);
        // Opaque for N = 1: as `start >= end` it would prove nothing to the verifier.
        if opaque(start + N) > self.end { None } else { Some(start as *mut [u8; N]) }
    }
}

/// Copies `N` bytes, word by word: the compiler would load each byte of an unaligned array by itself, and keep each in
/// a register or on the small stack. Headers lie 2 bytes off a word's boundary; the kernel refuses the program where a
/// machine cannot load that (it cannot on none we run on).
///
/// # Safety
/// `source` and `target` have `N` bytes each.
#[inline(always)]
unsafe fn copy<const N: usize>(source: *const u8, target: *mut u8) {
    let mut at = 0;
    // SAFETY: below N, as promised by the caller.
    unsafe {
        while at + 4 <= N {
            target.add(at).cast::<u32>().write(source.add(at).cast::<u32>().read());
            at += 4;
        }
        while at + 2 <= N {
            target.add(at).cast::<u16>().write(source.add(at).cast::<u16>().read());
            at += 2;
        }
        while at < N {
            target.add(at).write(source.add(at).read());
            at += 1;
        }
    }
}

/// `N` bytes, aligned so that they can be copied by words.
#[repr(C, align(4))]
struct Aligned<const N: usize>([u8; N]);

impl Frame for XdpFrame {
    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let bytes = self.at::<N>(offset)?;
        let mut out = Aligned([0_u8; N]);
        // SAFETY: `at` has compared, and `out` has as many.
        unsafe { copy::<N>(bytes.cast(), out.0.as_mut_ptr()) };
        Some(out.0)
    }

    #[inline(always)]
    fn launder(&self, offset: usize) -> usize {
        // The frame's length is unknown to the verifier, and so is what is combined with it.
        let mask = self.len();
        opaque(offset ^ mask) ^ mask
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let (target, bytes) = (self.at::<N>(offset)?, Aligned(bytes));
        // SAFETY: the N bytes are within the frame, which belongs to this program while it runs.
        unsafe { copy::<N>(bytes.0.as_ptr(), target.cast()) };
        Some(())
    }

    #[inline(always)]
    fn holds<const N: usize>(&self) -> bool {
        // Opaque for the same reason as in `at`.
        opaque(self.start + N) <= self.end
    }

    #[inline(always)]
    fn peek<const AT: usize, const N: usize>(&self) -> [u8; N] {
        let mut out = Aligned([0_u8; N]);
        // SAFETY: the kernel refuses the program unless `holds` has compared for as many bytes before.
        unsafe { copy::<N>((self.start + AT) as *const u8, out.0.as_mut_ptr()) };
        out.0
    }

    #[inline(always)]
    fn poke<const AT: usize, const N: usize>(&mut self, bytes: [u8; N]) {
        let bytes = Aligned(bytes);
        // SAFETY: as in `peek`.
        unsafe { copy::<N>(bytes.0.as_ptr(), (self.start + AT) as *mut u8) };
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
