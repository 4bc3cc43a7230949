//! `bar`, `barrier`, `membar`, `fence`.

use super::{Lowerer, Op, Words};
use crate::ptx::PtxError;

/// `bar.red`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduce {
    Popc,
    And,
    Or,
}

impl<'a> Lowerer<'a> {
    pub(super) fn barrier(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let operands = &w.inst.operands;
        let aligned = w.inst.opcode == "bar" || w.take("aligned");
        w.take("cta");
        let kind = w.first();
        if kind != "red" {
            w.finish()?;
            let id = self.source(&w, 0, 4)?;
            let threads = match operands.len() {
                1 => None,
                _ => Some(self.source(&w, 1, 4)?),
            };
            return Ok(Op::Barrier {
                id,
                threads,
                aligned,
                reduce: None,
                arrive: kind == "arrive",
            });
        }
        let reduce = match (w.first(), w.last()) {
            ("popc", _) => Reduce::Popc,
            ("and", _) => Reduce::And,
            _ => Reduce::Or,
        };
        w.finish()?;
        let d = match reduce {
            Reduce::Popc => self.dest(&w, 0, 4)?.row,
            _ => self.pred_dest(&w, &operands[0])?,
        };
        let id = self.source(&w, 1, 4)?;
        let threads = match operands.len() {
            3 => None,
            _ => Some(self.source(&w, 2, 4)?),
        };
        let (p, negated) = self.pred(&w, &operands[operands.len() - 1])?;
        Ok(Op::Barrier {
            id,
            threads,
            aligned,
            reduce: Some((reduce, p, negated, d)),
            arrive: false,
        })
    }

    /// Memory is sequentially consistent here: what a fence does beside that is known to the race check.
    pub(super) fn fence(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        while !w.left.is_empty() {
            w.first();
        }
        Ok(Op::Fence)
    }
}
