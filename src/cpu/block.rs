//! [`Block`]: up to [`BLOCK`] elements of a tensor, converted to f32.

use crate::dtype::Element;
use crate::shape::{Halves, Interleaving};

/// The number of elements of a block. The arrays of a backward then fit into the L1 cache.
pub const BLOCK: usize = 256;

/// The number of independent sums: a register of f32 in the widest instruction set.
pub const LANES: usize = 16;

// Two blocks hold whole blocks of columns of gate and value.
const _: () = assert!(BLOCK.is_multiple_of(Interleaving::MOST));

/// A block on the stack. It is aligned to a cache line, because a vector that straddles two lines costs twice as much.
///
/// Its order is that of [`Block::load`]: elements of 16 bits are read in pairs, as words, whose first elements fill the first
/// half of the block and whose second elements fill the second half. That takes one instruction for each vector, and keeping
/// the order of the tensor takes two to widen and four to narrow. All tensors of a call have the same order.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Block(pub [f32; BLOCK]);

/// The number of pairs in a block.
const PAIRS: usize = BLOCK / 2;

impl Block {
    pub const ZERO: Block = Block([0.0; BLOCK]);

    /// Converts the elements of `from`, at most a block, to f32. The rest of the block becomes 0.
    #[inline(always)]
    pub fn load<T: Element>(&mut self, from: &[T]) {
        match from.try_into() {
            Ok(whole) => self.load_whole(whole),
            Err(_) => self.load_whole(&padded(from, T::zeroed())),
        }
    }

    /// Converts a block to f32.
    #[inline(always)]
    pub fn load_whole<T: Element>(&mut self, from: &[T; BLOCK]) {
        if size_of::<T>() == 4 {
            for (to, from) in self.0.iter_mut().zip(from) {
                *to = from.widen();
            }
            return;
        }
        let words: [u32; PAIRS] = bytemuck::pod_read_unaligned(bytemuck::cast_slice(from));
        let (first, second) = self.0.split_at_mut(PAIRS);
        for ((first, second), word) in first.iter_mut().zip(second).zip(words) {
            let [a, b]: [T; 2] = bytemuck::cast(word);
            (*first, *second) = (a.widen(), b.widen());
        }
    }

    /// Fills `to`, at most a block, with elements rounded to T.
    #[inline(always)]
    pub fn store<T: Element>(&self, to: &mut [T]) {
        if let Ok(whole) = <&mut [T; BLOCK]>::try_from(&mut *to) {
            self.store_whole(whole);
        } else {
            let mut whole = [T::zeroed(); BLOCK];
            self.store_whole(&mut whole);
            to.copy_from_slice(&whole[..to.len()]);
        }
    }

    /// Fills `to` with the block, rounded to T.
    #[inline(always)]
    pub fn store_whole<T: Element>(&self, to: &mut [T; BLOCK]) {
        if size_of::<T>() == 4 {
            for (to, from) in to.iter_mut().zip(&self.0) {
                *to = T::narrow(*from);
            }
            return;
        }
        let mut words = [0; PAIRS];
        let (first, second) = self.0.split_at(PAIRS);
        for ((first, second), word) in first.iter().zip(second).zip(&mut words) {
            *word = bytemuck::cast([T::narrow(*first), T::narrow(*second)]);
        }
        to.copy_from_slice(bytemuck::cast_slice(&words));
    }

    /// Adds the block to the lanes. The 16 elements of a lane are first summed in f32 as a tree, in the block itself.
    #[inline(always)]
    pub fn add_to(&mut self, lanes: &mut [f64; LANES]) {
        #[inline(always)]
        fn fold<const N: usize>(v: &mut [f32; BLOCK]) {
            let (low, high) = v.split_at_mut(N);
            for i in 0..N {
                low[i] += high[i];
            }
        }
        let Block(v) = self;
        fold::<128>(v);
        fold::<64>(v);
        fold::<32>(v);
        fold::<16>(v);
        for (lane, v) in lanes.iter_mut().zip(&v[..LANES]) {
            *lane += f64::from(*v);
        }
    }
}

/// The elements, and then copies of `pad`.
#[inline(always)]
pub fn padded<T: Element>(elements: &[T], pad: T) -> [T; BLOCK] {
    let mut block = [pad; BLOCK];
    block[..elements.len()].copy_from_slice(elements);
    block
}

/// Divides elements in which gate and value alternate, at most two blocks, into those of the gate and those of the value, with
/// zeros after them.
#[inline(always)]
pub fn split<T: Element>(
    elements: &[T],
    Interleaving { block, order }: Interleaving,
) -> [[T; BLOCK]; 2] {
    let mut both = [[T::zeroed(); BLOCK]; 2];
    both.as_flattened_mut()[..elements.len()].copy_from_slice(elements);
    let [mut first, mut second] = [[T::zeroed(); BLOCK]; 2];
    if block == 1 {
        let pairs = both.as_flattened().as_chunks::<2>().0;
        for ((first, second), pair) in first.iter_mut().zip(&mut second).zip(pairs) {
            (*first, *second) = (pair[0], pair[1]);
        }
    } else {
        let sides = first
            .chunks_exact_mut(block)
            .zip(second.chunks_exact_mut(block));
        for ((first, second), pair) in sides.zip(both.as_flattened().chunks_exact(2 * block)) {
            first.copy_from_slice(&pair[..block]);
            second.copy_from_slice(&pair[block..]);
        }
    }
    match order {
        Halves::GateFirst => [first, second],
        Halves::ValueFirst => [second, first],
    }
}

/// The reverse of [`split`]: fills `elements`, at most two blocks.
#[inline(always)]
pub fn weave<T: Element>(
    x: &[T; BLOCK],
    v: &[T; BLOCK],
    Interleaving { block, order }: Interleaving,
    elements: &mut [T],
) {
    let (first, second) = match order {
        Halves::GateFirst => (x, v),
        Halves::ValueFirst => (v, x),
    };
    let mut both = [[T::zeroed(); BLOCK]; 2];
    if block == 1 {
        let pairs = both.as_flattened_mut().as_chunks_mut::<2>().0;
        for ((first, second), pair) in first.iter().zip(second).zip(pairs) {
            *pair = [*first, *second];
        }
    } else {
        let sides = first.chunks_exact(block).zip(second.chunks_exact(block));
        let pairs = both.as_flattened_mut().chunks_exact_mut(2 * block);
        for ((first, second), pair) in sides.zip(pairs) {
            pair[..block].copy_from_slice(first);
            pair[block..].copy_from_slice(second);
        }
    }
    elements.copy_from_slice(&both.as_flattened()[..elements.len()]);
}
