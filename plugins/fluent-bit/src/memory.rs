//! The plugin's allocator: the host's `malloc`, extended to the alignment that Rust requires.
//!
//! `malloc` and its relatives are not this library's own: the loader takes them from the executable if that has some.
//! Fluent Bit's packages bring jemalloc with a quantum of 8 bytes (`--with-lg-quantum=3`), so memory is aligned to 8
//! bytes where C promises 16 on x86-64 and aarch64. Rust's own allocator relies on the 16, and the first access by an
//! instruction that needs them (a hash table is looked through in steps of 16 bytes) ends the agent.
//!
//! So this allocator relies only on [`GIVEN`], and uses only the host's [`CMemory`]: the four functions that every
//! replacement of `malloc` must have. With one that leaves out `posix_memalign`, the program would get glibc's, whose
//! memory the replaced `free` does not know. [`misaligned`] checks at load whether even this holds; C code in this
//! library (SQLite, zstd) needs no more.
//!
//! No memory crosses the border between this allocator and another: the host does not free a lent buffer, memory from
//! the host is copied or returned to a function of the host, and C code frees only memory that C code allocated.

use std::alloc::{GlobalAlloc, Layout};
use std::fmt;

/// The alignment that any `malloc` gives to blocks of at least this size: pointers and doubles need it.
const GIVEN: usize = 8;
/// The size of the mark before memory of a larger alignment: the address of its block.
const MARK: usize = size_of::<*mut u8>();

/// C's functions. Sizes are in bytes and never 0; null: out of memory.
///
/// # Safety
/// A block is usable and exclusive until it is passed to `realloc` or `free`.
#[expect(clippy::missing_safety_doc, reason = "those of C, as the trait says")]
pub unsafe trait CMemory {
    unsafe fn malloc(&self, size: usize) -> *mut u8;
    /// Zeroed.
    unsafe fn calloc(&self, size: usize) -> *mut u8;
    unsafe fn realloc(&self, block: *mut u8, size: usize) -> *mut u8;
    unsafe fn free(&self, block: *mut u8);
}

/// Those of the process, from any library.
#[derive(Debug)]
pub struct OfProcess;

// SAFETY: C's own functions.
unsafe impl CMemory for OfProcess {
    unsafe fn malloc(&self, size: usize) -> *mut u8 {
        // SAFETY: takes a number.
        unsafe { libc::malloc(size) }.cast()
    }

    unsafe fn calloc(&self, size: usize) -> *mut u8 {
        // SAFETY: takes two numbers.
        unsafe { libc::calloc(1, size) }.cast()
    }

    unsafe fn realloc(&self, block: *mut u8, size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees a block of the same functions.
        unsafe { libc::realloc(block.cast(), size) }.cast()
    }

    unsafe fn free(&self, block: *mut u8) {
        // SAFETY: as above.
        unsafe { libc::free(block.cast()) }
    }
}

/// Memory of any alignment out of blocks that have [`GIVEN`]. A larger alignment is found inside a larger block.
#[derive(Debug)]
pub struct Aligning<M>(pub M);

/// The size of a block. A layout smaller than its alignment gets a block as large as that: a `malloc` may align a small
/// block to its size only. No layout is so large that the sum would not fit.
const fn block_size(size: usize, align: usize) -> usize {
    if align > GIVEN {
        size + align + MARK
    } else if size > align {
        size
    } else {
        align
    }
}

/// The memory inside a block of `block_size(_, align)` bytes; null stays null.
///
/// # Safety
/// `block` is null or has that size and is the caller's alone.
unsafe fn inside(block: *mut u8, align: usize) -> *mut u8 {
    if block.is_null() || align <= GIVEN {
        return block;
    }
    // SAFETY: the mark, less than `align` bytes to skip, and the memory: that is the block's size.
    unsafe {
        let after_mark = block.add(MARK);
        let skipped = after_mark.addr().wrapping_neg() & (align - 1);
        let memory = after_mark.add(skipped);
        memory.sub(MARK).cast::<*mut u8>().write_unaligned(block);
        memory
    }
}

/// The block that [`inside`] was given.
///
/// # Safety
/// `memory` came from there, for this `align`, and was not null.
unsafe fn block_of(memory: *mut u8, align: usize) -> *mut u8 {
    if align <= GIVEN {
        return memory;
    }
    // SAFETY: the mark is there.
    unsafe { memory.sub(MARK).cast::<*mut u8>().read_unaligned() }
}

// SAFETY: memory has the layout's size and alignment, and is unique as long as the block is; nothing here panics.
unsafe impl<M: CMemory> GlobalAlloc for Aligning<M> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as requested.
        unsafe { inside(self.0.malloc(block_size(layout.size(), layout.align())), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as requested; the mark is before the memory.
        unsafe { inside(self.0.calloc(block_size(layout.size(), layout.align())), layout.align()) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller guarantees memory of this allocator and this layout.
        unsafe { self.0.free(block_of(memory, layout.align())) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let align = layout.align();
        if align <= GIVEN {
            // SAFETY: the block is the memory.
            return unsafe { self.0.realloc(memory, block_size(new_size, align)) };
        }
        // Moved by hand: in a moved block the memory may be at another offset. SAFETY: as requested; two blocks, each
        // at least as large as the copy; the old one is not used again.
        unsafe {
            let moved = inside(self.0.malloc(block_size(new_size, align)), align);
            if !moved.is_null() {
                std::ptr::copy_nonoverlapping(memory, moved, layout.size().min(new_size));
                self.dealloc(memory, layout);
            }
            moved
        }
    }
}

/// Memory that is not aligned as requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Misaligned {
    /// Bytes requested.
    pub size: usize,
    /// Their alignment.
    pub align: usize,
    /// Their address.
    pub address: usize,
}

impl fmt::Display for Misaligned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, align, address } = self;
        write!(f, "{size} bytes for an alignment of {align} were given at address {address:#x}")
    }
}

/// Checks that each function returns memory of many sizes and alignments as requested. Allocates no other memory.
pub fn misaligned<M: CMemory>(memory: &Aligning<M>) -> Option<Misaligned> {
    const ALIGNMENTS: [usize; 7] = [4, 8, 16, 32, 64, 128, 4096];
    /// Blocks at a time, since a single one may be aligned by chance.
    const BLOCKS: usize = 4;
    // All small ones, and around each power of two up to 64 KiB, where allocators change their behaviour.
    let large = (8..=16).flat_map(|power| [(1usize << power) - 8, 1 << power, (1 << power) + 8]);
    let sizes = (1..=160).chain(large);
    sizes.flat_map(|size| ALIGNMENTS.map(|align| (size, align))).find_map(|(size, align)| {
        let layout = Layout::from_size_align(size, align).ok()?;
        let grown = size * 2 + 8;
        // SAFETY: no size is 0, each block is used with its layout and given back once.
        let blocks = [(); BLOCKS].map(|()| unsafe {
            let (plain, zeroed) = (memory.alloc(layout), memory.alloc_zeroed(layout));
            let addresses = [plain.addr(), zeroed.addr()];
            let moved = if plain.is_null() { plain } else { memory.realloc(plain, layout, grown) };
            // A block that could not be moved still exists.
            let (left, left_size) = if moved.is_null() { (plain, size) } else { (moved, grown) };
            ([(left, left_size), (zeroed, size)], addresses, moved.addr())
        });
        let asked = blocks.iter().flat_map(|(_, addresses, moved)| {
            addresses.iter().map(|address| (size, *address)).chain([(grown, *moved)])
        });
        // Null is aligned.
        let wrong = asked.filter(|(_, address)| address % align != 0).map(|(size, address)| Misaligned {
            size,
            align,
            address,
        });
        let wrong = { wrong }.next();
        for (block, size) in blocks.into_iter().flat_map(|(blocks, ..)| blocks) {
            if let (false, Ok(layout)) = (block.is_null(), Layout::from_size_align(size, align)) {
                // SAFETY: as above.
                unsafe { memory.dealloc(block, layout) };
            }
        }
        wrong
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    /// A `malloc` whose alignment never exceeds its promise, and that tracks its blocks.
    struct Odd {
        align: usize,
        blocks: Mutex<HashMap<usize, usize>>,
    }

    /// Larger than any alignment of these tests.
    const WHOLE: usize = 8192;

    impl Odd {
        fn of(align: usize) -> Aligning<Self> {
            Aligning(Self { align, blocks: Mutex::default() })
        }

        fn layout(size: usize) -> Layout {
            Layout::from_size_align(size + WHOLE, WHOLE).unwrap()
        }
    }

    unsafe impl CMemory for Odd {
        unsafe fn malloc(&self, size: usize) -> *mut u8 {
            assert_ne!(size, 0);
            // Filled, so that no byte is zero by chance.
            let block = unsafe { std::alloc::alloc(Self::layout(size)).add(self.align) };
            unsafe { block.write_bytes(0xa5, size) };
            self.blocks.lock().unwrap().insert(block.addr(), size);
            block
        }

        unsafe fn calloc(&self, size: usize) -> *mut u8 {
            let block = unsafe { self.malloc(size) };
            unsafe { block.write_bytes(0, size) };
            block
        }

        unsafe fn realloc(&self, block: *mut u8, size: usize) -> *mut u8 {
            let before = self.blocks.lock().unwrap()[&block.addr()];
            let moved = unsafe { self.malloc(size) };
            unsafe { std::ptr::copy_nonoverlapping(block, moved, before.min(size)) };
            unsafe { self.free(block) };
            moved
        }

        unsafe fn free(&self, block: *mut u8) {
            let size = self.blocks.lock().unwrap().remove(&block.addr());
            let size = size.expect("freed is what was given, and once");
            unsafe { std::alloc::dealloc(block.sub(self.align), Self::layout(size)) };
        }
    }

    /// No memory at all.
    struct Empty;

    unsafe impl CMemory for Empty {
        unsafe fn malloc(&self, _: usize) -> *mut u8 {
            std::ptr::null_mut()
        }

        unsafe fn calloc(&self, _: usize) -> *mut u8 {
            std::ptr::null_mut()
        }

        unsafe fn realloc(&self, _: *mut u8, _: usize) -> *mut u8 {
            std::ptr::null_mut()
        }

        unsafe fn free(&self, _: *mut u8) {
            unreachable!("there is nothing");
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take { size: usize, power: u32, zeroed: bool },
        Resize { which: usize, size: usize },
        Give { which: usize },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let size = || prop_oneof![1..=40usize, 1..=5_000usize];
        let step = prop_oneof![
            3 => (size(), 0..=12u32, any::<bool>()).prop_map(|(size, power, zeroed)| Step::Take { size, power, zeroed }),
            3 => (any::<usize>(), size()).prop_map(|(which, size)| Step::Resize { which, size }),
            2 => any::<usize>().prop_map(|which| Step::Give { which }),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        #[test]
        fn memory_of_a_malloc_of_eight_bytes_is_aligned_keeps_its_content_and_is_given_back_once(steps in steps()) {
            let memory = Odd::of(8);
            let mut held: Vec<(*mut u8, Layout, u8)> = Vec::new();
            for (n, step) in steps.into_iter().enumerate() {
                let fill = n as u8;
                let content = |at: *mut u8, size: usize| unsafe { std::slice::from_raw_parts(at, size).to_vec() };
                match step {
                    Step::Take { size, power, zeroed } => {
                        let layout = Layout::from_size_align(size, 1 << power).unwrap();
                        let at = unsafe { if zeroed { memory.alloc_zeroed(layout) } else { memory.alloc(layout) } };
                        prop_assert_eq!(at.addr() % layout.align(), 0);
                        if zeroed {
                            prop_assert_eq!(content(at, size), vec![0; size]);
                        }
                        unsafe { at.write_bytes(fill, size) };
                        held.push((at, layout, fill));
                    }
                    Step::Resize { which, size } if !held.is_empty() => {
                        let which = which % held.len();
                        let (at, layout, fill) = held[which];
                        let at = unsafe { memory.realloc(at, layout, size) };
                        prop_assert_eq!(at.addr() % layout.align(), 0);
                        let kept = layout.size().min(size);
                        prop_assert_eq!(content(at, kept), vec![fill; kept]);
                        unsafe { at.write_bytes(fill, size) };
                        held[which] = (at, Layout::from_size_align(size, layout.align()).unwrap(), fill);
                    }
                    Step::Give { which } if !held.is_empty() => {
                        let (at, layout, fill) = held.swap_remove(which % held.len());
                        prop_assert_eq!(content(at, layout.size()), vec![fill; layout.size()]);
                        unsafe { memory.dealloc(at, layout) };
                    }
                    _ => {}
                }
            }
            for (at, layout, fill) in held {
                prop_assert_eq!(unsafe { std::slice::from_raw_parts(at, layout.size()) }, vec![fill; layout.size()]);
                unsafe { memory.dealloc(at, layout) };
            }
            prop_assert!(memory.0.blocks.lock().unwrap().is_empty());
        }
    }

    #[test]
    fn the_check_passes_with_every_malloc_of_eight_bytes_or_more_and_leaves_nothing() {
        for align in [8, 16, 24, 64, 4096] {
            let memory = Odd::of(align);
            assert_eq!(misaligned(&memory), None, "{align}");
            assert!(memory.0.blocks.lock().unwrap().is_empty());
        }
        assert_eq!(misaligned(&Aligning(OfProcess)), None);
    }

    #[test]
    fn the_check_tells_of_a_malloc_of_less_and_leaves_nothing() {
        for align in [1, 2, 4] {
            let memory = Odd::of(align);
            let found = misaligned(&memory).expect("it is not aligned");
            assert!(found.align <= 8 && found.address % found.align == align, "{found}");
            assert!(memory.0.blocks.lock().unwrap().is_empty());
        }
    }

    /// The behaviour of Rust's own allocator with such a `malloc`, which is the reason for this one.
    #[test]
    fn a_malloc_of_eight_bytes_is_not_aligned_to_sixteen() {
        let memory = Odd::of(8);
        let block = unsafe { memory.0.malloc(64) };
        assert_eq!(block.addr() % 16, 8);
        unsafe { memory.0.free(block) };
    }

    #[test]
    fn without_memory_there_is_none_and_nothing_is_touched() {
        let memory = Aligning(Empty);
        for align in [1, 8, 16, 4096] {
            let layout = Layout::from_size_align(24, align).unwrap();
            assert!(unsafe { memory.alloc(layout) }.is_null());
            assert!(unsafe { memory.alloc_zeroed(layout) }.is_null());
            let mut own = [7u8; 24];
            assert!(unsafe { memory.realloc(own.as_mut_ptr(), layout, 48) }.is_null());
            assert_eq!(own, [7; 24]);
        }
        assert_eq!(misaligned(&memory), None);
    }

    #[test]
    fn the_largest_layout_asks_for_more_than_there_is_and_not_for_less() {
        for align in [1, 8, 16, 1 << 40, 1 << 62] {
            let size = (isize::MAX as usize) & !(align - 1);
            assert!(block_size(size, align) >= size);
        }
    }
}
