//! The documented values of activations at ±0 and ±inf.

use xact::activation::Registered;
use xact::reference::{self, ULPS_EXACT};
use xact::{Dtype, Element};

/// The points.
pub const X: [f64; 4] = [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY];

/// Compares f at ±0, and f and f′ at ±inf, with the values that are documented, also where they are far below the other
/// addends of the formula, for which the accuracy bound would allow any of these. `y` and `dx` are the results at [`X`] with
/// an upstream gradient of 1, and `params` the parameters that were [measured](Registered::measured).
///
/// # Errors
/// A result with another sign, or that is more than an ulp (in f32 [`ULPS_EXACT`]) of itself away.
pub fn compare<A: Registered, T: Element>(
    op: &A,
    params: &[f64],
    y: &[T],
    dx: &[T],
) -> Result<(), String> {
    let ulps = match T::DTYPE {
        Dtype::F32 => ULPS_EXACT,
        _ => 1.0,
    };
    for (i, x) in X.into_iter().enumerate() {
        let exact = op.evaluate(params, x);
        for (what, got, exact) in [("f", y[i], exact.y), ("f′", dx[i], exact.slope)] {
            let (got, exact) = (got.to_f64(), T::from_f64(exact.value).to_f64());
            if what == "f′" && x == 0.0 {
                continue;
            }
            let near = got == exact || (got - exact).abs() <= ulps * reference::ulp::<T>(exact);
            let same_sign = got.is_sign_negative() == exact.is_sign_negative();
            if !(near && same_sign || got.is_nan() && exact.is_nan()) {
                return Err(format!(
                    "{op:?} {params:?}: {what}({x}) = {got:e}, exact {exact:e}"
                ));
            }
        }
    }
    Ok(())
}
