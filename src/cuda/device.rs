//! [`Device`]: a CUDA context with its loaded kernels.

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

/// The bytes of shared memory per block that are reserved for static shared memory.
const STATIC_SHARED_BYTES: u32 = 1024;

/// The bytes of shared memory that the system takes for each block of a multiprocessor.
const SYSTEM_SHARED_BYTES: u32 = 1024;

/// A CUDA context and the cache of the kernels that are loaded into it. It is cheap to clone. All clones, and all queues on
/// streams of the context, share the loaded kernels.
///
/// A kernel is loaded when it is first used. CUDA does not allow loading while a stream is being captured into a graph, so
/// call [`preload`](Device::preload) before a capture.
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
    /// The images that kernels are loaded from.
    kernels: Kernels,
    modules: Slots<Loaded>,
    functions: RwLock<HashMap<Entry, Function>>,
}

/// A kernel entry that is loaded on the device.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(super) function: CudaFunction,
    /// The size in blocks of the largest cluster that the device can hold, with the shared memory per block that
    /// [`Device::dynamic_shared_bytes_of_each`] gives to [`BLOCKS_OF_ROWS`] blocks; 1 if it holds no cluster. All blocks of
    /// a cluster are on one GPC, and a MIG instance or an MPS limit may leave only a part of it.
    pub(crate) largest_cluster: u64,
}

/// An image that is loaded on the device.
#[derive(Clone, Debug)]
struct Loaded {
    module: Arc<CudaModule>,
    candidate: Candidate,
}

/// Why an image was not loaded.
enum Refusal {
    /// The machine code could not be decompressed.
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
    /// Opens the device number `ordinal` (from 0) with its primary context, which PyTorch, candle and cubecl use too.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`], [`Error::NoDriver`], or [`Error::Driver`], for example if there is no such device.
    pub fn new(ordinal: usize) -> Result<Device> {
        check_built()?;
        driver()?;
        let context =
            CudaContext::new(ordinal).map_err(|e| driver_error("opening the device", e))?;
        Device::from_context(&context)
    }

    /// Returns the device of a context that the caller has opened. The same `Arc` gives the same device as long as any clone
    /// of it is in use.
    ///
    /// `CudaContext::new` of cudarc panics if there is no driver. A program that opens contexts itself can call
    /// [`check_driver`](super::check_driver) first.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`], [`Error::NoDriver`] or [`Error::Driver`].
    pub fn from_context(context: &Arc<CudaContext>) -> Result<Device> {
        check_built()?;
        Device::with_kernels(context, KERNELS)
    }

    /// Like [`from_context`](Device::from_context), but if the context has no device yet, the device loads `kernels` instead
    /// of the embedded ones. For tests of the loader.
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

    /// Returns the context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.0.context
    }

    /// The maximum bytes of dynamic shared memory per block.
    pub(crate) fn dynamic_shared_bytes(&self) -> u32 {
        self.0.dynamic_shared_bytes
    }

    /// The maximum bytes of dynamic shared memory per block with which `blocks` blocks fit on a multiprocessor at once.
    pub(crate) fn dynamic_shared_bytes_of_each(&self, blocks: u32) -> u32 {
        (self.0.shared_bytes_per_multiprocessor / blocks)
            .saturating_sub(SYSTEM_SHARED_BYTES + STATIC_SHARED_BYTES)
            .min(self.0.dynamic_shared_bytes)
    }

    /// The number of multiprocessors.
    pub(crate) fn multiprocessors(&self) -> u32 {
        self.0.multiprocessors
    }

    /// Returns the name of the device, such as `NVIDIA H100 80GB HBM3`.
    ///
    /// # Errors
    /// [`Error::Driver`] if the driver does not return it.
    pub fn name(&self) -> Result<String> {
        self.0
            .context
            .name()
            .map_err(|e| driver_error("asking for the device's name", e))
    }

    /// Loads a function on to the device now. With lazy loading, CUDA's default, that happens at its first launch.
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
            // On older drivers, asking for a property of the compiled code has the same effect.
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

    /// Returns the entry, and loads it if it is not loaded yet.
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
        // Another thread may have loaded the module, so the context may not be bound to this one.
        self.0
            .context
            .bind_to_thread()
            .map_err(|e| driver_error("finding a kernel in its module", e))?;
        let function = module
            .load_function(&entry.name())
            .map_err(|e| driver_error("finding a kernel in its module", e))?;
        if entry.dynamic_shared {
            // CUDA allows more than 48 KiB only if it is asked for.
            function
                .set_attribute(
                    sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    self.0.dynamic_shared_bytes as i32,
                )
                .map_err(|e| driver_error("asking for shared memory", e))?;
            // Several blocks must fit on a multiprocessor. The data is read once, so the L1 cache does not help.
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

    /// Loads the best image of a kernel file that the device and the driver accept.
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
        // The image for the lowest target has the lowest PTX version.
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

    /// The text that says why an image was not loaded.
    fn explain(&self, candidate: Candidate, refusal: Refusal) -> String {
        let name = candidate.name();
        match refusal {
            Refusal::Unreadable(why) => format!("{name}: damaged ({why})"),
            Refusal::ByDriver(error) => {
                // There is no compiler log for machine code.
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

    /// Returns the names of the loaded images, such as `xielu.sm_90.cubin` or `goldfish.sm_80.ptx`. For tests and tools.
    #[doc(hidden)]
    pub fn loaded_images(&self) -> Vec<String> {
        let loaded = self.0.modules.made().into_iter();
        loaded.map(|loaded| loaded.candidate.name()).collect()
    }

    /// Fails unless the buffer `what`, allocated on `stream`, belongs to the `CudaContext` object of this device. Another
    /// object for the same driver context is refused, because cudarc keeps pending errors and the order of streams in it.
    pub(super) fn check_buffer(&self, what: &'static str, stream: &CudaStream) -> Result<()> {
        if Arc::ptr_eq(stream.context(), &self.0.context) {
            Ok(())
        } else {
            Err(Error::WrongContext { what })
        }
    }
}

fn check_built() -> Result<()> {
    if KERNELS.images.is_empty() {
        Err(Error::KernelsNotBuilt { reason: BUILD_NOTE })
    } else {
        Ok(())
    }
}
