//! [`Block`]: up to [`BLOCK`] elements of a tensor, converted to f32.

use crate::dtype::Element;

/// The number of elements of a block. The arrays of a backward then fit into the L1 cache.
pub const BLOCK: usize = 256;

/// The number of independent sums: a register of f32 in the widest instruction set.
pub const LANES: usize = 16;

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
