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
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Block(pub [f32; BLOCK]);

impl Block {
    pub const ZERO: Block = Block([0.0; BLOCK]);

    /// Converts the elements of `from`, at most a block, to f32. The rest of the block becomes 0.
    #[inline(always)]
    pub fn load<T: Element>(&mut self, from: &[T]) {
        if let Ok(from) = <&[T; BLOCK]>::try_from(from) {
            for (to, from) in self.0.iter_mut().zip(from) {
                *to = from.widen();
            }
        } else {
            self.0 = [0.0; BLOCK];
            for (to, from) in self.0.iter_mut().zip(from) {
                *to = from.widen();
            }
        }
    }

    /// Fills `to`, at most a block, with elements rounded to T.
    #[inline(always)]
    pub fn store<T: Element>(&self, to: &mut [T]) {
        if let Ok(to) = <&mut [T; BLOCK]>::try_from(&mut *to) {
            for (to, from) in to.iter_mut().zip(&self.0) {
                *to = T::narrow(*from);
            }
        } else {
            for (to, from) in to.iter_mut().zip(&self.0) {
                *to = T::narrow(*from);
            }
        }
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

/// Divides the elements of two blocks, in which gate and value alternate, into those of the gate and those of the value.
pub fn split(x: &mut Block, v: &mut Block, Interleaving { block, order }: Interleaving) {
    let both = [x.0, v.0];
    let (Block(first), Block(second)) = match order {
        Halves::GateFirst => (x, v),
        Halves::ValueFirst => (v, x),
    };
    if block == 1 {
        let pairs = both.as_flattened().as_chunks::<2>().0;
        for ((first, second), pair) in first.iter_mut().zip(second).zip(pairs) {
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
}

/// The reverse of [`split`].
pub fn weave(x: &mut Block, v: &mut Block, Interleaving { block, order }: Interleaving) {
    let (first, second) = match order {
        Halves::GateFirst => (x.0, v.0),
        Halves::ValueFirst => (v.0, x.0),
    };
    let mut both = [[0.0; BLOCK]; 2];
    if block == 1 {
        let pairs = both.as_flattened_mut().as_chunks_mut::<2>().0;
        for ((first, second), pair) in first.iter().zip(&second).zip(pairs) {
            *pair = [*first, *second];
        }
    } else {
        let sides = first.chunks_exact(block).zip(second.chunks_exact(block));
        for ((first, second), pair) in
            sides.zip(both.as_flattened_mut().chunks_exact_mut(2 * block))
        {
            pair[..block].copy_from_slice(first);
            pair[block..].copy_from_slice(second);
        }
    }
    [x.0, v.0] = both;
}
