//! The f64 references of the activations on tensors, and checks of other results against them.
//!
//! [`check_forward`] and [`check_gradients`] compare tensors, from this crate or from any other implementation, with the
//! f64 reference of an op, element by element and without a GPU. They return a [`Report`] with the worst error, its place,
//! and whether it is within the bounds of this crate:
//!
//! | result | bound |
//! | --- | --- |
//! | f32 y, dx | E = [`ULPS`] ulp of max(\|result\|, largest addend of the formula) |
//! | f16, bf16 y, dx | within \[round(exact − E), round(exact + E)\], E = max(ulp/64, 2⁻¹⁸ (f16) or 2⁻¹⁵ (bf16) of max(\|result\|, largest addend)), ulp of the type; never a wrong sign where \|exact\| exceeds 2⁻²⁰ (f16) or 2⁻¹⁷ (bf16) of the largest addend |
//! | parameter gradients | [`PARAM_GRADIENT_BOUND`] of Σ\|terms\|; of f16 and bf16 tensors also 2⁻¹⁴ of the sum of the terms' addends |
//!
//! The bounds of the 16-bit types are those of their kernels: rounding to 16 bits hides errors far above those of f32
//! formulas, and a GPU that is to read memory at its full speed has no instructions to spare for them.
//!
//! A product such as dx = dy·f′(x) has two f32 factors. Where f′(x) is subnormal in f32, an ulp is at least the spacing of
//! subnormals times |dy|; where f′(x) overflows f32, the exact result counts as infinite. In a gated backward dy·v is one of
//! the factors of dx, and the bounds hold where it does not overflow f32.
//!
//! [`finite_differences`] checks the derivatives of the reference against its values.

use std::fmt;

use crate::activation::{Activation, Evaluation, Gated, MAX_PARAMS, Order, Term};
use crate::dtype::{Dtype, Element};
use crate::error::{Result, check_length};

/// The bound on y and dx in f32, in ulp of max(|result|, largest addend), when approximate instructions err by as much as
/// they are documented to.
pub const ULPS: f64 = 10.0;

/// The bound on y and dx in f32, in ulp of max(|result|, largest addend), when approximate instructions are exact.
pub const ULPS_EXACT: f64 = 5.0;

/// The bounds for a check of y, dx or dv.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Bounds {
    /// The error in f32 ulp of max(|result|, largest addend): [`ULPS`], or a bound for your own kernel. In f16 and bf16 it
    /// counts only where it exceeds the bound of the type.
    pub ulps: f64,
    /// The relative error, in units of 2⁻²³, that the kernel may make when it computes the formula's parameters from the
    /// stored ones. The addends are proportional to these parameters.
    pub parameter_ulps: f64,
}

impl Bounds {
    /// A bound of `ulps`, for a reference that is evaluated at exactly the parameters that the kernel used.
    pub const fn new(ulps: f64) -> Bounds {
        Bounds {
            ulps,
            parameter_ulps: 0.0,
        }
    }

    /// The bounds of this crate's kernels for `op`.
    pub fn of<A: Activation + ?Sized>(op: &A) -> Bounds {
        Bounds {
            ulps: ULPS,
            parameter_ulps: op.parameter_ulps(),
        }
    }
}

/// The bound on a parameter gradient, relative to Σ|dy·∂f/∂p|. Of f16 and bf16 tensors it is the bound of the summation alone:
/// each term may also err by 2⁻¹⁴ of its addends.
pub const PARAM_GRADIENT_BOUND: f64 = 1e-6;

/// The bound on a term of a parameter gradient of f16 and bf16 tensors, relative to the sum of the magnitudes of its addends.
const TERM_BOUND: f64 = 1.0 / 16384.0;

/// What an error of a result of type T may be, whatever the formula: relative to the larger of |result| and largest addend,
/// and in ulp of the result.
struct Visible {
    relative: f64,
    ulps: f64,
}

impl Visible {
    /// In f32 every error is visible.
    #[inline]
    const fn of(dtype: Dtype) -> Visible {
        let relative = match dtype {
            Dtype::F32 => {
                return Visible {
                    relative: 0.0,
                    ulps: 0.0,
                };
            }
            Dtype::F16 => 1.0 / 262_144.0,
            Dtype::Bf16 => 1.0 / 32768.0,
        };
        Visible {
            relative,
            ulps: 1.0 / 64.0,
        }
    }

    /// The results that are smaller than this part of their largest addend may have the wrong sign.
    #[inline]
    const fn signed(&self) -> f64 {
        self.relative / 4.0
    }
}

/// Returns y = f(x) in f64, for x of an element type or f64. `params` are in the order of
/// [`Signature::params`](crate::Signature::params), raw or effective as the options of the op say.
///
/// # Panics
/// As [`Activation::evaluate`].
pub fn forward<A: Activation + ?Sized, T: Copy + Into<f64>>(
    op: &A,
    params: &[f64],
    x: &[T],
) -> Vec<f64> {
    x.iter()
        .map(|&x| op.evaluate(params, x.into()).y.value)
        .collect()
}

/// Returns dx = dy·f′(x) and the parameter gradients in f64, for x and dy of an element type or f64. The parameter gradients
/// are in the order of `params` and with respect to the stored parameters.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) if dy is not as long as x.
///
/// # Panics
/// As [`Activation::evaluate`].
pub fn backward<A: Activation + ?Sized, T: Copy + Into<f64>>(
    op: &A,
    params: &[f64],
    x: &[T],
    dy: &[T],
) -> Result<(Vec<f64>, Vec<f64>)> {
    check_length("dy", x.len(), dy.len())?;
    let mut sums = ParameterSums::default();
    let dx = x
        .iter()
        .zip(dy)
        .map(|(&x, &dy)| {
            let (x, dy): (f64, f64) = (x.into(), dy.into());
            let point = op.evaluate(params, x);
            sums.add(x, dy, &point);
            dy * point.slope.value
        })
        .collect();
    let sums = sums.totals();
    let chain = op.chain(params);
    let dparams = (0..params.len()).map(|p| sums[p].sum * chain[p]).collect();
    Ok((dx, dparams))
}

/// Σ dy·∂f/∂p and Σ|dy·∂f/∂p| of one parameter.
#[derive(Clone, Copy, Default)]
struct ParameterSum {
    sum: f64,
    /// The sum of the rounding errors of the additions to `sum`.
    rest: f64,
    magnitude: f64,
    /// The same of the addends of the terms.
    addends: f64,
}

/// The sums of all parameters.
#[derive(Default)]
struct ParameterSums([ParameterSum; MAX_PARAMS]);

impl ParameterSums {
    /// Adds `upstream`·∂f/∂p of the element x.
    #[inline]
    fn add(&mut self, x: f64, upstream: f64, point: &Evaluation) {
        // With upstream = 0 and an x² that overflows f64, the product would be NaN.
        let nothing = upstream == 0.0 && x.is_finite();
        let terms = point.dparams.iter().zip(&point.dparam_addends);
        for (total, (term, addends)) in self.0.iter_mut().zip(terms) {
            let v = if nothing { 0.0 } else { upstream * term };
            total.addends += if nothing {
                0.0
            } else {
                (upstream * addends).abs()
            };
            let next = total.sum + v;
            let back = next - total.sum;
            total.rest += (total.sum - (next - back)) + (v - back);
            total.sum = next;
            total.magnitude += v.abs();
        }
    }

    /// The sums, with the rounding errors added.
    fn totals(mut self) -> [ParameterSum; MAX_PARAMS] {
        for total in &mut self.0 {
            if total.sum.is_finite() {
                total.sum += total.rest;
            }
        }
        self.0
    }
}

/// An element of a tensor and its error.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Worst {
    /// The index of the element.
    pub at: usize,
    /// The value of x at this index.
    pub x: f64,
    /// The result that was checked.
    pub got: f64,
    /// The exact result.
    pub exact: f64,
    /// The error in ulp. For f32 it is in ulp of max(|exact|, largest addend), as the bound is. For f16 and bf16 it is in ulp
    /// of the exact result, so that a correctly rounded result has at most ½, or in units of the bound where that is
    /// larger. It is infinite if only one of `got` and `exact` is NaN or infinite, or if a zero has the wrong sign.
    pub ulps: f64,
}

/// The comparison of a tensor with the reference.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorReport {
    /// `y`, `dx` or `dv`.
    pub name: &'static str,
    /// The number of elements.
    pub len: usize,
    /// The element with the largest error; `None` if the tensor has no elements.
    pub worst: Option<Worst>,
    /// The first elements that are out of bounds, at most 8.
    pub failures: Vec<Worst>,
    /// The number of elements that are out of bounds.
    pub failed: usize,
    /// The number of elements that equal the correctly rounded result.
    pub correctly_rounded: usize,
}

/// The comparison of a parameter gradient with the reference.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ParameterReport {
    /// The name of the gradient, such as `dalpha_p`.
    pub name: &'static str,
    /// The gradient that was checked.
    pub got: f64,
    /// The exact gradient.
    pub exact: f64,
    /// The relative error |got − exact| / Σ|terms|.
    pub error: f64,
    /// The bound on `error`: [`PARAM_GRADIENT_BOUND`], and what the terms may err by.
    pub bound: f64,
    /// Whether `error` is within `bound`.
    pub ok: bool,
}

/// The result of a check. `Display` prints it as text, a line for each tensor, failure and parameter.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The report of y (a forward), of dx (a backward), or of dx and dv (a gated backward).
    pub tensors: Vec<TensorReport>,
    /// The reports of the parameter gradients; empty for a forward.
    pub parameters: Vec<ParameterReport>,
}

impl Report {
    /// Returns whether all tensors and parameter gradients are within the bounds.
    pub fn ok(&self) -> bool {
        self.tensors.iter().all(|t| t.failed == 0) && self.parameters.iter().all(|p| p.ok)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for t in &self.tensors {
            write!(
                f,
                "{}: {} elements, {} correctly rounded",
                t.name, t.len, t.correctly_rounded
            )?;
            if let Some(w) = t.worst {
                write!(f, ", worst {:.2} ulp at x = {:e}", w.ulps, w.x)?;
            }
            writeln!(f, ", {} out of bounds", t.failed)?;
            for w in &t.failures {
                writeln!(
                    f,
                    "  [{}] x = {:e}: got {:e}, exact {:e}, {:.2} ulp",
                    w.at, w.x, w.got, w.exact, w.ulps
                )?;
            }
        }
        for p in &self.parameters {
            writeln!(
                f,
                "{}: got {:e}, exact {:e}, error {:.1e} of the sum of magnitudes: {}",
                p.name,
                p.got,
                p.exact,
                p.error,
                if p.ok { "ok" } else { "OUT OF BOUNDS" }
            )?;
        }
        write!(f, "{}", if self.ok() { "ok" } else { "FAILED" })
    }
}

/// Compares y = f(x), as computed by any implementation, with the f64 reference. x and y are `[n]` f32, f16 or bf16.
///
/// `bounds` are usually [`Bounds::of`] the op.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) if y is not as long as x.
pub fn check_forward<A: Activation + ?Sized, T: Element>(
    op: &A,
    params: &[f64],
    x: &[T],
    y: &[T],
    bounds: Bounds,
) -> Result<Report> {
    check_length("y", x.len(), y.len())?;
    let exact = |i: usize| Product::of(op.evaluate(params, x[i].to_f64()).y);
    Ok(Report {
        tensors: vec![check_tensor("y", x, y, bounds, exact)],
        parameters: Vec::new(),
    })
}

/// Compares dx and the parameter gradients, as computed by any implementation, with the f64 reference. x, dy and dx are `[n]`
/// f32, f16 or bf16.
///
/// `dparams` are in the order of [`Signature::params`](crate::Signature::params) and with respect to the stored parameters:
/// for raw parameters they include the factor softplus′.
///
/// ```
/// use xact::{Xielu, reference};
/// // Somebody's backward of f(x) at x = [1, -1] with dy = [1, 1], α_p = α_n = 0.8, β = 0.5:
/// let op = Xielu::default().parameters(xact::Parameters::Effective);
/// let dx = [2.1_f32, 0.5 + 0.8 * (-1f32).exp_m1()];
/// let dparams = [1.0, (-1f64).exp_m1() + 1.0];
/// let bounds = reference::Bounds::of(&op);
/// let report = reference::check_gradients(
///     &op, &[0.8, 0.8], &[1.0, -1.0], &[1.0, 1.0], &dx, &dparams, bounds,
/// )?;
/// assert!(report.ok(), "{report}");
/// # Ok::<(), xact::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) if dy or dx is not as long as x, or `dparams` not as long as `params`.
pub fn check_gradients<A: Activation + ?Sized, T: Element>(
    op: &A,
    params: &[f64],
    x: &[T],
    dy: &[T],
    dx: &[T],
    dparams: &[f64],
    bounds: Bounds,
) -> Result<Report> {
    check_length("dy", x.len(), dy.len())?;
    check_length("dx", x.len(), dx.len())?;
    check_length("dparams", params.len(), dparams.len())?;
    let mut sums = ParameterSums::default();
    let exact = |i: usize| {
        let (x, dy) = (x[i].to_f64(), dy[i].to_f64());
        let point = op.evaluate(params, x);
        sums.add(x, dy, &point);
        Product::new(point.slope, dy)
    };
    Ok(Report {
        tensors: vec![check_tensor("dx", x, dx, bounds, exact)],
        parameters: check_parameters::<A, T>(op, params, sums, dparams),
    })
}

/// Compares y of a gated form, as computed by any implementation, with the f64 reference. x, v and y are `[n]` f32, f16 or
/// bf16.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) if v or y is not as long as x.
pub fn check_gated_forward<A: Gated + ?Sized, T: Element>(
    op: &A,
    order: Order,
    params: &[f64],
    x: &[T],
    v: &[T],
    y: &[T],
    bounds: Bounds,
) -> Result<Report> {
    check_length("v", x.len(), v.len())?;
    check_length("y", x.len(), y.len())?;
    let exact = |i: usize| {
        let g = op.evaluate_order(order, params, x[i].to_f64()).y;
        Product::new(g, v[i].to_f64())
    };
    Ok(Report {
        tensors: vec![check_tensor("y", x, y, bounds, exact)],
        parameters: Vec::new(),
    })
}

/// The tensors of a gated backward for [`check_gated_gradients`], all `[n]` f32, f16 or bf16.
#[derive(Clone, Copy, Debug)]
pub struct GatedGradients<'a, T> {
    /// The gate.
    pub x: &'a [T],
    /// The value.
    pub v: &'a [T],
    /// The gradient with respect to y.
    pub dy: &'a [T],
    /// The gradient with respect to x, which is checked.
    pub dx: &'a [T],
    /// The gradient with respect to v, which is checked.
    pub dv: &'a [T],
}

/// Compares dx, dv and the parameter gradients of a gated form, as computed by any implementation, with the f64 reference.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) if a tensor is not as long as x, or `dparams` not as long as `params`.
pub fn check_gated_gradients<A: Gated + ?Sized, T: Element>(
    op: &A,
    order: Order,
    params: &[f64],
    tensors: &GatedGradients<'_, T>,
    dparams: &[f64],
    bounds: Bounds,
) -> Result<Report> {
    let &GatedGradients { x, v, dy, dx, dv } = tensors;
    for (what, tensor) in [("v", v), ("dy", dy), ("dx", dx), ("dv", dv)] {
        check_length(what, x.len(), tensor.len())?;
    }
    check_length("dparams", params.len(), dparams.len())?;
    let points: Vec<_> = x
        .iter()
        .map(|x| op.evaluate_order(order, params, x.to_f64()))
        .collect();
    let upstream = |i: usize| dy[i].to_f64() * v[i].to_f64();
    let exact_dx = |i: usize| Product::new(points[i].slope, upstream(i));
    let exact_dv = |i: usize| Product::new(points[i].y, dy[i].to_f64());
    let mut sums = ParameterSums::default();
    for (i, point) in points.iter().enumerate() {
        sums.add(x[i].to_f64(), upstream(i), point);
    }
    Ok(Report {
        tensors: vec![
            check_tensor("dx", x, dx, bounds, exact_dx),
            check_tensor("dv", x, dv, bounds, exact_dv),
        ],
        parameters: check_parameters::<A, T>(op, params, sums, dparams),
    })
}

fn check_parameters<A: Activation + ?Sized, T: Element>(
    op: &A,
    params: &[f64],
    sums: ParameterSums,
    dparams: &[f64],
) -> Vec<ParameterReport> {
    let sums = sums.totals();
    let chain = op.chain(params);
    (0..params.len())
        .map(|p| {
            let (exact, got) = (sums[p].sum * chain[p], dparams[p]);
            let magnitude = sums[p].magnitude * chain[p];
            let addends = sums[p].addends * chain[p];
            // If all terms are 0, such as those of a gate at x = 0, their addends need not be.
            let (scale, bound) = match T::DTYPE {
                Dtype::F32 => (magnitude, PARAM_GRADIENT_BOUND),
                Dtype::F16 | Dtype::Bf16 if magnitude == 0.0 => (addends, TERM_BOUND),
                Dtype::F16 | Dtype::Bf16 => {
                    let terms = TERM_BOUND * addends / magnitude;
                    (magnitude, PARAM_GRADIENT_BOUND + terms)
                }
            };
            let ok = |ok| if ok { 0.0 } else { f64::INFINITY };
            let error = if exact.is_nan() || got.is_nan() {
                ok(exact.is_nan() && got.is_nan())
            } else if exact.is_infinite() || got.is_infinite() {
                ok(got == f64::from(exact as f32))
            } else {
                // The rounding of a subnormal f32 does not count as an error of the sum.
                let beyond = ((got - exact).abs() - ulp::<f32>(0.0)).max(0.0);
                if beyond == 0.0 { 0.0 } else { beyond / scale }
            };
            ParameterReport {
                name: op.signature().gradients[p],
                got,
                exact,
                error,
                bound,
                ok: error <= bound,
            }
        })
        .collect()
}

/// The exact product of an f32 value and another f32, with what its error bound depends on.
#[derive(Clone, Copy)]
struct Product {
    value: f64,
    largest_addend: f64,
    /// The spacing of the smallest f32, times the factor: a value below the normal range is rounded to
    /// multiples of it before it is multiplied.
    spacing: f64,
}

impl Product {
    #[inline]
    fn of(term: Term) -> Product {
        Product {
            value: term.value,
            largest_addend: term.largest_addend,
            spacing: 0.0,
        }
    }

    /// `term` is computed in f32 and may overflow there, even if the product would fit.
    #[inline]
    fn new(term: Term, factor: f64) -> Product {
        let value = f64::from(term.value as f32);
        let term_value = if value.is_infinite() {
            value
        } else {
            term.value
        };
        Product {
            value: term_value * factor,
            largest_addend: (term.largest_addend * factor).abs(),
            spacing: ulp::<f32>(0.0) * factor.abs(),
        }
    }
}

fn check_tensor<T: Element>(
    name: &'static str,
    x: &[T],
    got: &[T],
    bounds: Bounds,
    mut exact: impl FnMut(usize) -> Product,
) -> TensorReport {
    /// Failures that a report lists.
    const LISTED: usize = 8;
    let mut report = TensorReport {
        name,
        len: x.len(),
        worst: None,
        failures: Vec::new(),
        failed: 0,
        correctly_rounded: 0,
    };
    for i in 0..x.len() {
        let term = exact(i);
        let value = got[i].to_f64();
        let (ok, error) = if term.value == 0.0 && value == 0.0 {
            // The sign of zero is part of the result at x = ±0 and ±inf. Elsewhere it depends on rounding.
            let same = term.value.is_sign_negative() == value.is_sign_negative();
            let x = x[i].to_f64();
            let ok = same || !(x == 0.0 || x.is_infinite());
            (ok, if ok { 0.0 } else { f64::INFINITY })
        } else {
            compare::<T>(value, term, bounds)
        };
        let worst = Worst {
            at: i,
            x: x[i].to_f64(),
            got: value,
            exact: term.value,
            ulps: error,
        };
        let rounded = T::from_f64(term.value).to_f64();
        if rounded == value || (rounded.is_nan() && value.is_nan()) {
            report.correctly_rounded += 1;
        }
        if !ok {
            report.failed += 1;
            if report.failures.len() < LISTED {
                report.failures.push(worst);
            }
        }
        if report.worst.is_none_or(|w| error > w.ulps) {
            report.worst = Some(worst);
        }
    }
    report
}

/// Whether `got` is within the bound around `exact`, and its error in ulp (see [`Worst::ulps`]).
#[inline]
fn compare<T: Element>(got: f64, exact: Product, bounds: Bounds) -> (bool, f64) {
    let Product {
        value,
        largest_addend,
        spacing,
    } = exact;
    let kind = |ok: bool| (ok, if ok { 0.0 } else { f64::INFINITY });
    if value.is_nan() || got.is_nan() {
        return kind(value.is_nan() && got.is_nan());
    }
    if value.is_infinite() {
        return kind(got == value);
    }
    // Where the addends of the formula overflow f32, the result may too.
    let largest = value.abs().max(largest_addend);
    let f32_unit = ulp::<f32>(largest).max(spacing);
    let visible = Visible::of(T::DTYPE);
    let bound = (bounds.ulps * f32_unit)
        .max(visible.ulps * ulp::<T>(value))
        .max(visible.relative * largest)
        + bounds.parameter_ulps * largest * power_of_2(f32::ULP_EXPONENT);
    let (low, high) = (
        T::from_f64(value - bound).to_f64(),
        T::from_f64(value + bound).to_f64(),
    );
    let opposite = got * value < 0.0 && value.abs() > visible.signed() * largest;
    let ok = low <= got && got <= high && (T::DTYPE == Dtype::F32 || !opposite);
    let unit = if T::DTYPE == Dtype::F32 {
        f32_unit
    } else {
        // Near a root of f the bound is larger than an ulp of the result.
        ulp::<T>(value).max(bound)
    };
    let error = if got.is_infinite() && ok {
        0.0
    } else {
        (got - value).abs() / unit
    };
    (ok, error)
}

/// Returns the distance between neighbouring values of type T around `value`. Values beyond the largest T have the distance
/// that they would have if the exponent had no upper limit; for a non-finite value the result is the smallest distance.
#[inline]
pub fn ulp<T: Element>(value: f64) -> f64 {
    let exponent = if value == 0.0 || !value.is_finite() {
        T::MIN_EXPONENT
    } else {
        // A subnormal f64 is far below every MIN_EXPONENT.
        let bits = ((value.abs().to_bits() >> 52) & 0x7ff) as i32;
        (bits - 1023).max(T::MIN_EXPONENT)
    };
    power_of_2(exponent + T::ULP_EXPONENT)
}

/// 2 to a power that gives a normal f64. (The function of std is slower: it multiplies.)
#[inline]
fn power_of_2(exponent: i32) -> f64 {
    debug_assert!((-1022..1024).contains(&exponent));
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The largest disagreement between the reference's derivatives and the differences of its values.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct FiniteDifferences {
    /// The disagreement of f′, relative to its largest addend.
    pub slope: f64,
    /// The disagreement of the parameter gradients, relative to max(1, |∂f/∂p|).
    pub dparams: f64,
}

/// Compares f′ and the parameter gradients of the reference with central differences of f, in f64, at every `x`. Correct
/// formulas agree to about 1e-7.
///
/// It skips x = 0, where f″ may jump, and points where all addends of f′ are below 1e-290. Do not pass points at which f′ jumps (the clamp of
/// [`Compat`](crate::Compat)) or values beyond about ±1e3.
///
/// # Panics
/// As [`Activation::evaluate`].
pub fn finite_differences<A: Activation + ?Sized>(
    op: &A,
    params: &[f64],
    x: &[f64],
) -> FiniteDifferences {
    /// Smaller values lose digits in f64, and their differences lose all.
    const TINY: f64 = 1e-290;
    // Richardson's extrapolation of two central differences: the error is of order h⁴.
    let derivative = |f: &dyn Fn(f64) -> f64, at: f64, h: f64| {
        let central = |h: f64| (f(at + h) - f(at - h)) / (2.0 * h);
        (4.0 * central(h / 2.0) - central(h)) / 3.0
    };
    let mut worst = FiniteDifferences {
        slope: 0.0,
        dparams: 0.0,
    };
    let chain = op.chain(params);
    for &x in x {
        if x == 0.0 {
            continue;
        }
        let here = op.evaluate(params, x);
        if here.slope.largest_addend < TINY {
            continue;
        }
        // The step stays on one side of 0.
        let h = (x.abs() / 2.0).min(1e-3);
        let numeric = derivative(&|x| op.evaluate(params, x).y.value, x, h);
        let error = (numeric - here.slope.value).abs() / here.slope.largest_addend;
        worst.slope = worst.slope.max(error);
        for p in 0..params.len() {
            let at = |value: f64| {
                let mut params = params.to_vec();
                params[p] = value;
                op.evaluate(&params, x).y.value
            };
            let exact = here.dparams[p] * chain[p];
            let h = 1e-3 * params[p].abs().max(1.0);
            let numeric = derivative(&at, params[p], h);
            worst.dparams = worst
                .dparams
                .max((numeric - exact).abs() / exact.abs().max(1.0));
        }
    }
    worst
}
