//! Sixteen bytes of JSON looked at together: where quotes, backslashes and control characters are, and what is escaped.

use wide::u8x16;

/// Bytes looked at together: most strings of an event are no longer.
pub(super) const CHUNK: usize = 16;

/// A bit for each byte of a chunk.
pub(super) const CHUNK_BITS: u32 = (1 << CHUNK) - 1;

/// A bit for each quote, backslash and control character of a chunk.
pub(super) struct Specials {
    pub quotes: u32,
    pub backslashes: u32,
    pub controls: u32,
}

impl Specials {
    #[inline]
    pub fn of(chunk: &[u8; CHUNK]) -> Self {
        let chunk = u8x16::new(*chunk);
        let bits = |byte: u8| chunk.simd_eq(u8x16::splat(byte)).to_bitmask();
        let controls = chunk.min(u8x16::splat(0x1F)).simd_eq(chunk).to_bitmask();
        Self { quotes: bits(b'"'), backslashes: bits(b'\\'), controls }
    }
}

/// A bit for each byte of a chunk, and the next, that is escaped, given those of the backslashes, none of which is escaped
/// from before the chunk: of a run of backslashes each second, and the byte after a run of odd length. As simdjson does.
#[inline]
pub(super) fn escaped(backslashes: u32) -> u32 {
    const ODD: u32 = 0xAAAA_AAAA;
    let starts_and_odd = (backslashes << 1 | ODD).wrapping_sub(backslashes);
    starts_and_odd ^ ODD ^ backslashes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_is_found_for_every_chunk() {
        for backslashes in 0..=CHUNK_BITS {
            let (mut expected, mut place) = (0, 0);
            while place < CHUNK {
                let escapes = backslashes >> place & 1 == 1;
                expected |= u32::from(escapes) << (place + 1);
                place += 1 + usize::from(escapes);
            }
            assert_eq!(escaped(backslashes) & (CHUNK_BITS << 1 | 1), expected, "{backslashes:016b}");
        }
    }
}
