//! Rust structs from `src/args.rs`: the parameter blocks of the kernels, and the results that both backends return.

// Without `cuda`, only the results are used.
#![allow(dead_code)]

/// Makes a struct of each parameter block, laid out by the C rules.
macro_rules! kernel_args {
    ($($(#[$attribute:meta])* $name:ident {
        $($(#[doc = $doc:literal])* $vis:vis $field:ident: $type:tt,)*
    })*) => {$(
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct $name {
            $($(#[doc = $doc])* $vis $field: $type,)*
        }

        impl KernelArgs for $name {}
    )*};
}

/// Makes a constant of each number.
macro_rules! kernel_numbers {
    ($($(#[doc = $doc:literal])* $name:ident = $value:literal,)*) => {$(
        $(#[doc = $doc])*
        #[allow(dead_code)] // some are for the kernels alone
        pub(crate) const $name: u32 = $value;
    )*};
}

/// A parameter block declared in `src/args.rs`.
pub(crate) trait KernelArgs: Copy {}

include!("args.rs");

impl RowStats {
    /// The bytes of the stats of one row in a saved buffer.
    pub(crate) const BYTES: usize = size_of::<RowStats>();

    /// The bytes of a saved buffer, which are the same whether a device or the CPU computed the stats.
    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let floats = [self.max, self.rest, self.target, self.sum].map(f32::to_bits);
        let words = [floats[0], floats[1], floats[2], floats[3], self.argmax];
        let mut bytes = [0; Self::BYTES];
        for (bytes, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *bytes = word.to_ne_bytes();
        }
        bytes
    }

    /// The stats from the bytes of a saved buffer.
    pub(crate) fn from_bytes(bytes: &[u8; Self::BYTES]) -> RowStats {
        let word = |i: usize| bytes.as_chunks::<4>().0[i];
        let float = |i| f32::from_ne_bytes(word(i));
        RowStats {
            max: float(0),
            rest: float(1),
            target: float(2),
            sum: float(3),
            argmax: u32::from_ne_bytes(word(4)),
        }
    }
}
