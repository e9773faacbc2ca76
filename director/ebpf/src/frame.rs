//! A frame in the hands of an XDP program.

use aya_ebpf::programs::XdpContext;
use director_common::Frame;

/// The bytes between the context's `data` and `data_end`. Every access compares with the end, in the very
/// form the verifier knows.
pub struct XdpFrame {
    start: usize,
    end: usize,
}

impl XdpFrame {
    #[inline(always)]
    pub fn new(context: &XdpContext) -> Self {
        Self { start: context.data(), end: context.data_end() }
    }

    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        let start = self.start + offset;
        if start + N > self.end { None } else { Some(start as *mut [u8; N]) }
    }
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn len(&self) -> usize {
        // Opaque to the compiler: were it to know that a length below this one is within the frame, it would
        // drop comparisons with `end` as redundant, but the verifier accepts no other proof.
        core::hint::black_box(self.end - self.start)
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // SAFETY: the N bytes are within the frame; a byte array has no alignment.
        self.at(offset).map(|bytes| unsafe { *bytes })
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        // SAFETY: the N bytes are within the frame, which belongs to this program while it runs.
        self.at(offset).map(|target| unsafe { *target = bytes })
    }
}
