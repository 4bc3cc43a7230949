//! How a launch runs: the order of its threads, and the values of approximate instructions.

use std::cell::Cell;
use std::num::NonZeroUsize;

/// The order in which threads run. A correct kernel gives the same result under each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// Blocks and warps one after the other, the lanes of a warp together, as a GPU would. The
    /// fastest, and the one under which requests and sectors are those of a GPU.
    #[default]
    InOrder,
    /// As `InOrder`, but from the last block and warp to the first.
    Reversed,
    /// Several blocks at once, pre-emption between any two instructions, and the lanes of a warp
    /// taken apart at random. Every launch with the same seed runs the same way.
    Seeded(u64),
}

/// What `.approx` instructions return. Cases that the PTX ISA defines exactly (such as `ex2` of 0)
/// hold in every mode.
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
    /// Instructions after which a warp that has not ended its block is taken to loop for ever. The default, 2^28,
    /// is seconds of a GPU's time.
    pub instruction_budget: u64,
    /// Threads that run the blocks of a launch, the caller's included; fewer if there are fewer clusters. `None`, the
    /// default: the caller's, and those for which there are idle cores once it has run for a while. The caller's alone
    /// under [`Schedule::Seeded`], and if the blocks of the kernel can wait for each other: it has fences, or
    /// outside of shared memory atomics or accesses that are `.volatile`, `.relaxed` or stronger.
    ///
    /// Results and counts of a launch without a finding do not depend on it. Of several findings that of the first
    /// block in the schedule is reported, as from one thread; of a race between two blocks either may be.
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

/// Runs `f`; the launches that this thread makes inside it use these settings.
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
