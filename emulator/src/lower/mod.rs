//! From the syntax tree to [`Code`]: operands become rows, labels indices, opcodes closures.
//!
//! To add an instruction, add its row to `instructions.md`, whose headings name the files here, and a line to
//! the `match` of that file. A file takes the modifiers that it knows from [`Words`]; whatever is left over is
//! an error, so no modifier is ever ignored by accident.

mod branch;
mod cluster;
mod convert;
mod data;
mod floating;
mod integer;
mod layout;
mod memory;
mod operands;
mod sync;
#[cfg(test)]
pub(crate) mod tests;
mod warp;

use std::collections::HashMap;

use crate::instructions;
use crate::lanes::Exec;
use crate::ptx::PtxError;
use crate::ptx::ast::{Entry, Instruction, Module};
pub(crate) use cluster::ClusterOp;
use layout::Symbol;
pub(crate) use memory::{Access, AtomicKind, AtomicOp, Base};
pub(crate) use sync::Reduce;
pub(crate) use warp::{Redux, Shuffle, WarpOp};

/// Where the first shared variable lies; below it a shared address is a bug.
pub(crate) const SHARED_START: u64 = 1024;
/// Unusable bytes between shared variables.
pub(crate) const RED_ZONE: u64 = 256;

/// A register as an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Its row; of a predicate, its index.
    pub row: u32,
    /// It has 64 bits.
    pub wide: bool,
}

/// A special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    LaneMask(MaskKind),
    SmId,
    NSmId,
    GridId,
    ClusterId(u8),
    NClusterId(u8),
    ClusterRank,
    ClusterSize,
    DynamicSmem,
    TotalSmem,
    /// Clocks and timers: the number of instructions executed so far would differ between
    /// schedules, so they read as 0.
    Clock,
}

/// `%lanemask_…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MaskKind {
    Eq,
    Le,
    Lt,
    Ge,
    Gt,
}

/// What a constant row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Constant {
    Value(u64),
    Special(Special),
    /// The address of a module variable, by index, plus an offset.
    Variable(u32, i64),
}

/// A lowered entry.
pub(crate) struct Code {
    pub name: String,
    pub insts: Vec<Inst>,
    pub rows: usize,
    pub preds: usize,
    /// Rows that are filled when a warp or block starts.
    pub constants: Vec<(Slot, Constant)>,
    /// Byte ranges of parameters in the parameter buffer: (offset, size).
    pub params: Vec<(u64, u64)>,
    pub param_bytes: u64,
    /// Static shared variables: (name, offset, size).
    pub shared: Vec<(String, u64, u64)>,
    /// Bytes of static shared memory without red zones.
    pub shared_bytes: u64,
    /// Where dynamic shared memory begins.
    pub dynamic_start: u64,
    pub local_bytes: u64,
    pub max_ntid: Option<(u32, u32, u32)>,
    pub req_ntid: Option<(u32, u32, u32)>,
    pub max_nreg: Option<u32>,
    /// Which spaces have a compare-and-swap: [global, shared]. Its loops begin with a plain read.
    pub swaps: [bool; 2],
    /// Blocks of different clusters cannot wait for each other or pass anything on.
    pub independent: bool,
}

/// One lowered instruction.
pub(crate) struct Inst {
    /// Predicate index, and whether it is negated.
    pub guard: Option<(u32, bool)>,
    pub op: Op,
    pub line: u32,
    /// File number and line of the source.
    pub source: Option<(u32, u32)>,
}

/// What an instruction does.
pub(crate) enum Op {
    /// Arithmetic: the closure, and what it reads and writes as indices into `Lanes::written`. An
    /// unwritten source makes an unwritten result.
    Alu {
        run: Exec,
        sources: [u32; 4],
        results: Vec<u32>,
    },
    /// `selp`: the result is written where the chosen source is.
    Select {
        d: Slot,
        a: Slot,
        b: Slot,
        p: u32,
    },
    Load(Access),
    Store(Access),
    Atomic(Access, AtomicOp),
    Branch(u32),
    /// `brx.idx`.
    BranchIndexed(Slot, Vec<u32>),
    /// `bar.sync`: barrier, and number of threads if given. Aligned or not.
    Barrier {
        id: Slot,
        threads: Option<Slot>,
        aligned: bool,
        reduce: Option<(Reduce, u32, bool, u32)>,
        arrive: bool,
    },
    /// An instruction that waits for the lanes of its member mask.
    Warp {
        members: Slot,
        op: WarpOp,
    },
    /// `membar`, `fence`.
    Fence,
    /// What the blocks of a cluster do with each other.
    Cluster(ClusterOp),
    Exit,
    Trap,
    /// `griddepcontrol`: nothing to do.
    Nothing,
}

/// The modifiers of an instruction, taken one by one.
pub(crate) struct Words<'a> {
    pub inst: &'a Instruction,
    left: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn new(inst: &'a Instruction) -> Self {
        Words {
            inst,
            left: inst.modifiers.iter().map(String::as_str).collect(),
        }
    }

    /// Takes a modifier if it is there, wherever it stands.
    fn take(&mut self, word: &str) -> bool {
        match self.left.iter().position(|w| *w == word) {
            Some(i) => {
                self.left.remove(i);
                true
            }
            None => false,
        }
    }

    /// Takes the first of the modifiers for which `f` has a meaning.
    fn take_map<T>(&mut self, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (i, v) = self
            .left
            .iter()
            .enumerate()
            .find_map(|(i, w)| f(w).map(|v| (i, v)))?;
        self.left.remove(i);
        Some(v)
    }

    /// Takes the last modifier.
    fn last(&mut self) -> &'a str {
        self.left.pop().unwrap_or("")
    }

    /// Takes the first modifier.
    fn first(&mut self) -> &'a str {
        if self.left.is_empty() {
            ""
        } else {
            self.left.remove(0)
        }
    }

    fn unsupported(&self) -> PtxError {
        PtxError::new(
            self.inst.line,
            format!("unsupported instruction `{}`", self.inst.name()),
        )
    }

    fn bad(&self, why: &str) -> PtxError {
        PtxError::new(self.inst.line, format!("`{}`: {why}", self.inst.name()))
    }

    /// Everything has been understood.
    fn finish(&self) -> Result<(), PtxError> {
        if self.left.is_empty() {
            return Ok(());
        }
        Err(PtxError::new(
            self.inst.line,
            format!(
                "unsupported modifier `.{}` of `{}`",
                self.left.join("."),
                self.inst.name()
            ),
        ))
    }
}

/// Lowers one entry.
pub(crate) fn lower(module: &Module, entry: &Entry) -> Result<Code, PtxError> {
    let mut l = Lowerer::new(module, entry)?;
    let mut insts = Vec::with_capacity(entry.body.len() + 1);
    for inst in &entry.body {
        l.reads.clear();
        l.writes.clear();
        let op = l.instruction(inst)?;
        let guard = match inst.guard {
            None => None,
            Some((r, negated)) => Some((l.pred_register(inst, r)?, negated)),
        };
        insts.push(Inst {
            guard,
            op,
            line: inst.line,
            source: inst.source,
        });
    }
    // Falling off the end is a return.
    insts.push(Inst {
        guard: None,
        op: Op::Exit,
        line: entry.line,
        source: None,
    });
    let rows = l.rows as usize;
    // Predicates follow the rows in `written`.
    for i in &mut insts {
        if let Op::Alu {
            sources, results, ..
        } = &mut i.op
        {
            for s in sources.iter_mut().chain(results) {
                if *s & PRED != 0 {
                    *s = (*s & !PRED) + rows as u32;
                }
            }
        }
    }
    let independent = !insts.iter().any(|inst| match &inst.op {
        Op::Fence => true,
        Op::Load(a) | Op::Store(a) | Op::Atomic(a, _) => a.is_seen_by_other_blocks(),
        _ => false,
    });
    let param_bytes = l.params.last().map_or(0, |(o, s)| o + s);
    Ok(Code {
        name: entry.name.clone(),
        insts,
        rows,
        preds: l.preds as usize,
        constants: l.constants,
        params: l.params,
        param_bytes,
        shared: l.shared,
        shared_bytes: l.shared_bytes,
        dynamic_start: l.dynamic_start,
        local_bytes: l.local_bytes,
        max_ntid: entry.max_ntid,
        req_ntid: entry.req_ntid,
        max_nreg: entry.max_nreg,
        swaps: l.swaps,
        independent,
    })
}

/// Marks an index into the predicates while the number of rows is not known.
const PRED: u32 = 1 << 31;
/// The row that is always written: what an absent source reads.
const ALWAYS: u32 = 0;

struct Lowerer<'a> {
    entry: &'a Entry,
    /// Places of the registers met so far.
    slots: HashMap<u32, Slot>,
    rows: u32,
    preds: u32,
    constants: Vec<(Slot, Constant)>,
    pool: HashMap<(Constant, bool), Slot>,
    symbols: HashMap<&'a str, Symbol>,
    params: Vec<(u64, u64)>,
    shared: Vec<(String, u64, u64)>,
    shared_bytes: u64,
    dynamic_start: u64,
    local_bytes: u64,
    swaps: [bool; 2],
    /// Registers that the current instruction reads and writes, as indices into `written`.
    reads: Vec<u32>,
    writes: Vec<u32>,
}

impl<'a> Lowerer<'a> {
    fn new(module: &'a Module, entry: &'a Entry) -> Result<Self, PtxError> {
        let mut l = Lowerer {
            entry,
            slots: HashMap::new(),
            rows: 1,
            preds: 0,
            constants: vec![(
                Slot {
                    row: ALWAYS,
                    wide: false,
                },
                Constant::Value(0),
            )],
            pool: HashMap::new(),
            symbols: HashMap::new(),
            params: Vec::new(),
            shared: Vec::new(),
            shared_bytes: 0,
            dynamic_start: 0,
            local_bytes: 0,
            swaps: [false; 2],
            reads: Vec::new(),
            writes: Vec::new(),
        };
        l.layout(module)?;
        Ok(l)
    }

    /// An arithmetic instruction with the operands that were asked for since the last one.
    fn alu(&self, w: &Words, run: Exec) -> Result<Op, PtxError> {
        w.finish()?;
        let mut sources = [ALWAYS; 4];
        if self.reads.len() > sources.len() {
            return Err(w.bad("too many operands"));
        }
        sources[..self.reads.len()].copy_from_slice(&self.reads);
        Ok(Op::Alu {
            run,
            sources,
            results: self.writes.clone(),
        })
    }

    /// One instruction, by family.
    fn instruction(&mut self, inst: &'a Instruction) -> Result<Op, PtxError> {
        let w = Words::new(inst);
        let Some(form) = instructions::form(&inst.opcode, &inst.modifiers) else {
            return Err(w.unsupported());
        };
        let n = inst.operands.len();
        if n < form.count.0 || n > form.count.1 {
            return Err(w.bad(&format!("{n} operands instead of `{}`", form.operands)));
        }
        match inst.opcode.as_str() {
            "bra" | "brx" | "ret" | "exit" | "trap" | "griddepcontrol" => self.branch(w),
            "bar" if inst.modifiers[0] == "warp" => self.warp(w),
            "mapa" | "mbarrier" => self.cluster(w),
            "barrier" if inst.modifiers[0] == "cluster" => self.cluster(w),
            "fence" if inst.modifiers[0] == "mbarrier_init" => self.cluster(w),
            "st" if inst.modifiers[0] == "async" => self.cluster(w),
            "shfl" | "vote" | "redux" => self.warp(w),
            "bar" | "barrier" => self.barrier(w),
            "membar" | "fence" => self.fence(w),
            "ld" | "st" | "atom" | "red" => self.memory(w),
            "mov" | "cvta" | "selp" | "setp" | "set" => self.data(w),
            "cvt" => self.convert(w),
            _ => match w.left.last().copied() {
                Some("f32" | "f64" | "f16" | "bf16" | "f16x2" | "bf16x2") => self.floating(w),
                _ => self.integer(w),
            },
        }
    }
}
