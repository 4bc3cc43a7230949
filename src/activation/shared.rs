//! Numbers that a kernel and the CPU backend share. Each stands once, in the file of its op.
//!
//! `build.rs` reads the [`shared!`] blocks in the files of this folder and writes the header constants.cuh for the kernels:
//! `FAR` in xsilu.rs becomes the constant `xsilu::kFar`, and a polynomial becomes a function of the same name.

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
        // Only kernels use some of them, and one may be close to a constant of std.
        #[allow(dead_code, clippy::approx_constant)]
        pub(crate) const $name: f32 = $value;
        shared! { $($rest)* }
    };
    ($(#[doc = $doc:literal])* polynomial $name:ident: $($c:literal),+; $($rest:tt)*) => {
        $(#[doc = $doc])*
        #[inline(always)]
        #[allow(dead_code)] // only kernels use some of them
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
