//! xATLU: the expanded arctangent gate. Its gated form is the xATGLU of the paper.

use std::f64::consts::{FRAC_1_PI, FRAC_2_PI};

use super::expanded::{Gate, Tail};
use super::shared::shared;

/// The activation xATLU, f(x) = x·G(x) with the gate g(x) = ½ + arctan(x)/π. The module [`expanded`](super::expanded) has
/// the formulas, the parameter α and the special values. At α = 0, f(−inf) is the limit −1/π.
#[doc(alias = "xATGLU")]
#[doc(alias = "ATLU")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Xatlu;

/// (arctan(z) − z/(1 + z²))/π for z ≤ ¼, by the difference of both series: 2/3·z³ − 4/5·z⁵ + 6/7·z⁷ − …
fn curve_of_inverse(z: f64) -> f64 {
    let terms = (1..16)
        .rev()
        .map(|n| f64::from(2 * n) / f64::from(2 * n + 1));
    let sum = terms.fold(0.0, |sum, c| c - z * z * sum);
    z * z * z * sum * FRAC_1_PI
}

impl Gate for Xatlu {
    /// At 1 the formula changes from arctan(u) to arctan(1/u), at 0.5 and 1.1 that of f′. From 2⁶⁰ on, u² is scaled.
    const SWITCH_OVERS: &'static [f64] = &[0.5, 1.0, 1.1, 1_152_921_504_606_846_976.0];

    fn tail(u: f64) -> Tail {
        // This is arctan(1/u) without a division by 0.
        let t = 1f64.atan2(u) * FRAC_1_PI;
        let density = FRAC_1_PI / (1.0 + u * u);
        Tail {
            t,
            ut: if u.is_infinite() { FRAC_1_PI } else { u * t },
            density,
            curve: if u < 4.0 {
                t - u * density
            } else {
                curve_of_inverse(1.0 / u)
            },
            h: u.atan() * FRAC_2_PI,
        }
    }
}

shared! {
    /// arctan(z)/z on [0, 1], minimax in z²: relative error 2⁻²⁸·⁶ before rounding.
    polynomial arctan: -0.001_753_937_1, 0.010_726_987, -0.030_804_707, 0.057_552_245, -0.083_773_26, 0.109_420_35, -0.142_619_34, 0.199_982_66, -0.333_332_84, 1.0;
    /// From here to SERIES, t − u·g′(u) is computed as slope_middle(u − MIDDLE).
    constant DIFFERENCE: 0.5;
    /// The middle of this range.
    constant MIDDLE: 0.8;
    /// t − u·g′(u) there, minimax in u − MIDDLE: relative error 2⁻²⁵·¹ with the rounding of the coefficients.
    polynomial slope_middle: 0.011_120_161, 0.023_004_169, -0.065_284_79, 0.062_723_96, 0.008_543_954, -0.129_077_55, 0.230_924_68, -0.236_696_81, 0.129_950_17;
    /// For larger u, t − u·g′(u) is computed as z³·slope_tail(z²) with z = 1/u.
    constant SERIES: 1.1;
    /// (arctan(z) − z/(1 + z²))/(π·z³) for z² < 0.83, minimax in z²: relative error 2⁻²⁵·⁷ with the rounding of the
    /// coefficients.
    polynomial slope_tail: -0.011_529_832, 0.059_347_276, -0.143_460_63, 0.224_828_23, -0.271_091_3, 0.284_772_07, -0.282_388_06, 0.272_802_3, -0.254_647_05, 0.212_206_59;

    // Of 16-bit tensors. Fitted to the error that their results may have, 2⁻¹⁵ (bf16) or 2⁻¹⁸ (f16) of t; one degree less
    // is not enough.
    /// arctan(z)/z on [0, 1], minimax in z²: 2⁻¹⁷·⁸.
    polynomial arctan_bf16: -0.013_480_47, 0.057_477_314, -0.121_239_07, 0.195_635_93, -0.332_994_6, 0.999_995_65;
    /// arctan(z)/z on [0, 1], minimax in z²: 2⁻²⁰·⁵.
    polynomial arctan_f16: 0.007_863_375, -0.037_012_998, 0.083_871_186, -0.134_871_91, 0.198_814_82, -0.333_265_16, 0.999_999_34;
    /// 2·arctan(y)/y on [0, 1], minimax in y² with π/2 at 1, where h is 0: 2⁻¹⁷·⁷.
    polynomial twice_arctan_bf16: -0.026_242_191, 0.113_328_025, -0.241_206_75, 0.390_873_1, -0.665_946_4, 1.999_990_6;
    /// The same for f16: 2⁻²⁰·⁵.
    polynomial twice_arctan_f16: 0.015_361_267, -0.073_017_18, 0.166_707_46, -0.269_259_78, 0.397_528_7, -0.666_522_74, 1.999_998_6;
    /// N of π·t = N(u)/D(u) for u ≥ 0: 2⁻¹⁶·⁴.
    polynomial tail_numerator: 1.392_386_9, 2.605_155_5, 2.682_688_2, 1.570_778_6;
    /// D.
    polynomial tail_denominator: 1.392_402_6, 2.603_742, 3.166_082, 2.343_402_4, 1.0;
    /// Q of θ − sin θ·cos θ = y³·Q(y²) with θ = 2·arctan(y), on [0, 1], minimax with π/2 at 1: 2⁻¹⁵·⁸ of θ, 2⁻¹⁰·⁸ of itself.
    polynomial curve_bf16: 1.071_324_3, -5.078_793_5, 10.746_807, -13.895_097, 12.913_736, -9.517_557, 5.330_376_6;
    /// The same for f16: 2⁻²⁰·⁵ and 2⁻¹⁵.
    polynomial curve_f16: 0.645_740_9, -3.731_129, 9.794_994, -15.844_633, 18.356_9, -17.003_246, 13.612_246, -9.593_253, 5.333_178;
}
