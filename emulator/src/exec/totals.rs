//! The counts of a launch, which are the sums of the counts of its workers.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::Request;
use crate::lower::Code;
use crate::memory::Buffer;
use crate::report::{Finding, LaunchReport};
use crate::traffic::{BankPhases, BufferTraffic};

/// The bytes of a buffer between the first and the last that a launch read, and that it wrote.
pub(crate) struct Extent {
    pub buffer: Arc<Buffer>,
    pub read: Range<u64>,
    pub written: Range<u64>,
}

/// A buffer that was touched.
pub(super) struct Touched {
    pub extent: Extent,
    pub traffic: BufferTraffic,
}

/// The counts of one worker or of all workers.
pub(super) struct Totals {
    pub touched: Vec<Touched>,
    /// Executions of each instruction, by lanes.
    pub counts: Vec<u64>,
    pub shared: BankPhases,
}

/// Extends a range so that it contains another.
pub(super) fn widen(range: &mut Range<u64>, other: Range<u64>) {
    *range = match (range.is_empty(), other.is_empty()) {
        (true, _) => other,
        (_, true) => range.clone(),
        _ => range.start.min(other.start)..range.end.max(other.end),
    };
}

impl Totals {
    pub fn new(code: &Code) -> Self {
        Totals {
            touched: Vec::new(),
            counts: vec![0; code.insts.len()],
            shared: BankPhases::default(),
        }
    }

    /// The index of a buffer among the touched ones. Adds it if it is new.
    pub fn touch(&mut self, buffer: Arc<Buffer>) -> usize {
        let mut touched = self.touched.iter();
        if let Some(i) = touched.position(|t| t.extent.buffer.base == buffer.base) {
            return i;
        }
        let traffic = BufferTraffic {
            address: buffer.base,
            len: buffer.len,
            ..BufferTraffic::default()
        };
        let extent = Extent {
            buffer,
            read: 0..0,
            written: 0..0,
        };
        self.touched.push(Touched { extent, traffic });
        self.touched.len() - 1
    }

    /// Adds the counts of another worker.
    pub fn join(&mut self, other: Totals) {
        for Touched { extent, traffic } in other.touched {
            let i = self.touch(extent.buffer);
            let sum = &mut self.touched[i];
            widen(&mut sum.extent.read, extent.read);
            widen(&mut sum.extent.written, extent.written);
            sum.traffic.join(&traffic);
        }
        for (sum, n) in self.counts.iter_mut().zip(other.counts) {
            *sum += n;
        }
        self.shared.join(&other.shared);
    }

    /// The report of the launch, and the byte ranges that it touched.
    pub fn report(
        mut self,
        request: &Request,
        counting: bool,
        finding: Option<Finding>,
    ) -> (LaunchReport, Vec<Extent>) {
        let code = &*request.code;
        let mut by_opcode: HashMap<&str, u64> = HashMap::new();
        let mut lines_not_executed = Vec::new();
        if counting {
            for ((name, count), inst) in request.names.iter().zip(&self.counts).zip(&code.insts) {
                *by_opcode.entry(name).or_default() += count;
                if *count == 0 {
                    lines_not_executed.push(inst.line);
                }
            }
        }
        let mut by_opcode: Vec<(String, u64)> = by_opcode
            .into_iter()
            .filter(|(_, n)| *n > 0)
            .map(|(s, n)| (s.to_string(), n))
            .collect();
        by_opcode.sort();
        // The exit that ends every body belongs to no line.
        let executed = &self.counts[..request.names.len()];
        self.touched.sort_by_key(|t| t.traffic.address);
        let touched = self.touched.into_iter().map(|t| (t.traffic, t.extent));
        let (mut buffers, extents): (Vec<_>, Vec<_>) = touched.unzip();
        if !counting {
            buffers.clear();
        }
        let report = LaunchReport {
            kernel: code.name.clone(),
            grid: request.grid,
            block: request.block,
            instructions: executed.iter().sum(),
            by_opcode,
            buffers,
            shared: self.shared,
            lines_not_executed,
            finding,
        };
        (report, extents)
    }
}
