//! `ld`, `st`, `atom`, `red`.

use super::layout::Symbol;
use super::{Lowerer, Op, Slot, Words};
use crate::ptx::PtxError;
use crate::ptx::ast::{Operand, Space};

/// The base of an address, and what is added to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Base {
    pub slot: Slot,
    pub offset: i64,
}

/// A memory access as an instruction states it.
pub(crate) struct Access {
    pub space: Space,
    pub base: Base,
    /// Bytes of one element.
    pub width: u8,
    /// Loaded values are sign-extended into larger registers.
    pub signed: bool,
    /// `.volatile`, `.relaxed` and stronger: not a data race with atomics.
    pub strong: bool,
    /// `.release` or `.acq_rel`: publishes what came before.
    pub releases: bool,
    /// `.nc`: the hardware may cache it, so these bytes must not be written by this launch.
    pub non_coherent: bool,
    /// Destinations of a load, sources of a store, one per element of the vector.
    pub elements: Vec<Slot>,
}

impl Access {
    /// Whether blocks of other clusters may order something after it.
    pub fn is_seen_by_other_blocks(&self) -> bool {
        self.releases
            || self.strong && !matches!(self.space, Space::Shared | Space::Local | Space::Param)
    }
}

/// What an atomic does: `d` receives the old value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AtomicOp {
    pub d: Option<Slot>,
    pub kind: AtomicKind,
    pub b: Slot,
    pub c: Option<Slot>,
}

/// The operation of an atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicKind {
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
    Add,
    /// Flushes subnormals in global memory, as the hardware does.
    AddF32,
    AddF64,
    AddF16,
    AddBf16,
    AddF16x2,
    AddBf16x2,
    Increment,
    Decrement,
    MinU,
    MaxU,
    MinS,
    MaxS,
}

impl<'a> Lowerer<'a> {
    pub(super) fn base(
        &mut self,
        w: &Words,
        o: &Operand,
        space: Space,
    ) -> Result<(Space, Base), PtxError> {
        let Operand::Address(base, offset) = o else {
            return Err(w.bad("expects an address"));
        };
        let (slot, found) = match &**base {
            Operand::Register(r) => {
                if self.entry.registers[*r as usize].size < 4 {
                    return Err(w.bad("address in a register of less than 32 bits"));
                }
                (self.register(*r), None)
            }
            Operand::Symbol(name, _) => {
                let s = self.symbols.get(name.as_str()).copied();
                let found = match s {
                    Some(Symbol::Offset(s, _) | Symbol::Variable(s, _)) => s,
                    None => return Err(w.bad(&format!("unknown name `{name}`"))),
                };
                (self.address_of(w, name, 0, true)?, Some(found))
            }
            o => (self.source_sized(w, o, 8, false)?, None),
        };
        if let Some(found) = found
            && space != found
        {
            return Err(w.bad(&format!(
                "address of a {found:?} variable in space {space:?}"
            )));
        }
        Ok((
            space,
            Base {
                slot,
                offset: *offset,
            },
        ))
    }

    pub(super) fn memory(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let inst = w.inst;
        let space = w.take_map(|m| match m {
            "global" => Some(Space::Global),
            "shared" | "shared::cta" => Some(Space::Shared),
            "local" => Some(Space::Local),
            "param" | "param::entry" => Some(Space::Param),
            "const" => Some(Space::Const),
            _ => None,
        });
        let space = space.unwrap_or(Space::Generic);
        // Cache hints change no value.
        while w
            .take_map(|m| {
                let hint = matches!(m, "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt")
                    || m.starts_with("L1::")
                    || m.starts_with("L2::");
                hint.then_some(())
            })
            .is_some()
        {}
        let releases = w.take("release") | w.take("acq_rel");
        let mut strong = releases;
        for word in ["volatile", "relaxed", "acquire"] {
            strong |= w.take(word);
        }
        for word in ["gpu", "sys", "cta", "cluster", "weak"] {
            w.take(word);
        }
        let non_coherent = w.take("nc");
        if matches!(inst.opcode.as_str(), "atom" | "red") {
            return self.atomic(w, space, releases);
        }
        let n = w.take_map(|m| match m {
            "v2" => Some(2),
            "v4" => Some(4),
            "v8" => Some(8),
            _ => None,
        });
        let n = n.unwrap_or(1);
        let ty = w.last();
        let width = crate::ptx::type_size(ty)
            .filter(|s| *s > 0)
            .ok_or_else(|| w.unsupported())?;
        w.finish()?;
        let load = inst.opcode != "st";
        let (value, address) = if load { (0, 1) } else { (1, 0) };
        let (space, base) = self.base(&w, &inst.operands[address], space)?;
        let list = match &inst.operands[value] {
            Operand::Vector(v) => v.as_slice(),
            o => std::slice::from_ref(o),
        };
        if list.len() != n || n * usize::from(width) > 32 {
            return Err(w.bad("wrong number of elements"));
        }
        let mut elements = Vec::with_capacity(n);
        for o in list {
            elements.push(if load {
                self.dest_sized(&w, o, width, true)?
            } else {
                self.source_sized(&w, o, width, true)?
            });
        }
        let signed = ty.starts_with('s');
        let access = Access {
            space,
            base,
            width,
            signed,
            strong,
            releases,
            non_coherent,
            elements,
        };
        Ok(if load {
            Op::Load(access)
        } else {
            Op::Store(access)
        })
    }

    fn atomic(&mut self, mut w: Words<'a>, space: Space, releases: bool) -> Result<Op, PtxError> {
        use AtomicKind::*;
        let inst = w.inst;
        w.take("noftz");
        let (op, ty) = (w.first(), w.last());
        let width = crate::ptx::type_size(ty)
            .filter(|s| *s > 0)
            .ok_or_else(|| w.unsupported())?;
        let kind = match (op, ty) {
            ("and", _) => And,
            ("or", _) => Or,
            ("xor", _) => Xor,
            ("exch", _) => Exchange,
            ("cas", _) => CompareAndSwap,
            ("add", "u32" | "s32" | "u64") => Add,
            ("add", "f32") => AddF32,
            ("add", "f64") => AddF64,
            ("add", "f16") => AddF16,
            ("add", "bf16") => AddBf16,
            ("add", "f16x2") => AddF16x2,
            ("add", "bf16x2") => AddBf16x2,
            ("inc", _) => Increment,
            ("dec", _) => Decrement,
            ("min", "u32" | "u64") => MinU,
            ("max", "u32" | "u64") => MaxU,
            ("min", "s32" | "s64") => MinS,
            ("max", "s32" | "s64") => MaxS,
            _ => return Err(w.unsupported()),
        };
        w.finish()?;
        let first = usize::from(inst.opcode == "atom");
        let d = if first == 1 {
            Some(self.dest(&w, 0, width)?)
        } else {
            None
        };
        let (space, base) = self.base(&w, &inst.operands[first], space)?;
        let b = self.source(&w, first + 1, width)?;
        let c = if kind == CompareAndSwap {
            Some(self.source(&w, first + 2, width)?)
        } else {
            None
        };
        if kind == CompareAndSwap {
            match space {
                Space::Global => self.swaps[0] = true,
                Space::Shared => self.swaps[1] = true,
                _ => self.swaps = [true; 2],
            }
        }
        let access = Access {
            space,
            base,
            width,
            signed: false,
            strong: true,
            releases,
            non_coherent: false,
            elements: Vec::new(),
        };
        Ok(Op::Atomic(access, AtomicOp { d, kind, b, c }))
    }
}
