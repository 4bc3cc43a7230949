//! Verifies every op, direction and type on the best available device: the results against the f64 reference, and the
//! reference against finite differences. `cargo xtask verify` installs what is missing and runs this program.

mod cross_entropy;

use std::process::ExitCode;
use std::str::FromStr;

use clap::Parser;
use cuda_emulator::Approx;
use half::{bf16, f16};
use xact::activation::{self, Registered, Sample};
use xact::loss::goldfish::{TokenId, Tokens};
use xact::reference::{self, Report, ULPS, ULPS_EXACT};
use xact::{Element, Goldfish, Strategy, cpu, loss};
use xact_dev::cases::{self, Case, CaseVisitor};
use xact_dev::choose::{Choice, Gpu, open};
use xact_dev::inputs::{self, Random};
use xact_dev::loss_cases::few_options;
use xact_dev::machine::{Machine, cpu_name};
use xact_dev::progress::{self, print};
use xact_dev::table::table;
use xact_dev::{check, goldfish, run, strategy};

/// Verify every op, direction and type against the f64 reference
///
/// The inputs are all 65,536 values of the 16-bit types, and a sweep of f32. On the emulator, every row is run with the
/// results of approximate instructions exact, and at the lower and at the upper end of their documented error. The CPU
/// backend has only one mode. Goldfish masks must equal the reference for every label. If a row fails, the exit status is
/// 1.
#[derive(Parser)]
#[command(name = "verify")]
struct Arguments {
    /// The device: auto (a real device if there is one), gpu, emulated, or cpu (the CPU backend, no device)
    #[arg(long, env = "XACT_DEVICE", default_value = "auto")]
    device: Verified,
    /// Only this op
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new([activation::NAMES, loss::NAMES].concat()))]
    op: Option<String>,
    /// Only this element type
    #[arg(long, value_parser = ["f32", "f16", "bf16", "i32", "i64"])]
    dtype: Option<String>,
    /// Print one JSON object per line instead of the table
    #[arg(long)]
    json: bool,
}

/// The backend to verify: a device, or with `None` the CPU backend.
#[derive(Clone, Copy)]
struct Verified(Option<Choice>);

impl FromStr for Verified {
    type Err = String;

    fn from_str(s: &str) -> Result<Verified, String> {
        match s {
            "cpu" => Ok(Verified(None)),
            other => other
                .parse()
                .map(|choice| Verified(Some(choice)))
                .map_err(|_| format!("{other} is not auto, gpu, emulated or cpu")),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let gpu = match arguments.device.0.map(open).transpose() {
        Ok(gpu) => gpu,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::from(2);
        }
    };
    let device = gpu.as_ref().map_or_else(cpu_name, |gpu| gpu.name.clone());
    let mut jobs = Jobs {
        arguments: &arguments,
        gpu,
        list: Vec::new(),
    };
    cases::for_each(&mut jobs);
    jobs.cross_entropy::<f32>();
    jobs.cross_entropy::<f16>();
    jobs.cross_entropy::<bf16>();
    jobs.goldfish::<i32>("i32");
    jobs.goldfish::<i64>("i64");
    if jobs.list.is_empty() {
        eprintln!("error: there is nothing of this op and type on {device}");
        return ExitCode::from(2);
    }
    let bar = progress::bar(jobs.list.len());
    let (mut rows, mut reader_gone) = (Vec::new(), false);
    for job in jobs.list {
        bar.set_message(job.name);
        let row = (job.run)();
        if arguments.json {
            reader_gone = !print(&format!("{}\n", row.json(&device)));
        }
        rows.push(row);
        bar.inc(1);
        if reader_gone {
            break;
        }
    }
    bar.finish_and_clear();
    if !arguments.json {
        print(&in_words(&device, &rows));
    }
    if rows.iter().all(|row| row.ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A row of the table that is not yet computed.
struct Job {
    name: String,
    run: Box<dyn FnOnce() -> Row>,
}

/// Collects the rows that the arguments select.
struct Jobs<'a> {
    arguments: &'a Arguments,
    /// `None` is the CPU backend.
    gpu: Option<Gpu>,
    list: Vec<Job>,
}

impl Jobs<'_> {
    /// Adds a row, unless the arguments exclude it.
    fn add(
        &mut self,
        [op, dtype, direction, params]: [&'static str; 4],
        run: impl FnOnce(Row) -> Row + 'static,
    ) {
        let is = |choice: &Option<String>, name| choice.as_ref().is_none_or(|c| c == name);
        if !is(&self.arguments.op, op) || !is(&self.arguments.dtype, dtype) {
            return;
        }
        let row = Row {
            op,
            dtype,
            direction,
            params,
            n: 0,
            worst: None,
            share: None,
            dparams_error: None,
            differences: None,
            bytes: None,
            floor_bytes: None,
            ok: true,
        };
        self.list.push(Job {
            name: format!("{op} {direction} {dtype} {params}"),
            run: Box::new(|| run(row)),
        });
    }

    fn cross_entropy<T: Element>(&mut self) {
        for direction in cross_entropy::DIRECTIONS {
            for (name, op) in few_options() {
                let names = ["cross_entropy", T::DTYPE.name(), direction, name];
                let gpu = self.gpu.clone();
                self.add(names, move |row| {
                    cross_entropy::verify::<T>(gpu.as_ref(), &op, row)
                });
            }
        }
    }

    /// Adds the masks of every strategy for ids of type `I`.
    fn goldfish<I: TokenId + TryFrom<i64>>(&mut self, dtype: &'static str) {
        for strategy in strategy::all(4, 13, 3, 0) {
            let name = strategy.name();
            let gpu = self.gpu.clone();
            self.add(["goldfish", dtype, "mask", name], move |row| {
                verify_mask::<I>(gpu.as_ref(), strategy, row)
            });
        }
    }
}

impl CaseVisitor for Jobs<'_> {
    fn case<A: Registered, T: Element>(&mut self, case: Case<A, T>) {
        let names = [A::NAME, T::DTYPE.name(), case.direction, case.sample.name];
        match self.gpu.clone() {
            Some(gpu) => self.add(names, move |row| verify(&gpu, &case, row)),
            None => self.add(names, move |row| verify_on_cpu(&case, row)),
        }
    }
}

/// The results for one op, type, direction and sample; `None` for figures that do not apply.
struct Row {
    op: &'static str,
    dtype: &'static str,
    direction: &'static str,
    params: &'static str,
    n: usize,
    /// The worst error in ulp, and its input.
    worst: Option<(f64, f64)>,
    /// The worst error as a share of its bound, if that is not in ulp.
    share: Option<f64>,
    /// The worst error of a parameter gradient, relative to the sum of magnitudes.
    dparams_error: Option<f64>,
    /// The difference between the reference and finite differences.
    differences: Option<f64>,
    /// The bytes that are read and written, as the emulator counts them; a real device does not.
    bytes: Option<u64>,
    floor_bytes: Option<u64>,
    ok: bool,
}

/// The number of inputs of an f32 row, from two sweeps.
const F32_POINTS: u32 = 1 << 15;
/// The bound on the difference between the reference's derivatives and finite differences.
const DIFFERENCES: f64 = 1e-6;

fn verify<A: Registered, T: Element>(gpu: &Gpu, case: &Case<A, T>, mut row: Row) -> Row {
    let (direction, s) = (case.direction, &case.sample);
    let modes = check::modes(gpu, &[Approx::Nearest, Approx::Lowest, Approx::Highest]);
    let x = inputs::accuracy::<A, T>(s, F32_POINTS);
    let summable = inputs::summable(&x);
    let backward = direction.ends_with("backward");
    // Every input once, and every output once.
    let tensors = match direction {
        "forward" => 2,
        "backward" | "gated1 forward" | "gated2 forward" => 3,
        _ => 5,
    };
    let mut floor_bytes = tensors * x.len() as u64 * T::DTYPE.size();
    if backward {
        // The first stage writes the partial sums, two f32 each, and the second stage reads them.
        let partials = xact::raw::partials(T::DTYPE, x.len() as u64).expect("a small tensor");
        floor_bytes += 2 * 8 * partials * s.params.len() as u64;
    }
    let differences = differences(s);
    row.n = x.len();
    row.floor_bytes = Some(floor_bytes);
    row.differences = Some(differences);
    for (settings, ulps) in modes {
        let (report, launches) = cuda_emulator::with_settings(settings, || {
            let check = || {
                let mut report = case.check(gpu.into(), &x, ulps);
                if backward {
                    // Sums over all inputs are infinite, and would test nothing.
                    report.parameters = case.check(gpu.into(), &summable, ulps).parameters;
                }
                report
            };
            if gpu.emulated {
                cuda_emulator::record(check)
            } else {
                (check(), Vec::new())
            }
        });
        row.add(&report);
        // The first launch is the call itself. Later launches compute the parameters for the kernel, or sums.
        let of_call = &launches[..launches.len().min(if backward { 2 } else { 1 })];
        if !of_call.is_empty() {
            let tensors = of_call.iter().flat_map(run::tensors);
            row.bytes = Some(tensors.map(|b| b.bytes_read + b.bytes_written).sum());
        }
    }
    row.ok &= differences <= DIFFERENCES;
    row.ok &= row.bytes.is_none_or(|bytes| bytes == floor_bytes);
    row
}

fn verify_on_cpu<A: Registered, T: Element>(case: &Case<A, T>, mut row: Row) -> Row {
    let s = &case.sample;
    let x = inputs::accuracy::<A, T>(s, F32_POINTS);
    // The CPU backend has no approximate instructions.
    let check = |x: &[T]| case.check(Machine::Cpu, x, ULPS_EXACT);
    let mut report = check(&x);
    if case.direction.ends_with("backward") {
        // As above.
        report.parameters = check(&inputs::summable(&x)).parameters;
    }
    let differences = differences(s);
    row.n = x.len();
    row.differences = Some(differences);
    row.add(&report);
    row.ok &= differences <= DIFFERENCES;
    row
}

/// Compares the mask of random ids in rows, with exempt ids, with the reference.
fn verify_mask<I: TokenId + TryFrom<i64>>(
    gpu: Option<&Gpu>,
    strategy: Strategy,
    mut row: Row,
) -> Row {
    let mut random = Random(1);
    let ids: Vec<I> = (0..1 << 16)
        .filter_map(|_| I::try_from((random.bits() >> 33) as i64 % 131_072).ok())
        .collect();
    let tokens = Tokens::rows(&ids, 4096).exempt(&[1, 2, 3]);
    row.n = ids.len();
    let goldfish = Goldfish::new(strategy).expect("a strategy");
    let expected = goldfish.keep(&tokens).expect("whole rows");
    let keep = match gpu {
        Some(gpu) => goldfish::keep(gpu, &goldfish, &tokens, goldfish::How::default()),
        None => {
            let mut keep = vec![0; ids.len()];
            let call = cpu::goldfish::mask(&goldfish, tokens).keep(&mut keep);
            call.run()
                .map(|_| keep.into_iter().map(|keep| keep == 1).collect())
        }
    };
    row.ok = keep == Ok(expected);
    row
}

/// Compares the reference with finite differences of itself.
fn differences<A: Registered>(s: &Sample<A>) -> f64 {
    let x: Vec<f64> = (0..200)
        .map(|i| 1e-4 * 1.07f64.powi(i))
        .filter(|x| *x < 100.0)
        .flat_map(|x| [x, -x])
        .collect();
    let params: Vec<_> = s.params.iter().map(|&p| f64::from(p)).collect();
    let found = reference::finite_differences(&s.op, &params, &x);
    found.slope.max(found.dparams)
}

impl Row {
    fn add(&mut self, report: &Report) {
        self.ok &= report.ok();
        for worst in report.tensors.iter().filter_map(|t| t.worst) {
            if self.worst.is_none_or(|(ulps, _)| worst.ulps > ulps) {
                self.worst = Some((worst.ulps, worst.x));
            }
        }
        for p in &report.parameters {
            self.dparams_error = Some(self.dparams_error.unwrap_or(0.0).max(p.error));
        }
    }

    fn json(&self, device: &str) -> serde_json::Value {
        // JSON has no infinity. A result of the wrong kind has an infinite error.
        let number = |v: Option<f64>| v.filter(|v| v.is_finite());
        serde_json::json!({
            "op": self.op,
            "dtype": self.dtype,
            "direction": self.direction,
            "params": self.params,
            "device": device,
            "n": self.n,
            "worst_ulp": number(self.worst.map(|(ulps, _)| ulps)),
            "worst_at": number(self.worst.map(|(_, at)| at)),
            "share_of_bound": number(self.share),
            "dparams_error": self.dparams_error,
            "finite_difference": number(self.differences),
            "bytes": self.bytes,
            "floor_bytes": self.floor_bytes,
            "ok": self.ok,
        })
    }
}

/// Prints the table and its explanation.
fn in_words(device: &str, rows: &[Row]) -> String {
    let heads = [
        "op",
        "type",
        "direction",
        "parameters",
        "n",
        "worst ulp",
        "at x",
        "of bound",
        "dparams",
        "differences",
        "bytes",
        "floor",
        "",
    ];
    let numbers = [
        "n",
        "worst ulp",
        "at x",
        "of bound",
        "dparams",
        "differences",
        "bytes",
        "floor",
    ];
    let mut table = table(&heads, &numbers);
    for row in rows {
        let per_element = |bytes: u64| format!("{:.3}", bytes as f64 / row.n as f64);
        let cell = |text: Option<String>| text.unwrap_or_default();
        let counted = || match row.bytes {
            Some(bytes) => per_element(bytes),
            None => "not counted".to_owned(),
        };
        table.add_row([
            row.op.to_owned(),
            row.dtype.to_owned(),
            row.direction.to_owned(),
            row.params.to_owned(),
            row.n.to_string(),
            cell(row.worst.map(|(ulps, _)| format!("{ulps:.2}"))),
            cell(row.worst.map(|(_, at)| format!("{at:.4e}"))),
            cell(row.share.map(|s| format!("{:.0} %", 100.0 * s))),
            cell(row.dparams_error.map(|e| format!("{e:.0e}"))),
            cell(row.differences.map(|e| format!("{e:.0e}"))),
            cell(row.floor_bytes.map(|_| counted())),
            cell(row.floor_bytes.map(per_element)),
            if row.ok { "ok" } else { "FAILED" }.to_owned(),
        ]);
    }
    let failed = rows.iter().filter(|row| !row.ok).count();
    let kernels = xact::cuda::images();
    let ptx: usize = kernels.iter().map(|image| image.ptx.len()).sum();
    let entries: usize = kernels
        .iter()
        .map(|image| image.ptx.matches(".entry ").count())
        .sum();
    format!(
        "{table}\ndevice: {device}\nkernels: {entries} entries in {} files, {:.1} MB of PTX\n{} rows, {failed} failed. ulp: \
         f32 of the formula's largest addend (at most {ULPS_EXACT}, or {ULPS} with approximate\ninstructions at an \
         end of their bound); f16 and bf16 of the result (½ if correctly rounded). Bytes are\nper element, \
         counted; parameters left out. Errors of cross_entropy are shares of their bounds: 4 ulp of the largest term of lse \
         for\nlosses (1e-6 of the loss where p > ½), (8 + |t|)·2⁻²⁴ of its terms for a gradient. The masks of goldfish \
         are equal to\nthe reference's or the row fails.\n",
        kernels.len(),
        ptx as f64 / 1e6,
        rows.len()
    )
}
