//! A set of keys that takes little more memory than the keys themselves.
//!
//! `HashSet<[u8; 16]>` holds between one and two and, while it grows, three times as many bytes as its keys; beside an
//! export of tens of millions of rows this decides whether it fits. Keys are hashes, so their own bits select the
//! place. The table is split into many small ones that grow by an eighth each.

/// A hash of 128 bits.
type SeenKey = [u8; 16];

const SHARDS: usize = 4096;
/// The maximum fill of a shard, in percent.
const FULL: usize = 90;

/// The set of keys; at most 20 bytes for each if there are many.
#[derive(Debug)]
pub struct SeenKeys {
    shards: Vec<SeenShard>,
    /// Whether the set has the key that marks an empty place.
    zero: bool,
}

#[derive(Debug, Clone, Default)]
struct SeenShard {
    places: Box<[SeenKey]>,
    used: usize,
}

const EMPTY: SeenKey = [0; 16];

impl Default for SeenKeys {
    fn default() -> SeenKeys {
        SeenKeys { shards: vec![SeenShard::default(); SHARDS], zero: false }
    }
}

impl SeenKeys {
    /// Inserts a key; false when it was already present.
    pub fn insert(&mut self, key: SeenKey) -> bool {
        if key == EMPTY {
            return !std::mem::replace(&mut self.zero, true);
        }
        let number = u128::from_le_bytes(key);
        let shard = (number as usize) % SHARDS;
        self.shards.get_mut(shard).is_some_and(|shard| shard.insert(key))
    }

    /// The bytes of all places.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.places.len() * size_of::<SeenKey>()).sum()
    }
}

impl SeenShard {
    fn insert(&mut self, key: SeenKey) -> bool {
        if (self.used + 1) * 100 > self.places.len() * FULL {
            let more = (self.places.len() / 8).max(4);
            let grown = vec![EMPTY; self.places.len() + more].into_boxed_slice();
            for key in std::mem::replace(&mut self.places, grown) {
                if key != EMPTY {
                    self.put(key);
                }
            }
        }
        let is_new = self.put(key);
        self.used += usize::from(is_new);
        is_new
    }

    /// Puts a key in its place or the next free one; false when it is present.
    fn put(&mut self, key: SeenKey) -> bool {
        // The upper bits as a fraction of the table: so all places are equally likely.
        let upper = u128::from_le_bytes(key) >> 64;
        let at = ((upper * self.places.len() as u128) >> 64) as usize;
        let (before, after) = self.places.split_at_mut(at);
        for place in after.iter_mut().chain(before) {
            if *place == key {
                return false;
            }
            if *place == EMPTY {
                *place = key;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> SeenKey {
        let mut key = [0; 16];
        key.copy_from_slice(blake3::hash(&number.to_le_bytes()).as_bytes().get(..16).unwrap());
        key
    }

    #[test]
    fn each_key_is_new_once() {
        let mut seen = SeenKeys::default();
        for round in 0..2 {
            for number in 0..50_000 {
                assert_eq!(seen.insert(key(number)), round == 0, "{number}");
            }
            assert_eq!(seen.insert(EMPTY), round == 0);
        }
    }

    #[test]
    fn many_keys_take_20_bytes_each() {
        let mut seen = SeenKeys::default();
        let count = 400_000;
        for number in 0..count {
            seen.insert(key(number));
        }
        assert!(seen.bytes() < 20 * count as usize + 100_000, "{}", seen.bytes());
    }
}
