//! What `src/args.rs` becomes in Rust: the structs that kernels take, and those that both backends return.

// Without `cuda`, only the latter are used.
#![cfg_attr(not(feature = "cuda"), allow(dead_code))]

/// The blocks: structs laid out by the C rules.
macro_rules! kernel_args {
    ($($(#[doc = $struct_doc:literal])* $name:ident {
        $($(#[doc = $doc:literal])* $vis:vis $field:ident: $type:tt,)*
    })*) => {$(
        $(#[doc = $struct_doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct $name {
            $($(#[doc = $doc])* $vis $field: $type,)*
        }

        impl KernelArgs for $name {}
    )*};
}

/// The numbers.
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
