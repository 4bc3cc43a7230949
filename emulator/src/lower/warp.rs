//! `shfl`, `vote`, `redux`, `bar.warp`.

use super::{Lowerer, Op, Slot, Words};
use crate::ptx::PtxError;
use crate::ptx::ast::Operand;

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
    /// `bar.warp.sync`.
    Sync,
}

impl<'a> Lowerer<'a> {
    pub(super) fn warp(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let operands = &w.inst.operands;
        w.take("sync");
        let members = self.source(&w, operands.len() - 1, 4)?;
        let op = match w.inst.opcode.as_str() {
            "shfl" => {
                let mode = match w.first() {
                    "up" => Shuffle::Up,
                    "down" => Shuffle::Down,
                    "bfly" => Shuffle::Butterfly,
                    _ => Shuffle::Index,
                };
                w.take("b32");
                let (d, p) = match &operands[0] {
                    Operand::Pair(d, p) => {
                        let d = self.dest_sized(&w, d, 4, false)?;
                        (d, Some(self.pred_dest(&w, p)?))
                    }
                    d => (self.dest_sized(&w, d, 4, false)?, None),
                };
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
                let (kind, _) = (w.first(), w.last());
                let (p, negated) = self.pred(&w, &operands[1])?;
                if kind == "ballot" {
                    WarpOp::Ballot(p, negated, self.dest(&w, 0, 4)?)
                } else {
                    let d = self.pred_dest(&w, &operands[0])?;
                    match kind {
                        "all" => WarpOp::VoteAll(p, negated, d),
                        "any" => WarpOp::VoteAny(p, negated, d),
                        _ => WarpOp::VoteUniform(p, negated, d),
                    }
                }
            }
            "redux" => {
                let op = match (w.first(), w.last()) {
                    ("add", _) => Redux::Add,
                    ("min", "u32") => Redux::MinU,
                    ("max", "u32") => Redux::MaxU,
                    ("min", _) => Redux::MinS,
                    ("max", _) => Redux::MaxS,
                    ("and", _) => Redux::And,
                    ("or", _) => Redux::Or,
                    _ => Redux::Xor,
                };
                WarpOp::Redux(op, self.dest(&w, 0, 4)?, self.source(&w, 1, 4)?)
            }
            _ => {
                w.take("warp");
                WarpOp::Sync
            }
        };
        w.finish()?;
        Ok(Op::Warp { members, op })
    }
}
