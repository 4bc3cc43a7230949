//! What the loader knows of a kernel.

use crate::dtype::Dtype;

/// A kernel entry, and what it needs of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    /// Stem of the op and of its file.
    pub(crate) stem: &'static str,
    /// What it computes of the op.
    pub(crate) task: &'static str,
    /// The type of the tensors, unless the entry touches none of them.
    pub(crate) dtype: Option<Dtype>,
    /// The oldest target whose image has it: compute capability times ten.
    pub(crate) min_target: u32,
    /// Whether it takes as much dynamic shared memory as there is.
    pub(crate) dynamic_shared: bool,
    /// Whether it is launched in clusters of blocks.
    pub(crate) clusters: bool,
}

impl Entry {
    /// An entry that every image has, and that needs nothing.
    pub(crate) const fn new(stem: &'static str, task: &'static str, dtype: Option<Dtype>) -> Entry {
        Entry {
            stem,
            task,
            dtype,
            min_target: 80,
            dynamic_shared: false,
            clusters: false,
        }
    }

    /// `<stem>_<task>[_<dtype>]`, the name in the PTX.
    pub(crate) fn name(&self) -> String {
        let Entry {
            stem, task, dtype, ..
        } = self;
        match dtype {
            Some(dtype) => format!("{stem}_{task}_{dtype}"),
            None => format!("{stem}_{task}"),
        }
    }
}
