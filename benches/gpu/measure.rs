//! Times a row.
//!
//! The calls of a sample are a CUDA graph, so the host's time is not measured. The calls take turns on buffers that
//! together exceed twice the L2 cache, so no call finds its input there. Samples alternate with those of a yardstick with
//! the same number of bytes, so the current clocks affect both. The median of each counts.

use serde::{Deserialize, Serialize};
use xact::cudarc::driver::CudaGraph;
use xact::cudarc::driver::sys::{
    CUdevice_attribute, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use xact_dev::choose::Gpu;

use crate::clocks::Clocks;
use crate::devices;
use crate::rows::Row;
use crate::work::{self, Result, Tiles, Work};
use crate::yardsticks::{VECTOR, Yardstick, Yardsticks};

/// The minimum number of turns, for caches with another policy than LRU.
const TURNS: u64 = 3;
/// The minimum duration of a sample in milliseconds: hundreds of times the resolution of an event.
const SAMPLE_MS: f64 = 4.0;
/// The maximum number of calls in a graph.
const CALLS: f64 = 2000.0;
/// The size in bytes of each of the yardsticks' two buffers: several times any L2 cache.
pub const YARDSTICK_BYTES: u64 = 1 << 30;
/// The part of a buffer that is copied before each sample, while the host launches its graph. It takes at least a tenth of
/// a millisecond, for twice the bytes at the 4.8 TB/s of an H200.
const LEAD: u64 = 4;
/// If memory needs fewer milliseconds than this for a row, the launches dominate: a call has one to five, of some
/// microseconds each, and the share of a yardstick would not describe the kernel.
const LAUNCHES_MS: f64 = 0.01;
/// The number of samples of each copy to find the fastest.
const TRIALS: usize = 2;
/// The number of random numbers, which fill buffers repeatedly. It is prime, so that no two turns and no two rows are
/// equal.
const TILE: usize = 4_194_301;
/// The maximum share of the free memory for a row.
const MEMORY: f64 = 0.9;
/// The maximum number of samples of a row that only completes the grid.
const GRID_SAMPLES: usize = 5;

/// The properties of a device that affect its speed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub device: String,
    pub l2_bytes: u64,
    pub sms: u64,
    /// The maximum clock of the multiprocessors.
    pub most_mhz: f64,
    pub memory: Memory,
}

/// The nominal bandwidth of the device's memory, in GB/s.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Memory {
    /// From the data sheet.
    Sheet(f64),
    /// From the memory clock and the bus width, with two transfers per clock, if there is no data sheet: some per cent more
    /// than in a data sheet.
    ClockAndBus(f64),
}

impl Memory {
    pub fn gb_per_s(self) -> f64 {
        match self {
            Memory::Sheet(speed) | Memory::ClockAndBus(speed) => speed,
        }
    }

    /// The source of the figure.
    pub fn source(self) -> &'static str {
        match self {
            Memory::Sheet(_) => "data sheet",
            Memory::ClockAndBus(_) => "clock and bus",
        }
    }
}

impl Machine {
    pub fn of(gpu: &Gpu) -> Result<Machine> {
        use CUdevice_attribute as A;
        let ask = |attribute| gpu.device.context().attribute(attribute).map(|v| v as u64);
        let clock_khz = ask(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let bits = ask(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        let by_clock = 2.0 * clock_khz as f64 * 1e3 * bits as f64 / 8.0 / 1e9;
        Ok(Machine {
            device: gpu.name.clone(),
            l2_bytes: ask(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            sms: ask(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            most_mhz: ask(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? as f64 / 1e3,
            memory: devices::sheet_gb_per_s(&gpu.name)
                .map_or(Memory::ClockAndBus(by_clock), Memory::Sheet),
        })
    }
}

/// A run of the bench.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    pub machine: Machine,
    /// The sampler of the clock; `None` if there is none.
    pub clocks: Option<Clocks>,
    /// The yardsticks, each with its GB/s.
    pub yardsticks: Vec<(Yardstick, f64)>,
    pub rows: Vec<Measured>,
    /// The names of the rows without a figure, each with the reason.
    pub without: Vec<(String, String)>,
}

/// The measurement of a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    #[serde(flatten)]
    pub row: Row,
    pub name: String,
    /// Milliseconds of a call: median, minimum and maximum of the samples.
    pub ms: f64,
    pub ms_min: f64,
    pub ms_max: f64,
    /// The yardstick, and the milliseconds in which it moves the same number of bytes.
    pub yardstick: Yardstick,
    pub yardstick_ms: f64,
    pub samples: usize,
    /// The number of calls of a sample, and of buffers on which they take turns.
    pub calls: usize,
    pub turns: usize,
}

impl Measured {
    pub fn gb_per_s(&self) -> f64 {
        self.row.bytes as f64 / self.ms / 1e6
    }

    /// The speed as a share of the yardstick's; `None` for a row that moves no bytes.
    pub fn share(&self) -> Option<f64> {
        (self.row.bytes > 0).then(|| self.yardstick_ms / self.ms)
    }

    /// Whether the launches take longer than the bytes.
    pub fn is_bound_by_launches(&self) -> bool {
        self.yardstick_ms < LAUNCHES_MS
    }

    /// The time of a call as text; in µs if launches dominate.
    pub fn time(&self) -> String {
        if self.is_bound_by_launches() {
            format!("{:.2} µs", 1e3 * self.ms)
        } else {
            format!("{:.4} ms", self.ms)
        }
    }

    /// The share as text for a table.
    pub fn share_in_words(&self) -> String {
        match self.share() {
            _ if self.is_bound_by_launches() => "by launches".to_owned(),
            Some(share) => format!("{:.1} %", 100.0 * share),
            None => String::new(),
        }
    }
}

/// The number of turns of a row on a device with this cache and free memory; `None` if it does not fit.
fn turns(row: &Row, l2_bytes: u64, free: u64) -> Option<u64> {
    let turn = work::memory(row);
    // The bytes that a call brings into the cache; 0 if every row is masked.
    let touched = if row.bytes == 0 {
        turn
    } else {
        row.bytes.min(turn)
    };
    let wanted = (2 * l2_bytes).div_ceil(touched).max(TURNS);
    let fit = (free as f64 * MEMORY / turn as f64) as u64;
    let turns = wanted.min(fit).min(CALLS as u64);
    // One turn is enough if it evicts its own data from the cache.
    let enough = turns == wanted || turns * touched >= 2 * l2_bytes;
    (turns > 0 && enough).then_some(turns)
}

/// The number of samples of a row, if this number is requested.
fn samples(row: &Row, asked: usize) -> usize {
    if row.completes_the_grid() {
        asked.min(GRID_SAMPLES)
    } else {
        asked
    }
}

/// The expected seconds of a row, which are only for the plan of a run. They assume a device that moves 2 TB/s, half of an
/// H200, and a tenth of a second for buffers and graphs.
pub fn seconds(row: &Row, machine: &Machine, free: u64, asked: usize) -> f64 {
    const BYTES_PER_S: f64 = 2e12;
    const APART: f64 = 0.1;
    let Some(turns) = turns(row, machine.l2_bytes, free) else {
        return 0.0;
    };
    let (turns, samples) = (turns as f64, samples(row, asked) as f64);
    let filled = turns * work::memory(row) as f64 / BYTES_PER_S;
    let calls = turns * row.bytes as f64 / BYTES_PER_S;
    let (sample, restored) = match row.direction.as_str() {
        // One call per turn; before each, the logits are restored.
        "fused" => (calls, filled),
        _ => (calls.max(SAMPLE_MS / 1e3), 0.0),
    };
    let yardstick = SAMPLE_MS / 1e3;
    let lead = 2.0 * (YARDSTICK_BYTES / LEAD) as f64 / BYTES_PER_S;
    let trials = (3 * TRIALS) as f64 * (lead + yardstick);
    APART
        + trials
        + filled
        + 2.0 * (lead + calls + restored)
        + samples * (2.0 * lead + sample + restored + yardstick)
}

/// Times rows on a real device.
pub struct Bench<'a> {
    gpu: &'a Gpu,
    tiles: Tiles<'a>,
    l2_bytes: u64,
    samples: usize,
    yardsticks: Yardsticks<'a>,
}

/// The work that is timed between two events.
enum Queued<'a> {
    Graph(CudaGraph),
    /// Calls that the host makes one by one.
    Calls(Box<dyn Fn() -> Result<()> + 'a>),
}

/// A sample of a yardstick.
struct Beside<'a> {
    yardstick: Yardstick,
    queued: Queued<'a>,
    /// The ratio of the bytes that were asked for to those that the sample moves, by which its time is scaled.
    per_ms: f64,
}

impl<'a> Bench<'a> {
    /// A bench whose yardsticks have buffers of `bytes` bytes.
    pub fn new(gpu: &'a Gpu, machine: &Machine, samples: usize, bytes: u64) -> Result<Bench<'a>> {
        gpu.device.preload()?;
        let mut tiles = Tiles::new(gpu, TILE);
        let yardsticks = Yardsticks::new(gpu, &mut tiles, bytes)?;
        yardsticks.check()?;
        Ok(Bench {
            gpu,
            tiles,
            l2_bytes: machine.l2_bytes,
            samples,
            yardsticks,
        })
    }

    /// The GB/s of every yardstick on whole buffers: medians of alternating samples.
    pub fn yardsticks(&self) -> Result<Vec<(Yardstick, f64)>> {
        let whole = |which: Yardstick| which.passes() * self.yardsticks.bytes();
        let timed = |which| {
            let once = self.beside(which, whole(which), SAMPLE_MS)?;
            let once = self.elapsed(&once.queued)? * once.per_ms;
            self.beside(which, whole(which), once)
        };
        let all: Vec<_> = (Yardstick::ALL.into_iter())
            .map(timed)
            .collect::<Result<_>>()?;
        let mut found = vec![Vec::new(); all.len()];
        for _ in 0..self.samples {
            for (found, beside) in found.iter_mut().zip(&all) {
                found.push(self.elapsed(&beside.queued)? * beside.per_ms);
            }
        }
        let speed = |(beside, found): (&Beside<'_>, &mut Vec<f64>)| {
            let bytes = whole(beside.yardstick) as f64;
            (beside.yardstick, bytes / median(found) / 1e6)
        };
        Ok(all.iter().zip(&mut found).map(speed).collect())
    }

    /// `None` if the row does not fit into the device's memory.
    pub fn measure(&mut self, row: &Row) -> Result<Option<Measured>> {
        self.gpu.stream.synchronize()?;
        let (free, _) = self.gpu.device.context().mem_get_info()?;
        let Some(turns) = turns(row, self.l2_bytes, free as u64) else {
            return Ok(None);
        };
        let samples = samples(row, self.samples);
        let work = work::prepare(self.gpu, &mut self.tiles, row, turns as usize)?;
        let all = Queued::Graph(graph(self.gpu, work.turns, |turn| (work.launch)(turn))?);
        restore(&work)?;
        self.elapsed(&all)?;
        restore(&work)?;
        let once = self.elapsed(&all)? / f64::from(work.turns as u32);
        // A row whose inputs must be restored is called once per turn.
        let rounds = match work.restore {
            Some(_) => 1.0,
            None => (SAMPLE_MS.min(once * CALLS) / (once * work.turns as f64))
                .ceil()
                .max(1.0),
        };
        let calls = rounds as usize * work.turns;
        let op = Queued::Graph(graph(self.gpu, calls, |i| (work.launch)(i % work.turns))?);
        let beside = self.fastest(Yardstick::of(row), row.bytes.max(1), once)?;
        let (mut op_ms, mut yardstick_ms) = (Vec::new(), Vec::new());
        for _ in 0..samples {
            restore(&work)?;
            op_ms.push(self.elapsed(&op)? / calls as f64);
            yardstick_ms.push(self.elapsed(&beside.queued)? * beside.per_ms);
        }
        self.gpu.stream.synchronize()?;
        op_ms.sort_by(f64::total_cmp);
        Ok(Some(Measured {
            name: row.name(),
            row: row.clone(),
            ms: median(&mut op_ms),
            ms_min: op_ms[0],
            ms_max: op_ms[op_ms.len() - 1],
            yardstick: beside.yardstick,
            yardstick_ms: median(&mut yardstick_ms),
            samples,
            calls,
            turns: work.turns,
        }))
    }

    /// The milliseconds of the queued work. On an idle device, the first event would complete at once, and the time in
    /// which the host launches a graph, which grows with its nodes, would count.
    fn elapsed(&self, queued: &Queued<'_>) -> Result<f64> {
        let Gpu { device, stream, .. } = self.gpu;
        let event = || {
            let flags = CUevent_flags::CU_EVENT_DEFAULT;
            device.context().new_event(Some(flags))
        };
        let [start, end] = [event()?, event()?];
        if let Queued::Graph(graph) = queued {
            graph.upload()?;
        }
        let lead = self.yardsticks.bytes() / LEAD;
        self.yardsticks.queue(Yardstick::StreamCopy, 0, lead)?;
        start.record(stream)?;
        match queued {
            Queued::Graph(graph) => graph.launch()?,
            Queued::Calls(queue) => queue()?,
        }
        end.record(stream)?;
        Ok(f64::from(start.elapsed_ms(&end)?))
    }

    /// The fastest of some yardsticks for this number of bytes.
    fn fastest(&self, of: &[Yardstick], bytes: u64, once: f64) -> Result<Beside<'_>> {
        let mut fastest = None;
        for &which in of {
            let beside = self.beside(which, bytes, once)?;
            let mut ms = f64::INFINITY;
            for _ in 0..if of.len() > 1 { TRIALS } else { 0 } {
                ms = ms.min(self.elapsed(&beside.queued)? * beside.per_ms);
            }
            if fastest.as_ref().is_none_or(|&(least, _)| ms < least) {
                fastest = Some((ms, beside));
            }
        }
        Ok(fastest.ok_or("no yardstick")?.1)
    }

    /// A yardstick that moves `bytes` bytes, repeated to fill a sample, given that a call of the row takes `once`
    /// milliseconds.
    fn beside(&self, which: Yardstick, bytes: u64, once: f64) -> Result<Beside<'_>> {
        let buffer = self.yardsticks.bytes();
        let part = (bytes / which.passes())
            .clamp(1, buffer)
            .next_multiple_of(VECTOR);
        let stride = part.next_multiple_of(256);
        let places = (buffer / stride).max(1);
        let moved = which.passes() * part;
        let count = (SAMPLE_MS / (once * moved as f64 / bytes as f64))
            .ceil()
            .clamp(1.0, CALLS) as usize;
        let one = move |i: usize| {
            self.yardsticks
                .queue(which, i as u64 % places * stride, part)
        };
        let queued = match which {
            Yardstick::StreamCopy => Queued::Calls(Box::new(move || (0..count).try_for_each(one))),
            _ => Queued::Graph(graph(self.gpu, count, one)?),
        };
        Ok(Beside {
            yardstick: which,
            queued,
            per_ms: bytes as f64 / (moved as f64 * count as f64),
        })
    }
}

fn restore(work: &Work<'_>) -> Result<()> {
    if let Some(restore) = &work.restore {
        for turn in 0..work.turns {
            restore(turn)?;
        }
    }
    Ok(())
}

/// A graph of `count` calls.
pub fn graph(gpu: &Gpu, count: usize, call: impl Fn(usize) -> Result<()>) -> Result<CudaGraph> {
    gpu.stream.synchronize()?;
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    gpu.stream.begin_capture(mode)?;
    let queued = (0..count).try_for_each(call);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = gpu.stream.end_capture(flags);
    queued?;
    Ok(graph?.ok_or("nothing was queued")?)
}

/// The median; sorts the values.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    f64::midpoint(values[(n - 1) / 2], values[n / 2])
}

/// Runs the yardsticks at a tiny size, without timing.
pub fn smoke_yardsticks(gpu: &Gpu) -> Result<()> {
    Yardsticks::new(gpu, &mut Tiles::new(gpu, 1021), 1 << 16)?.check()
}

/// Launches a row once on the buffers of each turn, without a graph, so that a profiler sees each launch.
pub fn profile(gpu: &Gpu, row: &Row) -> Result<()> {
    let mut tiles = Tiles::new(gpu, TILE.min((row.rows * row.cols) as usize));
    let work = work::prepare(gpu, &mut tiles, row, TURNS as usize)?;
    restore(&work)?;
    gpu.stream.synchronize()?;
    (0..work.turns).try_for_each(&work.launch)?;
    gpu.stream.synchronize()?;
    Ok(())
}

/// Runs a row once at a tiny size without timing, and returns whether it wrote its output.
pub fn smoke(gpu: &Gpu, row: &Row) -> Result<bool> {
    let mut tiles = Tiles::new(gpu, 1021);
    let work = work::prepare(gpu, &mut tiles, row, TURNS as usize)?;
    let written_before = work.is_written()?;
    let graph = graph(gpu, work.turns, |turn| (work.launch)(turn))?;
    restore(&work)?;
    graph.launch()?;
    let written = work.is_written()?;
    gpu.stream.synchronize()?;
    Ok(written && !written_before)
}
