//! A hash table that takes little more memory than its keys and values.
//!
//! Like `exports::seen`, which is a set: keys are hashes, so their bits determine the place, and the table is split
//! into many small ones that grow by an eighth each. A million rows of an export take under 30 MB.

/// A hash of 128 bits.
pub type Key = [u8; 16];

const SHARDS: usize = 4096;
/// A shard is filled to at most so many hundredths.
const FULL: usize = 90;
const EMPTY: Key = [0; 16];

/// Keys with their values.
#[derive(Debug)]
pub struct LookupTable<T> {
    shards: Vec<Shard<T>>,
    /// The value of the all-zero key, which marks an empty place and so cannot be stored in one.
    zero: Option<T>,
    len: u64,
}

#[derive(Debug)]
struct Shard<T> {
    places: Box<[(Key, T)]>,
    used: usize,
}

impl<T: Default> Default for LookupTable<T> {
    fn default() -> LookupTable<T> {
        let shards = (0..SHARDS).map(|_| Shard { places: Box::default(), used: 0 }).collect();
        LookupTable { shards, zero: None, len: 0 }
    }
}

impl<T: Default> LookupTable<T> {
    /// Inserts a key with its value; returns false and changes nothing if the key is present.
    pub fn insert(&mut self, key: Key, value: T) -> bool {
        let is_new = if key == EMPTY {
            self.zero.is_none().then(|| self.zero = Some(value)).is_some()
        } else {
            self.shards.get_mut(shard_of(key)).is_some_and(|shard| shard.insert(key, value))
        };
        self.len += u64::from(is_new);
        is_new
    }

    /// The value of a key.
    pub fn get(&self, key: Key) -> Option<&T> {
        if key == EMPTY {
            return self.zero.as_ref();
        }
        let shard = self.shards.get(shard_of(key))?;
        shard.find(key).and_then(|at| shard.places.get(at)).filter(|place| place.0 == key).map(|place| &place.1)
    }

    /// All values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        let places = self.shards.iter().flat_map(|shard| shard.places.iter());
        places.filter(|place| place.0 != EMPTY).map(|place| &place.1).chain(&self.zero)
    }

    /// How many keys there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory of all places, in bytes.
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.places.len() * size_of::<(Key, T)>()).sum()
    }
}

fn shard_of(key: Key) -> usize {
    (u128::from_le_bytes(key) as usize) % SHARDS
}

impl<T: Default> Shard<T> {
    fn insert(&mut self, key: Key, value: T) -> bool {
        if (self.used + 1) * 100 > self.places.len() * FULL {
            let more = (self.places.len() / 8).max(4);
            let grown = (0..self.places.len() + more).map(|_| (EMPTY, T::default())).collect();
            for (key, value) in std::mem::replace(&mut self.places, grown) {
                if key != EMPTY {
                    self.put(key, value);
                }
            }
        }
        let is_new = self.put(key, value);
        self.used += usize::from(is_new);
        is_new
    }

    fn put(&mut self, key: Key, value: T) -> bool {
        match self.find(key).and_then(|at| self.places.get_mut(at)) {
            Some(place) if place.0 == EMPTY => {
                *place = (key, value);
                true
            }
            _ => false,
        }
    }

    /// The place of a key, or the empty place for it; `None` in a shard without places.
    fn find(&self, key: Key) -> Option<usize> {
        // The upper bits as a fraction of the table: no two places are favoured.
        let upper = u128::from_le_bytes(key) >> 64;
        let at = ((upper * self.places.len() as u128) >> 64) as usize;
        let (before, after) = self.places.split_at(at);
        let all = after.iter().chain(before).position(|place| place.0 == key || place.0 == EMPTY)?;
        Some((at + all) % self.places.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        *blake3::hash(&number.to_le_bytes()).as_bytes().first_chunk().unwrap()
    }

    #[test]
    fn each_key_is_new_once_and_keeps_what_stands_beside_it() {
        let mut table = LookupTable::default();
        for number in 0..50_000 {
            assert!(table.insert(key(number), number), "{number}");
            assert!(!table.insert(key(number), 0), "{number}");
        }
        assert!(table.insert(EMPTY, 7) && !table.insert(EMPTY, 8));
        assert_eq!((0..50_000).filter(|number| table.get(key(*number)) == Some(number)).count(), 50_000);
        assert_eq!((table.get(key(50_000)), table.get(EMPTY), table.len()), (None, Some(&7), 50_001));
        assert_eq!(table.values().sum::<u64>(), 7 + (0..50_000).sum::<u64>());
        assert_eq!(LookupTable::<u8>::default().get(key(1)), None);
    }

    #[test]
    fn many_rows_take_under_30_bytes_each() {
        let mut table = LookupTable::default();
        let count = 300_000;
        for number in 0..count {
            table.insert(key(number), number);
        }
        assert!(table.bytes() < 30 * count as usize, "{}", table.bytes());
    }
}
