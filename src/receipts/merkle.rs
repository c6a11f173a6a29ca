//! The Merkle tree of RFC 6962, section 2.1: the root over leaves that are added one after another.
//!
//! A leaf is hashed after a zero byte and an inner node after a one, so that neither can be mistaken for the other.

use ring::digest::{Context, SHA256, digest};

/// SHA-256.
pub type Hash = [u8; 32];

/// SHA-256 of these bytes.
pub fn sha256(bytes: &[u8]) -> Hash {
    array(digest(&SHA256, bytes).as_ref())
}

fn array(bytes: &[u8]) -> Hash {
    let mut hash = [0; 32];
    // SHA-256 has 32 bytes.
    hash.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    hash
}

fn leaf_hash(leaf: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(&[0]);
    context.update(leaf);
    array(context.finish().as_ref())
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(&[1]);
    context.update(left);
    context.update(right);
    array(context.finish().as_ref())
}

/// A tree that grows by one leaf at a time and keeps one hash for each bit of the number of its leaves.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    leaves: u64,
    /// The roots of the complete trees into which the leaves so far divide, the largest first.
    whole: Vec<Hash>,
}

impl Tree {
    /// Adds a leaf.
    pub fn push(&mut self, leaf: &[u8]) {
        let mut hash = leaf_hash(leaf);
        // Each trailing set bit is a complete tree of that size, which the new one joins.
        for _ in 0..self.leaves.trailing_ones() {
            if let Some(left) = self.whole.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.whole.push(hash);
        self.leaves += 1;
    }

    /// How many leaves it has.
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// The root over the leaves so far.
    pub fn root(&self) -> Hash {
        let mut smaller = self.whole.iter().rev();
        match smaller.next() {
            None => sha256(b""),
            Some(last) => smaller.fold(*last, |right, left| node_hash(left, &right)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The leaves of the tests in the reference implementation of RFC 6962.
    const LEAVES: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];

    /// Its roots, of no leaf up to eight.
    const ROOTS: [&str; 9] = [
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    fn hex(hash: Hash) -> String {
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_roots_are_those_of_rfc_6962() {
        let mut tree = Tree::default();
        assert_eq!(hex(tree.root()), ROOTS[0]);
        for (leaf, root) in LEAVES.iter().zip(&ROOTS[1..]) {
            tree.push(leaf);
            assert_eq!(hex(tree.root()), *root, "{} leaves", tree.leaves());
        }
    }

    /// The recursive definition of the RFC.
    fn by_definition(leaves: &[Vec<u8>]) -> Hash {
        match leaves {
            [] => sha256(b""),
            [leaf] => leaf_hash(leaf),
            _ => {
                let left = leaves.len().next_power_of_two() / 2;
                node_hash(&by_definition(&leaves[..left]), &by_definition(&leaves[left..]))
            }
        }
    }

    #[test]
    fn trees_of_any_size_have_the_root_of_the_definition() {
        let leaves: Vec<Vec<u8>> = (0..300_u16).map(|n| n.to_be_bytes().to_vec()).collect();
        let mut tree = Tree::default();
        for size in 0..leaves.len() {
            assert_eq!(tree.root(), by_definition(&leaves[..size]), "{size} leaves");
            tree.push(&leaves[size]);
        }
    }
}
