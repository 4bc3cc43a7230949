//! A CUDA context with the kernels loaded into it, and workspaces.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::ThreadId;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DriverError, sys,
};
use cudarc::nvrtc::Ptx;

use crate::error::{Error, Result};
use crate::geometry::{BLOCKS_OF_ROWS, MAX_CLUSTER};
use crate::launch::{Entry, Grid, active_clusters};

/// A kernel file compiled for one virtual architecture.
#[doc(hidden)]
#[derive(Debug)]
pub struct Image {
    /// Stem of the file, and of its entries.
    pub stem: &'static str,
    /// Compute capability times ten.
    pub target: u32,
    /// PTX version of the text.
    pub version: &'static str,
    /// PTX version nvcc had written before it was lowered.
    pub nvcc_version: &'static str,
    /// The text.
    pub ptx: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// The driver library's names, in the order in which cudarc looks for them: those that exist on Linux,
/// then that on Windows.
const DRIVER_NAMES: [&str; 7] = [
    "libcuda.so",
    "libcuda.so.12",
    "libcuda.so.11",
    "libcuda.so.10",
    "libcuda.so.9",
    "libcuda.so.1",
    "nvcuda.dll",
];

/// The driver library, if this machine has one. cudarc panics where there is none, even when it
/// formats an error, so nothing of cudarc is called before this succeeds.
fn driver() -> Result<&'static libloading::Library> {
    static DRIVER: OnceLock<Option<libloading::Library>> = OnceLock::new();
    DRIVER
        .get_or_init(|| {
            DRIVER_NAMES.iter().find_map(|name| {
                // SAFETY: loading the CUDA driver runs its initialisers, which the program asked for
                // by using CUDA; cudarc loads the same library.
                unsafe { libloading::Library::new(*name) }.ok()
            })
        })
        .as_ref()
        .ok_or_else(|| Error::NoDriver {
            tried: DRIVER_NAMES.join(", "),
        })
}

pub(crate) fn driver_error(doing: &'static str, error: DriverError) -> Error {
    Error::Driver {
        doing,
        // The name of the enum's variant. The error's own Display would ask the driver.
        name: format!("{:?}", error.0),
    }
}

/// Shared memory of a block that is left to what the compiler places there.
const STATIC_SHARED_BYTES: u32 = 1024;

/// Shared memory of a multiprocessor that the system takes for each block.
const SYSTEM_SHARED_BYTES: u32 = 1024;

/// A CUDA device, ready to run this crate's kernels: its primary context and the functions loaded
/// into it. Cheap to clone; all clones share what is loaded.
///
/// Kernels are loaded when first used. Loading is not allowed while a stream is being captured into a
/// graph: call [`preload`](Device::preload) before.
#[derive(Clone, Debug)]
pub struct Device(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    context: Arc<CudaContext>,
    /// Compute capability times ten.
    capability: u32,
    dynamic_shared_bytes: u32,
    shared_bytes_per_multiprocessor: u32,
    modules: Mutex<HashMap<&'static str, Loaded>>,
    functions: RwLock<HashMap<Entry, Function>>,
}

/// An entry on the device.
#[derive(Clone, Debug)]
struct Function {
    function: CudaFunction,
    /// As [`Device::largest_cluster`] says.
    largest_cluster: u64,
}

/// An image on the device.
#[derive(Clone, Debug)]
struct Loaded {
    module: Arc<CudaModule>,
    /// As in [`Image`].
    target: u32,
}

impl Device {
    /// The device number `ordinal`, from 0, with its primary context: the one that PyTorch, candle
    /// and cubecl use too.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`], [`Error::NoDriver`], or [`Error::Driver`] (no such device, say).
    pub fn new(ordinal: usize) -> Result<Device> {
        check_built()?;
        driver()?;
        let context =
            CudaContext::new(ordinal).map_err(|e| driver_error("opening the device", e))?;
        Device::from_context(&context)
    }

    /// A device for a context that the caller already has.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`], [`Error::NoDriver`] or [`Error::Driver`].
    pub fn from_context(context: &Arc<CudaContext>) -> Result<Device> {
        check_built()?;
        driver()?;
        let (major, minor) = context
            .compute_capability()
            .map_err(|e| driver_error("asking for the compute capability", e))?;
        let shared = |attribute| {
            let bytes = context
                .attribute(attribute)
                .map_err(|e| driver_error("asking for the size of shared memory", e))?;
            Ok(bytes as u32)
        };
        use sys::CUdevice_attribute as Attribute;
        let of_block = shared(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let of_multiprocessor =
            shared(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?;
        Ok(Device(Arc::new(Inner {
            context: context.clone(),
            capability: (major * 10 + minor) as u32,
            dynamic_shared_bytes: of_block.saturating_sub(STATIC_SHARED_BYTES),
            shared_bytes_per_multiprocessor: of_multiprocessor,
            modules: Mutex::default(),
            functions: RwLock::default(),
        })))
    }

    /// The context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.0.context
    }

    /// The most dynamic shared memory that an entry may be launched with.
    pub(crate) fn dynamic_shared_bytes(&self) -> u32 {
        self.0.dynamic_shared_bytes
    }

    /// The most with which so many blocks still fit on a multiprocessor at once.
    pub(crate) fn dynamic_shared_bytes_of_each(&self, blocks: u32) -> u32 {
        (self.0.shared_bytes_per_multiprocessor / blocks)
            .saturating_sub(SYSTEM_SHARED_BYTES + STATIC_SHARED_BYTES)
            .min(self.0.dynamic_shared_bytes)
    }

    /// The device's name, such as `NVIDIA H100 80GB HBM3`.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn name(&self) -> Result<String> {
        self.0
            .context
            .name()
            .map_err(|e| driver_error("asking for the device's name", e))
    }

    /// Loads every kernel now, on to the device, so that later launches load nothing: needed before a
    /// stream capture, and it moves the time of the PTX compilation to where you want it.
    ///
    /// # Errors
    /// As a launch: [`Error::Driver`], [`Error::DriverTooOld`], [`Error::DeviceTooOld`].
    pub fn preload(&self) -> Result<()> {
        for entry in crate::launch::entries() {
            if self.has(entry)? {
                let function = self.function(entry)?;
                self.force_load(&function)?;
            }
        }
        Ok(())
    }

    /// With lazy loading, CUDA's default, a function reaches the device only at its first launch.
    fn force_load(&self, function: &CudaFunction) -> Result<()> {
        type CuFuncLoad = unsafe extern "C" fn(sys::CUfunction) -> sys::CUresult;
        // SAFETY: cuFuncLoad has this signature in every driver that has it (12.4 and later). cudarc's
        // own binding would panic on a driver without it.
        let symbol = unsafe { driver()?.get::<CuFuncLoad>(b"cuFuncLoad\0") };
        let doing = "loading a kernel on to the device";
        match symbol {
            Ok(load) => {
                self.0
                    .context
                    .bind_to_thread()
                    .map_err(|e| driver_error(doing, e))?;
                // SAFETY: the handle is live, since `function` keeps its module.
                unsafe { load(function.cu_function()) }
                    .result()
                    .map_err(|e| driver_error(doing, e))
            }
            // Asking for a property of the compiled code has the same effect on older drivers.
            Err(_) => function
                .num_regs()
                .map(|_| ())
                .map_err(|e| driver_error(doing, e)),
        }
    }

    /// Whether the best image that the device and the driver take has the entry.
    pub(crate) fn has(&self, entry: Entry) -> Result<bool> {
        Ok(self.loaded(entry.stem)?.target >= entry.target())
    }

    pub(crate) fn function(&self, entry: Entry) -> Result<CudaFunction> {
        Ok(self.loaded_function(entry)?.function)
    }

    /// Blocks of the largest cluster of an entry that the device holds at once, with as much shared memory each as
    /// [`dynamic_shared_bytes_of_each`](Self::dynamic_shared_bytes_of_each) gives to [`BLOCKS_OF_ROWS`]; 1 if it holds
    /// none. All blocks of a cluster are on one GPC, of which an instance of MIG or a limit of MPS may leave little.
    pub(crate) fn largest_cluster(&self, entry: Entry) -> Result<u64> {
        Ok(self.loaded_function(entry)?.largest_cluster)
    }

    fn loaded_function(&self, entry: Entry) -> Result<Function> {
        // A poisoned lock means that another thread panicked between two insertions; the map is whole.
        let functions = &self.0.functions;
        if let Some(found) = functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&entry)
        {
            return Ok(found.clone());
        }
        let function = self
            .loaded(entry.stem)?
            .module
            .load_function(&entry.name())
            .map_err(|e| driver_error("finding a kernel in its module", e))?;
        use crate::loss::cross_entropy::{CLUSTER, FUSED};
        if [CLUSTER, FUSED].contains(&entry.task) {
            // Beyond 48 KiB it must be asked for.
            function
                .set_attribute(
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    self.0.dynamic_shared_bytes as i32,
                )
                .map_err(|e| driver_error("asking for shared memory", e))?;
            // Several blocks shall fit on a multiprocessor, and what passes through once needs no cache.
            function
                .set_attribute(
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                    sys::CUshared_carveout::CU_SHAREDMEM_CARVEOUT_MAX_SHARED as i32,
                )
                .map_err(|e| driver_error("preferring shared memory to cache", e))?;
        }
        let largest_cluster = match entry.task {
            CLUSTER => self.find_largest_cluster(&function)?,
            _ => 1,
        };
        let loaded = Function {
            function,
            largest_cluster,
        };
        functions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(entry, loaded.clone());
        Ok(loaded)
    }

    fn find_largest_cluster(&self, function: &CudaFunction) -> Result<u64> {
        self.0
            .context
            .bind_to_thread()
            .map_err(|e| driver_error("asking for the room for clusters", e))?;
        let mut blocks = MAX_CLUSTER as u32;
        while blocks > 1 {
            let grid = Grid {
                blocks,
                cluster: blocks,
                shared_bytes: self.dynamic_shared_bytes_of_each(BLOCKS_OF_ROWS as u32),
            };
            if active_clusters(function, grid)? > 0 {
                break;
            }
            blocks /= 2;
        }
        Ok(u64::from(blocks))
    }

    fn loaded(&self, stem: &'static str) -> Result<Loaded> {
        let mut modules = self
            .0
            .modules
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = modules.get(stem) {
            return Ok(loaded.clone());
        }
        let mut refused = None;
        for image in images_for(IMAGES, stem, self.0.capability)? {
            match self.0.context.load_module(Ptx::from_src(image.ptx)) {
                Ok(module) => {
                    let target = image.target;
                    let loaded = Loaded { module, target };
                    modules.insert(stem, loaded.clone());
                    return Ok(loaded);
                }
                // The image of an older target is of an older version, too.
                Err(e) if e.0 == sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
                    refused = Some(image.version);
                }
                Err(e) => return Err(driver_error("loading a kernel", e)),
            }
        }
        Err(Error::DriverTooOld {
            ptx: refused.unwrap_or_default(),
            driver: driver_version(),
        })
    }

    /// Fails unless `stream` is of this device's context.
    pub(crate) fn check_stream(&self, stream: &CudaStream) -> Result<()> {
        self.check_buffer("the stream", stream)
    }

    /// Fails unless the buffer `what`, allocated on `stream`, is of this device's context: of the same
    /// object, since cudarc keeps pending errors and the ordering of streams there, not in the driver.
    pub(crate) fn check_buffer(&self, what: &'static str, stream: &CudaStream) -> Result<()> {
        if Arc::ptr_eq(stream.context(), &self.0.context) {
            Ok(())
        } else {
            Err(Error::WrongContext { what })
        }
    }
}

/// The images of a stem that a device of this compute capability (times ten) takes, the newest first; at least
/// one.
fn images_for<'a>(images: &'a [Image], stem: &str, capability: u32) -> Result<Vec<&'a Image>> {
    let of_stem = || images.iter().filter(|image| image.stem == stem);
    let mut taken: Vec<_> = of_stem()
        .filter(|image| image.target <= capability)
        .collect();
    taken.sort_by_key(|image| std::cmp::Reverse(image.target));
    if taken.is_empty() {
        return Err(Error::DeviceTooOld {
            device: capability,
            oldest: of_stem().map(|image| image.target).min().unwrap_or(0),
        });
    }
    Ok(taken)
}

fn check_built() -> Result<()> {
    if IMAGES.is_empty() {
        Err(Error::KernelsNotBuilt { reason: BUILD_NOTE })
    } else {
        Ok(())
    }
}

fn driver_version() -> String {
    let mut version = 0;
    // SAFETY: writes one int to a live one; a driver is loaded, or this would not be reached.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    match status {
        sys::CUresult::CUDA_SUCCESS => format!("{}.{}", version / 1000, version % 1000 / 10),
        _ => "unknown".to_owned(),
    }
}

/// The embedded kernels, for tests and tools; empty if the crate was built without nvcc.
#[doc(hidden)]
pub fn images() -> &'static [Image] {
    IMAGES
}

/// Device memory for the partial sums of the parameter gradients. It belongs to one stream: launches
/// on that stream use it one after the other, so one workspace, as large as the largest call needs,
/// serves any number of calls.
#[derive(Debug)]
pub struct Workspace {
    buffer: CudaSlice<u8>,
    stream: Arc<CudaStream>,
    /// The creating thread, if the stream is the per-thread default one: there the same handle means
    /// another stream in each thread.
    thread: Option<ThreadId>,
}

impl Workspace {
    /// A workspace of `bytes` bytes on `stream`; ask
    /// [`Activation::workspace_bytes`](crate::Activation::workspace_bytes) how many a call needs.
    ///
    /// # Errors
    /// [`Error::Driver`], for example when memory is short.
    pub fn new(stream: &Arc<CudaStream>, bytes: u64) -> Result<Workspace> {
        // CUDA does not allocate 0 bytes.
        let bytes = usize::try_from(bytes.max(1)).unwrap_or(usize::MAX);
        // SAFETY: the contents are undefined, and the kernels write every partial before they read it.
        let buffer = unsafe { stream.alloc::<u8>(bytes) }
            .map_err(|e| driver_error("allocating a workspace", e))?;
        Ok(Workspace {
            buffer,
            stream: stream.clone(),
            thread: is_per_thread(stream).then(|| std::thread::current().id()),
        })
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.buffer.num_bytes() as u64
    }

    /// The buffer, for a launch on `stream`.
    pub(crate) fn buffer_for(&mut self, stream: &CudaStream) -> Result<&mut CudaSlice<u8>> {
        let same = self.stream.cu_stream() == stream.cu_stream()
            && Arc::ptr_eq(self.stream.context(), stream.context())
            && self
                .thread
                .is_none_or(|thread| thread == std::thread::current().id());
        if same {
            Ok(&mut self.buffer)
        } else {
            Err(Error::WrongStream)
        }
    }
}

/// Whether the stream is the handle that stands for each thread's own default stream.
fn is_per_thread(stream: &CudaStream) -> bool {
    /// `CU_STREAM_PER_THREAD` of cuda.h.
    const CU_STREAM_PER_THREAD: usize = 2;
    stream.cu_stream() as usize == CU_STREAM_PER_THREAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_image_comes_first_and_a_device_may_be_too_old() {
        let image = |stem, target| Image {
            stem,
            target,
            version: "",
            nvcc_version: "",
            ptx: "",
        };
        let images = [image("a", 80), image("b", 80), image("a", 90)];
        let targets = |stem, capability| {
            let images = images_for(&images, stem, capability).map_err(|e| e.to_string())?;
            Ok::<_, String>(images.iter().map(|i| i.target).collect::<Vec<_>>())
        };
        assert_eq!(targets("a", 100), Ok(vec![90, 80]));
        assert_eq!(targets("a", 90), Ok(vec![90, 80]));
        assert_eq!(targets("a", 86), Ok(vec![80]));
        assert_eq!(targets("b", 90), Ok(vec![80]));
        assert!(targets("a", 75).is_err());
    }
}
