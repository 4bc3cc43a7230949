//! The backends, and the memory of devices.

use xact::cuda::{Input, Output};
use xact::cudarc::driver::{CudaSlice, DeviceRepr, DriverError, ValidAsZeroBits};
use xact::{Error, Queue, Result, Rows};

use super::arguments::Backend;
use xact_dev::choose::{self, Choice};
use xact_dev::machine::cpu_name;

/// A backend.
pub enum Machine {
    Reference,
    Cpu,
    Device(Queue),
}

impl Machine {
    /// Opens the backend of the command line, and prints its name.
    pub fn open(backend: Backend) -> std::result::Result<Machine, String> {
        let choice = match backend {
            Backend::Reference => {
                eprintln!("device: the reference on the CPU");
                return Ok(Machine::Reference);
            }
            Backend::Cpu => {
                eprintln!("device: {}", cpu_name());
                return Ok(Machine::Cpu);
            }
            Backend::Emulated => Choice::Emulated(0),
            Backend::Gpu => Choice::Gpu,
            Backend::Auto => Choice::Auto,
        };
        let gpu = choose::open(choice)?;
        eprintln!("device: {}", gpu.name);
        Ok(Machine::Device(gpu.queue().map_err(|e| e.to_string())?))
    }
}

/// Allocates a tensor on the device. A device cannot allocate 0 bytes.
pub struct Buffer<T>(Option<CudaSlice<T>>);

fn failed(doing: &'static str) -> impl Fn(DriverError) -> Error {
    move |e| Error::Driver {
        doing,
        name: format!("{:?}", e.0),
    }
}

impl<T: DeviceRepr + ValidAsZeroBits> Buffer<T> {
    pub fn upload(queue: &Queue, values: &[T]) -> Result<Buffer<T>> {
        if values.is_empty() {
            return Ok(Buffer(None));
        }
        let buffer = queue.stream().clone_htod(values);
        buffer
            .map(Some)
            .map(Buffer)
            .map_err(failed("copying a tensor to the device"))
    }

    pub fn zeros(queue: &Queue, len: usize) -> Result<Buffer<T>> {
        if len == 0 {
            return Ok(Buffer(None));
        }
        let buffer = queue.stream().alloc_zeros(len);
        buffer
            .map(Some)
            .map(Buffer)
            .map_err(failed("allocating a tensor"))
    }

    pub fn download(&self, queue: &Queue) -> Result<Vec<T>> {
        let Some(buffer) = &self.0 else {
            return Ok(Vec::new());
        };
        queue
            .stream()
            .clone_dtoh(buffer)
            .map_err(failed("copying a result from the device"))
    }

    pub fn input(&self) -> Input<'_, T> {
        self.0.as_ref().map_or(Input::empty(), Input::from)
    }

    pub fn output(&mut self) -> Output<'_, T> {
        self.0.as_mut().map_or(Output::empty(), Output::from)
    }

    pub fn input_rows(&self, rows: Rows) -> Input<'_, T> {
        (self.0.as_ref()).map_or(Input::empty(), |buffer| Input::rows(buffer, rows))
    }

    pub fn output_rows(&mut self, rows: Rows) -> Output<'_, T> {
        (self.0.as_mut()).map_or(Output::empty(), |buffer| Output::rows(buffer, rows))
    }

    pub fn slice(&self) -> Option<&CudaSlice<T>> {
        self.0.as_ref()
    }

    pub fn slice_mut(&mut self) -> Option<&mut CudaSlice<T>> {
        self.0.as_mut()
    }
}
