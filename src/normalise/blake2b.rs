//! BLAKE2b (RFC 7693) with 16 bytes of hash and without a key, of many texts that fit into one block each.
//!
//! `blake2b_simd` hashes texts of any length, and its preparation of each takes a third of the whole for texts as short
//! as these. So where the processor has AVX2 four are hashed at once here, from blocks as they were filled; elsewhere
//! that crate does it. Knows nothing of what is hashed.

use std::sync::LazyLock;

use blake2b_simd::Params;
use blake2b_simd::many::{HashManyJob, hash_many};
use smallvec::SmallVec;

/// Bytes that are hashed at once.
pub(super) const BLOCK_BYTES: usize = 128;
/// The longest text that fits.
pub(super) const TEXT_BYTES_MAX: usize = BLOCK_BYTES - 1;

/// A text of at most [`TEXT_BYTES_MAX`] bytes, zeros behind it, and in the last byte its length.
pub(super) type Block = [u8; BLOCK_BYTES];
/// A hash.
pub(super) type Digest = [u8; 16];

static PARAMS: LazyLock<Params> = LazyLock::new(|| Params::new().hash_length(size_of::<Digest>()).clone());
/// Hashes that the crate is asked for at once.
const AT_ONCE: usize = 16;

/// The hash of a text of any length.
pub(super) fn hash(text: &[u8]) -> Digest {
    PARAMS.hash(text).as_bytes().first_chunk().copied().unwrap_or_default()
}

/// The hashes of the texts in these blocks, in their order.
pub(super) fn hash_all(blocks: &[Block]) -> Vec<Digest> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "what is compiled for AVX2 may run only where there is AVX2")]
        // SAFETY: the processor was asked; the function itself is safe code.
        return unsafe { four::hash_all(blocks) };
    }
    one_by_one(blocks)
}

/// The same by the crate.
fn one_by_one(blocks: &[Block]) -> Vec<Digest> {
    let mut hashes = Vec::with_capacity(blocks.len());
    for blocks in blocks.chunks(AT_ONCE) {
        let job = |block| HashManyJob::new(&PARAMS, text_of(block));
        let mut jobs: SmallVec<[HashManyJob<'_>; AT_ONCE]> = blocks.iter().map(job).collect();
        hash_many(&mut jobs);
        hashes.extend(jobs.iter().map(|job| job.to_hash().as_bytes().first_chunk().copied().unwrap_or_default()));
    }
    hashes
}

/// The text in a block.
pub(super) fn text_of(block: &Block) -> &[u8] {
    let [text @ .., length] = block;
    text.get(..usize::from(*length)).unwrap_or(text)
}

/// Four at once, each in a lane of 64 bits of every register.
#[cfg(target_arch = "x86_64")]
mod four {
    use std::arch::x86_64::*;

    use super::{Block, Digest};

    const IV: [u64; 8] = [
        0x6A09_E667_F3BC_C908,
        0xBB67_AE85_84CA_A73B,
        0x3C6E_F372_FE94_F82B,
        0xA54F_F53A_5F1D_36F1,
        0x510E_527F_ADE6_82D1,
        0x9B05_688C_2B3E_6C1F,
        0x1F83_D9AB_FB41_BD6B,
        0x5BE0_CD19_137E_2179,
    ];
    /// 16 bytes of hash, no key, one leaf.
    const PARAMETERS: u64 = 0x0101_0010;

    /// Where each byte of a register comes from when each lane is turned right by 16 bits and by 24. Each half of a
    /// register is the same.
    static TURNED: [[u64; 2]; 2] = [
        [u64::from_le_bytes([2, 3, 4, 5, 6, 7, 0, 1]), u64::from_le_bytes([10, 11, 12, 13, 14, 15, 8, 9])],
        [u64::from_le_bytes([3, 4, 5, 6, 7, 0, 1, 2]), u64::from_le_bytes([11, 12, 13, 14, 15, 8, 9, 10])],
    ];

    type Lanes = __m256i;

    struct State {
        v: [Lanes; 16],
        by_16: Lanes,
        by_24: Lanes,
    }

    impl State {
        #[inline]
        #[target_feature(enable = "avx2")]
        fn mix(&mut self, [a, b, c, d]: [usize; 4], x: Lanes, y: Lanes) {
            let v = &mut self.v;
            v[a] = _mm256_add_epi64(_mm256_add_epi64(v[a], x), v[b]);
            v[d] = _mm256_shuffle_epi32::<0b10_11_00_01>(_mm256_xor_si256(v[d], v[a]));
            v[c] = _mm256_add_epi64(v[c], v[d]);
            v[b] = _mm256_shuffle_epi8(_mm256_xor_si256(v[b], v[c]), self.by_24);
            v[a] = _mm256_add_epi64(_mm256_add_epi64(v[a], y), v[b]);
            v[d] = _mm256_shuffle_epi8(_mm256_xor_si256(v[d], v[a]), self.by_16);
            v[c] = _mm256_add_epi64(v[c], v[d]);
            let both = _mm256_xor_si256(v[b], v[c]);
            v[b] = _mm256_or_si256(_mm256_srli_epi64::<63>(both), _mm256_add_epi64(both, both));
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        fn round(&mut self, m: [Lanes; 16]) {
            self.mix([0, 4, 8, 12], m[0], m[1]);
            self.mix([1, 5, 9, 13], m[2], m[3]);
            self.mix([2, 6, 10, 14], m[4], m[5]);
            self.mix([3, 7, 11, 15], m[6], m[7]);
            self.mix([0, 5, 10, 15], m[8], m[9]);
            self.mix([1, 6, 11, 12], m[10], m[11]);
            self.mix([2, 7, 8, 13], m[12], m[13]);
            self.mix([3, 4, 9, 14], m[14], m[15]);
        }
    }

    /// A round with the words of the message in this order. Known to the compiler, they need no look-up.
    macro_rules! round {
        ($state:ident, $m:ident, $($word:literal)*) => { $state.round([$($m[$word]),*]) };
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(block: &Block, at: usize) -> Lanes {
        let word = |n: usize| block.as_chunks().0.get(at + n).copied().map_or(0, i64::from_le_bytes);
        _mm256_set_epi64x(word(3), word(2), word(1), word(0))
    }

    /// The words of four messages: of each the same one in a register.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn words([a, b, c, d]: &[Block; 4]) -> [Lanes; 16] {
        let mut words = [_mm256_setzero_si256(); 16];
        for (quarter, words) in words.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let [a, b, c, d] = [a, b, c, d].map(|block| load(block, 4 * quarter));
            let (ab_even, ab_odd) = (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
            let (cd_even, cd_odd) = (_mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d));
            *words = [
                _mm256_permute2x128_si256::<0x20>(ab_even, cd_even),
                _mm256_permute2x128_si256::<0x20>(ab_odd, cd_odd),
                _mm256_permute2x128_si256::<0x31>(ab_even, cd_even),
                _mm256_permute2x128_si256::<0x31>(ab_odd, cd_odd),
            ];
        }
        words
    }

    #[target_feature(enable = "avx2")]
    fn hash_four(blocks: &[Block; 4]) -> [Digest; 4] {
        let mut m = words(blocks);
        // The byte behind the text is not of it.
        let lengths = _mm256_srli_epi64::<56>(m[15]);
        m[15] = _mm256_and_si256(m[15], _mm256_set1_epi64x(i64::MAX >> 7));
        let all = |word: u64| _mm256_set1_epi64x(word.cast_signed());
        // A shuffle that the compiler knows it takes apart into two, for an older processor's sake.
        let [by_16, by_24] = *std::hint::black_box(&TURNED);
        let twice = |[low, high]: [u64; 2]| {
            let (low, high) = (low.cast_signed(), high.cast_signed());
            _mm256_set_epi64x(high, low, high, low)
        };
        let first = [all(IV[0] ^ PARAMETERS), all(IV[1])];
        let [iv0, iv1, iv2, iv3, iv4, iv5, iv6, iv7] = IV.map(all);
        let mut v = State {
            v: [
                first[0],
                first[1],
                iv2,
                iv3,
                iv4,
                iv5,
                iv6,
                iv7,
                iv0,
                iv1,
                iv2,
                iv3,
                _mm256_xor_si256(iv4, lengths),
                iv5,
                // This block is the last.
                all(!IV[6]),
                iv7,
            ],
            by_16: twice(by_16),
            by_24: twice(by_24),
        };
        round!(v, m, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        round!(v, m, 14 10 4 8 9 15 13 6 1 12 0 2 11 7 5 3);
        round!(v, m, 11 8 12 0 5 2 15 13 10 14 3 6 7 1 9 4);
        round!(v, m, 7 9 3 1 13 12 11 14 2 6 5 10 4 0 15 8);
        round!(v, m, 9 0 5 7 2 4 10 15 14 1 11 12 6 8 3 13);
        round!(v, m, 2 12 6 10 0 11 8 3 4 13 7 5 15 14 1 9);
        round!(v, m, 12 5 1 15 14 13 4 10 0 7 6 3 9 2 8 11);
        round!(v, m, 13 11 7 14 12 1 3 9 5 0 15 4 8 6 2 10);
        round!(v, m, 6 15 14 9 11 3 0 8 12 2 13 7 1 4 10 5);
        round!(v, m, 10 2 8 4 7 6 1 5 15 11 9 14 3 12 13 0);
        round!(v, m, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        round!(v, m, 14 10 4 8 9 15 13 6 1 12 0 2 11 7 5 3);
        let v = v.v;
        let low = _mm256_xor_si256(first[0], _mm256_xor_si256(v[0], v[8]));
        let high = _mm256_xor_si256(first[1], _mm256_xor_si256(v[1], v[9]));
        let (even, odd) = (_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
        [digest::<0>(even), digest::<0>(odd), digest::<1>(even), digest::<1>(odd)]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn digest<const HALF: i32>(lanes: Lanes) -> Digest {
        let half = _mm256_extracti128_si256::<HALF>(lanes);
        let (low, high) = (_mm_cvtsi128_si64(half).cast_unsigned(), _mm_extract_epi64::<1>(half).cast_unsigned());
        (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
    }

    /// The hashes of all, the last few with blocks of nothing beside them.
    #[target_feature(enable = "avx2")]
    pub(super) fn hash_all(blocks: &[Block]) -> Vec<Digest> {
        let mut hashes = Vec::with_capacity(blocks.len().next_multiple_of(4));
        let (fours, rest) = blocks.as_chunks();
        for four in fours {
            hashes.extend_from_slice(&hash_four(four));
        }
        if !rest.is_empty() {
            let mut four = [[0; _]; 4];
            four.iter_mut().zip(rest).for_each(|(room, block)| *room = *block);
            hashes.extend_from_slice(&hash_four(&four));
            hashes.truncate(blocks.len());
        }
        hashes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &[u8]) -> Block {
        let mut block = [0; BLOCK_BYTES];
        block[..text.len()].copy_from_slice(text);
        block[TEXT_BYTES_MAX] = text.len() as u8;
        block
    }

    #[test]
    fn texts_of_every_length_are_hashed_together_as_by_the_crate_alone() {
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        let mut byte = || {
            random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            (random >> 56) as u8
        };
        for first in [0, 0x80, 0xFF] {
            let text = |length: usize| (0..length).map(|_| byte() | first).collect::<Vec<u8>>();
            let texts: Vec<Vec<u8>> = (0..=TEXT_BYTES_MAX).map(text).collect();
            let blocks: Vec<Block> = texts.iter().map(|text| block(text)).collect();
            let expected: Vec<Digest> = texts.iter().map(|text| hash(text)).collect();
            for count in [0, 1, 2, 3, 4, 5, 7, 64, blocks.len()] {
                assert_eq!(hash_all(&blocks[..count]), expected[..count]);
                assert_eq!(one_by_one(&blocks[..count]), expected[..count]);
            }
            for (at, expected) in expected.iter().enumerate() {
                assert_eq!(hash_all(&blocks[at..=at]), [*expected], "{at}");
            }
        }
    }

    #[test]
    fn a_known_text_has_its_known_hash() {
        // `hashlib.blake2b(b"abc", digest_size=16)` of Python.
        let hex: String = hash_all(&[block(b"abc")]).iter().flatten().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "cf4ab791c62b8d2b2109c90275287816");
    }
}
