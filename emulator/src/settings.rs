//! The settings of a launch: the order of its threads, and the values of approximate instructions.

use std::cell::Cell;
use std::num::NonZeroUsize;

/// The order in which threads run. A correct kernel gives the same result under each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// Runs blocks and warps one after the other, and the lanes of a warp together. This is the fastest order, and its
    /// requests and sectors are those of a GPU.
    #[default]
    InOrder,
    /// Like `InOrder`, but from the last block and warp to the first.
    Reversed,
    /// Runs several blocks at once, with pre-emption between any two instructions, and separates the lanes of a warp at
    /// random. Launches with the same seed run in the same order.
    Seeded(u64),
}

/// The values that `.approx` instructions return. Cases that the PTX ISA defines exactly (such as `ex2` of 0) are exact in
/// every mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Approx {
    /// The correctly rounded value.
    #[default]
    Nearest,
    /// The lowest value inside the documented error bound.
    Lowest,
    /// The highest value inside the documented error bound.
    Highest,
    /// A value inside the bound that depends on the seed, the instruction and its operands alone.
    Seeded(u64),
}

/// Settings of the launches of a thread: see [`with_settings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// The order of threads.
    pub schedule: Schedule,
    /// The values of approximate instructions.
    pub approx: Approx,
    /// The number of instructions after which a warp counts as an endless loop. The default is 2^28, which takes a GPU
    /// seconds.
    pub instruction_budget: u64,
    /// The number of threads that run the blocks of a launch, with the caller's thread; fewer if there are fewer clusters.
    /// `None`, the default, uses the caller's thread and, after some time, a thread for each idle core. Only the caller's
    /// thread is used under [`Schedule::Seeded`], and if the blocks of the kernel can wait for each other. That is assumed
    /// of kernels with fences, and of kernels with atomics or with `.volatile`, `.relaxed` or stronger accesses outside
    /// shared memory.
    ///
    /// The results and counts of a launch without a finding do not depend on this number. If there are several findings, that
    /// of the first block in the schedule is reported, as with one thread. For a race between two blocks, either block may
    /// be reported.
    pub workers: Option<NonZeroUsize>,
}

impl Settings {
    const DEFAULT: Settings = Settings {
        schedule: Schedule::InOrder,
        approx: Approx::Nearest,
        instruction_budget: 1 << 28,
        workers: None,
    };
}

impl Default for Settings {
    fn default() -> Self {
        Settings::DEFAULT
    }
}

thread_local! {
    static CURRENT: Cell<Settings> = const { Cell::new(Settings::DEFAULT) };
}

/// Runs `f`. The launches that this thread makes inside `f` use these settings.
pub fn with_settings<R>(settings: Settings, f: impl FnOnce() -> R) -> R {
    /// Restores the outer settings, after a panic too.
    struct Restore(Settings);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(settings));
    f()
}

/// The settings of this thread's launches.
pub(crate) fn current() -> Settings {
    CURRENT.get()
}
