//! Functions: attributes and occupancy.

use std::collections::HashMap;
use std::ffi::{c_int, c_uint};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use super::error::Error;
use super::launch::{Config, limits};
use super::{Handle, Registry, Status, call, context, put, stream};
use crate::device::{DEVICES, Profile};
use crate::exec::Request;
use crate::lower::Code;

/// An entry of a loaded module.
pub(crate) struct Function {
    module: usize,
    pub device: usize,
    pub code: Arc<Code>,
    names: Arc<Vec<String>>,
    files: Arc<HashMap<u32, String>>,
    variables: Arc<Vec<u64>>,
    version: (u32, u32),
    target: u32,
    /// Dynamic shared memory that a launch may ask for.
    max_dynamic: AtomicU32,
    /// Whether the function is loaded on the device.
    loaded: AtomicBool,
}

static FUNCTIONS: Registry<Function> = Registry::new();

impl Function {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        module: Handle,
        device: usize,
        code: Arc<Code>,
        names: Arc<Vec<String>>,
        files: Arc<HashMap<u32, String>>,
        variables: Arc<Vec<u64>>,
        version: (u32, u32),
        target: u32,
    ) -> Self {
        let left = u64::from(DEVICES[device].shared).saturating_sub(code.shared_bytes);
        let max_dynamic = AtomicU32::new(left as u32);
        Function {
            module: module as usize,
            device,
            code,
            names,
            files,
            variables,
            version,
            target,
            max_dynamic,
            loaded: AtomicBool::new(false),
        }
    }

    /// Loads the function on to the device at its first use (lazy loading, CUDA's default). Like all loading, this is an error
    /// during a capture.
    pub fn load(&self) -> Result<(), Error> {
        if !self.loaded.load(Relaxed) {
            stream::forbid_unsafe_call().inspect_err(|_| {
                eprintln!(
                    "cuda-emulator: `{}` is first used during a capture, where nothing can be loaded; cuFuncLoad before",
                    self.code.name
                );
            })?;
            self.loaded.store(true, Relaxed);
        }
        Ok(())
    }

    /// A launch of the function, if its shape is within the limits.
    pub fn request(
        &self,
        grid: (u32, u32, u32),
        block: (u32, u32, u32),
        cluster: u32,
        dynamic_shared: u32,
        params: Vec<u8>,
    ) -> Request {
        Request {
            code: self.code.clone(),
            files: self.files.clone(),
            names: self.names.clone(),
            variables: self.variables.clone(),
            device: self.device,
            grid,
            block,
            cluster,
            dynamic_shared,
            params,
        }
    }

    pub fn profile(&self) -> &'static Profile {
        &DEVICES[self.device]
    }

    pub fn max_dynamic(&self) -> u32 {
        self.max_dynamic.load(Relaxed)
    }

    /// Threads of a block, as far as the entry itself limits them.
    pub fn max_threads(&self) -> u32 {
        let product = |(x, y, z): (u32, u32, u32)| x.saturating_mul(y).saturating_mul(z);
        self.code
            .req_ntid
            .or(self.code.max_ntid)
            .map_or(1024, product)
            .clamp(1, 1024)
    }

    /// An upper bound of the registers per thread, from the limits of the entry. Only ptxas knows the real number.
    fn registers(&self) -> u32 {
        let by_threads = 65536 / self.max_threads() / 8 * 8;
        self.code.max_nreg.unwrap_or(255).min(by_threads).min(255)
    }

    /// The number of blocks of this many threads that fit on a multiprocessor by threads and shared memory. Registers are not
    /// known here.
    fn blocks_per_multiprocessor(&self, threads: u32, dynamic: usize) -> u32 {
        let p = self.profile();
        if threads == 0 || threads > self.max_threads() || dynamic > self.max_dynamic() as usize {
            return 0;
        }
        let by_threads = 2048 / threads.next_multiple_of(32);
        let shared = self.code.shared_bytes + dynamic as u64 + 1024;
        let by_shared = u64::from(p.shared_per_multiprocessor) / shared;
        by_threads.min(by_shared as u32).min(32)
    }

    /// The number of clusters of this many blocks that run at once.
    pub fn active_clusters(&self, cluster: u32, threads: u32, dynamic: u32) -> u32 {
        let p = self.profile();
        let blocks = self.blocks_per_multiprocessor(threads, dynamic as usize);
        let of_gpc = p.gpc_multiprocessors * blocks / cluster;
        p.multiprocessors / p.gpc_multiprocessors * of_gpc
    }
}

/// Registers a function.
pub(crate) fn insert(f: Function) -> Handle {
    FUNCTIONS.insert(f)
}

/// The function of a handle.
pub(crate) fn get(f: Handle) -> Result<Arc<Function>, Error> {
    FUNCTIONS.get(f)
}

/// Drops the functions of a module.
pub(crate) fn forget(module: Handle) {
    FUNCTIONS.remove_where(|f| f.module == module as usize);
}

/// A property of a function.
pub unsafe extern "C" fn cuFuncGetAttribute(
    value: *mut c_int,
    attribute: c_uint,
    f: Handle,
) -> Status {
    call(|| {
        context::current()?;
        let f = get(f)?;
        // Properties of the compiled code.
        f.load()?;
        let v = match attribute {
            0 => f.max_threads(),                // MAX_THREADS_PER_BLOCK
            1 => f.code.shared_bytes as u32,     // SHARED_SIZE_BYTES
            2 => 0,                              // CONST_SIZE_BYTES
            3 => f.code.local_bytes as u32,      // LOCAL_SIZE_BYTES
            4 => f.registers(),                  // NUM_REGS
            5 => f.version.0 * 10 + f.version.1, // PTX_VERSION
            6 => f.target,                       // BINARY_VERSION
            7 => 0,                              // CACHE_MODE_CA
            8 => f.max_dynamic(),                // MAX_DYNAMIC_SHARED_SIZE_BYTES
            9 => u32::MAX,                       // PREFERRED_SHARED_MEMORY_CARVEOUT: no preference
            _ => {
                eprintln!("cuda-emulator: cuFuncGetAttribute: unknown attribute {attribute}");
                return Err(Error::INVALID_VALUE);
            }
        };
        // SAFETY: the caller gives a valid place.
        unsafe { put(value, v as c_int) }
    })
}

/// Opts in to more dynamic shared memory.
pub unsafe extern "C" fn cuFuncSetAttribute(f: Handle, attribute: c_uint, value: c_int) -> Status {
    call(|| {
        context::current()?;
        let f = get(f)?;
        match attribute {
            8 => {
                let room = u64::from(f.profile().shared_optin).saturating_sub(f.code.shared_bytes);
                let value = u32::try_from(value).map_err(|_| Error::INVALID_VALUE)?;
                if u64::from(value) > room {
                    return Err(Error::INVALID_VALUE);
                }
                f.max_dynamic.store(value, Relaxed);
                Ok(())
            }
            9 if (-1..=100).contains(&value) => Ok(()),
            _ => Err(Error::INVALID_VALUE),
        }
    })
}

/// A preference without effect.
pub unsafe extern "C" fn cuFuncSetCacheConfig(f: Handle, _config: c_uint) -> Status {
    call(|| get(f).map(|_| ()))
}

/// Loads a function before its first use.
pub unsafe extern "C" fn cuFuncLoad(f: Handle) -> Status {
    call(|| get(f)?.load())
}

/// Whether a function has been loaded.
pub unsafe extern "C" fn cuFuncIsLoaded(state: *mut c_uint, f: Handle) -> Status {
    call(|| {
        let loaded = get(f)?.loaded.load(Relaxed);
        // SAFETY: the caller gives a valid place.
        unsafe { put(state, c_uint::from(loaded)) }
    })
}

/// Blocks per multiprocessor.
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut c_int,
    f: Handle,
    threads: c_int,
    dynamic: usize,
) -> Status {
    call(|| {
        context::current()?;
        let f = get(f)?;
        let threads = u32::try_from(threads)
            .ok()
            .filter(|t| *t > 0)
            .ok_or(Error::INVALID_VALUE)?;
        // SAFETY: the caller gives a valid place.
        unsafe {
            put(
                blocks,
                f.blocks_per_multiprocessor(threads, dynamic) as c_int,
            )
        }
    })
}

/// Blocks per multiprocessor.
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    blocks: *mut c_int,
    f: Handle,
    threads: c_int,
    dynamic: usize,
    _flags: c_uint,
) -> Status {
    // SAFETY: the same contract.
    unsafe { cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, f, threads, dynamic) }
}

/// Clusters that run at once, of the launch that a configuration describes.
pub unsafe extern "C" fn cuOccupancyMaxActiveClusters(
    clusters: *mut c_int,
    f: Handle,
    config: *const Config,
) -> Status {
    call(|| {
        context::current()?;
        let f = get(f)?;
        // SAFETY: the caller answers for the configuration.
        let (c, cluster) = unsafe { Config::read(config) }?;
        if let Some((error, _)) = limits(&f, c.grid.into(), c.block.into(), cluster, c.dynamic) {
            return Err(error);
        }
        let active = f.active_clusters(cluster, c.block.iter().product(), c.dynamic);
        // SAFETY: the caller gives a valid place.
        unsafe { put(clusters, active as c_int) }
    })
}

/// Dynamic shared memory with which so many blocks fit a multiprocessor.
pub unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: *mut usize,
    f: Handle,
    blocks: c_int,
    _threads: c_int,
) -> Status {
    call(|| {
        context::current()?;
        let f = get(f)?;
        let blocks = u64::try_from(blocks)
            .ok()
            .filter(|b| *b > 0)
            .ok_or(Error::INVALID_VALUE)?;
        let each = (u64::from(f.profile().shared_per_multiprocessor) / blocks).saturating_sub(1024);
        let each = each
            .min(u64::from(f.profile().shared_optin))
            .saturating_sub(f.code.shared_bytes);
        // SAFETY: the caller gives a valid place.
        unsafe { put(bytes, each as usize) }
    })
}

/// The largest block, and the blocks that fill the device with it.
pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: *mut c_int,
    block: *mut c_int,
    f: Handle,
    _dynamic_of: Option<unsafe extern "C" fn(c_int) -> usize>,
    dynamic: usize,
    limit: c_int,
    _flags: c_uint,
) -> Status {
    call(|| {
        context::current()?;
        let f = get(f)?;
        let limit = if limit > 0 { limit as u32 } else { 1024 };
        let threads = f.max_threads().min(limit);
        let blocks = f.blocks_per_multiprocessor(threads, dynamic) * f.profile().multiprocessors;
        // SAFETY: the caller gives valid places.
        unsafe {
            put(grid, blocks as c_int)?;
            put(block, threads as c_int)
        }
    })
}
