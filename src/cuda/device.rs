//! A CUDA context with the kernels loaded into it.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, sys};
use cudarc::nvrtc::Ptx;

use super::driver::{
    driver, driver_error, driver_version, load_log, speaks_of_image, version_text,
};
use super::entry::Entry;
use super::grid::{Grid, active_clusters};
use super::image::{BUILD_NOTE, Candidate, KERNELS, Kernels, candidates};
use super::slots::Slots;
use crate::error::{Error, Result};
use crate::geometry::{BLOCKS_OF_ROWS, MAX_CLUSTER};

/// Shared memory of a block that is left to what the compiler places there.
const STATIC_SHARED_BYTES: u32 = 1024;

/// Shared memory of a multiprocessor that the system takes for each block.
const SYSTEM_SHARED_BYTES: u32 = 1024;

/// The kernels of a CUDA context: a cache of what is loaded into it. Cheap to clone; all clones, and all queues on
/// streams of the context, share what is loaded.
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
    multiprocessors: u32,
    /// Where what is loaded comes from.
    kernels: Kernels,
    modules: Slots<Loaded>,
    functions: RwLock<HashMap<Entry, Function>>,
}

/// An entry on the device.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(super) function: CudaFunction,
    /// Blocks of the largest cluster of the entry that the device holds at once, with as much shared memory each as
    /// [`Device::dynamic_shared_bytes_of_each`] gives to [`BLOCKS_OF_ROWS`]; 1 if it holds none. All blocks of a
    /// cluster are on one GPC, of which an instance of MIG or a limit of MPS may leave little.
    pub(crate) largest_cluster: u64,
}

/// An image on the device.
#[derive(Clone, Debug)]
struct Loaded {
    module: Arc<CudaModule>,
    candidate: Candidate,
}

/// Why an image is not on the device.
enum Refusal {
    /// It could not be decompressed.
    Unreadable(String),
    ByDriver(sys::CUresult),
}

impl Inner {
    fn new(context: &Arc<CudaContext>, kernels: Kernels) -> Result<Inner> {
        let (major, minor) = context
            .compute_capability()
            .map_err(|e| driver_error("asking for the compute capability", e))?;
        let number = |attribute| {
            let number = context
                .attribute(attribute)
                .map_err(|e| driver_error("asking for an attribute of the device", e))?;
            Ok(number as u32)
        };
        use sys::CUdevice_attribute as Attribute;
        let of_block = number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let of_multiprocessor =
            number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?;
        Ok(Inner {
            context: context.clone(),
            capability: (major * 10 + minor) as u32,
            dynamic_shared_bytes: of_block.saturating_sub(STATIC_SHARED_BYTES),
            shared_bytes_per_multiprocessor: of_multiprocessor,
            multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            kernels,
            modules: Slots::new(kernels.images.iter().map(|image| image.stem)),
            functions: RwLock::default(),
        })
    }
}

impl Device {
    /// The device number `ordinal`, from 0, with its primary context: the one that PyTorch, candle
    /// and cubecl use too.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`], [`Error::NoDriver`], or [`Error::Driver`] (no such device, say).
    pub fn new(ordinal: usize) -> Result<Device> {
        check_kernels()?;
        driver()?;
        let context =
            CudaContext::new(ordinal).map_err(|e| driver_error("opening the device", e))?;
        Device::from_context(&context)
    }

    /// The kernels of a context that the caller already has: always the same for the same `Arc`, as long as any of them
    /// are in use.
    ///
    /// cudarc panics where there is no driver: a program that opens a `CudaContext` by itself does so before it gets
    /// here, and can ask [`check_driver`](super::check_driver) first.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`], [`Error::NoDriver`] or [`Error::Driver`].
    pub fn from_context(context: &Arc<CudaContext>) -> Result<Device> {
        check_kernels()?;
        Device::with_kernels(context, KERNELS)
    }

    /// As [`from_context`](Device::from_context), which from now on gives this device too; if the context has none yet, it
    /// loads these kernels and not those that are embedded. For tests of the loader.
    #[doc(hidden)]
    pub fn with_kernels(context: &Arc<CudaContext>, kernels: Kernels) -> Result<Device> {
        static ALL: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());
        driver()?;
        // A poisoned lock means that another thread panicked between two changes; the list is whole.
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|inner| inner.strong_count() > 0);
        let known = all.iter().filter_map(Weak::upgrade);
        if let Some(inner) = known
            .into_iter()
            .find(|inner| Arc::ptr_eq(&inner.context, context))
        {
            return Ok(Device(inner));
        }
        let inner = Arc::new(Inner::new(context, kernels)?);
        all.push(Arc::downgrade(&inner));
        Ok(Device(inner))
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

    /// How many multiprocessors it has.
    pub(crate) fn multiprocessors(&self) -> u32 {
        self.0.multiprocessors
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

    /// With lazy loading, CUDA's default, a function reaches the device only at its first launch.
    pub(super) fn force_load(&self, function: &Function) -> Result<()> {
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
                unsafe { load(function.function.cu_function()) }
                    .result()
                    .map_err(|e| driver_error(doing, e))
            }
            // Asking for a property of the compiled code has the same effect on older drivers.
            Err(_) => function
                .function
                .num_regs()
                .map(|_| ())
                .map_err(|e| driver_error(doing, e)),
        }
    }

    /// Whether the best image that the device and the driver take has the entry.
    pub(crate) fn has(&self, entry: Entry) -> Result<bool> {
        Ok(self.loaded(entry.stem)?.candidate.target() >= entry.min_target)
    }

    /// The entry, loaded if it is not yet.
    pub(crate) fn function(&self, entry: Entry) -> Result<Function> {
        // A poisoned lock means that another thread panicked between two insertions; the map is whole.
        let functions = &self.0.functions;
        if let Some(found) = functions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&entry)
        {
            return Ok(found.clone());
        }
        let module = self.loaded(entry.stem)?.module;
        // It may have been loaded in another thread.
        self.0
            .context
            .bind_to_thread()
            .map_err(|e| driver_error("finding a kernel in its module", e))?;
        let function = module
            .load_function(&entry.name())
            .map_err(|e| driver_error("finding a kernel in its module", e))?;
        if entry.dynamic_shared {
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
        let largest_cluster = if entry.clusters {
            self.find_largest_cluster(&function)?
        } else {
            1
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
        self.0.modules.get(stem, || self.load(stem))
    }

    /// Loads the best of what there is of a stem that the device and the driver take.
    fn load(&self, stem: &'static str) -> Result<Loaded> {
        let inner = &self.0;
        let driver = driver_version();
        let mut refused = Vec::new();
        for candidate in candidates(inner.kernels, stem, inner.capability, driver)? {
            let code = match candidate {
                Candidate::Cubin(cubin) => match cubin.bytes() {
                    Ok(bytes) => Ptx::from_binary(bytes),
                    Err(why) => {
                        refused.push((candidate, Refusal::Unreadable(why)));
                        continue;
                    }
                },
                Candidate::Ptx(image) => Ptx::from_src(image.ptx),
            };
            match inner.context.load_module(code) {
                Ok(module) => return Ok(Loaded { module, candidate }),
                Err(e) if speaks_of_image(e.0) => {
                    refused.push((candidate, Refusal::ByDriver(e.0)));
                }
                Err(e) => return Err(driver_error("loading a kernel", e)),
            }
        }
        // The image of the oldest target is of the oldest version.
        if let Some((Candidate::Ptx(image), Refusal::ByDriver(error))) = refused.last()
            && *error == sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        {
            return Err(Error::DriverTooOld {
                ptx: image.version,
                driver: version_text(driver),
            });
        }
        let log: Vec<String> = refused
            .into_iter()
            .map(|(candidate, refusal)| self.explain(candidate, refusal))
            .collect();
        Err(Error::NotLoaded {
            kernel: stem,
            log: log.join("\n"),
        })
    }

    /// Why an image was not loaded, in a line or more.
    fn explain(&self, candidate: Candidate, refusal: Refusal) -> String {
        let name = candidate.name();
        match refusal {
            Refusal::Unreadable(why) => format!("{name}: damaged ({why})"),
            Refusal::ByDriver(error) => {
                // Of machine code the compiler says nothing.
                let log = match candidate {
                    Candidate::Ptx(image) => CString::new(image.ptx).ok(),
                    Candidate::Cubin(_) => None,
                };
                let log = log.map(|text| load_log(&self.0.context, &text));
                match log.filter(|log| !log.is_empty()) {
                    Some(log) => format!("{name}: {error:?}\n{log}"),
                    None => format!("{name}: {error:?}"),
                }
            }
        }
    }

    /// What of the embedded kernels is loaded, such as `xielu.sm_90.cubin` or `goldfish.sm_80.ptx`, for tests and tools.
    #[doc(hidden)]
    pub fn loaded_images(&self) -> Vec<String> {
        let loaded = self.0.modules.made().into_iter();
        loaded.map(|loaded| loaded.candidate.name()).collect()
    }

    /// Fails unless the buffer `what`, allocated on `stream`, is of this device's context: of the same
    /// object, since cudarc keeps pending errors and the ordering of streams there, not in the driver.
    pub(super) fn check_buffer(&self, what: &'static str, stream: &CudaStream) -> Result<()> {
        if Arc::ptr_eq(stream.context(), &self.0.context) {
            Ok(())
        } else {
            Err(Error::WrongContext { what })
        }
    }
}

/// Whether the crate holds kernels: it was compiled where nvcc was found.
///
/// # Errors
/// [`Error::KernelsNotBuilt`], which says why not.
pub fn check_kernels() -> Result<()> {
    if KERNELS.images.is_empty() {
        Err(Error::KernelsNotBuilt { reason: BUILD_NOTE })
    } else {
        Ok(())
    }
}
