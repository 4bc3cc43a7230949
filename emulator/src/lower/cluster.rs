//! `mapa`, `barrier.cluster`, `mbarrier`, `st.async`: the instructions by which the blocks of a cluster interact.

use super::memory::Base;
use super::{Lowerer, Op, Slot, Words};
use crate::lanes::map2;
use crate::memory::in_peer;
use crate::ptx::PtxError;
use crate::ptx::ast::{Operand, Space};

/// What an instruction does whose effect other blocks of the cluster see.
pub(crate) enum ClusterOp {
    /// `barrier.cluster.arrive`.
    Arrive,
    /// `barrier.cluster.wait`; aligned or not.
    Wait { aligned: bool },
    /// `mbarrier.init`: for so many arrivals in each phase.
    Init { mbarrier: Base, count: Slot },
    /// `fence.mbarrier_init`.
    PublishInits,
    /// `mbarrier.arrive.expect_tx`: one arrival, and so many bytes to wait for.
    Expect { mbarrier: Base, bytes: Slot },
    /// `mbarrier.try_wait.parity`: whether the phase of that parity is complete.
    TryWait {
        d: u32,
        mbarrier: Base,
        parity: Slot,
    },
    /// `st.async`: 32 bits of each element, and the mbarrier of the same block is told of the bytes.
    Store {
        to: Base,
        mbarrier: Base,
        elements: Vec<Slot>,
    },
}

impl<'a> Lowerer<'a> {
    pub(super) fn cluster(&mut self, mut w: Words<'a>) -> Result<Op, PtxError> {
        let ops = &w.inst.operands;
        let opcode = w.inst.opcode.as_str();
        if opcode == "mapa" {
            let _ = (w.take("shared::cluster"), w.take("u32"));
            let d = self.dest(&w, 0, 4)?;
            let (a, rank) = (self.source(&w, 1, 4)?, self.source(&w, 2, 4)?);
            return self.alu(&w, map2(d.row, a.row, rank.row, in_peer));
        }
        // The remaining modifiers name the only space and order that are supported.
        let words = std::mem::take(&mut w.left);
        Ok(Op::Cluster(match (opcode, words[0], words[1]) {
            ("barrier", _, "arrive") => ClusterOp::Arrive,
            ("barrier", _, _) => ClusterOp::Wait {
                aligned: words.contains(&"aligned"),
            },
            ("fence", ..) => ClusterOp::PublishInits,
            ("mbarrier", "init", _) => ClusterOp::Init {
                mbarrier: self.base(&w, &ops[0], Space::Shared)?.1,
                count: self.source(&w, 1, 4)?,
            },
            ("mbarrier", "arrive", _) => {
                // Without the state: who waits by parity has no use for it.
                if ops[0] != Operand::Sink {
                    return Err(w.unsupported());
                }
                ClusterOp::Expect {
                    mbarrier: self.base(&w, &ops[1], Space::Shared)?.1,
                    bytes: self.source(&w, 2, 4)?,
                }
            }
            ("mbarrier", ..) => ClusterOp::TryWait {
                d: self.pred_dest(&w, &ops[0])?,
                mbarrier: self.base(&w, &ops[1], Space::Shared)?.1,
                parity: self.source(&w, 2, 4)?,
            },
            _ => {
                let list = match &ops[1] {
                    Operand::Vector(v) => v.as_slice(),
                    o => std::slice::from_ref(o),
                };
                let n = if words.contains(&"v4") { 4 } else { 1 };
                if list.len() != n {
                    return Err(w.bad("wrong number of elements"));
                }
                let elements = list.iter().map(|o| self.source_sized(&w, o, 4, false));
                ClusterOp::Store {
                    elements: elements.collect::<Result<_, _>>()?,
                    to: self.base(&w, &ops[0], Space::Shared)?.1,
                    mbarrier: self.base(&w, &ops[2], Space::Shared)?.1,
                }
            }
        }))
    }
}
