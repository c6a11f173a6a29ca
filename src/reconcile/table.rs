//! A hash table that takes little more memory than its keys and values.
//!
//! Keys and values lie in blocks, in the order in which they came, and are never moved: a million that grew by copying
//! left half as much memory again in holes. Places of four bytes say where they are. Keys are hashes, so their bits
//! determine the place, and the places are split into many small tables that grow by an eighth each. A million rows of an
//! export take under 30 MB.

/// A hash of 128 bits.
pub type Key = [u8; 16];

const SHARDS: usize = 4096;
/// A shard is filled to at most so many hundredths.
const FULL: usize = 90;
/// Entries of a block: large enough that the allocator takes each block from the system, and gives it back.
const BLOCK: usize = 1 << 15;

/// Keys with their values.
#[derive(Debug)]
pub struct LookupTable<T> {
    blocks: Vec<Vec<(Key, T)>>,
    shards: Vec<Shard>,
}

/// Places of entries: 0 where there is none, else the number of the entry from 1 on.
#[derive(Debug, Default)]
struct Shard {
    places: Box<[u32]>,
    used: usize,
}

impl<T> Default for LookupTable<T> {
    fn default() -> LookupTable<T> {
        LookupTable { blocks: Vec::new(), shards: (0..SHARDS).map(|_| Shard::default()).collect() }
    }
}

impl<T> LookupTable<T> {
    /// Inserts a key with its value; returns false and changes nothing if the key is present, or if there are 2^32 keys.
    pub fn insert(&mut self, key: Key, value: T) -> bool {
        let Ok(number) = u32::try_from(self.len() + 1) else { return false };
        let LookupTable { blocks, shards } = self;
        let Some(shard) = shards.get_mut(shard_of(key)) else { return false };
        shard.make_room(|number| entry(blocks, number).map(|entry| entry.0));
        let found = shard.find(key, |number| entry(blocks, number).is_some_and(|entry| entry.0 == key));
        let Some(place) = found.and_then(|at| shard.places.get_mut(at)).filter(|place| **place == 0) else {
            return false;
        };
        *place = number;
        shard.used += 1;
        match blocks.last_mut().filter(|block| block.len() < BLOCK) {
            Some(block) => block.push((key, value)),
            None => {
                let mut block = Vec::with_capacity(BLOCK);
                block.push((key, value));
                blocks.push(block);
            }
        }
        true
    }

    /// The value of a key.
    pub fn get(&self, key: Key) -> Option<&T> {
        let shard = self.shards.get(shard_of(key))?;
        let at = shard.find(key, |number| entry(&self.blocks, number).is_some_and(|entry| entry.0 == key))?;
        entry(&self.blocks, *shard.places.get(at)?).map(|entry| &entry.1)
    }

    /// All values, in the order in which they came.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.blocks.iter().flatten().map(|entry| &entry.1)
    }

    /// How many keys there are.
    pub fn len(&self) -> u64 {
        // All but the last are full.
        let full = self.blocks.len().saturating_sub(1) * BLOCK;
        self.blocks.last().map_or(0, |last| (full + last.len()) as u64)
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The memory of all entries and places, in bytes.
    pub fn bytes(&self) -> usize {
        let places: usize = self.shards.iter().map(|shard| size_of_val(&*shard.places)).sum();
        places + self.blocks.iter().map(|block| size_of_val(block.as_slice())).sum::<usize>()
    }
}

fn shard_of(key: Key) -> usize {
    (u128::from_le_bytes(key) as usize) % SHARDS
}

/// The entry with a number, from 1 on.
fn entry<T>(blocks: &[Vec<(Key, T)>], number: u32) -> Option<&(Key, T)> {
    let at = (number as usize).checked_sub(1)?;
    blocks.get(at / BLOCK)?.get(at % BLOCK)
}

impl Shard {
    /// Grows if one more would be too many; `key_of` says the key of an entry.
    fn make_room(&mut self, key_of: impl Fn(u32) -> Option<Key>) {
        if (self.used + 1) * 100 <= self.places.len() * FULL {
            return;
        }
        let more = (self.places.len() / 8).max(4);
        let grown = vec![0; self.places.len() + more].into_boxed_slice();
        for number in std::mem::replace(&mut self.places, grown) {
            if let Some(key) = key_of(number)
                && let Some(place) = self.find(key, |_| false).and_then(|at| self.places.get_mut(at))
            {
                *place = number;
            }
        }
    }

    /// The place of the entry that `is_sought`, or the empty place for it; `None` in a shard without places.
    fn find(&self, key: Key, is_sought: impl Fn(u32) -> bool) -> Option<usize> {
        // The upper bits as a fraction of the table: no two places are favoured.
        let upper = u128::from_le_bytes(key) >> 64;
        let at = ((upper * self.places.len() as u128) >> 64) as usize;
        let (before, after) = self.places.split_at(at);
        let all = after.iter().chain(before).position(|number| *number == 0 || is_sought(*number))?;
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
        const ZERO: Key = [0; 16];
        assert!(table.insert(ZERO, 7) && !table.insert(ZERO, 8));
        assert_eq!((0..50_000).filter(|number| table.get(key(*number)) == Some(number)).count(), 50_000);
        assert_eq!((table.get(key(50_000)), table.get(ZERO), table.len()), (None, Some(&7), 50_001));
        assert!(table.values().copied().eq((0..50_000).chain([7])), "in the order in which they came");
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
