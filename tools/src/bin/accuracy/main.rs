//! Measures the accuracy of every op, and writes a table, and plots that compare it with the formulas of other
//! implementations. `cargo xtask accuracy` installs what is missing and runs this program.

mod losses;
mod pages;
mod peers;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use cuda_emulator::Approx;
use half::{bf16, f16};
use pages::Page;
use peers::{Peer, Subject};
use xact::activation::{Registered, Visitor};
use xact::reference::{self, Bounds, TensorReport};
use xact::{Dtype, Element};
use xact_dev::cases::{self, Case, CaseVisitor};
use xact_dev::choose::{Choice, Gpu, open};
use xact_dev::plot::{self, Axis, Line, Panel, Plot, Scale, colour};
use xact_dev::progress::{self, print};
use xact_dev::run::{self, How};
use xact_dev::{check, inputs};

/// Measure the accuracy of every op, and write docs/accuracy.md, its plots and the table of README.md
///
/// The inputs are all 65,536 values of the 16-bit types. For f32 they are a sweep that includes the neighbourhoods of roots
/// and switch-over points. On the emulator, every row is run with the results of approximate instructions exact, at the
/// lower end and at the upper end of their documented error, and at random between them. If a result is out of bounds, the
/// exit status is 1 and nothing is written.
#[derive(Parser)]
#[command(name = "accuracy")]
struct Arguments {
    /// The device: auto (a real device if there is one), gpu or emulated
    #[arg(long, env = "XACT_DEVICE", default_value = "auto")]
    device: Choice,
    /// Write nothing; exit with status 1 if the files differ from what would be written
    #[arg(long)]
    check: bool,
    /// Check only the table of README.md: the plain forms of the activations, without plots
    #[arg(long, requires = "check")]
    readme: bool,
    /// Write no files, but print one JSON object per line for every op, direction, type, parameters and approximation mode
    #[arg(long, conflicts_with = "check")]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let gpu = match open(arguments.device) {
        Ok(gpu) => gpu,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::from(2);
        }
    };
    let mut measurements = Jobs {
        jobs: Vec::new(),
        plain_alone: arguments.readme,
    };
    let mut plots = Plots(Vec::new());
    cases::for_each(&mut measurements);
    measurements.losses::<f32>();
    measurements.losses::<f16>();
    measurements.losses::<bf16>();
    if !arguments.json && !arguments.readme {
        xact::activation::for_each(&mut plots);
    }
    let bar = progress::bar(measurements.jobs.len() + plots.0.len());
    let mut rows = Vec::new();
    for job in measurements.jobs {
        bar.set_message(job.name);
        let new = (job.run)(&gpu);
        let lines: String = new
            .iter()
            .map(|row| format!("{}\n", row.json(&gpu)))
            .collect();
        if arguments.json && !print(&lines) {
            break;
        }
        rows.extend(new);
        bar.inc(1);
    }
    let mut drawn = Vec::new();
    for job in plots.0 {
        bar.set_message(format!("{} plot", job.name));
        drawn.push((job.name, plot::svg(&(job.run)(&gpu))));
        bar.inc(1);
    }
    bar.finish_and_clear();
    if let Some(row) = rows.iter().find(|row| !row.ok) {
        eprintln!("error: out of bounds: {}", row.json(&gpu));
        return ExitCode::FAILURE;
    }
    if arguments.json {
        return ExitCode::SUCCESS;
    }
    let root = xact_dev::root();
    if arguments.readme {
        let page = pages::readme(root, &gpu, &rows);
        return exit(page.and_then(|page| compare(root, &[page])));
    }
    let done = pages::all(root, &gpu, &rows, drawn).and_then(|pages| {
        if arguments.check {
            return compare(root, &pages);
        }
        print(&pages::summary(&gpu, &rows));
        write(root, &pages)
    });
    exit(done)
}

fn exit(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the files in `root` are up to date.
fn compare(root: &Path, pages: &[Page]) -> Result<(), String> {
    let current = |page: &Page| {
        std::fs::read_to_string(root.join(&page.path)).is_ok_and(|text| text == page.text)
    };
    let stale = pages.iter().filter(|page| !current(page));
    let stale: Vec<_> = stale.map(|page| page.path.as_str()).collect();
    if stale.is_empty() {
        return Ok(());
    }
    Err(format!(
        "not what this device computes now: {}\nrun `cargo xtask accuracy`, look at what changed, and commit it",
        stale.join(", ")
    ))
}

fn write(root: &Path, pages: &[Page]) -> Result<(), String> {
    for Page { path, text } in pages {
        let at = root.join(path);
        let folder = at.parent().expect("a file in a folder");
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&at, text))
            .map_err(|e| format!("{path}: {e}"))?;
        eprintln!("wrote {path}");
    }
    Ok(())
}

/// The measurement of one result of a case in one mode.
struct Row {
    op: &'static str,
    dtype: Dtype,
    direction: &'static str,
    /// `y`, `dx` or `dv`; `loss` or `dlogits`.
    result: &'static str,
    params: &'static str,
    /// The name of the parameters' sample.
    values: Vec<f32>,
    /// The options of the op, as Rust's Debug format.
    options: String,
    /// The mode of the approximate instructions; a real device has only its own.
    approx: Option<Approx>,
    n: usize,
    worst_ulp: f64,
    worst_at: f64,
    correctly_rounded: usize,
    ok: bool,
}

impl Row {
    fn json(&self, gpu: &Gpu) -> serde_json::Value {
        serde_json::json!({
            "op": self.op,
            "dtype": self.dtype.name(),
            "direction": self.direction,
            "result": self.result,
            "params": self.params,
            "values": self.values,
            "options": self.options,
            "approx": self.approx.map(|approx| format!("{approx:?}").to_lowercase()),
            "device": gpu.name,
            "n": self.n,
            // JSON has no infinity. A result of the wrong kind has an infinite error.
            "worst_ulp": self.worst_ulp.is_finite().then_some(self.worst_ulp),
            "worst_at": self.worst_at.is_finite().then_some(self.worst_at),
            "correctly_rounded": self.correctly_rounded,
            "ok": self.ok,
        })
    }
}

/// A measurement that is not yet done.
struct Job<R> {
    name: String,
    run: Box<dyn FnOnce(&Gpu) -> R>,
}

/// The number of points in each half of an f32 sweep.
const F32_POINTS: u32 = 1 << 15;

/// The measurements of every case.
struct Jobs {
    jobs: Vec<Job<Vec<Row>>>,
    /// Whether to leave out the gated forms.
    plain_alone: bool,
}

impl CaseVisitor for Jobs {
    fn case<A: Registered, T: Element>(&mut self, case: Case<A, T>) {
        if self.plain_alone && pages::form(case.direction) != "plain" {
            return;
        }
        let name = format!(
            "{} {} {} {}",
            A::NAME,
            case.direction,
            T::DTYPE,
            case.sample.name
        );
        let run = Box::new(move |gpu: &Gpu| measure(gpu, &case));
        self.jobs.push(Job { name, run });
    }
}

fn measure<A: Registered, T: Element>(gpu: &Gpu, case: &Case<A, T>) -> Vec<Row> {
    let x = inputs::accuracy::<A, T>(&case.sample, F32_POINTS);
    let mut rows = Vec::new();
    for (settings, ulps) in check::modes(gpu, &check::EVERY) {
        let report = cuda_emulator::with_settings(settings, || case.check(gpu.into(), &x, ulps));
        let row = |tensor: &TensorReport| {
            let worst = tensor.worst.expect("there are inputs");
            Row {
                op: A::NAME,
                dtype: T::DTYPE,
                direction: case.direction,
                result: tensor.name,
                params: case.sample.name,
                values: case.sample.params.clone(),
                options: format!("{:?}", case.sample.op),
                approx: gpu.emulated.then_some(settings.approx),
                n: tensor.len,
                worst_ulp: worst.ulps,
                worst_at: worst.x,
                correctly_rounded: tensor.correctly_rounded,
                ok: tensor.failed == 0,
            }
        };
        rows.extend(report.tensors.iter().map(row));
    }
    rows
}

/// The plot of every op.
struct Plots(Vec<Job<Plot>>);

impl Visitor for Plots {
    fn visit<A: Registered>(&mut self) {
        let (name, run) = (A::NAME.to_owned(), Box::new(plot::<A>));
        self.0.push(Job { name, run });
    }
}

fn plot<A: Registered>(gpu: &Gpu) -> Plot {
    let subject = peers::subject(A::NAME);
    let wide = inputs::along(subject.x.min, subject.x.max);
    let narrow = inputs::every_16_bit::<bf16>();
    let panels = vec![
        panel::<A, f32>(gpu, &subject, &wide, &subject.f32, 1e10),
        panel::<A, bf16>(gpu, &subject, &narrow, &subject.bf16, 1e6),
    ];
    let notes = subject.notes.into_iter();
    Plot {
        title: format!("{}: error of y = f(x)", subject.name),
        notes: notes
            .chain(["An error of 100 % is 2²³ to 2²⁴ ulp of f32, 2⁷ to 2⁸ ulp of bf16."])
            .map(str::to_owned)
            .collect(),
        panels,
    }
}

/// The errors in one type, up to `top` ulp.
fn panel<A: Registered, T: Element>(
    gpu: &Gpu,
    subject: &Subject,
    x: &[T],
    peers: &[Peer],
    top: f64,
) -> Panel {
    let sample = A::samples().into_iter().find(|s| s.name == subject.sample);
    let sample = sample.expect("a sample of this name");
    let params = check::measured(gpu, &sample.op, &sample.params);
    let error = |x: T, y: T| {
        let bounds = Bounds::of(&sample.op);
        let report = reference::check_forward(&sample.op, &params, &[x], &[y], bounds);
        let report = report.expect("equal lengths");
        report.tensors[0].worst.expect("an element").ulps
    };
    let errors = |y: Vec<T>| {
        let points = x.iter().zip(y);
        // The sign of zero is checked separately, not in ulp.
        points
            .filter(|(x, _)| x.to_f64() != 0.0)
            .map(|(&x, y)| (x.to_f64(), error(x, y)))
            .collect::<Vec<_>>()
    };
    let ours = |approximations: &[Approx]| {
        let modes = check::modes(gpu, approximations).into_iter();
        let points = modes.flat_map(|(settings, _)| {
            let run = || run::forward(gpu, &sample.op, &sample.params, x, &How::default());
            errors(cuda_emulator::with_settings(settings, run).expect("forward"))
        });
        points.collect::<Vec<_>>()
    };
    let line = |name: &str, colour, points| Line::envelope(name, colour, &subject.x, points);
    let name = format!("xact in {}", T::DTYPE);
    // Only the f32 plot shows this.
    let mut lines = if gpu.emulated && T::DTYPE == Dtype::F32 {
        let worst = "the same, approximate / instructions at their worst";
        vec![
            line(&name, colour::BLUE, ours(&[Approx::Nearest])),
            line(worst, colour::SKY, ours(&check::EVERY)),
        ]
    } else {
        vec![line(&name, colour::BLUE, ours(&check::EVERY))]
    };
    for (peer, colour) in peers.iter().zip([colour::VERMILION, colour::PURPLE]) {
        let round = |v| T::from_f64(v).to_f64();
        let y = x
            .iter()
            .map(|x| T::from_f64((peer.formula)(&round, x.to_f64())));
        lines.push(line(peer.name, colour, errors(y.collect())));
    }
    Panel {
        title: format!("{0} in, {0} out", T::DTYPE),
        x: subject.x.clone(),
        y: Axis {
            label: format!("error in ulp of {}", T::DTYPE),
            scale: Scale::Log,
            min: 0.3,
            max: top,
        },
        lines,
        level: (0.5, "½ ulp: correctly rounded".to_owned()),
    }
}
