//! The f64 references, and checks of anyone's results against them.
//!
//! [`check_forward`] and [`check_gradients`] compare tensors (from this crate's kernels, or from any
//! other implementation) with the f64 reference of an op, element by element and without a GPU, and
//! return a [`Report`] that says how far off the worst element is, where, and whether that is within
//! the bounds this crate holds itself to:
//!
//! | result | bound |
//! | --- | --- |
//! | f32 y, dx | E = [`ULPS`] ulp of max(\|result\|, largest addend of the formula) |
//! | f16, bf16 y, dx | within \[round(exact − E), round(exact + E)\], E as for f32: as good as rounding the f32 result once |
//! | parameter gradients | [`PARAM_GRADIENT_BOUND`] of Σ\|terms\| |
//!
//! A result that is a product, such as dx = dy·f′(x), is of two f32 factors: where f′(x) is below the
//! normal range, an ulp is at least the spacing there times |dy|, and where it is above, the result is
//! infinite.
//!
//! [`finite_differences`] checks the reference itself: its derivatives against its values.

use std::fmt;

use crate::activation::{Activation, Gated, MAX_PARAMS, Order, Term};
use crate::dtype::Element;
use crate::error::{Result, check_length};

/// The bound on y and dx in f32, in ulp, for hardware whose approximate instructions may err to
/// either end of their documented bounds.
pub const ULPS: f64 = 10.0;

/// The same with exact approximate instructions.
pub const ULPS_EXACT: f64 = 5.0;

/// The bounds of a check of y or dx.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Bounds {
    /// Error in ulp of max(|result|, largest addend): [`ULPS`], or what you hold your own kernel to.
    pub ulps: f64,
    /// Relative error, in units of 2⁻²³, with which the kernel may have turned the stored parameters
    /// into those of the formula. The addends are proportional to these.
    pub parameter_ulps: f64,
}

impl Bounds {
    /// Bounds on y and dx at parameters that are exactly those that the kernel used.
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

/// The bound on a parameter gradient, relative to Σ|dy·∂f/∂p|.
pub const PARAM_GRADIENT_BOUND: f64 = 1e-6;

/// y = f(x) in f64, for x of an element's type or f64. `params` are in the order of
/// [`Signature::params`](crate::Signature::params) and in the form that the op's options name.
pub fn forward<A: Activation + ?Sized, T: Copy + Into<f64>>(
    op: &A,
    params: &[f64],
    x: &[T],
) -> Vec<f64> {
    x.iter()
        .map(|&x| op.evaluate(params, x.into()).y.value)
        .collect()
}

/// dx and the parameter gradients in f64, for tensors of an element's type or f64.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) if dy is not as long as x.
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
            sums.add(x, dy, &point.dparams);
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
    /// What the additions to `sum` rounded away.
    rest: f64,
    magnitude: f64,
}

/// The sums of all parameters.
#[derive(Default)]
struct ParameterSums([ParameterSum; MAX_PARAMS]);

impl ParameterSums {
    /// Adds an element at x: the upstream gradient, and what it multiplies.
    #[inline]
    fn add(&mut self, x: f64, upstream: f64, terms: &[f64; MAX_PARAMS]) {
        // In f64 too, x² may be infinite.
        let nothing = upstream == 0.0 && x.is_finite();
        for (total, term) in self.0.iter_mut().zip(terms) {
            let v = if nothing { 0.0 } else { upstream * term };
            let next = total.sum + v;
            let back = next - total.sum;
            total.rest += (total.sum - (next - back)) + (v - back);
            total.sum = next;
            total.magnitude += v.abs();
        }
    }

    /// The sums with what their additions rounded away.
    fn totals(mut self) -> [ParameterSum; MAX_PARAMS] {
        for total in &mut self.0 {
            if total.sum.is_finite() {
                total.sum += total.rest;
            }
        }
        self.0
    }
}

/// The worst element of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Worst {
    /// Its index.
    pub at: usize,
    /// x there.
    pub x: f64,
    /// The result given.
    pub got: f64,
    /// The exact result.
    pub exact: f64,
    /// The error in ulp: for f32 of max(|exact|, largest addend), which is what the bound is on; for
    /// f16 and bf16 of the exact result, where a correctly rounded one has at most ½ (or of the f32
    /// bound, should that be larger). Infinite if the kind is wrong: a NaN or infinity on one side only,
    /// or the wrong sign of zero.
    pub ulps: f64,
}

/// How a tensor compares.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TensorReport {
    /// `y`, `dx` or `dv`.
    pub name: &'static str,
    /// Elements.
    pub len: usize,
    /// The element with the largest error; `None` if there is none.
    pub worst: Option<Worst>,
    /// The first few elements that are out of bounds.
    pub failures: Vec<Worst>,
    /// How many are out of bounds.
    pub failed: usize,
    /// How many are the correctly rounded result.
    pub correctly_rounded: usize,
}

/// How the gradient of a parameter compares.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ParameterReport {
    /// Its name, such as `dalpha_p`.
    pub name: &'static str,
    /// The gradient given.
    pub got: f64,
    /// The exact one.
    pub exact: f64,
    /// |got − exact| / Σ|terms|.
    pub error: f64,
    /// Whether that is within [`PARAM_GRADIENT_BOUND`].
    pub ok: bool,
}

/// The result of a check. `Display` prints it for people.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// y; or dx, and dv for a gated form.
    pub tensors: Vec<TensorReport>,
    /// The parameter gradients; empty for a forward.
    pub parameters: Vec<ParameterReport>,
}

impl Report {
    /// Whether everything is within the bounds.
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

/// Compares anyone's y with the reference.
///
/// `bounds` are [`Bounds::of`] the op unless you know better.
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

/// Compares anyone's dx and parameter gradients with the reference.
///
/// `dparams` are in the order of [`Signature::params`](crate::Signature::params), the gradients of the parameters in
/// the form that the op's options name: for raw parameters they include softplus′.
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
/// [`Error::Length`](crate::Error::Length) if dy or dx is not as long as x, or dparams not one value per parameter.
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
        sums.add(x, dy, &point.dparams);
        Product::new(point.slope, dy)
    };
    Ok(Report {
        tensors: vec![check_tensor("dx", x, dx, bounds, exact)],
        parameters: check_parameters(op, params, sums, dparams),
    })
}

/// Compares anyone's y of a gated form with the reference.
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

/// The tensors of a backward of a gated form, for [`check_gated_gradients`].
#[derive(Clone, Copy, Debug)]
pub struct GatedGradients<'a, T> {
    /// Gate.
    pub x: &'a [T],
    /// Value.
    pub v: &'a [T],
    /// Gradient with respect to y.
    pub dy: &'a [T],
    /// Gradient with respect to x, to be checked.
    pub dx: &'a [T],
    /// Gradient with respect to v, to be checked.
    pub dv: &'a [T],
}

/// Compares anyone's dx, dv and parameter gradients of a gated form with the reference.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) if a tensor is not as long as x, or dparams not one value per parameter.
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
        sums.add(x[i].to_f64(), upstream(i), &point.dparams);
    }
    Ok(Report {
        tensors: vec![
            check_tensor("dx", x, dx, bounds, exact_dx),
            check_tensor("dv", x, dv, bounds, exact_dv),
        ],
        parameters: check_parameters(op, params, sums, dparams),
    })
}

fn check_parameters<A: Activation + ?Sized>(
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
            let ok = |ok| if ok { 0.0 } else { f64::INFINITY };
            let error = if exact.is_nan() || got.is_nan() {
                ok(exact.is_nan() && got.is_nan())
            } else if exact.is_infinite() || got.is_infinite() {
                ok(got == f64::from(exact as f32))
            } else {
                // What rounding to the smallest subnormal f32 costs is not the sum's.
                let beyond = ((got - exact).abs() - ulp::<f32>(0.0)).max(0.0);
                if beyond == 0.0 {
                    0.0
                } else {
                    beyond / magnitude
                }
            };
            ParameterReport {
                name: op.signature().gradients[p],
                got,
                exact,
                error,
                ok: error <= PARAM_GRADIENT_BOUND,
            }
        })
        .collect()
}

/// The exact result of an f32 value, and what may be off in it, times another f32.
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

    /// `term` is formed in f32 and may overflow there, even if the product would fit.
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
            // The sign of zero is part of the result at x = ±0 and in the limits; elsewhere it is a matter of rounding.
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

/// Whether `got` is within the bound around `exact`, and its error in ulp as [`Worst::ulps`] has it.
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
    // Where the formula's addends themselves leave the range of f32, so may its result.
    let largest = value.abs().max(largest_addend);
    let f32_unit = ulp::<f32>(largest).max(spacing);
    let bound =
        bounds.ulps * f32_unit + bounds.parameter_ulps * largest * power_of_2(f32::ULP_EXPONENT);
    let (low, high) = (
        T::from_f64(value - bound).to_f64(),
        T::from_f64(value + bound).to_f64(),
    );
    let ok = low <= got && got <= high;
    let unit = if T::DTYPE == crate::Dtype::F32 {
        f32_unit
    } else {
        // Near a root of f the f32 bound is larger than an ulp of the result.
        ulp::<T>(value).max(bound)
    };
    let error = if got.is_infinite() && ok {
        0.0
    } else {
        (got - value).abs() / unit
    };
    (ok, error)
}

/// Distance of neighbouring values of type T around `value`, which is taken as if the exponent had no
/// upper end.
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

/// 2 to a power that makes a normal f64: the function of std multiplies.
#[inline]
fn power_of_2(exponent: i32) -> f64 {
    debug_assert!((-1022..1024).contains(&exponent));
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The largest disagreement between the reference's derivatives and the differences of its values.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct FiniteDifferences {
    /// Of f′, relative to its largest addend.
    pub slope: f64,
    /// Of the parameter gradients, relative to max(1, |∂f/∂p|).
    pub dparams: f64,
}

/// Compares f′ and the parameter gradients of the reference with central differences of f, in f64, at
/// every `x` but 0, around which f″ may jump, and where f′ is not too small for f64. A right pair of formulas agrees to about 1e-7. Points at
/// which f′ jumps (the clamp of [`Compat`](crate::Compat)) do not belong into `x`, nor do values
/// beyond about ±1e3.
pub fn finite_differences<A: Activation + ?Sized>(
    op: &A,
    params: &[f64],
    x: &[f64],
) -> FiniteDifferences {
    /// Below, values of f64 lose digits, and their differences all.
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
