//! From the syntax tree to [`Code`]: operands become rows, labels indices, opcodes closures.
//!
//! To add an instruction, add a line to the `match` of the file of its family: [`integer`],
//! [`floating`], [`convert`] or [`memory`]. A family takes the modifiers that it knows from
//! [`Words`]; whatever is left over is an error, so no modifier is ever ignored by accident.

mod convert;
mod data;
mod floating;
mod integer;
mod memory;

use std::collections::HashMap;

use crate::lanes::Exec;
use crate::ptx::PtxError;
use crate::ptx::ast::{Entry, Instruction, Module, Operand, Space, Variable};
pub(crate) use memory::{Access, AtomicKind, AtomicOp};

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
    Exit,
    Trap,
    /// `griddepcontrol`, `prefetch`, `nanosleep`: nothing to do.
    Nothing,
}

/// `bar.red`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduce {
    Popc,
    And,
    Or,
}

/// Which lane `shfl` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// `redux.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Redux {
    Add,
    MinU,
    MaxU,
    MinS,
    MaxS,
    And,
    Or,
    Xor,
}

/// An instruction that communicates inside a warp.
pub(crate) enum WarpOp {
    Shuffle {
        mode: Shuffle,
        d: Slot,
        p: Option<u32>,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// `vote`: the source predicate, whether it is negated, and the destination.
    VoteAll(u32, bool, u32),
    VoteAny(u32, bool, u32),
    VoteUniform(u32, bool, u32),
    Ballot(u32, bool, Slot),
    Redux(Redux, Slot, Slot),
    MatchAny(Slot, Slot),
    MatchAll(Slot, Slot, Option<u32>),
    /// `bar.warp.sync`.
    Sync,
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
    })
}

/// Marks an index into the predicates while the number of rows is not known.
const PRED: u32 = 1 << 31;
/// The row that is always written: what an absent source reads.
const ALWAYS: u32 = 0;

/// What a name in the module or entry stands for.
#[derive(Clone, Copy)]
enum Symbol {
    /// Address in its space (param, shared, local).
    Offset(Space, u64),
    /// Module variable.
    Variable(Space, u32),
}

struct Lowerer<'a> {
    entry: &'a Entry,
    slots: Vec<Slot>,
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

fn align(offset: u64, to: u64) -> u64 {
    offset.div_ceil(to) * to
}

impl<'a> Lowerer<'a> {
    fn new(module: &'a Module, entry: &'a Entry) -> Result<Self, PtxError> {
        let mut l = Lowerer {
            entry,
            slots: Vec::with_capacity(entry.registers.len()),
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
        for r in &entry.registers {
            let slot = match r.size {
                0 => {
                    l.preds += 1;
                    Slot {
                        row: l.preds - 1,
                        wide: false,
                    }
                }
                size => l.new_row(size == 8),
            };
            l.slots.push(slot);
        }
        l.layout(module)?;
        Ok(l)
    }

    fn new_row(&mut self, wide: bool) -> Slot {
        let row = self.rows;
        self.rows += 1 + u32::from(wide);
        Slot { row, wide }
    }

    /// Gives every variable its place.
    fn layout(&mut self, module: &'a Module) -> Result<(), PtxError> {
        let mut offset = 0;
        for p in &self.entry.params {
            offset = align(offset, p.align);
            self.symbols
                .insert(&p.name, Symbol::Offset(Space::Param, offset));
            self.params.push((offset, p.size));
            offset += p.size;
        }
        for (i, v) in module.variables.iter().enumerate() {
            if v.space != Space::Shared {
                self.symbols
                    .insert(&v.name, Symbol::Variable(v.space, i as u32));
            }
        }
        // A module-level shared variable takes space in the kernels that use it.
        let used = |v: &Variable| {
            self.entry
                .body
                .iter()
                .any(|i| i.operands.iter().any(|o| mentions(o, &v.name)))
        };
        let shared = module
            .variables
            .iter()
            .filter(|v| v.space == Space::Shared && used(v));
        let shared: Vec<&Variable> = shared
            .chain(
                self.entry
                    .variables
                    .iter()
                    .filter(|v| v.space == Space::Shared),
            )
            .collect();
        let mut at = SHARED_START;
        for v in shared.iter().filter(|v| !v.is_extern) {
            at = align(at, v.align);
            self.shared_bytes = align(self.shared_bytes, v.align) + v.size;
            self.symbols
                .insert(&v.name, Symbol::Offset(Space::Shared, at));
            self.shared.push((v.name.clone(), at, v.size));
            at += v.size + RED_ZONE;
        }
        let widest = shared
            .iter()
            .filter(|v| v.is_extern)
            .map(|v| v.align)
            .max()
            .unwrap_or(16)
            .max(16);
        self.dynamic_start = align(at, widest);
        for v in shared.iter().filter(|v| v.is_extern) {
            self.symbols
                .insert(&v.name, Symbol::Offset(Space::Shared, self.dynamic_start));
        }
        for v in &self.entry.variables {
            match v.space {
                Space::Shared => {}
                Space::Local => {
                    self.local_bytes = align(self.local_bytes, v.align);
                    self.symbols
                        .insert(&v.name, Symbol::Offset(Space::Local, self.local_bytes));
                    self.local_bytes += v.size;
                }
                _ => {
                    return Err(PtxError::new(
                        self.entry.line,
                        format!("unsupported variable `{}` inside an entry", v.name),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The row of a constant.
    fn constant(&mut self, c: Constant, wide: bool) -> Slot {
        if let Some(&s) = self.pool.get(&(c, wide)) {
            return s;
        }
        let slot = self.new_row(wide);
        self.pool.insert((c, wide), slot);
        self.constants.push((slot, c));
        slot
    }

    fn pred_register(&self, inst: &Instruction, r: u32) -> Result<u32, PtxError> {
        if self.entry.registers[r as usize].size == 0 {
            return Ok(self.slots[r as usize].row);
        }
        Err(PtxError::new(
            inst.line,
            format!("`{}`: not a predicate", inst.name()),
        ))
    }

    fn address_of(
        &mut self,
        w: &Words,
        name: &str,
        offset: i64,
        wide: bool,
    ) -> Result<Slot, PtxError> {
        let symbol = *self
            .symbols
            .get(name)
            .ok_or_else(|| w.bad(&format!("unknown name `{name}`")))?;
        let constant = match symbol {
            Symbol::Offset(Space::Param, o) => {
                Constant::Value(crate::memory::PARAM_BASE + o.wrapping_add_signed(offset))
            }
            Symbol::Offset(_, o) => Constant::Value(o.wrapping_add_signed(offset)),
            Symbol::Variable(_, i) => Constant::Variable(i, offset),
        };
        Ok(self.constant(constant, wide))
    }

    /// A source operand of `size` bytes; `any_size` allows a larger register, whose low bits count.
    fn source_sized(
        &mut self,
        w: &Words,
        o: &Operand,
        size: u8,
        any_size: bool,
    ) -> Result<Slot, PtxError> {
        let wide = size == 8;
        let masked = |v: u64| match size {
            1 => v & 0xff,
            2 => v & 0xffff,
            4 => v & 0xffff_ffff,
            _ => v,
        };
        let slot = match o {
            Operand::Register(r) => {
                let have = self.entry.registers[*r as usize].size;
                if have == 0 || have != size && !(any_size && have >= size) {
                    return Err(w.bad(&format!("operand of {have} bytes where {size} are meant")));
                }
                let s = self.slots[*r as usize];
                self.reads.push(s.row);
                s
            }
            Operand::Integer(v) => self.constant(Constant::Value(masked(*v)), wide),
            Operand::F32(b) if size == 8 => self.constant(
                Constant::Value(f64::from(f32::from_bits(*b)).to_bits()),
                true,
            ),
            Operand::F32(b) => self.constant(Constant::Value(u64::from(*b)), false),
            Operand::F64(b) if size == 4 => self.constant(
                Constant::Value(u64::from((f64::from_bits(*b) as f32).to_bits())),
                false,
            ),
            Operand::F64(b) => self.constant(Constant::Value(*b), wide),
            Operand::Special(name) => {
                let s = special(name)
                    .ok_or_else(|| w.bad(&format!("unsupported register `{name}`")))?;
                self.constant(Constant::Special(s), wide)
            }
            Operand::Symbol(name, offset) => self.address_of(w, name, *offset, wide)?,
            o => return Err(w.bad(&format!("unexpected operand {o:?}"))),
        };
        Ok(slot)
    }

    /// Operand `i` as a source of exactly `size` bytes.
    fn source(&mut self, w: &Words, i: usize, size: u8) -> Result<Slot, PtxError> {
        let o = w
            .inst
            .operands
            .get(i)
            .ok_or_else(|| w.bad("too few operands"))?;
        self.source_sized(w, o, size, false)
    }

    /// A destination; `any_size` allows a larger register.
    fn dest_sized(
        &mut self,
        w: &Words,
        o: &Operand,
        size: u8,
        any_size: bool,
    ) -> Result<Slot, PtxError> {
        match o {
            Operand::Register(r) => {
                let have = self.entry.registers[*r as usize].size;
                if have == 0 || have != size && !(any_size && have >= size) {
                    return Err(w.bad(&format!(
                        "destination of {have} bytes where {size} are meant"
                    )));
                }
                let s = self.slots[*r as usize];
                self.writes.push(s.row);
                Ok(s)
            }
            // A row that nobody reads.
            Operand::Sink => Ok(self.new_row(size == 8)),
            o => Err(w.bad(&format!("destination {o:?} is not a register"))),
        }
    }

    /// Operand `i` as the destination, of exactly `size` bytes.
    fn dest(&mut self, w: &Words, i: usize, size: u8) -> Result<Slot, PtxError> {
        let o = w
            .inst
            .operands
            .get(i)
            .ok_or_else(|| w.bad("too few operands"))?;
        self.dest_sized(w, o, size, false)
    }

    /// A predicate source, and whether it is negated.
    fn pred(&mut self, w: &Words, o: &Operand) -> Result<(u32, bool), PtxError> {
        let (r, negated) = match o {
            Operand::Register(r) => (*r, false),
            Operand::NotRegister(r) => (*r, true),
            o => return Err(w.bad(&format!("{o:?} is not a predicate"))),
        };
        let p = self.pred_register(w.inst, r)?;
        self.reads.push(p | PRED);
        Ok((p, negated))
    }

    /// A predicate destination.
    fn pred_dest(&mut self, w: &Words, o: &Operand) -> Result<u32, PtxError> {
        let p = match o {
            Operand::Register(r) => self.pred_register(w.inst, *r)?,
            Operand::Sink => {
                self.preds += 1;
                self.preds - 1
            }
            o => return Err(w.bad(&format!("{o:?} is not a predicate"))),
        };
        self.writes.push(p | PRED);
        Ok(p)
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

    fn label(&self, w: &Words, name: &str) -> Result<u32, PtxError> {
        self.entry
            .labels
            .get(name)
            .map(|&i| i as u32)
            .ok_or_else(|| w.bad(&format!("unknown label `{name}`")))
    }

    fn count(&self, w: &Words, n: usize) -> Result<(), PtxError> {
        if w.inst.operands.len() == n {
            Ok(())
        } else {
            Err(w.bad(&format!("takes {n} operands")))
        }
    }

    /// One instruction, by family.
    fn instruction(&mut self, inst: &'a Instruction) -> Result<Op, PtxError> {
        let mut w = Words::new(inst);
        match inst.opcode.as_str() {
            "bra" => {
                w.take("uni");
                w.finish()?;
                match inst.operands.as_slice() {
                    [Operand::Symbol(name, 0)] => Ok(Op::Branch(self.label(&w, name)?)),
                    _ => Err(w.bad("expects a label")),
                }
            }
            "brx" => {
                w.take("idx");
                w.take("uni");
                w.finish()?;
                let index = self.source(&w, 0, 4)?;
                let Some(Operand::Symbol(table, 0)) = inst.operands.get(1) else {
                    return Err(w.bad("expects a table"));
                };
                let names = self
                    .entry
                    .branch_targets
                    .get(table)
                    .ok_or_else(|| w.bad(&format!("unknown table `{table}`")))?;
                let targets = names
                    .iter()
                    .map(|n| self.label(&w, n))
                    .collect::<Result<_, _>>()?;
                Ok(Op::BranchIndexed(index, targets))
            }
            "ret" | "exit" => {
                w.take("uni");
                w.finish()?;
                self.count(&w, 0)?;
                Ok(Op::Exit)
            }
            "trap" => w.finish().map(|()| Op::Trap),
            "bar" | "barrier" => self.barrier(w),
            "membar" | "fence" => self.fence(w),
            "shfl" | "vote" | "redux" | "match" | "activemask" => self.warp_op(w),
            "ld" | "ldu" | "st" | "atom" | "red" | "prefetch" | "discard" => self.memory(w),
            "mov" | "cvta" | "selp" | "setp" | "set" | "isspacep" => self.data(w),
            "cvt" => self.convert(w),
            "griddepcontrol" => {
                if w.take("wait") || w.take("launch_dependents") {
                    w.finish()?;
                    return Ok(Op::Nothing);
                }
                Err(w.unsupported())
            }
            "nanosleep" => {
                w.take("u32");
                w.finish()?;
                Ok(Op::Nothing)
            }
            _ => self.arithmetic(w),
        }
    }

    fn arithmetic(&mut self, w: Words<'a>) -> Result<Op, PtxError> {
        match w.left.last().copied() {
            Some("f32" | "f64" | "f16" | "bf16" | "f16x2" | "bf16x2") => self.floating(w),
            _ => self.integer(w),
        }
    }

    fn barrier(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let inst = w.inst;
        if w.take("warp") {
            w.take("sync");
            w.finish()?;
            self.count(&w, 1)?;
            return Ok(Op::Warp {
                members: self.source(&w, 0, 4)?,
                op: WarpOp::Sync,
            });
        }
        let aligned = inst.opcode == "bar" || w.take("aligned");
        w.take("aligned");
        w.take("cta");
        if w.take("sync") || w.take("arrive") {
            let arrive = inst.modifiers.iter().any(|m| m == "arrive");
            w.finish()?;
            let id = self.source(&w, 0, 4)?;
            let threads = if inst.operands.len() > 1 {
                Some(self.source(&w, 1, 4)?)
            } else {
                None
            };
            return Ok(Op::Barrier {
                id,
                threads,
                aligned,
                reduce: None,
                arrive,
            });
        }
        if w.take("red") {
            let reduce = w.take_map(|m| match m {
                "popc" => Some(Reduce::Popc),
                "and" => Some(Reduce::And),
                "or" => Some(Reduce::Or),
                _ => None,
            });
            let reduce = reduce.ok_or_else(|| w.unsupported())?;
            w.last();
            w.finish()?;
            let d = if reduce == Reduce::Popc {
                self.dest(&w, 0, 4)?.row
            } else {
                let o = inst
                    .operands
                    .first()
                    .ok_or_else(|| w.bad("too few operands"))?;
                self.pred_dest(&w, o)?
            };
            let id = self.source(&w, 1, 4)?;
            let threads = if inst.operands.len() > 3 {
                Some(self.source(&w, 2, 4)?)
            } else {
                None
            };
            let last = inst
                .operands
                .last()
                .ok_or_else(|| w.bad("too few operands"))?;
            let (p, negated) = self.pred(&w, last)?;
            return Ok(Op::Barrier {
                id,
                threads,
                aligned,
                reduce: Some((reduce, p, negated, d)),
                arrive: false,
            });
        }
        Err(w.unsupported())
    }

    fn fence(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        for word in [
            "sc", "acq_rel", "acquire", "release", "gl", "gpu", "sys", "cta", "cluster",
        ] {
            w.take(word);
        }
        w.finish()?;
        Ok(Op::Fence)
    }

    fn warp_op(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let inst = w.inst;
        let operands = &inst.operands;
        if inst.opcode == "activemask" {
            w.take("b32");
            let d = self.dest(&w, 0, 4)?;
            let run: Exec = Box::new(move |l, mask| {
                crate::lanes::Lane::store(l, d.row, mask, &[mask; crate::lanes::WARP])
            });
            return self.alu(&w, run);
        }
        if !w.take("sync") {
            return Err(w.unsupported());
        }
        let last = operands.last().ok_or_else(|| w.bad("too few operands"))?;
        let members = self.source_sized(&w, last, 4, false)?;
        let ends = |o: &Operand| match o {
            Operand::Pair(d, p) => ((**d).clone(), Some((**p).clone())),
            o => (o.clone(), None),
        };
        let (first, second) = ends(&operands[0]);
        let op = match inst.opcode.as_str() {
            "shfl" => {
                let mode = w.take_map(|m| match m {
                    "up" => Some(Shuffle::Up),
                    "down" => Some(Shuffle::Down),
                    "bfly" => Some(Shuffle::Butterfly),
                    "idx" => Some(Shuffle::Index),
                    _ => None,
                });
                let mode = mode.ok_or_else(|| w.unsupported())?;
                w.take("b32");
                self.count(&w, 5)?;
                let d = self.dest_sized(&w, &first, 4, false)?;
                let p = second.map(|p| self.pred_dest(&w, &p)).transpose()?;
                WarpOp::Shuffle {
                    mode,
                    d,
                    p,
                    a: self.source(&w, 1, 4)?,
                    b: self.source(&w, 2, 4)?,
                    c: self.source(&w, 3, 4)?,
                }
            }
            "vote" => {
                let kind = w.first();
                let ty = w.last();
                self.count(&w, 3)?;
                let (p, negated) = self.pred(&w, &operands[1])?;
                match (kind, ty) {
                    ("all", "pred") => WarpOp::VoteAll(p, negated, self.pred_dest(&w, &first)?),
                    ("any", "pred") => WarpOp::VoteAny(p, negated, self.pred_dest(&w, &first)?),
                    ("uni", "pred") => WarpOp::VoteUniform(p, negated, self.pred_dest(&w, &first)?),
                    ("ballot", "b32") => WarpOp::Ballot(p, negated, self.dest(&w, 0, 4)?),
                    _ => return Err(w.unsupported()),
                }
            }
            "redux" => {
                let (op, ty) = (w.first(), w.last());
                let op = match (op, ty) {
                    ("add", "u32" | "s32") => Redux::Add,
                    ("min", "u32") => Redux::MinU,
                    ("max", "u32") => Redux::MaxU,
                    ("min", "s32") => Redux::MinS,
                    ("max", "s32") => Redux::MaxS,
                    ("and", "b32") => Redux::And,
                    ("or", "b32") => Redux::Or,
                    ("xor", "b32") => Redux::Xor,
                    _ => return Err(w.unsupported()),
                };
                WarpOp::Redux(op, self.dest(&w, 0, 4)?, self.source(&w, 1, 4)?)
            }
            _ => {
                let size = match w.last() {
                    "b32" => 4,
                    "b64" => 8,
                    _ => return Err(w.unsupported()),
                };
                match w.first() {
                    "any" => WarpOp::MatchAny(self.dest(&w, 0, 4)?, self.source(&w, 1, size)?),
                    "all" => {
                        let d = self.dest_sized(&w, &first, 4, false)?;
                        let p = second.map(|p| self.pred_dest(&w, &p)).transpose()?;
                        WarpOp::MatchAll(d, self.source(&w, 1, size)?, p)
                    }
                    _ => return Err(w.unsupported()),
                }
            }
        };
        w.finish()?;
        Ok(Op::Warp { members, op })
    }
}

fn mentions(o: &Operand, name: &str) -> bool {
    match o {
        Operand::Symbol(s, _) => s == name,
        Operand::Address(base, _) => mentions(base, name),
        Operand::Vector(v) => v.iter().any(|o| mentions(o, name)),
        _ => false,
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = || match name.as_bytes().last() {
        Some(b'x') => 0,
        Some(b'y') => 1,
        _ => 2,
    };
    Some(match name.split('.').next()? {
        "%tid" => Special::Tid(axis()),
        "%ntid" => Special::Ntid(axis()),
        "%ctaid" => Special::Ctaid(axis()),
        "%nctaid" => Special::Nctaid(axis()),
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NWarpId,
        "%lanemask_eq" => Special::LaneMask(MaskKind::Eq),
        "%lanemask_le" => Special::LaneMask(MaskKind::Le),
        "%lanemask_lt" => Special::LaneMask(MaskKind::Lt),
        "%lanemask_ge" => Special::LaneMask(MaskKind::Ge),
        "%lanemask_gt" => Special::LaneMask(MaskKind::Gt),
        "%smid" => Special::SmId,
        "%nsmid" => Special::NSmId,
        "%gridid" => Special::GridId,
        "%dynamic_smem_size" => Special::DynamicSmem,
        "%total_smem_size" => Special::TotalSmem,
        s if s.starts_with("%clock") || s.starts_with("%globaltimer") => Special::Clock,
        _ => return None,
    })
}
