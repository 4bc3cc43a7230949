//! Kernel launches.

use std::ffi::{c_uint, c_void};
use std::sync::Arc;

use super::error::Error;
use super::function::{self, Function};
use super::graph::Node;
use super::order::{self, Work};
use super::{Handle, Status, call, context, stream};
use crate::exec::{self, Extent, Request};
use crate::report::{self, Check, Finding, LaunchReport};
use crate::settings;

/// A launch whose arguments have been copied: run now, or a node of a graph.
#[derive(Clone)]
pub(crate) struct Launch {
    request: Arc<Request>,
}

impl Launch {
    /// Runs the kernel to its end. A finding becomes the error that CUDA would report at a later call.
    pub fn run(&self, work: Work) -> Result<(), Error> {
        report::begin();
        let (mut report, extents) =
            exec::run(&self.request, settings::current(), report::is_recording());
        for Extent {
            buffer,
            read,
            written,
        } in extents
        {
            for (bytes, writes) in [(read, false), (written, true)] {
                if !bytes.is_empty()
                    && let Err(message) = order::touch(work, &report.kernel, &buffer, bytes, writes)
                {
                    let unordered = || Finding::of_all(Check::StreamRace, &report.kernel, message);
                    report.finding.get_or_insert_with(unordered);
                }
            }
        }
        let status = report
            .finding
            .as_ref()
            .map_or(Ok(()), |f| Err(error_of(f.check)));
        report::finish(report);
        status
    }
}

/// The error that a device would report.
fn error_of(check: Check) -> Error {
    match check {
        Check::OutOfBounds | Check::Null | Check::UseAfterFree | Check::ReadOnly => {
            Error::ILLEGAL_ADDRESS
        }
        Check::Misaligned => Error::MISALIGNED_ADDRESS,
        Check::Deadlock | Check::InstructionBudget => Error::LAUNCH_TIMEOUT,
        Check::Unsupported => Error::INVALID_PTX,
        Check::LaunchLimits => Error::LAUNCH_OUT_OF_RESOURCES,
        _ => Error::LAUNCH_FAILED,
    }
}

/// The largest cluster of a launch that does not ask for more than what every device of the architecture has.
const MAX_CLUSTER: u32 = 8;

/// The error of a launch whose shape exceeds a limit of the architecture.
pub(crate) fn limits(
    f: &Function,
    grid: (u32, u32, u32),
    block: (u32, u32, u32),
    cluster: u32,
    dynamic: u32,
) -> Option<(Error, String)> {
    let p = f.profile();
    if cluster != 1 && p.compute < (9, 0) {
        return Some((
            Error::NOT_SUPPORTED,
            format!(
                "a cluster of {cluster} blocks on a device of {:?}",
                p.compute
            ),
        ));
    }
    if cluster == 0 || cluster > MAX_CLUSTER {
        return Some((
            Error::INVALID_CLUSTER_SIZE,
            format!("a cluster of {cluster} blocks of at most {MAX_CLUSTER}"),
        ));
    }
    if !grid.0.is_multiple_of(cluster) {
        return Some((
            Error::INVALID_VALUE,
            format!("{} blocks in clusters of {cluster}", grid.0),
        ));
    }
    let threads = u64::from(block.0) * u64::from(block.1) * u64::from(block.2);
    if grid.0 == 0 || grid.1 == 0 || grid.2 == 0 || threads == 0 {
        return Some((
            Error::INVALID_VALUE,
            format!("empty grid {grid:?} or block {block:?}"),
        ));
    }
    if grid.0 > i32::MAX as u32 || grid.1 > 65535 || grid.2 > 65535 {
        return Some((
            Error::INVALID_VALUE,
            format!("grid {grid:?} exceeds (2147483647, 65535, 65535)"),
        ));
    }
    if threads > 1024 || block.0 > 1024 || block.1 > 1024 || block.2 > 64 {
        return Some((
            Error::INVALID_VALUE,
            format!("block {block:?} exceeds 1024 threads or (1024, 1024, 64)"),
        ));
    }
    if let Some(required) = f.code.req_ntid
        && required != block
    {
        return Some((
            Error::INVALID_VALUE,
            format!("block {block:?}, and .reqntid demands {required:?}"),
        ));
    }
    if threads > u64::from(f.max_threads()) {
        let message = format!(
            "{threads} threads per block, and .maxntid allows {}",
            f.max_threads()
        );
        return Some((Error::LAUNCH_OUT_OF_RESOURCES, message));
    }
    if f.code.shared_bytes > u64::from(p.shared) {
        let message = format!(
            "{} bytes of static shared memory, and {} are allowed",
            f.code.shared_bytes, p.shared
        );
        return Some((Error::LAUNCH_OUT_OF_RESOURCES, message));
    }
    if dynamic > f.max_dynamic() {
        let message = format!(
            "{dynamic} bytes of dynamic shared memory, and the function allows {} (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)",
            f.max_dynamic()
        );
        return Some((Error::INVALID_VALUE, message));
    }
    if f.code.param_bytes > p.params {
        return Some((
            Error::INVALID_VALUE,
            format!("{} bytes of parameters", f.code.param_bytes),
        ));
    }
    None
}

/// The error of a launch whose clusters do not fit on the device.
fn no_room(
    f: &Function,
    block: (u32, u32, u32),
    cluster: u32,
    dynamic: u32,
) -> Option<(Error, String)> {
    let threads = block.0 * block.1 * block.2;
    (cluster > 1 && f.active_clusters(cluster, threads, dynamic) == 0).then(|| {
        (
            Error::INVALID_CLUSTER_SIZE,
            format!("a cluster of {cluster} blocks does not fit on the device: cuOccupancyMaxActiveClusters is 0"),
        )
    })
}

/// Copies the arguments.
///
/// # Safety
/// `params` has a valid pointer for every parameter, or `extra` is a list as CUDA defines it.
unsafe fn arguments(
    f: &Function,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; f.code.param_bytes as usize];
    if !extra.is_null() {
        if !params.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        let (mut pointer, mut size) = (std::ptr::null::<u8>(), 0);
        for i in (0..).step_by(2) {
            // SAFETY: the list ends with 0, by this function's contract.
            unsafe {
                match *extra.add(i) as usize {
                    0 => break,
                    1 => pointer = (*extra.add(i + 1)).cast(),
                    2 => size = *(*extra.add(i + 1)).cast::<usize>(),
                    _ => return Err(Error::INVALID_VALUE),
                }
            }
        }
        if pointer.is_null() || size < bytes.len() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the buffer has `size` bytes, by this function's contract.
        unsafe { std::ptr::copy_nonoverlapping(pointer, bytes.as_mut_ptr(), bytes.len()) };
        return Ok(bytes);
    }
    for (i, &(offset, size)) in f.code.params.iter().enumerate() {
        if params.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: a valid pointer to an argument of this parameter's size, by this function's contract.
        unsafe {
            let p = *params.add(i);
            if p.is_null() {
                return Err(Error::INVALID_VALUE);
            }
            std::ptr::copy_nonoverlapping(
                p.cast::<u8>(),
                bytes.as_mut_ptr().add(offset as usize),
                size as usize,
            );
        }
    }
    Ok(bytes)
}

/// # Safety
/// As [`arguments`].
#[allow(clippy::too_many_arguments)]
unsafe fn launch(
    f: Handle,
    grid: (u32, u32, u32),
    block: (u32, u32, u32),
    cluster: u32,
    dynamic: u32,
    on: Handle,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Result<(), Error> {
    let device = context::current()?;
    let f = function::get(f)?;
    if f.device != device {
        return Err(Error::INVALID_CONTEXT);
    }
    let wrong = limits(&f, grid, block, cluster, dynamic);
    if let Some((error, message)) = wrong.or_else(|| no_room(&f, block, cluster, dynamic)) {
        report::begin();
        report::finish(refused(&f, grid, block, message));
        return Err(error);
    }
    // SAFETY: by this function's contract.
    let params = unsafe { arguments(&f, params, extra) }?;
    f.load()?;
    let launch = Launch {
        request: Arc::new(f.request(grid, block, cluster, dynamic, params)),
    };
    match stream::enqueue(on, || Node::Launch(launch.clone()))? {
        Some(work) => launch.run(work),
        None => Ok(()),
    }
}

/// The report of a launch that was refused.
fn refused(
    f: &Function,
    grid: (u32, u32, u32),
    block: (u32, u32, u32),
    message: String,
) -> LaunchReport {
    LaunchReport {
        kernel: f.code.name.clone(),
        grid,
        block,
        instructions: 0,
        by_opcode: Vec::new(),
        buffers: Vec::new(),
        shared: crate::traffic::BankPhases::default(),
        lines_not_executed: Vec::new(),
        finding: Some(Finding::of_all(Check::LaunchLimits, &f.code.name, message)),
    }
}

/// Launches a kernel. It has run when this returns.
#[allow(clippy::too_many_arguments)]
pub unsafe extern "C" fn cuLaunchKernel(
    f: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    dynamic: c_uint,
    on: Handle,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Status {
    let (grid, block) = ((grid_x, grid_y, grid_z), (block_x, block_y, block_z));
    // SAFETY: the caller answers for the arguments.
    call(|| unsafe { launch(f, grid, block, 1, dynamic, on, params, extra) })
}

/// `CUlaunchConfig`.
#[repr(C)]
pub struct Config {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub dynamic: c_uint,
    stream: Handle,
    attributes: *const [u64; 9],
    count: c_uint,
}

impl Config {
    /// A configuration and the blocks of its clusters, which are along x. Other attributes change no result.
    ///
    /// # Safety
    /// `config` is null, or a configuration whose `attributes` are `count`.
    pub unsafe fn read<'a>(config: *const Config) -> Result<(&'a Config, u32), Error> {
        const IGNORE: u32 = 0;
        const CLUSTER_DIMENSION: u32 = 4;
        const PROGRAMMATIC_STREAM_SERIALIZATION: u32 = 6;
        const PRIORITY: u32 = 8;
        // SAFETY: by this function's contract.
        let c = unsafe { config.as_ref() }.ok_or(Error::INVALID_VALUE)?;
        let mut cluster = 1;
        for i in 0..c.count as usize {
            // SAFETY: the configuration has `count` attributes of 72 bytes that begin with their kind.
            let attribute = unsafe { &*c.attributes.add(i) };
            let kind = attribute[0] as u32;
            // Of the value, x and y share a word.
            let (x, y, z) = (attribute[1] as u32, attribute[1] >> 32, attribute[2] as u32);
            match kind {
                IGNORE | PROGRAMMATIC_STREAM_SERIALIZATION | PRIORITY => {}
                CLUSTER_DIMENSION if (y, z) == (1, 1) => cluster = x,
                _ => {
                    eprintln!("cuda-emulator: a launch with an unsupported attribute {kind}");
                    return Err(Error::NOT_SUPPORTED);
                }
            }
        }
        Ok((c, cluster))
    }
}

/// Launches a kernel with attributes.
pub unsafe extern "C" fn cuLaunchKernelEx(
    config: *const Config,
    f: Handle,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Status {
    call(|| {
        // SAFETY: the caller answers for the configuration and the arguments.
        unsafe {
            let (c, cluster) = Config::read(config)?;
            let (grid, block) = (c.grid.into(), c.block.into());
            launch(f, grid, block, cluster, c.dynamic, c.stream, params, extra)
        }
    })
}
