//! Execution of a launch.
//!
//! Each lane of a warp has its own program counter. The lanes at the lowest program counter run together until they diverge,
//! meet other lanes, or must wait, so lanes reconverge where the code does. Each of the [`workers`] runs clusters of blocks
//! (of one block, unless the launch says otherwise) one after the other. Under [`Schedule::Seeded`] one thread interleaves
//! them. The blocks of a cluster run alternately.

mod access;
mod address;
mod block;
mod cluster;
mod messages;
mod sync;
mod totals;
mod warp;
mod workers;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::device::DEVICES;
use crate::lanes::Lanes;
use crate::lower::{Code, Constant, MaskKind, Special};
use crate::memory::{Buffer, PARAM_BASE};
use crate::race;
use crate::report::{Check, Finding, LaunchReport};
use crate::settings::{Schedule, Settings};

use block::Block;
use cluster::AsyncStore;
pub(crate) use totals::Extent;
use totals::Totals;
use workers::Core;

/// Blocks that [`Schedule::Seeded`] interleaves: whole clusters, at least one.
const IN_FLIGHT: usize = 4;

/// The parts of a launch.
pub(crate) struct Request {
    pub code: Arc<Code>,
    /// `.file` numbers to paths.
    pub files: Arc<HashMap<u32, String>>,
    /// Opcode names by instruction, for the report.
    pub names: Arc<Vec<String>>,
    /// Addresses of the module's variables.
    pub variables: Arc<Vec<u64>>,
    pub device: usize,
    pub grid: (u32, u32, u32),
    pub block: (u32, u32, u32),
    /// Blocks of a cluster, along x.
    pub cluster: u32,
    pub dynamic_shared: u32,
    pub params: Vec<u8>,
}

/// A bug, on its way to becoming a [`Finding`].
pub(crate) struct Trap {
    pub check: Check,
    pub lane: usize,
    pub message: String,
}

impl Trap {
    fn new(check: Check, lane: usize, message: impl Into<String>) -> Box<Self> {
        Box::new(Trap {
            check,
            lane,
            message: message.into(),
        })
    }
}

type Step<T = ()> = Result<T, Box<Trap>>;

/// A launch, or what one of its workers knows of it: the state that the blocks it runs share.
struct Launch<'a> {
    request: &'a Request,
    code: &'a Code,
    settings: Settings,
    threads: u32,
    params: Buffer,
    totals: Totals,
    /// The buffer touched last, in the totals.
    recent: usize,
    /// Whether traffic is counted.
    counting: bool,
    /// Stamps from before the launch are below this.
    floor: u64,
    /// Whether there are other workers.
    concurrent: bool,
    /// What blocks have published: the last release of each of their warps.
    released: HashMap<u64, Vec<race::Release>>,
    /// Asynchronous stores that have not arrived.
    on_their_way: Vec<AsyncStore>,
    /// mbarriers initialised so far.
    mbarriers: u64,
    rng: Rng,
}

/// A small generator of random numbers (splitmix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        crate::arith::approx::hash(self.0)
    }

    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// Runs a launch to its end or to its first finding.
pub(crate) fn run(
    request: &Request,
    settings: Settings,
    counting: bool,
) -> (LaunchReport, Vec<Extent>) {
    let _core = Core::take();
    let floor = race::stamp(race::tick(), 0, 0, false);
    let new = || Launch::new(request, settings, counting, floor);
    let (totals, finding) = match settings.schedule {
        Schedule::InOrder | Schedule::Reversed => workers::run(new),
        Schedule::Seeded(_) => {
            let mut launch = new();
            let finding = launch.interleaved().err();
            (launch.totals, finding)
        }
    };
    totals.report(request, counting, finding)
}

impl<'a> Launch<'a> {
    fn new(request: &'a Request, settings: Settings, counting: bool, floor: u64) -> Self {
        let code = &*request.code;
        let (bx, by, bz) = request.block;
        let params = Buffer::new(PARAM_BASE, code.param_bytes, "kernel parameters".into());
        params.copy_in(0, &request.params);
        Launch {
            request,
            code,
            settings,
            threads: bx * by * bz,
            params,
            totals: Totals::new(code),
            recent: 0,
            counting,
            floor,
            concurrent: false,
            released: HashMap::new(),
            on_their_way: Vec::new(),
            mbarriers: 0,
            rng: Rng(match settings.schedule {
                Schedule::Seeded(s) => s,
                _ => 0,
            }),
        }
    }

    /// How many clusters there are.
    fn clusters(&self) -> u64 {
        let (x, y, z) = self.request.grid;
        u64::from(x) * u64::from(y) * u64::from(z) / u64::from(self.request.cluster)
    }

    /// The blocks of a cluster, which are none yet.
    fn cluster(&self) -> Vec<Block> {
        (0..self.request.cluster)
            .map(|_| Block::new(self))
            .collect()
    }

    /// Runs several clusters at once, a few instructions of one after a few of another.
    fn interleaved(&mut self) -> Result<(), Finding> {
        let total = self.clusters();
        let at_once = (IN_FLIGHT as u64 / u64::from(self.request.cluster)).clamp(1, total);
        let mut flight: Vec<_> = (0..at_once).map(|_| self.cluster()).collect();
        for (number, cluster) in (0..).zip(&mut flight) {
            self.start(cluster, number);
        }
        let mut next = at_once;
        while !flight.is_empty() {
            let i = self.rng.below(flight.len());
            self.slice(&mut flight[i])?;
            if flight[i].iter().all(Block::is_done) {
                if next < total {
                    self.start(&mut flight[i], next);
                    next += 1;
                } else {
                    flight.swap_remove(i);
                }
            }
        }
        Ok(())
    }

    /// Makes some blocks those of the cluster `number`.
    fn start(&self, cluster: &mut [Block], number: u64) {
        let first = number * cluster.len() as u64;
        for (rank, block) in cluster.iter_mut().enumerate() {
            block.start(self, first + rank as u64);
        }
    }

    /// Runs one cluster to its end, block by block and warp by warp.
    fn alone(&mut self, cluster: &mut [Block], reversed: bool) -> Result<(), Finding> {
        let turn = |i: usize, of: usize| if reversed { of - 1 - i } else { i };
        while !cluster.iter().all(Block::is_done) {
            let mut progress = false;
            for b in 0..cluster.len() {
                let b = turn(b, cluster.len());
                for i in 0..cluster[b].warps.len() {
                    let i = turn(i, cluster[b].warps.len());
                    if cluster[b].warps[i].runnable() != 0 {
                        progress = true;
                        self.warp(&mut cluster[b], i, None)?;
                        self.settle(cluster)?;
                    }
                }
            }
            if !progress {
                return Err(self.deadlock(cluster));
            }
        }
        Ok(())
    }

    /// Runs a few instructions of a random warp of a cluster.
    fn slice(&mut self, cluster: &mut [Block]) -> Result<(), Finding> {
        let n = cluster[0].warps.len();
        let all = n * cluster.len();
        let start = self.rng.below(all);
        match (0..all)
            .map(|k| (start + k) % all)
            .find(|&i| cluster[i / n].warps[i % n].runnable() != 0)
        {
            Some(i) => {
                let steps = 1 + self.rng.next() % 16;
                self.warp(&mut cluster[i / n], i % n, Some(steps))?;
                self.settle(cluster)
            }
            None => Err(self.deadlock(cluster)),
        }
    }

    /// Runs a warp; turns a trap into a finding.
    fn warp(&mut self, block: &mut Block, i: usize, steps: Option<u64>) -> Result<(), Finding> {
        self.run_warp(block, i, steps).map_err(|(pc, t)| {
            let thread = block.warps[i].index * 32 + t.lane as u32;
            self.finding(t.check, pc, block.linear, thread, t.message)
        })
    }

    fn block_id(&self, linear: u64) -> (u32, u32, u32) {
        let (x, y, _) = self.request.grid;
        let (x, y) = (u64::from(x), u64::from(y));
        (
            (linear % x) as u32,
            (linear / x % y) as u32,
            (linear / x / y) as u32,
        )
    }

    fn thread_id(&self, linear: u32) -> (u32, u32, u32) {
        let (x, y, _) = self.request.block;
        (linear % x, linear / x % y, linear / x / y)
    }

    fn finding(&self, check: Check, pc: u32, block: u64, thread: u32, message: String) -> Finding {
        let inst = &self.code.insts[pc as usize];
        let name = self
            .request
            .names
            .get(pc as usize)
            .map_or("end of the entry", String::as_str);
        Finding {
            check,
            kernel: self.code.name.clone(),
            ptx_line: inst.line,
            source: inst.source.map(|(file, line)| {
                (
                    self.request
                        .files
                        .get(&file)
                        .cloned()
                        .unwrap_or_else(|| format!("file {file}")),
                    line,
                )
            }),
            block: self.block_id(block),
            thread: self.thread_id(thread),
            message: format!("`{name}`: {message}"),
        }
    }

    fn deadlock(&self, cluster: &[Block]) -> Finding {
        // One line per place where threads of a block wait.
        let mut places: BTreeMap<(u64, u32), Vec<u32>> = BTreeMap::new();
        for block in cluster {
            for w in &block.warps {
                for lane in 0..32 {
                    if w.alive & (1 << lane) != 0 {
                        places
                            .entry((block.linear, w.pcs[lane]))
                            .or_default()
                            .push(w.index * 32 + lane as u32);
                    }
                }
            }
        }
        let mut message = String::from("no thread can go on; waiting are");
        for ((block, pc), threads) in &places {
            message += &format!(
                "\n    {} threads (first {:?}) {}at ptx line {} `{}`",
                threads.len(),
                self.thread_id(threads[0]),
                match cluster {
                    [_] => String::new(),
                    _ => format!("of block {:?} ", self.block_id(*block)),
                },
                self.code.insts[*pc as usize].line,
                self.request
                    .names
                    .get(*pc as usize)
                    .map_or("", String::as_str),
            );
        }
        message += &self.open_phases(cluster);
        let ((block, pc), threads) = places
            .first_key_value()
            .expect("a cluster without threads is done");
        self.finding(Check::Deadlock, *pc, *block, threads[0], message)
    }

    /// Fills the constant rows of a warp. Those of the block are filled again for every block.
    fn fill_constants(&self, lanes: &mut Lanes, warp: u32, block: u64, all: bool) {
        for &(slot, constant) in &self.code.constants {
            let per_block = matches!(
                constant,
                Constant::Special(
                    Special::Ctaid(_)
                        | Special::SmId
                        | Special::ClusterId(_)
                        | Special::ClusterRank
                )
            );
            if !all && !per_block {
                continue;
            }
            for lane in 0..32 {
                let value = match constant {
                    Constant::Value(v) => v,
                    Constant::Variable(i, offset) => {
                        self.request.variables[i as usize].wrapping_add_signed(offset)
                    }
                    Constant::Special(s) => self.special(s, warp, lane, block),
                };
                lanes.set(slot.row, slot.wide, lane as usize, value);
            }
            for r in 0..=usize::from(slot.wide) {
                lanes.written[slot.row as usize + r] = u32::MAX;
            }
        }
    }

    fn special(&self, s: Special, warp: u32, lane: u32, block: u64) -> u64 {
        let axis = |(x, y, z): (u32, u32, u32), a: u8| u64::from([x, y, z][usize::from(a)]);
        match s {
            Special::Tid(a) => axis(self.thread_id(warp * 32 + lane), a),
            Special::Ntid(a) => axis(self.request.block, a),
            Special::Ctaid(a) => axis(self.block_id(block), a),
            Special::Nctaid(a) => axis(self.request.grid, a),
            Special::LaneId => u64::from(lane),
            Special::WarpId => u64::from(warp),
            Special::NWarpId => 64,
            Special::LaneMask(kind) => u64::from(match kind {
                MaskKind::Eq => 1u32 << lane,
                MaskKind::Lt => (1 << lane) - 1,
                MaskKind::Le => ((1u64 << (lane + 1)) - 1) as u32,
                MaskKind::Ge => u32::MAX << lane,
                MaskKind::Gt => ((u64::from(u32::MAX) << (lane + 1)) & 0xffff_ffff) as u32,
            }),
            Special::SmId => block % u64::from(DEVICES[self.request.device].multiprocessors),
            Special::NSmId => u64::from(DEVICES[self.request.device].multiprocessors),
            Special::DynamicSmem => u64::from(self.request.dynamic_shared),
            Special::TotalSmem => self.code.shared_bytes + u64::from(self.request.dynamic_shared),
            Special::ClusterId(a) => {
                let (x, y, z) = self.block_id(block);
                axis((x / self.request.cluster, y, z), a)
            }
            Special::NClusterId(a) => {
                let (x, y, z) = self.request.grid;
                axis((x / self.request.cluster, y, z), a)
            }
            Special::ClusterRank => block % u64::from(self.request.cluster),
            Special::ClusterSize => u64::from(self.request.cluster),
            Special::GridId | Special::Clock => 0,
        }
    }
}
