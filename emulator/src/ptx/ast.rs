//! The abstract syntax tree of one PTX module.

use std::collections::HashMap;

/// A PTX module.
#[derive(Debug, Default)]
pub(crate) struct Module {
    /// `.version major.minor`.
    pub version: (u32, u32),
    /// The number in `.target sm_NN`.
    pub target: u32,
    /// `.target sm_90a`: runs on that one architecture only.
    pub arch_specific: bool,
    /// Module-level `.global` and `.const` variables, and `.shared` ones.
    pub variables: Vec<Variable>,
    pub entries: Vec<Entry>,
    /// `.file` numbers to paths.
    pub files: HashMap<u32, String>,
}

/// State spaces of variables and memory instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
    Const,
}

/// A variable with an address.
#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub name: String,
    pub space: Space,
    pub align: u64,
    /// Bytes; 0 for an `.extern .shared` array, whose size the launch gives.
    pub size: u64,
    pub is_extern: bool,
    /// Little-endian bytes; shorter than `size` means zeros follow.
    pub init: Vec<u8>,
    /// Symbols whose addresses are part of the initialiser: (byte offset, name).
    pub init_symbols: Vec<(u64, String)>,
}

/// An `.entry`.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub name: String,
    pub line: u32,
    pub params: Vec<Variable>,
    pub max_ntid: Option<(u32, u32, u32)>,
    pub req_ntid: Option<(u32, u32, u32)>,
    pub max_nreg: Option<u32>,
    pub registers: Vec<Register>,
    pub variables: Vec<Variable>,
    pub body: Vec<Instruction>,
    /// Label to index into `body`.
    pub labels: HashMap<String, usize>,
    /// `.branchtargets` tables.
    pub branch_targets: HashMap<String, Vec<String>>,
}

/// What a register was declared to hold: its size, in bytes; 0 is a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register {
    pub size: u8,
}

/// One instruction.
#[derive(Debug)]
pub(crate) struct Instruction {
    pub line: u32,
    /// The `.loc` in force: file number and line.
    pub source: Option<(u32, u32)>,
    /// `@p` or `@!p`: register and whether it is negated.
    pub guard: Option<(u32, bool)>,
    /// `ld`.
    pub opcode: String,
    /// `global`, `v4`, `u32`.
    pub modifiers: Vec<String>,
    pub operands: Vec<Operand>,
}

impl Instruction {
    /// The opcode with its modifiers, as written.
    pub fn name(&self) -> String {
        let mut s = self.opcode.clone();
        for m in &self.modifiers {
            s.push('.');
            s.push_str(m);
        }
        s
    }
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// Index into [`Entry::registers`].
    Register(u32),
    /// `!p`.
    NotRegister(u32),
    /// An integer literal, as the 64 bits of its value.
    Integer(u64),
    /// `0fXXXXXXXX`, as its bits.
    F32(u32),
    /// `0dXXXXXXXXXXXXXXXX` or a decimal literal, as its bits.
    F64(u64),
    /// A special register such as `%tid.x`.
    Special(String),
    /// A label or a variable, with an offset.
    Symbol(String, i64),
    /// `[base+offset]`.
    Address(Box<Operand>, i64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `d|p`.
    Pair(Box<Operand>, Box<Operand>),
    /// `_`.
    Sink,
}
