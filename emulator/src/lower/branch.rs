//! `bra`, `brx`, `ret`, `exit`, `trap`, `griddepcontrol`.

use super::{Lowerer, Op, Words};
use crate::ptx::PtxError;
use crate::ptx::ast::Operand;

impl<'a> Lowerer<'a> {
    pub(super) fn branch(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        // Of `bra`, `brx` and `ret`: a hint.
        w.take("uni");
        let inst = w.inst;
        let op = match inst.opcode.as_str() {
            "bra" => Op::Branch(self.label(&w, &inst.operands[0])?),
            "brx" => {
                w.take("idx");
                let index = self.source(&w, 0, 4)?;
                let Operand::Symbol(table, 0) = &inst.operands[1] else {
                    return Err(w.bad("expects a table"));
                };
                let entry = self.entry;
                let Some(names) = entry.branch_targets.get(table) else {
                    return Err(w.bad(&format!("unknown table `{table}`")));
                };
                let targets = names.iter().map(|n| self.target(&w, n));
                Op::BranchIndexed(index, targets.collect::<Result<_, _>>()?)
            }
            "ret" | "exit" => Op::Exit,
            "trap" => Op::Trap,
            // Whether launches overlap changes no result: here each ends before the next begins.
            _ => {
                w.first();
                Op::Nothing
            }
        };
        w.finish()?;
        Ok(op)
    }

    fn label(&self, w: &Words, o: &Operand) -> Result<u32, PtxError> {
        match o {
            Operand::Symbol(name, 0) => self.target(w, name),
            _ => Err(w.bad("expects a label")),
        }
    }

    /// Index of the instruction behind a label.
    fn target(&self, w: &Words, name: &str) -> Result<u32, PtxError> {
        let found = self.entry.labels.get(name).map(|&i| i as u32);
        found.ok_or_else(|| w.bad(&format!("unknown label `{name}`")))
    }
}
