//! A CUDA context with the kernels loaded into it.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, sys};
use cudarc::nvrtc::Ptx;

use super::driver::{driver, driver_error, driver_version};
use super::entry::Entry;
use super::grid::{Grid, active_clusters};
use crate::error::{Error, Result};
use crate::geometry::{BLOCKS_OF_ROWS, MAX_CLUSTER};

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
    modules: Mutex<HashMap<&'static str, Loaded>>,
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
    /// As in [`Image`].
    target: u32,
}

impl Inner {
    fn new(context: &Arc<CudaContext>) -> Result<Inner> {
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
            modules: Mutex::default(),
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
        check_built()?;
        driver()?;
        let context =
            CudaContext::new(ordinal).map_err(|e| driver_error("opening the device", e))?;
        Device::from_context(&context)
    }

    /// The kernels of a context that the caller already has: always the same for the same `Arc`, as long as any of them
    /// are in use.
    ///
    /// cudarc panics where there is no driver: a program that opens a `CudaContext` by itself does so before it gets
    /// here, and can ask [`Device::new`] first.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`], [`Error::NoDriver`] or [`Error::Driver`].
    pub fn from_context(context: &Arc<CudaContext>) -> Result<Device> {
        static ALL: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());
        check_built()?;
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
        let inner = Arc::new(Inner::new(context)?);
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
        Ok(self.loaded(entry.stem)?.target >= entry.min_target)
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
        let function = self
            .loaded(entry.stem)?
            .module
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

/// The embedded kernels, for tests and tools; empty if the crate was built without nvcc.
#[doc(hidden)]
pub fn images() -> &'static [Image] {
    IMAGES
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
