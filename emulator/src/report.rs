//! What a launch found and counted.

use std::cell::RefCell;
use std::fmt;

use crate::traffic::{BankPhases, BufferTraffic};

/// What a [`Finding`] is about.
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
    /// Memory or a register was used that nobody had written.
    Uninitialised,
    /// Two threads touched a byte of global memory, one of them writing, and nothing ordered them.
    GlobalRace,
    /// The same in shared memory.
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
    /// An mbarrier that nobody initialised, or whose initialisation nothing orders before its use; more bytes than
    /// it was told to expect.
    Mbarrier,
    /// The member mask of a warp instruction does not contain the lane that executes it.
    MemberMask,
    /// A shuffle read a lane that does not take part.
    InactiveLane,
    /// Threads wait for ever.
    Deadlock,
    /// The launch exceeds a limit of the device or the kernel.
    LaunchLimits,
    /// A warp executed so many instructions that it is taken to loop for ever.
    InstructionBudget,
    /// `trap` was executed.
    Trap,
    /// Something that the emulator does not implement.
    Unsupported,
}

/// A bug that a launch showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub check: Check,
    /// Name of the entry; of work that is no kernel, what it is.
    pub kernel: String,
    /// Line of the PTX text; 0 if the finding is about the launch as a whole.
    pub ptx_line: u32,
    /// File and line of the CUDA source, if the PTX was compiled with `-lineinfo`.
    pub source: Option<(String, u32)>,
    /// Block of the thread.
    pub block: (u32, u32, u32),
    /// The thread inside its block.
    pub thread: (u32, u32, u32),
    /// What happened, with buffer and offset.
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

/// What one launch did.
#[derive(Clone, Debug)]
pub struct LaunchReport {
    /// Name of the entry.
    pub kernel: String,
    /// Blocks of the grid.
    pub grid: (u32, u32, u32),
    /// Threads of a block.
    pub block: (u32, u32, u32),
    /// Instructions executed, each lane counted.
    pub instructions: u64,
    /// Instructions executed by opcode with its modifiers, each lane counted; in order of name.
    pub by_opcode: Vec<(String, u64)>,
    /// Traffic of each global buffer that was touched, in order of address.
    pub buffers: Vec<BufferTraffic>,
    /// Shared memory traffic.
    pub shared: BankPhases,
    /// Lines of the PTX text whose instruction no thread executed.
    pub lines_not_executed: Vec<u32>,
    /// The bug that ended the launch.
    pub finding: Option<Finding>,
}

impl LaunchReport {
    /// The traffic of the buffer that holds an address; nothing if it was not touched.
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

/// Runs `f` and returns the reports of the launches that this thread made inside it, in order.
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

/// The finding of this thread's latest launch, if it had one.
pub fn last_finding() -> Option<Finding> {
    LAST.with_borrow(Clone::clone)
}

/// Whether anybody wants the report of a launch.
pub(crate) fn is_recording() -> bool {
    RECORDS.with_borrow(|r| !r.is_empty())
}

/// A launch begins: what the previous one found is history.
pub(crate) fn begin() {
    LAST.set(None);
}

/// Makes a finding known.
pub(crate) fn tell(finding: &Finding) {
    eprintln!("cuda-emulator: {finding}");
    LAST.set(Some(finding.clone()));
}

/// A launch has ended.
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
