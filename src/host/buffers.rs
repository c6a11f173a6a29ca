//! Reusable buffers for batches: a newly allocated buffer costs a page fault for every 4 KiB written, which is a fifth
//! of the work of a fetch at full speed.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;

/// Buffers kept while others are in use.
const KEPT_MAX: usize = 8;

/// A pool of buffers. It frees them once all are returned, so that an idle pool takes no memory. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Buffers(Arc<Mutex<BufferPool>>);

#[derive(Debug, Default)]
struct BufferPool {
    buffers: Vec<Vec<u8>>,
    lent: usize,
}

/// A borrowed buffer; dropping it returns it.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// Its pool, and the size of buffers there; a buffer without a pool is simply dropped.
    home: Option<(Buffers, usize)>,
}

impl Buffers {
    /// An empty buffer with room for `room` bytes.
    pub(super) fn lend(&self, room: usize) -> Buffer {
        let mut kept = self.0.lock();
        kept.lent += 1;
        let bytes = kept.buffers.pop().filter(|bytes| bytes.capacity() >= room);
        drop(kept);
        Buffer { bytes: bytes.unwrap_or_else(|| Vec::with_capacity(room)), home: Some((self.clone(), room)) }
    }

    /// How many are kept for reuse.
    #[cfg(test)]
    fn kept(&self) -> usize {
        self.0.lock().buffers.len()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some((home, room)) = self.home.take() else { return };
        let mut kept = home.0.lock();
        kept.lent -= 1;
        if kept.lent == 0 {
            kept.buffers = Vec::new();
        } else if kept.buffers.len() < KEPT_MAX && self.bytes.capacity() < room * 2 {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            kept.buffers.push(bytes);
        }
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_lent_again_empty() {
        let buffers = Buffers::default();
        let (mut first, _other) = (buffers.lend(100), buffers.lend(100));
        first.extend_from_slice(b"one");
        let place = first.as_ptr();
        drop(first);
        let again = buffers.lend(100);
        assert_eq!((again.as_ptr(), again.len(), buffers.kept()), (place, 0, 0));
    }

    #[test]
    fn few_are_kept_and_none_when_all_are_back() {
        let buffers = Buffers::default();
        let lent: Vec<Buffer> = (0..100).map(|_| buffers.lend(100)).collect();
        let last = buffers.lend(100);
        drop(lent);
        assert_eq!(buffers.kept(), KEPT_MAX);
        drop(last);
        assert_eq!(buffers.kept(), 0);
    }

    #[test]
    fn a_buffer_that_had_to_grow_is_not_kept() {
        let buffers = Buffers::default();
        let (mut large, _other) = (buffers.lend(100), buffers.lend(100));
        large.extend_from_slice(&[0; 1000]);
        drop(large);
        assert_eq!(buffers.kept(), 0);
    }
}
