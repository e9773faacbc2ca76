//! The digests (RFC 2328 section D.4.3, RFC 5709 section 3.3, RFC 7166 section 4.5).

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::Algorithm;

/// What stands in the place of the digest while it is computed, over and over (RFC 5709 section 3.3).
const APAD: [u8; 4] = [0x87, 0x8f, 0xe1, 0xf3];

/// `length` bytes of Apad.
pub(super) fn apad(length: usize) -> impl Iterator<Item = u8> {
    APAD.into_iter().cycle().take(length)
}

/// The digest of `covered` followed by `pad`. MD5 has the secret in the place of the pad.
pub(super) fn compute(algorithm: Algorithm, secret: &[u8], covered: &[u8], pad: &[u8]) -> Vec<u8> {
    match algorithm {
        Algorithm::Md5 => keyed_md5(secret, covered),
        Algorithm::HmacSha1 => hmac::<Sha1, Hmac<Sha1>>(algorithm, secret, covered, pad),
        Algorithm::HmacSha256 => hmac::<Sha256, Hmac<Sha256>>(algorithm, secret, covered, pad),
        Algorithm::HmacSha384 => hmac::<Sha384, Hmac<Sha384>>(algorithm, secret, covered, pad),
        Algorithm::HmacSha512 => hmac::<Sha512, Hmac<Sha512>>(algorithm, secret, covered, pad),
    }
}

/// Whether two byte strings are equal, in a time that says nothing of where they differ.
pub(super) fn is_equal(one: &[u8], other: &[u8]) -> bool {
    one.ct_eq(other).into()
}

/// The digest of the packet and the secret, padded with zeros to 16 bytes.
fn keyed_md5(secret: &[u8], covered: &[u8]) -> Vec<u8> {
    let mut padded = Zeroizing::new([0; 16]);
    for (to, from) in padded.iter_mut().zip(secret) {
        *to = *from;
    }
    Md5::new().chain_update(covered).chain_update(*padded).finalize().to_vec()
}

/// HMAC with a key as long as the digest: a shorter secret is padded with zeros, as HMAC itself does, and a
/// longer one is hashed, which HMAC would do from the length of a block on only.
fn hmac<H: Digest, M: Mac + KeyInit>(
    algorithm: Algorithm,
    secret: &[u8],
    covered: &[u8],
    pad: &[u8],
) -> Vec<u8> {
    let hashed = (secret.len() > algorithm.digest_len()).then(|| Zeroizing::new(H::digest(secret).to_vec()));
    let key = hashed.as_ref().map_or(secret, |hashed| hashed.as_slice());
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("invariant: HMAC takes keys of any length");
    mac.update(covered);
    mac.update(pad);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// RFC 2202 case 2 and RFC 4231 test case 2: the secret is shorter than every digest.
    #[test]
    fn hmac_of_rfc_2202_and_rfc_4231() {
        let rows = [
            (Algorithm::HmacSha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
            (Algorithm::HmacSha256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
            (
                Algorithm::HmacSha384,
                "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e\
                 8e2240ca5e69e2c78b3239ecfab21649",
            ),
            (
                Algorithm::HmacSha512,
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554\
                 9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
            ),
        ];
        for (algorithm, expected) in rows {
            let digest = compute(algorithm, b"Jefe", b"what do ya want ", b"for nothing?");
            assert_eq!(hex(&digest), expected, "{algorithm}");
            assert_eq!(digest.len(), algorithm.digest_len());
        }
    }

    /// RFC 1321 section A.5: with an empty packet and a secret of 16 bytes this is plain MD5.
    #[test]
    fn md5_is_of_the_packet_and_then_the_secret() {
        assert_eq!(hex(&keyed_md5(b"", b"")), hex(&Md5::digest([0; 16])));
        let all = b"abcdefghijklmnopqrstuvwxyz";
        assert_eq!(hex(&keyed_md5(&all[10..], &all[..10])), "c3fcd3d76192e4007dfb496cca67e13b");
    }

    #[test]
    fn secret_longer_than_the_digest_is_hashed_first() {
        let long = [7; 33];
        let digest = compute(Algorithm::HmacSha256, &long, b"packet", b"");
        assert_eq!(digest, compute(Algorithm::HmacSha256, &Sha256::digest(long), b"packet", b""));
        let full = [7; 32];
        let mut plain = <Hmac<Sha256> as KeyInit>::new_from_slice(&full).expect("any length");
        plain.update(b"packet");
        let plain = plain.finalize().into_bytes();
        assert_eq!(compute(Algorithm::HmacSha256, &full, b"packet", b""), plain.to_vec());
    }

    #[test]
    fn apad_starts_anew_every_four_bytes() {
        assert_eq!(apad(6).collect::<Vec<_>>(), [0x87, 0x8f, 0xe1, 0xf3, 0x87, 0x8f]);
    }
}
