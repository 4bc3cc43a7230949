//! How a row is timed.
//!
//! The calls of a sample are a CUDA graph, so that the host's part is not in the figure, and take turns on
//! buffers that together exceed the L2 cache twice, so that none finds its input there. Every sample is beside
//! one of a copy of as many bytes, in turn, so that the clocks of the moment meet both; of each the median counts.

use serde::{Deserialize, Serialize};
use xact::cudarc::driver::sys::{
    CUdevice_attribute, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use xact::cudarc::driver::{CudaGraph, CudaSlice, DevicePtr};

use crate::rows::Row;
use crate::support::choose::Gpu;
use crate::work::{self, Result, Tiles, Work};

/// Fewest turns, so that a cache with another policy than LRU does not help either.
const TURNS: u64 = 3;
/// What a sample of calls takes at least, in milliseconds: hundreds of times what an event resolves.
const SAMPLE_MS: f64 = 4.0;
/// The most calls of a graph.
const CALLS: f64 = 2000.0;
/// Bytes of each of the copy's two buffers: several times any L2 cache.
const COPY_BYTES: u64 = 1 << 30;
/// Bytes of the copy before each sample, during which the host launches its graph: a tenth of a millisecond at least,
/// at twice the bytes and the 4.8 TB/s of an H200.
const LEAD_BYTES: u64 = COPY_BYTES / 4;
/// The part of the free memory that a row may take.
const MEMORY: f64 = 0.9;
/// The most samples of a row that is there only to complete the grid.
const GRID_SAMPLES: usize = 5;

/// What a device is, where that decides how fast it can be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub device: String,
    pub l2_bytes: u64,
    pub sms: u64,
    /// By memory clock and bus width, two transfers a clock: the data sheet's figure.
    pub sheet_gb_per_s: f64,
}

impl Machine {
    pub fn of(gpu: &Gpu) -> Result<Machine> {
        use CUdevice_attribute as A;
        let ask = |attribute| gpu.device.context().attribute(attribute).map(|v| v as u64);
        let clock_khz = ask(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let bits = ask(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        Ok(Machine {
            device: gpu.name.clone(),
            l2_bytes: ask(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            sms: ask(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            sheet_gb_per_s: 2.0 * clock_khz as f64 * 1e3 * bits as f64 / 8.0 / 1e9,
        })
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    #[serde(flatten)]
    pub row: Row,
    pub name: String,
    /// Milliseconds of a call: median, least, most of the samples.
    pub ms: f64,
    pub ms_min: f64,
    pub ms_max: f64,
    /// Milliseconds of a copy that moves as many bytes (reads half of them, writes half).
    pub copy_ms: f64,
    pub samples: usize,
    /// Calls of a sample, and buffers on which they take turns.
    pub calls: usize,
    pub turns: usize,
}

impl Measured {
    pub fn gb_per_s(&self) -> f64 {
        self.row.bytes as f64 / self.ms / 1e6
    }

    /// How near it is to the copy's speed; nothing of a row that moves no bytes.
    pub fn share_of_copy(&self) -> Option<f64> {
        (self.row.bytes > 0).then(|| self.copy_ms / self.ms)
    }
}

/// Turns of a row on a device with so much cache and free memory; `None` if it does not fit.
fn turns(row: &Row, l2_bytes: u64, free: u64) -> Option<u64> {
    let turn = work::memory(row);
    // What a call brings into the cache; one that masks every row, nothing.
    let touched = if row.bytes == 0 {
        turn
    } else {
        row.bytes.min(turn)
    };
    let wanted = (2 * l2_bytes).div_ceil(touched).max(TURNS);
    let fit = (free as f64 * MEMORY / turn as f64) as u64;
    let turns = wanted.min(fit).min(CALLS as u64);
    // A turn may be alone if it throws all of itself out of the cache.
    let enough = turns == wanted || turns * touched >= 2 * l2_bytes;
    (turns > 0 && enough).then_some(turns)
}

/// Samples of a row where so many are asked for.
fn samples(row: &Row, asked: usize) -> usize {
    if row.completes_the_grid() {
        asked.min(GRID_SAMPLES)
    } else {
        asked
    }
}

/// What a row may take, in seconds: for the plan of a run, and for no result. A device that moves 2 TB/s is assumed,
/// half of what an H200 does, and a tenth of a second for buffers and graphs.
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
        // Once a turn, and before each the logits are put back.
        "fused" => (calls, filled),
        _ => (calls.max(SAMPLE_MS / 1e3), 0.0),
    };
    let copy = SAMPLE_MS / 1e3;
    let lead = 2.0 * LEAD_BYTES as f64 / BYTES_PER_S;
    APART
        + filled
        + 2.0 * (lead + calls + restored)
        + samples * (2.0 * lead + sample + restored + copy)
}

/// Times rows on a real device.
pub struct Bench<'a> {
    gpu: &'a Gpu,
    tiles: Tiles<'a>,
    l2_bytes: u64,
    samples: usize,
    copy: [CudaSlice<u8>; 2],
}

impl<'a> Bench<'a> {
    pub fn new(gpu: &'a Gpu, machine: &Machine, samples: usize) -> Result<Bench<'a>> {
        gpu.device.preload()?;
        let buffer = || gpu.stream.alloc_zeros::<u8>(COPY_BYTES as usize);
        Ok(Bench {
            gpu,
            // A prime number: no two turns and no two rows hold the same.
            tiles: Tiles::new(gpu, 4_194_301),
            l2_bytes: machine.l2_bytes,
            samples,
            copy: [buffer()?, buffer()?],
        })
    }

    /// `None` if the device's memory does not hold what the row needs.
    pub fn measure(&mut self, row: &Row) -> Result<Option<Measured>> {
        self.gpu.stream.synchronize()?;
        let (free, _) = self.gpu.device.context().mem_get_info()?;
        let Some(turns) = turns(row, self.l2_bytes, free as u64) else {
            return Ok(None);
        };
        let samples = samples(row, self.samples);
        let work = work::prepare(self.gpu, &mut self.tiles, row, turns as usize)?;
        let all = graph(self.gpu, work.turns, |turn| (work.launch)(turn))?;
        restore(&work)?;
        self.elapsed(&all)?;
        restore(&work)?;
        let once = self.elapsed(&all)? / f64::from(work.turns as u32);
        // What must be restored can be called once a turn.
        let rounds = match work.restore {
            Some(_) => 1.0,
            None => (SAMPLE_MS.min(once * CALLS) / (once * work.turns as f64))
                .ceil()
                .max(1.0),
        };
        let calls = rounds as usize * work.turns;
        let op = graph(self.gpu, calls, |i| (work.launch)(i % work.turns))?;
        let copy = self.copy_graph(row.bytes.max(1), once)?;
        let (mut op_ms, mut copy_ms) = (Vec::new(), Vec::new());
        for _ in 0..samples {
            restore(&work)?;
            op_ms.push(self.elapsed(&op)? / calls as f64);
            copy_ms.push(self.elapsed(&copy.graph)? * copy.per_ms);
        }
        self.gpu.stream.synchronize()?;
        op_ms.sort_by(f64::total_cmp);
        Ok(Some(Measured {
            name: row.name(),
            row: row.clone(),
            ms: median(&mut op_ms),
            ms_min: op_ms[0],
            ms_max: op_ms[op_ms.len() - 1],
            copy_ms: median(&mut copy_ms),
            samples,
            calls,
            turns: work.turns,
        }))
    }

    /// Milliseconds of a graph. An idle device would pass the first event at once, and the time in which the host
    /// launches the graph, which grows with its nodes, would count.
    fn elapsed(&self, graph: &CudaGraph) -> Result<f64> {
        let Gpu { device, stream, .. } = self.gpu;
        let event = || {
            let flags = CUevent_flags::CU_EVENT_DEFAULT;
            device.context().new_event(Some(flags))
        };
        let [start, end] = [event()?, event()?];
        graph.upload()?;
        let [from, to] = [0, 1].map(|i| self.copy[i].device_ptr(stream).0);
        work::copy(self.gpu, to, from, LEAD_BYTES)?;
        start.record(stream)?;
        graph.launch()?;
        end.record(stream)?;
        Ok(f64::from(start.elapsed_ms(&end)?))
    }

    /// Copies that move `bytes` bytes each, half of them read and half written; as many as take as long as a sample
    /// of the row, of which a call takes `once` milliseconds.
    fn copy_graph(&self, bytes: u64, once: f64) -> Result<Copies> {
        let [from, to] = [0, 1].map(|i| self.copy[i].device_ptr(&self.gpu.stream).0);
        let part = (bytes / 2).clamp(1, COPY_BYTES);
        let places = (COPY_BYTES / part.next_multiple_of(256)).max(1);
        let per_part = once * 2.0 * part as f64 / bytes as f64;
        let count = (SAMPLE_MS / per_part).ceil().clamp(1.0, CALLS) as usize;
        let graph = graph(self.gpu, count, |i| {
            let offset = (i as u64 % places) * part.next_multiple_of(256);
            work::copy(self.gpu, to + offset, from + offset, part)
        })?;
        Ok(Copies {
            graph,
            per_ms: bytes as f64 / (2.0 * part as f64 * count as f64),
        })
    }
}

struct Copies {
    graph: CudaGraph,
    /// What a millisecond of the graph is of one copy of the bytes that were asked for.
    per_ms: f64,
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

/// The one in the middle; sorts.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    f64::midpoint(values[(n - 1) / 2], values[n / 2])
}

/// Runs a row once at a tiny size, and says if it wrote its output; times nothing.
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
