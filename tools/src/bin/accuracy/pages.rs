//! The files that are generated from the measurements.

use std::path::Path;

use cuda_emulator::Approx;
use xact::Dtype;
use xact::reference::{ULPS, ULPS_EXACT};
use xact_dev::choose::Gpu;
use xact_dev::inputs::{GRADIENTS, VALUES};
use xact_dev::table::table;

use crate::Row;

/// A file and its expected content.
pub struct Page {
    /// The path in the repository.
    pub path: String,
    pub text: String,
}

/// The marks around the generated part of README.md.
const MARKS: [&str; 2] = [
    "<!-- written by `cargo xtask accuracy`: -->\n",
    "<!-- end -->",
];

/// README.md in the folder `root`.
///
/// # Errors
/// The file cannot be read, or has no marks.
pub fn readme(root: &Path, gpu: &Gpu, rows: &[Row]) -> Result<Page, String> {
    let readme = std::fs::read_to_string(root.join("README.md"));
    let readme = readme.map_err(|e| format!("README.md: {e}"))?;
    let parts = readme.split_once(MARKS[0]).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(MARKS[1])?;
        Some((before, after))
    });
    let (before, after) = parts.ok_or_else(|| format!("README.md has no {}", MARKS[0].trim()))?;
    let text = [
        before,
        MARKS[0],
        "\n",
        &summary(gpu, rows),
        "\n",
        MARKS[1],
        after,
    ]
    .concat();
    Ok(Page {
        path: "README.md".to_owned(),
        text,
    })
}

/// All generated files, with paths in the folder `root`; `plots` are the names and SVG texts of the ops.
///
/// # Errors
/// The errors of [`readme`].
pub fn all(
    root: &Path,
    gpu: &Gpu,
    rows: &[Row],
    plots: Vec<(String, String)>,
) -> Result<Vec<Page>, String> {
    let names: Vec<_> = plots.iter().map(|(op, _)| op.as_str()).collect();
    let mut pages = vec![
        readme(root, gpu, rows)?,
        Page {
            path: "docs/accuracy.md".to_owned(),
            text: page(gpu, rows),
        },
        Page {
            path: "docs/accuracy/README.md".to_owned(),
            text: plots_page(&names),
        },
    ];
    pages.extend(plots.into_iter().map(|(op, text)| Page {
        path: format!("docs/accuracy/{op}.svg"),
        text,
    }));
    Ok(pages)
}

/// A summary of several measurements: the worst error with exact approximate instructions and in all modes, the input of
/// the latter, and the share of correctly rounded results.
struct Summary<'a> {
    cells: [String; 3],
    worst: &'a Row,
}

impl<'a> Summary<'a> {
    /// Summarises the measurements for which `of` is true.
    ///
    /// # Panics
    /// If there is none.
    fn of(rows: &'a [Row], of: impl Fn(&Row) -> bool) -> Summary<'a> {
        let rows: Vec<_> = rows.iter().filter(|row| of(row)).collect();
        let worst_of = |rows: &mut dyn Iterator<Item = &&'a Row>| {
            // Of equal errors, the first in the sweep.
            let worse = |a: &'a Row, b: &'a Row| if b.worst_ulp > a.worst_ulp { b } else { a };
            rows.copied().reduce(worse)
        };
        let worst = worst_of(&mut rows.iter()).expect("rows");
        let exact = worst_of(
            &mut rows
                .iter()
                .filter(|row| row.approx == Some(Approx::Nearest)),
        );
        let error = |row: &Row| format!("{:.3}", row.worst_ulp);
        let n: usize = rows.iter().map(|row| row.n).sum();
        let rounded: usize = rows.iter().map(|row| row.correctly_rounded).sum();
        // The share is rounded down, so 100 % means all.
        let share = (1e4 * rounded as f64 / n as f64).floor() / 100.0;
        let errors = exact.map_or_else(
            || error(worst),
            |exact| format!("{} ({})", error(exact), error(worst)),
        );
        Summary {
            cells: [errors, short(worst.worst_at), format!("{share:.2} %")],
            worst,
        }
    }
}

/// A number in as few characters as identify the place.
fn short(x: f64) -> String {
    if (1e-3..1e4).contains(&x.abs()) {
        format!("{x:.4}")
    } else {
        format!("{x:.3e}")
    }
}

/// The table of README.md: the plain form of every op and type.
pub fn summary(gpu: &Gpu, rows: &[Row]) -> String {
    let heads = [
        "op",
        "type",
        "y or loss: worst ulp",
        "at x",
        "correctly rounded",
        "dx or dlogits: worst ulp",
        "at x",
        "correctly rounded",
    ];
    let mut table = table(&heads, &heads[2..]);
    for op in distinct(rows.iter().map(|row| row.op)) {
        for dtype in Dtype::ALL {
            let cells = ["forward", "backward"].map(|direction| {
                let of = |row: &Row| (row.op, row.dtype, row.direction) == (op, dtype, direction);
                Summary::of(rows, of).cells
            });
            let names = [op.to_owned(), dtype.to_string()];
            table.add_row(names.into_iter().chain(cells.into_iter().flatten()));
        }
    }
    format!("{table}\n\nRan on {}.\n", gpu.name)
}

/// docs/accuracy.md.
/// The plots are on a separate page, because docs.rs shows docs/accuracy.md without its images.
fn plots_page(ops: &[&str]) -> String {
    let plots: String = ops
        .iter()
        .map(|op| format!("\n![{op}: error over x, beside other formulas]({op}.svg)\n"))
        .collect();
    format!(
        "# Accuracy beside other formulas\n\n\
        Written by `cargo xtask accuracy`; not to be edited. The worst error in each column of pixels, against the f64 \
        reference.\n\n\
        The other lines are what existing implementations compute, with every operation correctly rounded to the \
        type that is named, in their favour: of xIELU the CUDA kernels \
        [rubber-duck-debug/xielu](https://github.com/rubber-duck-debug/xielu) (bf16) and \
        [nathanrchn/kernels](https://github.com/nathanrchn/kernels) (f32), and `XIELUActivation` of Hugging Face \
        transformers (expm1; its clamp at −1e-6 is left out); of the others \
        [x-activation](https://github.com/AllenHaoHuang/x-activation) by the author of their paper.\n\
        {plots}"
    )
}

fn page(gpu: &Gpu, rows: &[Row]) -> String {
    let heads = [
        "op",
        "form",
        "result",
        "type",
        "worst ulp",
        "at x",
        "parameters",
        "correctly rounded",
    ];
    let mut results = table(&heads, &["worst ulp", "at x", "correctly rounded"]);
    let kind = |row: &Row| (row.op, form(row.direction), row.result, row.dtype);
    for (op, form_of, result, dtype) in distinct(rows.iter().map(kind)) {
        let of = |row: &Row| kind(row) == (op, form_of, result, dtype);
        let Summary { cells, worst } = Summary::of(rows, of);
        let [errors, at, share] = &cells;
        let params = worst.params;
        results.add_row([op, form_of, result, dtype.name(), errors, at, params, share]);
    }
    let heads = ["op", "parameters", "values", "options"];
    let mut parameters = table(&heads, &[]);
    let sample = |row: &Row| {
        let values: Vec<_> = row.values.iter().map(f32::to_string).collect();
        let options = format!("`{}`", row.options);
        [
            row.op.to_owned(),
            row.params.to_owned(),
            values.join(", "),
            options,
        ]
    };
    for row in distinct(rows.iter().map(sample)) {
        parameters.add_row(row);
    }
    let list = |values: &[f64]| {
        let values: Vec<_> = values.iter().map(f64::to_string).collect();
        values.join(", ")
    };
    format!(
        "# Accuracy\n\n\
        Written by `cargo xtask accuracy` on {device}; not to be edited. `cargo xtask accuracy --json` prints the \
        rows behind it. Plots of the error over x, beside other formulas, are in `docs/accuracy` of the repository.\n\n\
        ## Every op, form, result and type\n\n\
        Against the f64 reference at the parameters that the kernel uses: the worst error over all inputs and \
        parameters with exact approximate instructions, and in brackets in every mode (also at either end of their \
        documented error, and anywhere between); where the latter is; and the share of results, in all modes, that \
        are the correctly rounded ones.\n\n\
        An ulp of an f32 result is that of max(|result|, largest addend of the formula), of which the bound is \
        {ULPS_EXACT} ({ULPS} with approximate instructions at the ends of their error); of an f16 or bf16 result \
        that of the result (or its bound, where that is larger, as near a root), of which ½ is the least there is.\n\n\
        Inputs are all 65,536 values of f16 and bf16, and of f32 a sweep over all magnitudes with the neighbourhoods \
        of roots and switch-over points. The upstream gradient of the plain forms is random. `gated1` is y = G(x)·v, \
        `gated2` y = f(x)·v, with v of {values} and dy of {gradients} in turn.\n\n\
        Of cross-entropy, an ulp of a loss is that of the largest term of lse (the bound is 4, and 1e-6 of the loss \
        itself where p > ½), and x is the loss. An ulp of a gradient is that of its largest addend in f32, of which \
        (8 + |t|)/2 is the bound, and of itself in f16 and bf16 (or the f32 bound, where that is larger); x is how far \
        the logit lies below the largest of its row, and t the same in powers of two.\n\n\
        {results}\n\n\
        {SHORT}\n\n\
        ## Parameters\n\n\
        {parameters}\n",
        device = gpu.name,
        values = list(&VALUES),
        gradients = list(&GRADIENTS),
    )
}

/// Why 16-bit types have bounds of their own, and what these gave.
const SHORT: &str = "\
## 16-bit tensors\n\n\
Rounding to f16 or bf16 hides errors far above those of an f32 formula, and a GPU that reads memory at its full speed has \
no instructions to spare for digits that nobody sees. The kernels therefore compute tensors of these types with formulas of \
their own, in f32 arithmetic, whose results are between round(exact − E) and round(exact + E), with E = max(ulp/64, 2⁻¹⁸ \
(f16) or 2⁻¹⁵ (bf16) of max(|result|, largest addend)).\n\n\
Before, the f32 formulas computed them too. Their worst errors and shares of correctly rounded results (plain forms; those \
of today are in the table above), and the instructions per element on compute capability 9.0, then and at the change (in \
the variant of the op that takes fewest, without the sums of the parameter gradients):\n\n\
| op    | type | y: before       | dx: before      | forward       | backward        | gated2 backward |\n\
|-------|------|-----------------|-----------------|---------------|-----------------|-----------------|\n\
| xielu | f16  | 0.505, 99.86 % | 0.555, 99.94 % | 24.25 → 17.69 | 48.81 → 36.31 |                 |\n\
| xielu | bf16 | 0.500, 99.76 % | 0.500, 99.84 % | 23.75 → 16.88 | 47.88 → 34.56 |                 |\n\
| xatlu | f16  | 0.629, 99.98 % | 0.588, 99.20 % | 33.06 → 22.06 | 42.62 → 33.00 | 53.50 → 39.75   |\n\
| xatlu | bf16 | 0.500, 99.56 % | 0.730, 94.28 % | 32.44 → 18.81 | 40.75 → 30.12 | 52.81 → 36.88   |\n\
| xgelu | f16  | 0.724, 99.73 % | 0.723, 99.70 % | 35.12 → 17.19 | 49.56 → 30.75 | 61.00 → 38.75   |\n\
| xgelu | bf16 | 0.506, 99.66 % | 0.522, 99.77 % | 34.75 → 19.62 | 47.56 → 29.44 | 60.56 → 37.38   |\n\
| xsilu | f16  | 0.738, 99.72 % | 0.731, 99.71 % | 26.00 → 13.12 | 41.69 → 23.44 | 50.44 → 31.44   |\n\
| xsilu | bf16 | 0.503, 99.69 % | 0.500, 99.77 % | 25.62 → 13.75 | 39.62 → 23.62 | 49.62 → 31.25   |";

/// The distinct items, in the order of their first occurrence.
fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for item in items {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    seen
}

/// The form in the name of a direction.
pub fn form(direction: &'static str) -> &'static str {
    direction.split_once(' ').map_or("plain", |(form, _)| form)
}
