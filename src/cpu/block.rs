//! Blocks of elements as f32.

use crate::dtype::Element;

/// Elements of a block: the arrays of a backward stay in the first-level cache.
pub const BLOCK: usize = 256;

/// A block on the stack, at the start of a cache line: a vector that straddles two costs twice.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Block(pub [f32; BLOCK]);

impl Block {
    pub const ZERO: Block = Block([0.0; BLOCK]);

    /// Converts what `from` has, at most a block; the rest becomes 0.
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

    /// Converts as much as `to` has, at most a block.
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
}
