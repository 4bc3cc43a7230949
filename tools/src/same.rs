//! The comparison of tensors bit by bit.

use xact::Element;

/// The bytes of a tensor.
pub fn bits<T: Element>(values: &[T]) -> &[u8] {
    bytemuck::cast_slice(values)
}
