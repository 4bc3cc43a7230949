//! Every kernel, loaded before it is needed.

use super::device::Device;
use super::entry::Entry;
use super::raw::{activation, cross_entropy, goldfish};
use crate::error::Result;

/// Every entry of the crate.
fn entries() -> impl Iterator<Item = Entry> {
    activation::entries()
        .chain(cross_entropy::entries())
        .chain(goldfish::entries())
}

/// The names that the embedded PTX must hold, for the test that compares them.
#[doc(hidden)]
pub fn entry_names() -> Vec<String> {
    entries().map(|entry| entry.name()).collect()
}

impl Device {
    /// Loads every kernel now, on to the device, so that later launches load nothing: needed before a
    /// stream capture, and it moves the time of the PTX compilation to where you want it.
    ///
    /// # Errors
    /// As a launch: [`Driver`](crate::Error::Driver), [`DriverTooOld`](crate::Error::DriverTooOld),
    /// [`DeviceTooOld`](crate::Error::DeviceTooOld).
    pub fn preload(&self) -> Result<()> {
        for entry in entries() {
            if self.has(entry)? {
                self.force_load(&self.function(entry)?)?;
            }
        }
        Ok(())
    }
}
