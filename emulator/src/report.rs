//! The findings and the counts of a launch.

use std::cell::RefCell;
use std::fmt;

use crate::traffic::{BankPhases, BufferTraffic};

/// The kind of bug that a [`Finding`] reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Check {
    /// An access outside every buffer of the device.
    OutOfBounds,
    /// An address that is not a multiple of the size of the access.
    Misaligned,
    /// An access near address 0.
    Null,
    /// An access to an allocation that was freed.
    UseAfterFree,
    /// A write to constant memory or to parameters.
    ReadOnly,
    /// Bytes that a launch reads through the non-coherent path (`ld.global.nc`) and also writes.
    NonCoherent,
    /// A use of memory or of a register that was never written.
    Uninitialised,
    /// Two threads touched a byte of global memory, one of them writing, and nothing ordered them.
    GlobalRace,
    /// Two threads touched a byte of shared memory, one of them writing, and nothing ordered them.
    SharedRace,
    /// Work of two streams touched the same bytes, one of them writing, and nothing ordered them.
    StreamRace,
    /// Threads of one warp wait at different barriers.
    DivergentBarrier,
    /// Some threads of a warp wait at a barrier and others have returned.
    BarrierAfterExit,
    /// A thread arrives at the barrier of its cluster twice, or waits for it without having arrived.
    ClusterBarrier,
    /// A block of a cluster has returned while others still store into its shared memory.
    PeerExited,
    /// An mbarrier that was not initialised, or whose initialisation is not ordered before its use; or more bytes arrived
    /// than the mbarrier was told to expect.
    Mbarrier,
    /// The member mask of a warp instruction does not contain the lane that executes it.
    MemberMask,
    /// A shuffle read a lane that does not take part.
    InactiveLane,
    /// Threads wait for ever.
    Deadlock,
    /// The launch exceeds a limit of the device or the kernel.
    LaunchLimits,
    /// A warp executed more instructions than the budget, so it counts as an endless loop.
    InstructionBudget,
    /// `trap` was executed.
    Trap,
    /// An instruction or a driver call that the emulator does not implement.
    Unsupported,
}

/// A bug that a launch showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The kind of the bug.
    pub check: Check,
    /// The name of the kernel entry, or the kind of work if it is no kernel.
    pub kernel: String,
    /// The line of the PTX text; 0 if the finding is about the launch as a whole.
    pub ptx_line: u32,
    /// File and line of the CUDA source, if the PTX was compiled with `-lineinfo`.
    pub source: Option<(String, u32)>,
    /// Block of the thread.
    pub block: (u32, u32, u32),
    /// The thread inside its block.
    pub thread: (u32, u32, u32),
    /// The description of the bug, with buffer and offset.
    pub message: String,
}

impl Finding {
    /// A finding about a launch, or other work, as a whole.
    pub(crate) fn of_all(check: Check, kernel: &str, message: String) -> Self {
        Finding {
            check,
            kernel: kernel.to_string(),
            ptx_line: 0,
            source: None,
            block: (0, 0, 0),
            thread: (0, 0, 0),
            message,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in `{}`: {}", self.check, self.kernel, self.message)?;
        if self.ptx_line == 0 {
            return Ok(());
        }
        write!(f, "\n  at ptx line {}", self.ptx_line)?;
        if let Some((file, line)) = &self.source {
            write!(f, " ({file}:{line})")?;
        }
        write!(f, "\n  thread {:?} of block {:?}", self.thread, self.block)
    }
}

/// The counts and the finding of one launch.
#[derive(Clone, Debug)]
pub struct LaunchReport {
    /// Name of the entry.
    pub kernel: String,
    /// Blocks of the grid.
    pub grid: (u32, u32, u32),
    /// Threads of a block.
    pub block: (u32, u32, u32),
    /// The number of executed instructions, counted per lane.
    pub instructions: u64,
    /// The number of executed instructions by opcode with modifiers, counted per lane, in the order of the names.
    pub by_opcode: Vec<(String, u64)>,
    /// Traffic of each global buffer that was touched, in order of address.
    pub buffers: Vec<BufferTraffic>,
    /// Shared memory traffic.
    pub shared: BankPhases,
    /// Lines of the PTX text whose instruction no thread executed.
    pub lines_not_executed: Vec<u32>,
    /// The bug that ended the launch, if there was one.
    pub finding: Option<Finding>,
}

impl LaunchReport {
    /// Returns the traffic of the buffer that contains `address`; `None` if the launch did not touch the buffer.
    pub fn buffer(&self, address: u64) -> Option<&BufferTraffic> {
        self.buffers
            .iter()
            .find(|b| (b.address..b.address + b.len.max(1)).contains(&address))
    }
}

thread_local! {
    static LAST: RefCell<Option<Finding>> = const { RefCell::new(None) };
    /// One list per open `record`.
    static RECORDS: RefCell<Vec<Vec<LaunchReport>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f`, and returns its result and the reports of the launches that this thread made inside `f`, in order.
pub fn record<R>(f: impl FnOnce() -> R) -> (R, Vec<LaunchReport>) {
    /// Closes the list, after a panic too.
    struct Open;
    impl Drop for Open {
        fn drop(&mut self) {
            RECORDS.with_borrow_mut(Vec::pop);
        }
    }
    RECORDS.with_borrow_mut(|r| r.push(Vec::new()));
    let open = Open;
    let result = f();
    let reports = RECORDS.with_borrow_mut(|r| r.last_mut().map(std::mem::take).unwrap_or_default());
    drop(open);
    (result, reports)
}

/// Returns the finding of the latest launch of this thread, if it had one.
pub fn last_finding() -> Option<Finding> {
    LAST.with_borrow(Clone::clone)
}

/// Whether a `record` is open in this thread.
pub(crate) fn is_recording() -> bool {
    RECORDS.with_borrow(|r| !r.is_empty())
}

/// Called when a launch begins. Removes the finding of the previous launch.
pub(crate) fn begin() {
    LAST.set(None);
}

/// Stores and prints a finding.
pub(crate) fn tell(finding: &Finding) {
    eprintln!("cuda-emulator: {finding}");
    LAST.set(Some(finding.clone()));
}

/// Called when a launch has ended.
pub(crate) fn finish(report: LaunchReport) {
    if let Some(f) = &report.finding {
        tell(f);
    }
    RECORDS.with_borrow_mut(|r| {
        let open = r.len();
        for (i, list) in r.iter_mut().enumerate() {
            if i + 1 == open {
                list.push(report);
                break;
            }
            list.push(report.clone());
        }
    });
}
