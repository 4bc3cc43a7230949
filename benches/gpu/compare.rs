//! Compares the results of two devices: every kernel entry on fixed inputs, in one process per device.
//!
//! If all instructions that a call executes are exactly rounded, both devices must give the same bits. Approximate
//! instructions may return any result within their documented error. The results of each device must then be within the
//! bounds around the f64 reference, and their distance is reported.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::ExitCode;

use cuda_emulator::LaunchReport;
use half::{bf16, f16};
use safetensors::tensor::{SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};
use xact::activation::{Registered, Sample, Visitor};
use xact::loss::goldfish::{TokenId, Tokens};
use xact::reference::{self, Bounds, GatedGradients, Report, ULPS, ULPS_EXACT};
use xact::{CrossEntropy, Dtype, Element, Gated, Goldfish, Order};
use xact_dev::choose::{Choice, Gpu, open};
use xact_dev::inputs::{self, GRADIENTS, Random, VALUES};
use xact_dev::loss::{self, Uploaded};
use xact_dev::loss_cases::few_options;
use xact_dev::loss_check::{self, Batch, Results};
use xact_dev::same::bits;
use xact_dev::table::table;
use xact_dev::{check, files, goldfish, progress, run, strategy};

use crate::work::Result;

/// The results of one device.
#[derive(Debug, PartialEq)]
pub struct Dump {
    pub device: String,
    pub calls: Vec<Call>,
}

/// A call and its results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    pub op: String,
    pub dtype: String,
    pub direction: String,
    pub params: String,
    /// Whether all results are within the bounds around the reference.
    pub in_bounds: bool,
    /// The entries that ran, and whether all executed instructions are exactly rounded; only the emulator knows this.
    pub entries: Vec<String>,
    pub exact: Option<bool>,
    /// The tensors by name; not in the JSON.
    #[serde(skip)]
    pub outputs: Vec<Output>,
}

/// A tensor that a call wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub name: &'static str,
    pub dtype: safetensors::Dtype,
    pub bytes: Vec<u8>,
}

/// The name of a call.
fn name_of(words: [&str; 4]) -> String {
    words.join("/")
}

impl Call {
    fn name(&self) -> String {
        name_of([&self.op, &self.dtype, &self.direction, &self.params])
    }
}

/// `gpu dump`.
pub fn dump(file: &Path, small: bool, only: &str) -> Result<ExitCode> {
    let gpu = Choice::from_env().and_then(open)?;
    let dump = Dump::of(&gpu, small, only);
    if dump.calls.is_empty() {
        return Err(format!("no call's name begins with {only}").into());
    }
    if gpu.emulated && only.is_empty() {
        let missing = never_launched(&dump);
        if !missing.is_empty() {
            return Err(format!("no call launches {}", missing.join(", ")).into());
        }
    }
    files::replace(file, &dump.to_bytes()?)?;
    let outside: Vec<_> = dump.calls.iter().filter(|call| !call.in_bounds).collect();
    for call in &outside {
        eprintln!("{} is outside the bounds", call.name());
    }
    println!("{} calls on {}", dump.calls.len(), dump.device);
    Ok(ExitCode::from(u8::from(!outside.is_empty())))
}

/// The entries of the kernels that no call of an emulated dump launches.
pub fn never_launched(dump: &Dump) -> Vec<&'static str> {
    let launched: BTreeSet<_> = dump.calls.iter().flat_map(|call| &call.entries).collect();
    let entries = xact::cuda::images().iter().flat_map(|image| {
        let texts = image.ptx.split(".entry ").skip(1);
        texts.filter_map(|text| text.split(['(', '\n']).next())
    });
    let names: BTreeSet<_> = entries.map(str::trim).collect();
    let missing = names.into_iter();
    missing
        .filter(|name| !launched.iter().any(|l| l == name))
        .collect()
}

impl Dump {
    /// Runs every call whose name starts with `only`.
    pub fn of(gpu: &Gpu, small: bool, only: &str) -> Dump {
        let mut dumper = Dumper {
            gpu,
            // The strides are odd, so that every sign, exponent and last bit occurs. The tests run all values; this file
            // must stay small, because it is copied between machines.
            stride: if small { 61 } else { 11 },
            only,
            calls: Vec::new(),
        };
        xact::activation::for_each(&mut dumper);
        dumper.cross_entropy::<f32>();
        dumper.cross_entropy::<f16>();
        dumper.cross_entropy::<bf16>();
        dumper.masks::<i32>("i32");
        dumper.masks::<i64>("i64");
        Dump {
            device: gpu.name.clone(),
            calls: dumper.calls,
        }
    }

    /// The dump as a safetensors file, whose metadata contain everything but the tensors.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut tensors = Vec::new();
        for call in &self.calls {
            for output in &call.outputs {
                let len = output.bytes.len() * 8 / output.dtype.bitsize();
                let view = TensorView::new(output.dtype, vec![len], &output.bytes)?;
                tensors.push((format!("{}/{}", call.name(), output.name), view));
            }
        }
        let metadata = HashMap::from([
            ("device".to_owned(), self.device.clone()),
            ("calls".to_owned(), serde_json::to_string(&self.calls)?),
        ]);
        Ok(serialize(tensors, Some(metadata))?)
    }
}

/// A dump that was read: tensors by name.
struct Read<'a> {
    device: String,
    calls: BTreeMap<String, Call>,
    tensors: SafeTensors<'a>,
}

impl<'a> Read<'a> {
    fn new(bytes: &'a [u8]) -> Result<Read<'a>> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let metadata = header.metadata().as_ref();
        let get = |name| metadata.and_then(|m| m.get(name)).ok_or("not a dump");
        let calls: Vec<Call> = serde_json::from_str(get("calls")?)?;
        Ok(Read {
            device: get("device")?.clone(),
            calls: calls.into_iter().map(|call| (call.name(), call)).collect(),
            tensors: SafeTensors::deserialize(bytes)?,
        })
    }
}

/// The comparison of one tensor of two devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    pub tensor: String,
    /// Whether the bits must be equal.
    pub exact: bool,
    pub elements: usize,
    /// The number of elements with equal bits.
    pub same: usize,
    /// The largest distance, in values of the type; `None` if one is NaN and the other a number.
    pub apart: Option<u64>,
    pub in_bounds: bool,
    pub ok: bool,
}

/// The comparison of two dumps of the same calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub devices: [String; 2],
    pub tensors: Vec<Compared>,
    /// The tensors that only one dump has.
    pub unpaired: Vec<String>,
}

impl Comparison {
    /// Compares two safetensors files; the first is the emulator's.
    pub fn of(emulated: &[u8], device: &[u8]) -> Result<Comparison> {
        let (ours, theirs) = (Read::new(emulated)?, Read::new(device)?);
        let names = |read: &Read<'_>| -> BTreeSet<_> {
            read.tensors
                .names()
                .into_iter()
                .map(str::to_owned)
                .collect()
        };
        let (a, b) = (names(&ours), names(&theirs));
        let mut tensors = Vec::new();
        for name in a.intersection(&b) {
            let call = name.rsplit_once('/').map_or("", |(call, _)| call);
            let of = |read: &Read<'_>| read.calls.get(call).cloned().ok_or("a tensor of no call");
            let (our_call, their_call) = (of(&ours)?, of(&theirs)?);
            let exact = our_call
                .exact
                .ok_or("the first dump is not the emulator's")?;
            let (x, y) = (ours.tensors.tensor(name)?, theirs.tensors.tensor(name)?);
            if (x.dtype(), x.shape()) != (y.dtype(), y.shape()) {
                return Err(format!("{name}: another type or shape").into());
            }
            let width = x.dtype().bitsize() / 8;
            let pairs = || {
                x.data()
                    .chunks_exact(width)
                    .zip(y.data().chunks_exact(width))
            };
            let same = pairs().filter(|(x, y)| x == y).count();
            let elements = pairs().len();
            let mut distances = pairs().map(|(a, b)| distance(x.dtype(), a, b));
            let apart = distances.try_fold(0, |most, d| Some(most.max(d?)));
            let in_bounds = our_call.in_bounds && their_call.in_bounds;
            tensors.push(Compared {
                tensor: name.clone(),
                exact,
                elements,
                same,
                apart,
                in_bounds,
                ok: in_bounds && (same == elements || !exact),
            });
        }
        Ok(Comparison {
            devices: [ours.device, theirs.device],
            tensors,
            unpaired: a.symmetric_difference(&b).cloned().collect(),
        })
    }

    pub fn ok(&self) -> bool {
        !self.tensors.is_empty() && self.unpaired.is_empty() && self.tensors.iter().all(|t| t.ok)
    }

    /// One line per op, type and direction: the totals over its parameters and tensors.
    pub fn in_words(&self) -> String {
        let mut groups: BTreeMap<String, Vec<&Compared>> = BTreeMap::new();
        for tensor in &self.tensors {
            let words: Vec<_> = tensor.tensor.split('/').take(3).collect();
            groups.entry(words.join(" ")).or_default().push(tensor);
        }
        let heads = ["call", "bits", "elements", "same bits", "apart", ""];
        let mut table = table(&heads, &["elements", "same bits", "apart"]);
        for (name, tensors) in groups {
            let sum = |f: fn(&Compared) -> usize| tensors.iter().map(|t| f(t)).sum::<usize>();
            let (elements, same) = (sum(|t| t.elements), sum(|t| t.same));
            let apart = tensors
                .iter()
                .try_fold(0, |most, t| Some(most.max(t.apart?)));
            let exact = tensors.iter().filter(|t| t.exact).count();
            table.add_row([
                name,
                match exact {
                    0 => "within bounds".to_owned(),
                    n if n == tensors.len() => "the same".to_owned(),
                    n => format!("{n} of {} the same", tensors.len()),
                },
                elements.to_string(),
                format!("{:.2} %", 100.0 * same as f64 / elements.max(1) as f64),
                apart.map_or("NaN".to_owned(), |n| n.to_string()),
                if tensors.iter().all(|t| t.ok) {
                    "ok"
                } else {
                    "FAILED"
                }
                .to_owned(),
            ]);
        }
        let mut text = format!(
            "{table}\n\n{} against {}. Bits must be the same where no approximate instruction ran; elsewhere both are within \
             the bounds\nabout the f64 reference. Apart: neighbouring values of the type between the two, at most.\n",
            self.devices[0], self.devices[1]
        );
        for name in &self.unpaired {
            text += &format!("Only one device has {name}.\n");
        }
        text += &self.counts();
        text += "\n";
        text
    }

    /// The number of tensors that pass.
    pub fn counts(&self) -> String {
        let count = |is: fn(&Compared) -> bool| self.tensors.iter().filter(|t| is(t)).count();
        format!(
            "{} tensors: {} must be the same, {} are; {} failed, {} unpaired.",
            self.tensors.len(),
            count(|t| t.exact),
            count(|t| t.same == t.elements),
            count(|t| !t.ok),
            self.unpaired.len(),
        )
    }
}

/// The command `gpu compare`.
pub fn compare(emulated: &Path, device: &Path, json: Option<&Path>) -> Result<ExitCode> {
    let comparison = Comparison::of(&std::fs::read(emulated)?, &std::fs::read(device)?)?;
    progress::print(&comparison.in_words());
    if let Some(path) = json {
        files::replace(path, serde_json::to_string_pretty(&comparison)?.as_bytes())?;
    }
    Ok(ExitCode::from(u8::from(!comparison.ok())))
}

/// The distance of two elements in values of the type: 0 between two NaN, `None` between NaN and a number.
fn distance(dtype: safetensors::Dtype, x: &[u8], y: &[u8]) -> Option<u64> {
    match (place(dtype, x), place(dtype, y)) {
        (Some(x), Some(y)) => Some(x.abs_diff(y)),
        (None, None) => Some(0),
        _ => None,
    }
}

/// The index of an element in the order of its type's values; `None` for NaN.
fn place(dtype: safetensors::Dtype, element: &[u8]) -> Option<i64> {
    use safetensors::Dtype as D;
    let magnitude = |bits: u32, sign: u32| {
        let size = i64::from(bits & !sign);
        if bits & sign == 0 { size } else { -size }
    };
    match (dtype, element) {
        (D::F32, &[a, b, c, d]) => {
            let v = f32::from_le_bytes([a, b, c, d]);
            (!v.is_nan()).then(|| magnitude(v.to_bits(), 1 << 31))
        }
        (D::F16, &[a, b]) => {
            let v = f16::from_le_bytes([a, b]);
            (!v.is_nan()).then(|| magnitude(v.to_bits().into(), 1 << 15))
        }
        (D::BF16, &[a, b]) => {
            let v = bf16::from_le_bytes([a, b]);
            (!v.is_nan()).then(|| magnitude(v.to_bits().into(), 1 << 15))
        }
        (D::I32, &[a, b, c, d]) => Some(i32::from_le_bytes([a, b, c, d]).into()),
        (D::U8, &[a]) => Some(a.into()),
        other => unreachable!("no output has the type of {other:?}"),
    }
}

/// Makes the calls of a dump.
struct Dumper<'a> {
    gpu: &'a Gpu,
    /// The stride between 16-bit inputs; for f32 in proportion.
    stride: usize,
    /// The start of the names of the calls to make.
    only: &'a str,
    calls: Vec<Call>,
}

fn output<T: Element>(name: &'static str, values: &[T]) -> Output {
    let dtype = match T::DTYPE {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
        other => unreachable!("no kernel has the type {other}"),
    };
    Output {
        name,
        dtype,
        bytes: bits(values).to_vec(),
    }
}

impl Dumper<'_> {
    fn inputs<A: Registered, T: Element>(&self, sample: &Sample<A>) -> Vec<T> {
        let all = inputs::accuracy::<A, T>(sample, (1 << 16) / self.stride as u32);
        match T::DTYPE {
            Dtype::F32 => all,
            _ => all.into_iter().step_by(self.stride).collect(),
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds::new(if self.gpu.emulated { ULPS_EXACT } else { ULPS })
    }

    /// Adds the call `run`, with its outputs and whether they are within their bounds.
    fn call<R>(
        &mut self,
        [op, dtype, direction, params]: [&str; 4],
        run: impl FnOnce() -> R,
        outputs: impl FnOnce(R) -> (bool, Vec<Output>),
    ) {
        if !name_of([op, dtype, direction, params]).starts_with(self.only) {
            return;
        }
        let (results, launches) = if self.gpu.emulated {
            let (results, launches) = cuda_emulator::record(run);
            (results, Some(launches))
        } else {
            (run(), None)
        };
        let (in_bounds, outputs) = outputs(results);
        let entries: BTreeSet<_> = launches
            .iter()
            .flatten()
            .map(|l| l.kernel.clone())
            .collect();
        self.calls.push(Call {
            op: op.to_owned(),
            dtype: dtype.to_owned(),
            direction: direction.to_owned(),
            params: params.to_owned(),
            in_bounds,
            entries: entries.into_iter().collect(),
            exact: launches.map(|launches| launches.iter().all(is_exact)),
            outputs,
        });
    }

    fn plain<A: Registered, T: Element>(&mut self) {
        for s in A::samples() {
            let (gpu, bounds, x) = (self.gpu, self.bounds(), self.inputs::<A, T>(&s));
            let names = |direction| [A::NAME, T::DTYPE.name(), direction, s.name];
            let how = run::How::default();
            let kernel = check::measured(gpu, &s.op, &s.params);
            self.call(
                names("forward"),
                || run::forward(gpu, &s.op, &s.params, &x, &how).expect("forward"),
                |y| {
                    let report = reference::check_forward(&s.op, &kernel, &x, &y, bounds);
                    (in_bounds(report), vec![output("y", &y)])
                },
            );
            // Sums over all values of a type are infinite, and would test nothing.
            let x = inputs::summable(&x);
            let dy = Random(1).normal::<T>(x.len(), 1.0);
            self.call(
                names("backward"),
                || run::backward(gpu, &s.op, &s.params, &x, &dy, &how).expect("backward"),
                |(dx, dparams)| {
                    let sums: Vec<_> = dparams.iter().map(|&d| f64::from(d)).collect();
                    let check = |params: &[f64]| {
                        reference::check_gradients(&s.op, params, &x, &dy, &dx, &sums, bounds)
                            .expect("equal lengths")
                    };
                    let stored: Vec<_> = s.params.iter().map(|&p| f64::from(p)).collect();
                    let mut report = check(&kernel);
                    report.parameters = check(&stored).parameters;
                    let outputs = vec![output("dx", &dx), output("dparams", &dparams)];
                    (report.ok(), outputs)
                },
            );
        }
    }

    fn gated<A: Gated + Registered, T: Element>(
        &mut self,
        order: Order,
        [forward, backward]: [&str; 2],
    ) {
        for s in A::samples() {
            let (gpu, bounds, x) = (self.gpu, self.bounds(), self.inputs::<A, T>(&s));
            let names = |direction| [A::NAME, T::DTYPE.name(), direction, s.name];
            let how = run::How::default();
            let stored: Vec<_> = s.params.iter().map(|&p| f64::from(p)).collect();
            let v = inputs::cycle::<T>(&VALUES, 0, x.len());
            self.call(
                names(forward),
                || {
                    run::gated_forward(gpu, &s.op, order, &s.params, [&x, &v], &how)
                        .expect("forward")
                },
                |y| {
                    let report =
                        reference::check_gated_forward(&s.op, order, &stored, &x, &v, &y, bounds);
                    (in_bounds(report), vec![output("y", &y)])
                },
            );
            let x = inputs::summable(&x);
            let v = inputs::cycle::<T>(&VALUES, 0, x.len());
            let dy = inputs::cycle::<T>(&GRADIENTS, 0, x.len());
            self.call(
                names(backward),
                || {
                    run::gated_backward(gpu, &s.op, order, &s.params, [&x, &v, &dy], &how)
                        .expect("backward")
                },
                |([dx, dv], dparams)| {
                    let sums: Vec<_> = dparams.iter().map(|&d| f64::from(d)).collect();
                    let tensors = GatedGradients {
                        x: &x,
                        v: &v,
                        dy: &dy,
                        dx: &dx,
                        dv: &dv,
                    };
                    let report = reference::check_gated_gradients(
                        &s.op, order, &stored, &tensors, &sums, bounds,
                    );
                    let outputs = vec![
                        output("dx", &dx),
                        output("dv", &dv),
                        output("dparams", &dparams),
                    ];
                    (in_bounds(report), outputs)
                },
            );
        }
    }

    fn cross_entropy<T: Element>(&mut self) {
        // Rows that a block has alone, rows of more than a block finishes, rows that a cluster shares if there are
        // clusters, and rows that are divided among more blocks. None is a whole number of packs.
        for (name, rows, cols) in [
            ("many rows", 260, 163),
            ("shared rows", 3, 5_003),
            ("long rows", 3, 20_011),
        ] {
            for (options, op) in few_options() {
                let mut random = Random(3);
                let logits = random.normal::<T>(rows * cols, 4.0);
                let labels = (0..rows).map(|r| match r % 10 {
                    9 => op.ignore_index,
                    _ => (random.bits() % cols as u64) as i64,
                });
                let mut batch = Batch::new(logits, cols, labels.collect());
                batch.weights = Some((0..rows).map(|r| [1.0, 0.25, 2.0][r % 3]).collect());
                let expected = loss_check::expected(&op, &batch, &[]);
                let gpu = self.gpu;
                let uploaded = Uploaded::new(gpu, &batch, loss::How::default());
                let params = format!("{options}, {name}");
                for (direction, run) in [
                    ("apart", loss::forward_backward::<T> as LossCall<T>),
                    ("fused", loss::with_gradient::<T>),
                ] {
                    self.call(
                        ["cross_entropy", T::DTYPE.name(), direction, &params],
                        || run(gpu, &op, &batch, &uploaded).expect("a loss"),
                        |results| {
                            let worst = loss_check::check(&op, &batch, &expected, &results);
                            let argmax = Output {
                                name: "argmax",
                                dtype: safetensors::Dtype::I32,
                                bytes: bytemuck::cast_slice(&results.argmax).to_vec(),
                            };
                            let outputs = vec![
                                output("loss", &results.loss),
                                output("z_loss", &results.z_loss),
                                output("lse", &results.lse),
                                output("dlogits", &results.dlogits),
                                argmax,
                            ];
                            (worst.ok(), outputs)
                        },
                    );
                }
            }
        }
    }

    fn masks<I: TokenId + TryFrom<i64>>(&mut self, dtype: &str) {
        let mut random = Random(1);
        let ids: Vec<I> = (0..1 << 14)
            .filter_map(|_| I::try_from((random.bits() >> 33) as i64 % 131_072).ok())
            .collect();
        let tokens = Tokens::rows(&ids, 1 << 11).exempt(&[1, 2, 3]);
        for strategy in strategy::all(4, 13, 3, 0) {
            let fish = Goldfish::new(strategy).expect("a strategy");
            let gpu = self.gpu;
            let how = goldfish::How::default();
            self.call(
                ["goldfish", dtype, "mask", strategy.name()],
                || goldfish::keep(gpu, &fish, &tokens, how).expect("a mask"),
                |mask| {
                    let keep = Output {
                        name: "keep",
                        dtype: safetensors::Dtype::U8,
                        bytes: mask.iter().map(|&keep| u8::from(keep)).collect(),
                    };
                    (fish.keep(&tokens) == Ok(mask), vec![keep])
                },
            );
        }
    }
}

/// A way to compute a loss and its gradient.
type LossCall<T> = fn(&Gpu, &CrossEntropy, &Batch<T>, &Uploaded<'_>) -> xact::Result<Results<T>>;

fn in_bounds(report: xact::Result<Report>) -> bool {
    report.expect("equal lengths").ok()
}

/// Whether all executed instructions have exactly one correct result.
fn is_exact(launch: &LaunchReport) -> bool {
    let opcodes = launch.by_opcode.iter().map(|(opcode, _)| opcode);
    !opcodes.into_iter().any(|opcode| {
        opcode
            .split('.')
            .any(|word| word == "approx" || word == "full")
    })
}

impl Visitor for Dumper<'_> {
    fn visit<A: Registered>(&mut self) {
        self.plain::<A, f32>();
        self.plain::<A, f16>();
        self.plain::<A, bf16>();
    }

    fn visit_gated<A: Gated + Registered>(&mut self) {
        for (order, names) in [
            (Order::First, ["gated1 forward", "gated1 backward"]),
            (Order::Second, ["gated2 forward", "gated2 backward"]),
        ] {
            self.gated::<A, f32>(order, names);
            self.gated::<A, f16>(order, names);
            self.gated::<A, bf16>(order, names);
        }
    }
}
