//! The tree over a part's entries: a leaf is a block of them.
//!
//! To hash each entry by itself, and an inner node for each, takes three blocks of SHA-256 an entry, a tenth of all
//! work for an event if the processor has no instructions for it. A leaf of 64 entries takes a third of a block.

use super::merkle::{Hash, Tree};

/// Bytes of an entry: a key and a class.
pub const ENTRY_BYTES: usize = 17;
/// Entries in a leaf; the last leaf may have fewer.
pub const LEAF_ENTRIES: u64 = 64;

/// The number of leaves for this many entries.
pub fn leaves_of(entries: u64) -> u64 {
    entries.div_ceil(LEAF_ENTRIES)
}

/// A tree that grows by one entry at a time.
#[derive(Debug, Clone, Default)]
pub struct EntryTree {
    tree: Tree,
    leaf: Vec<u8>,
    entries: u64,
}

impl EntryTree {
    /// Adds an entry.
    pub fn push(&mut self, entry: &[u8; ENTRY_BYTES]) {
        self.leaf.extend_from_slice(entry);
        self.entries += 1;
        if self.entries.is_multiple_of(LEAF_ENTRIES) {
            self.tree.push(&self.leaf);
            self.leaf.clear();
        }
    }

    /// How many entries it has.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The root over the entries so far.
    pub fn root(&self) -> Hash {
        if self.leaf.is_empty() {
            return self.tree.root();
        }
        let mut tree = self.tree.clone();
        tree.push(&self.leaf);
        tree.root()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_that_of_a_tree_over_blocks_of_entries() {
        for count in [0_u64, 1, 63, 64, 65, 128, 129, 1000] {
            let entries: Vec<[u8; ENTRY_BYTES]> =
                (0..count).map(|n| std::array::from_fn(|at| (n as usize + at) as u8)).collect();
            let (mut grown, mut whole) = (EntryTree::default(), Tree::default());
            entries.iter().for_each(|entry| grown.push(entry));
            entries.chunks(64).for_each(|leaf| whole.push(leaf.as_flattened()));
            assert_eq!(grown.root(), whole.root(), "{count}");
            assert_eq!((grown.entries(), leaves_of(count)), (count, whole.leaves()));
        }
    }
}
