//! The content that real servers serve and clients check: every byte follows from its offset, so that a client needs
//! no copy to notice a wrong, missing or repeated one.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

const WORD: usize = 8;

/// The eight bytes at `index * 8`: splitmix64, whose words differ wherever offsets do.
fn word(index: u64) -> [u8; WORD] {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// Fills `buffer` with the content at `offset`.
pub fn fill(offset: u64, buffer: &mut [u8]) {
    let mut at = offset;
    let mut rest = buffer;
    while !rest.is_empty() {
        let skip = usize::try_from(at % WORD as u64).expect("invariant: less than eight");
        let bytes = word(at / WORD as u64);
        let take = rest.len().min(WORD - skip);
        let (head, tail) = rest.split_at_mut(take);
        head.copy_from_slice(&bytes[skip..skip + take]);
        rest = tail;
        at += take as u64;
    }
}

/// How many of `bytes`, said to be the content at `offset`, are wrong.
#[must_use]
pub fn wrong_bytes(offset: u64, bytes: &[u8]) -> u64 {
    let mut expected = [0_u8; 512];
    let mut at = offset;
    let mut wrong = 0_u64;
    for chunk in bytes.chunks(expected.len()) {
        let expected = &mut expected[..chunk.len()];
        fill(at, expected);
        if expected != chunk {
            wrong += chunk.iter().zip(expected).filter(|(got, meant)| *got != *meant).count() as u64;
        }
        at += chunk.len() as u64;
    }
    wrong
}

/// Writes a content file of `length` bytes.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, length: u64) -> Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    for index in 0..length.div_ceil(WORD as u64) {
        let left = length - index * WORD as u64;
        let take = usize::try_from(left).unwrap_or(WORD).min(WORD);
        out.write_all(&word(index)[..take]).context("writing content")?;
    }
    out.flush().context("writing content")
}

#[cfg(test)]
mod tests {
    use super::{fill, wrong_bytes};

    #[test]
    fn any_cut_of_the_content_is_recognised_and_any_change_is_not() {
        let mut whole = vec![0; 2000];
        fill(0, &mut whole);
        for (from, to) in [(0, 2000), (3, 17), (7, 8), (511, 1500), (8, 8)] {
            assert_eq!(wrong_bytes(from as u64, &whole[from..to]), 0, "{from}..{to}");
        }
        assert!(wrong_bytes(8, &whole[..100]) > 90, "content of another offset");
        whole[1234] ^= 1;
        assert_eq!(wrong_bytes(0, &whole), 1);
    }
}
