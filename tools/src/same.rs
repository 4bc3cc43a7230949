//! What "the same bits" compares.

use xact::Element;

/// The bytes of a tensor.
pub fn bits<T: Element>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}
