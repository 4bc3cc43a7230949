//! Samples the clock of the multiprocessors during the measurements, with nvidia-smi.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use serde::{Deserialize, Serialize};
use xact::cudarc::driver::sys::CUdevice_attribute as A;
use xact_dev::choose::Gpu;

use crate::measure::median;
use crate::work::Result;

/// The clock during a time span, in MHz.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clocks {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

/// Samples the clock until it is dropped.
pub struct Sampler {
    child: Child,
    reader: Option<JoinHandle<()>>,
    found: Arc<Mutex<Vec<f64>>>,
}

impl Sampler {
    /// Samples the clock of a device; `None` if there is no nvidia-smi.
    pub fn of(gpu: &Gpu) -> Result<Option<Sampler>> {
        let ask = |attribute| gpu.device.context().attribute(attribute);
        // The device is not identified by its ordinal, which CUDA_VISIBLE_DEVICES changes.
        let place = format!(
            "--id={:08x}:{:02x}:{:02x}.0",
            ask(A::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
            ask(A::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
            ask(A::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?,
        );
        Ok(Sampler::start("nvidia-smi".as_ref(), &place))
    }

    /// Starts a program that prints a line per sample.
    pub fn start(program: &OsStr, place: &str) -> Option<Sampler> {
        let mut child = Command::new(program)
            .arg(place)
            .args(["--query-gpu=clocks.sm", "--format=csv,noheader,nounits"])
            .args(["-lms", "250"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let lines = BufReader::new(child.stdout.take()?).lines();
        let found = Arc::new(Mutex::new(Vec::new()));
        let to = found.clone();
        let reader = thread::spawn(move || {
            for clock in lines.map_while(|line| line.ok()) {
                if let Ok(clock) = clock.trim().parse() {
                    to.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(clock);
                }
            }
        });
        Some(Sampler {
            child,
            reader: Some(reader),
            found,
        })
    }

    /// The samples so far; `None` if there are none.
    pub fn so_far(&self) -> Option<Clocks> {
        let mut found = self
            .found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if found.is_empty() {
            return None;
        }
        Some(Clocks {
            median: median(&mut found),
            least: found[0],
            most: found[found.len() - 1],
        })
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
