//! Operands: registers, literals, special registers and addresses become rows.

use super::layout::Symbol;
use super::{Constant, Lowerer, MaskKind, PRED, Slot, Special, Words};
use crate::ptx::PtxError;
use crate::ptx::ast::{Instruction, Operand, Space};

impl<'a> Lowerer<'a> {
    pub(super) fn new_row(&mut self, wide: bool) -> Slot {
        let row = self.rows;
        self.rows += 1 + u32::from(wide);
        Slot { row, wide }
    }

    /// The row of a constant.
    pub(super) fn constant(&mut self, c: Constant, wide: bool) -> Slot {
        if let Some(&s) = self.pool.get(&(c, wide)) {
            return s;
        }
        let slot = self.new_row(wide);
        self.pool.insert((c, wide), slot);
        self.constants.push((slot, c));
        slot
    }

    /// The place of a register. It is made when the register is first met, so that those which are only
    /// declared cost nothing.
    pub(super) fn register(&mut self, r: u32) -> Slot {
        if let Some(&slot) = self.slots.get(&r) {
            return slot;
        }
        let slot = match self.entry.registers[r as usize].size {
            0 => {
                self.preds += 1;
                Slot {
                    row: self.preds - 1,
                    wide: false,
                }
            }
            size => self.new_row(size == 8),
        };
        self.slots.insert(r, slot);
        slot
    }

    pub(super) fn pred_register(&mut self, inst: &Instruction, r: u32) -> Result<u32, PtxError> {
        if self.entry.registers[r as usize].size == 0 {
            return Ok(self.register(r).row);
        }
        Err(PtxError::new(
            inst.line,
            format!("`{}`: not a predicate", inst.name()),
        ))
    }

    pub(super) fn address_of(
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
                Constant::Value((crate::memory::PARAM_BASE + o).wrapping_add_signed(offset))
            }
            Symbol::Offset(_, o) => Constant::Value(o.wrapping_add_signed(offset)),
            Symbol::Variable(_, i) => Constant::Variable(i, offset),
        };
        Ok(self.constant(constant, wide))
    }

    /// A source operand of `size` bytes; `any_size` allows a larger register, whose low bits count.
    pub(super) fn source_sized(
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
                let s = self.register(*r);
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
    pub(super) fn source(&mut self, w: &Words, i: usize, size: u8) -> Result<Slot, PtxError> {
        let o = w
            .inst
            .operands
            .get(i)
            .ok_or_else(|| w.bad("too few operands"))?;
        self.source_sized(w, o, size, false)
    }

    /// A destination; `any_size` allows a larger register.
    pub(super) fn dest_sized(
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
                let s = self.register(*r);
                self.writes.push(s.row);
                Ok(s)
            }
            // A row that nobody reads.
            Operand::Sink => Ok(self.new_row(size == 8)),
            o => Err(w.bad(&format!("destination {o:?} is not a register"))),
        }
    }

    /// Operand `i` as the destination, of exactly `size` bytes.
    pub(super) fn dest(&mut self, w: &Words, i: usize, size: u8) -> Result<Slot, PtxError> {
        let o = w
            .inst
            .operands
            .get(i)
            .ok_or_else(|| w.bad("too few operands"))?;
        self.dest_sized(w, o, size, false)
    }

    /// A predicate source, and whether it is negated.
    pub(super) fn pred(&mut self, w: &Words, o: &Operand) -> Result<(u32, bool), PtxError> {
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
    pub(super) fn pred_dest(&mut self, w: &Words, o: &Operand) -> Result<u32, PtxError> {
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
        "%clusterid" => Special::ClusterId(axis()),
        "%nclusterid" => Special::NClusterId(axis()),
        "%cluster_ctarank" => Special::ClusterRank,
        "%cluster_nctarank" => Special::ClusterSize,
        "%dynamic_smem_size" => Special::DynamicSmem,
        "%total_smem_size" => Special::TotalSmem,
        s if s.starts_with("%clock") || s.starts_with("%globaltimer") => Special::Clock,
        _ => return None,
    })
}
