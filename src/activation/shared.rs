//! Numbers that a kernel and the CPU backend share: they stand once, with the op.
//!
//! `build.rs` reads the blocks of [`shared!`] in the files of this folder, and writes the same for the kernels into the
//! header constants.cuh: of `FAR` in xsilu.rs the constant `xsilu::kFar`, of a polynomial a function of its name.

/// Constants and polynomials in f32.
///
/// ```text
/// shared! {
///     /// What it is.
///     constant FAR: 120.0;
///     /// What it approximates. Coefficients from the highest power down, by Horner's rule in fused steps.
///     polynomial near: -3.2e-6, 0.5;
/// }
/// ```
macro_rules! shared {
    () => {};
    ($(#[doc = $doc:literal])* constant $name:ident: $value:literal; $($rest:tt)*) => {
        $(#[doc = $doc])*
        // Some are for the kernels alone; one may be a part of a constant that has a name.
        #[allow(dead_code, clippy::approx_constant)]
        pub(crate) const $name: f32 = $value;
        shared! { $($rest)* }
    };
    ($(#[doc = $doc:literal])* polynomial $name:ident: $($c:literal),+; $($rest:tt)*) => {
        $(#[doc = $doc])*
        #[inline(always)]
        #[allow(dead_code)] // some are for the kernels alone
        pub(crate) fn $name(x: f32) -> f32 {
            $crate::activation::shared::polynomial!(x; $($c),+)
        }
        shared! { $($rest)* }
    };
}
pub(crate) use shared;

/// c₀ + c₁·x + … by Horner's rule, coefficients from the highest down.
macro_rules! polynomial {
    ($x:expr; $first:expr $(, $rest:expr)* $(,)?) => {{
        let x: f32 = $x;
        let sum: f32 = $first;
        $(let sum = sum.mul_add(x, $rest);)*
        sum
    }};
}
pub(crate) use polynomial;
