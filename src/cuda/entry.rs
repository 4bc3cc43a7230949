//! [`Entry`]: the name of a kernel entry and its launch requirements.

use crate::dtype::Dtype;

/// A kernel entry and its launch requirements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    /// The name of the op, which is the stem of its kernel file.
    pub(crate) stem: &'static str,
    /// The part of the op that the entry computes, such as `forward`.
    pub(crate) task: &'static str,
    /// The element type of the tensors; `None` if the entry reads and writes no tensor.
    pub(crate) dtype: Option<Dtype>,
    /// The lowest target whose image has the entry: compute capability times ten.
    pub(crate) min_target: u32,
    /// Whether the entry may use all dynamic shared memory of a block.
    pub(crate) dynamic_shared: bool,
    /// Whether the entry is launched in clusters of blocks.
    pub(crate) clusters: bool,
}

impl Entry {
    /// An entry that every image has, without dynamic shared memory and clusters.
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

    /// The name of the entry in the PTX, `<stem>_<task>[_<dtype>]`.
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
