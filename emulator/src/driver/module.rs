//! Modules: PTX text in, functions and variables out.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_uint, c_void};
use std::sync::{Arc, LazyLock, Mutex};

use super::error::Error;
use super::function::Function;
use super::{Handle, Registry, Status, call, context, lock, put, stream};
use crate::device::{DEVICES, PTX_VERSION};
use crate::lower::{Code, lower};
use crate::memory::{self, Buffer};
use crate::ptx::ast::{Space, Variable};
use crate::ptx::{PtxError, parse};

/// A parsed and lowered PTX text, shared by all contexts that load it.
pub(crate) struct Program {
    version: (u32, u32),
    target: u32,
    arch_specific: bool,
    entries: HashMap<String, (Arc<Code>, Arc<Vec<String>>)>,
    variables: Vec<Variable>,
    files: Arc<HashMap<u32, String>>,
}

/// A program in a context.
pub(crate) struct Module {
    program: Arc<Program>,
    device: usize,
    /// The module's variables, in the order of the program; shared ones have none.
    variables: Vec<Option<Arc<Buffer>>>,
    addresses: Arc<Vec<u64>>,
    /// Handles given out by name.
    functions: Mutex<HashMap<String, usize>>,
}

static MODULES: Registry<Module> = Registry::new();
/// How many programs are remembered.
const REMEMBERED: usize = 64;
/// Programs by their text: many tests load the same.
static PROGRAMS: LazyLock<Mutex<HashMap<String, Arc<Program>>>> = LazyLock::new(Mutex::default);

impl Program {
    fn new(text: &str) -> Result<Self, PtxError> {
        let module = parse(text)?;
        let mut entries = HashMap::new();
        for e in &module.entries {
            let names = e.body.iter().map(|i| i.name()).collect();
            entries.insert(
                e.name.clone(),
                (Arc::new(lower(&module, e)?), Arc::new(names)),
            );
        }
        Ok(Program {
            version: module.version,
            target: module.target,
            arch_specific: module.arch_specific,
            entries,
            variables: module.variables,
            files: Arc::new(module.files),
        })
    }

    /// The compiler log of the driver for this program on a device.
    fn check(&self, device: usize) -> Result<(), (Error, String)> {
        let (major, minor) = DEVICES[device].compute;
        let compute = major * 10 + minor;
        if self.version > PTX_VERSION {
            let message = format!(
                "ptx version {}.{} is newer than {}.{}, the newest that this driver takes",
                self.version.0, self.version.1, PTX_VERSION.0, PTX_VERSION.1
            );
            return Err((Error::UNSUPPORTED_PTX_VERSION, message));
        }
        if self.target > compute || (self.arch_specific && self.target != compute) {
            let suffix = if self.arch_specific { "a" } else { "" };
            let message = format!(
                "target sm_{}{suffix} does not run on a device of sm_{compute}",
                self.target
            );
            return Err((Error::NO_BINARY_FOR_GPU, message));
        }
        Ok(())
    }
}

/// The program of a text.
fn program(text: &str) -> Result<Arc<Program>, PtxError> {
    if let Some(p) = lock(&PROGRAMS).get(text) {
        return Ok(p.clone());
    }
    let p = Arc::new(Program::new(text)?);
    let mut programs = lock(&PROGRAMS);
    if programs.len() == REMEMBERED {
        programs.clear();
    }
    programs.insert(text.to_string(), p.clone());
    Ok(p)
}

/// Bytes of all variables of a module: nothing that we ship comes near, and they are filled when it is loaded.
const MAX_VARIABLES: u64 = 64 << 20;

impl Module {
    /// The entry of a name, as a function of the module with a handle.
    pub(crate) fn function(&self, handle: Handle, name: &str) -> Option<Function> {
        let (code, names) = self.program.entries.get(name)?;
        Some(Function::new(
            handle,
            self.device,
            code.clone(),
            names.clone(),
            self.program.files.clone(),
            self.addresses.clone(),
            self.program.version,
            self.program.target,
        ))
    }

    /// The names of its entries.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> Vec<String> {
        let mut names: Vec<_> = self.program.entries.keys().cloned().collect();
        names.sort();
        names
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        for b in self.variables.iter().flatten() {
            memory::free(b.base);
        }
    }
}

/// The texts that replace others.
static SUBSTITUTES: LazyLock<Mutex<HashMap<String, String>>> = LazyLock::new(Mutex::default);

/// Replaces the PTX text `original` by `replacement` in all modules that are loaded later. Mutation tests use this to run a
/// changed kernel in a program that was built with the original one.
pub fn substitute(original: &str, replacement: &str) {
    lock(&SUBSTITUTES).insert(original.to_owned(), replacement.to_owned());
}

/// Loads a text into a context.
pub(crate) fn load(text: &str, device: usize) -> Result<Module, (Error, String)> {
    let replacement = lock(&SUBSTITUTES).get(text).cloned();
    let program = program(replacement.as_deref().unwrap_or(text))
        .map_err(|e| (Error::INVALID_PTX, e.to_string()))?;
    program.check(device)?;
    let bytes: u64 = program.variables.iter().map(|v| v.size).sum();
    if bytes > MAX_VARIABLES {
        let message = format!("{bytes} bytes of variables, and {MAX_VARIABLES} are supported");
        return Err((Error::OUT_OF_MEMORY, message));
    }
    let place = |v: &Variable| {
        if v.space == Space::Shared {
            return None;
        }
        let buffer = memory::allocate(
            device,
            v.size.max(1),
            Some(&v.name),
            v.space == Space::Const,
        );
        // Variables without an initialiser are zero.
        buffer.fill(0, buffer.len, 0);
        buffer.copy_in(0, &v.init);
        Some(buffer)
    };
    let variables: Vec<_> = program.variables.iter().map(place).collect();
    let addresses: Vec<u64> = variables
        .iter()
        .map(|b: &Option<Arc<Buffer>>| b.as_ref().map_or(0, |b| b.base))
        .collect();
    for (v, buffer) in program.variables.iter().zip(&variables) {
        for (offset, name) in &v.init_symbols {
            let target = program
                .variables
                .iter()
                .position(|t| t.name == *name)
                .map(|i| addresses[i]);
            let (Some(buffer), Some(address)) = (buffer, target) else {
                return Err((
                    Error::INVALID_PTX,
                    format!(
                        "initialiser of `{}` names `{name}`, which is unknown",
                        v.name
                    ),
                ));
            };
            buffer.copy_in(*offset, &address.to_le_bytes());
        }
    }
    Ok(Module {
        program,
        device,
        variables,
        addresses: Arc::new(addresses),
        functions: Mutex::default(),
    })
}

/// # Safety
/// `image` is null or points to PTX text that ends with a 0 byte, or to a cubin or fatbin.
unsafe fn load_image(to: *mut Handle, image: *const c_void) -> Result<(), (Error, String)> {
    let plain = |e: Error| (e, String::new());
    let device = context::current().map_err(plain)?;
    stream::forbid_unsafe_call().map_err(plain)?;
    if image.is_null() || to.is_null() {
        return Err(plain(Error::INVALID_VALUE));
    }
    // SAFETY: by this function's contract. A cubin or fatbin has a 0 byte as well, in its header.
    let bytes = unsafe { CStr::from_ptr(image.cast()) };
    if bytes.to_bytes().starts_with(b"\x7fELF") {
        // Machine code, of another device than this one, whose machine code is PTX. A driver's log is of its compiler,
        // which has no part in this.
        return Err(plain(Error::NO_BINARY_FOR_GPU));
    }
    let text = bytes
        .to_str()
        .map_err(|_| (Error::INVALID_IMAGE, "not PTX text".to_string()))?;
    if !text.contains(".version") {
        return Err((
            Error::INVALID_IMAGE,
            "not PTX text; fatbins are not supported".into(),
        ));
    }
    let module = load(text, device)?;
    // SAFETY: `to` is not null, so the caller gives a valid place.
    unsafe { put(to, MODULES.insert(module)) }.map_err(plain)
}

/// Loads PTX. Unlike CUDA, it prints the reason of a failure to stderr.
pub unsafe extern "C" fn cuModuleLoadData(to: *mut Handle, image: *const c_void) -> Status {
    call(|| {
        // SAFETY: the caller gives a valid image.
        unsafe { load_image(to, image) }.map_err(|(e, message)| {
            if !message.is_empty() {
                eprintln!("cuda-emulator: {message}");
            }
            e
        })
    })
}

/// Loads PTX; the reason of a failure goes into the error log that the options name.
pub unsafe extern "C" fn cuModuleLoadDataEx(
    to: *mut Handle,
    image: *const c_void,
    count: c_uint,
    options: *const c_uint,
    values: *const *mut c_void,
) -> Status {
    const ERROR_LOG: c_uint = 5;
    const ERROR_LOG_SIZE: c_uint = 6;
    call(|| {
        let (mut log, mut size) = (std::ptr::null_mut::<u8>(), 0);
        for i in 0..count as usize {
            // SAFETY: the caller gives `count` options and values.
            let (option, value) = unsafe { (*options.add(i), *values.add(i)) };
            match option {
                ERROR_LOG => log = value.cast(),
                ERROR_LOG_SIZE => size = value as usize,
                // Everything else tunes a compiler that is not here, or asks for its information log.
                _ => {}
            }
        }
        // SAFETY: the caller gives a valid image.
        unsafe { load_image(to, image) }.map_err(|(e, message)| {
            if !log.is_null() && size > 0 {
                let n = message.len().min(size - 1);
                // SAFETY: the caller gives a log of `size` bytes, and n < size.
                unsafe {
                    std::ptr::copy_nonoverlapping(message.as_ptr(), log, n);
                    log.add(n).write(0);
                }
            }
            e
        })
    })
}

/// Unloads a module; its functions and variables go with it.
pub unsafe extern "C" fn cuModuleUnload(module: Handle) -> Status {
    call(|| {
        context::current()?;
        MODULES.remove(module)?;
        super::function::forget(module);
        Ok(())
    })
}

/// The entry of a name.
pub unsafe extern "C" fn cuModuleGetFunction(
    to: *mut Handle,
    module: Handle,
    name: *const c_char,
) -> Status {
    call(|| {
        context::current()?;
        let m = MODULES.get(module)?;
        if name.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the caller gives a string.
        let name = unsafe { CStr::from_ptr(name) }
            .to_str()
            .map_err(|_| Error::NOT_FOUND)?;
        let f = m.function(module, name).ok_or(Error::NOT_FOUND)?;
        let mut known = lock(&m.functions);
        let handle = *known
            .entry(name.to_string())
            .or_insert_with(|| super::function::insert(f) as usize);
        // SAFETY: the caller gives a valid place.
        unsafe { put(to, handle as Handle) }
    })
}

/// The variable of a name.
pub unsafe extern "C" fn cuModuleGetGlobal_v2(
    address: *mut u64,
    bytes: *mut usize,
    module: Handle,
    name: *const c_char,
) -> Status {
    call(|| {
        context::current()?;
        let m = MODULES.get(module)?;
        if name.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the caller gives a string.
        let name = unsafe { CStr::from_ptr(name) }
            .to_str()
            .map_err(|_| Error::NOT_FOUND)?;
        let i = m
            .program
            .variables
            .iter()
            .position(|v| v.name == name)
            .ok_or(Error::NOT_FOUND)?;
        let buffer = m.variables[i].as_ref().ok_or(Error::NOT_FOUND)?;
        // SAFETY: places that are not null are valid, by the caller.
        unsafe {
            if !address.is_null() {
                address.write(buffer.base);
            }
            if !bytes.is_null() {
                bytes.write(buffer.len as usize);
            }
        }
        Ok(())
    })
}

/// Functions are loaded when they are first used.
pub unsafe extern "C" fn cuModuleGetLoadingMode(mode: *mut c_uint) -> Status {
    const LAZY: c_uint = 2;
    // SAFETY: the caller gives a valid place.
    call(|| unsafe { put(mode, LAZY) })
}
