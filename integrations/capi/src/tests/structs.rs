//! The sizes, versions and layouts of structs.

use std::mem::offset_of;
use std::ptr;

use xact::activation::NAMES;
use xact::{Activation, AnyActivation, CrossEntropySummary};

use super::*;

/// Fails if the struct has padding, whose bytes would be undefined.
macro_rules! no_padding {
    ($name:ident { $($field:ident),* $(,)? }) => {{
        let value: $name = sized();
        // A field that is missing from the list is a compile error.
        let $name { $($field),* } = value;
        let fields = 0 $(+ size_of_val(&$field))*;
        assert_eq!(fields, size_of::<$name>(), stringify!($name));
        assert!(size_of::<$name>().is_multiple_of(8));
    }};
}

#[test]
fn structs_have_no_padding() {
    no_padding!(xact_activation {
        size,
        name,
        beta,
        parameters,
        compat,
        eps
    });
    no_padding!(xact_signature {
        size,
        name,
        params,
        optional,
        param_names,
        gradient_names,
        gated,
    });
    no_padding!(xact_activation_args {
        size,
        rows,
        cols,
        dtype,
        order,
        param_dtype,
        blocks,
        params,
        param_count,
        x,
        v,
        y,
        dy,
        dx,
        dv,
        dparams,
        dparam_count,
        accumulate,
        workspace,
        workspace_bytes,
        block,
        value_first,
    });
    no_padding!(xact_cross_entropy {
        size,
        ignore_index,
        vocab,
        label_smoothing,
        z_loss,
        softcap,
        normalizer,
        dropped_loss,
        empty_is_nan,
    });
    no_padding!(xact_goldfish_strategy {
        size,
        kind,
        k,
        h,
        seed,
        start,
        table,
        table_len,
        bitmap,
        bitmap_bytes,
    });
    no_padding!(xact_decision {
        size,
        goldfish,
        hash_ids,
        id_type,
        layout,
        row_len,
        cu_seqlens,
        cu_seqlens_len,
        halo,
        halo_len,
        exempt,
        exempt_len,
        bitmap,
        coefficients,
        preceding,
        preceding_len,
        interleaved,
    });
    no_padding!(xact_goldfish_args {
        size,
        labels,
        decision,
        keep,
        weights,
        counts,
        workspace,
        workspace_bytes,
        blocks,
    });
    no_padding!(xact_cross_entropy_args {
        size,
        rows,
        cols,
        dtype,
        label_type,
        logits,
        dlogits,
        labels,
        weights,
        decision,
        first_class,
        classes,
        dloss,
        dloss_stride,
        normalizer,
        loss,
        z_loss,
        lse,
        argmax,
        saved,
        summary,
        gathered,
        ranks,
        workspace,
        workspace_bytes,
        blocks,
        cluster,
        with_argmax,
    });
    no_padding!(xact_linear_cross_entropy_args {
        size,
        loss,
        hidden_cols,
        hidden,
        weight,
        d_hidden,
        d_weight,
        d_weight_dtype,
        logits,
        accumulate,
        kept_rows,
        kept_count,
        max_bytes,
        chunk_rows,
    });
}

#[test]
fn the_summary_is_that_of_the_kernels() {
    macro_rules! same {
        ($($field:ident),*) => {$(
            assert_eq!(
                offset_of!(xact_cross_entropy_summary, $field),
                offset_of!(CrossEntropySummary, $field)
            );
        )*};
    }
    same!(
        loss,
        mean,
        z_loss,
        weight,
        normalizer,
        dropped_loss,
        labels,
        kept,
        dropped,
        correct,
        bad_row,
        nan_row
    );
    let bytes = size_of::<CrossEntropySummary>();
    assert_eq!(size_of::<xact_cross_entropy_summary>(), bytes);
}

/// A newer struct than the library's, with one more field.
#[repr(C)]
struct Newer<T> {
    known: T,
    unknown: u64,
}

#[test]
fn older_and_newer_structs() {
    let bytes = |op: *const xact_cross_entropy| {
        let mut bytes = 77;
        let status = unsafe { xact_cross_entropy_saved_bytes(op, 10, &mut bytes) };
        (status, bytes)
    };
    let op = cross_entropy();
    assert_eq!(bytes(&op), (XACT_OK, 200));
    // A newer struct: the unknown field must be 0.
    let mut newer = Newer {
        known: op,
        unknown: 0,
    };
    newer.known.size = size_of_val(&newer) as u64;
    assert_eq!(bytes(&newer.known), (XACT_OK, 200));
    newer.unknown = 1;
    assert_eq!(bytes(&newer.known), (XACT_ERROR_STRUCT_SIZE, 77));
    assert!(last_error().contains("older than the header"));
    // An older struct: missing fields have their defaults, whatever the memory behind the struct contains.
    let mut older = op;
    older.size = offset_of!(xact_cross_entropy, label_smoothing) as u64;
    older.label_smoothing = f32::NAN;
    assert_eq!(bytes(&older), (XACT_OK, 200));
    for size in [0, 4, 7, 9, 12, 4104, u64::MAX] {
        let op = xact_cross_entropy { size, ..op };
        assert_eq!(bytes(&op), (XACT_ERROR_STRUCT_SIZE, 77), "{size}");
    }
    let (mut op, size) = (op, size_of::<xact_cross_entropy>() as u64);
    // An older struct is written only up to its size.
    op.vocab = 5;
    op.label_smoothing = 0.5;
    ok(unsafe { xact_cross_entropy_init(&mut op, 24) });
    assert_eq!((op.size, op.vocab, op.label_smoothing), (24, 0, 0.5));
    // In a newer struct, the unknown fields become 0.
    let longer = size_of::<Newer<xact_cross_entropy>>() as u64;
    ok(unsafe { xact_cross_entropy_init(&mut newer.known, longer) });
    assert_eq!((newer.known.size, newer.unknown), (longer, 0));
    for size in [0, 4, size + 1, u64::MAX] {
        let status = unsafe { xact_cross_entropy_init(&mut op, size) };
        assert_eq!(status, XACT_ERROR_STRUCT_SIZE);
    }
    let status = unsafe { xact_cross_entropy_init(ptr::null_mut(), size) };
    assert_eq!(status, XACT_ERROR_NULL);
    let odd = (&raw mut op).cast::<u8>().wrapping_add(4).cast();
    let status = unsafe { xact_cross_entropy_init(odd, size) };
    assert_eq!(status, XACT_ERROR_MISALIGNED);
}

#[test]
fn the_library_says_what_it_has() {
    assert_eq!(xact_abi_version(), XACT_ABI_VERSION);
    let text = |ptr| unsafe { CStr::from_ptr(ptr) }.to_str().unwrap();
    assert_eq!(text(xact_version()), env!("CARGO_PKG_VERSION"));
    assert_eq!(xact_activation_count(), NAMES.len() as u64);
    assert!(xact_activation_name(NAMES.len() as u64).is_null());
    assert!(xact_activation_name(u64::MAX).is_null());
    for (index, name) in NAMES.iter().enumerate() {
        let of_c = xact_activation_name(index as u64);
        assert_eq!(text(of_c), *name);
        let mut found: xact_signature = sized();
        ok(unsafe { xact_activation_describe(of_c, &mut found) });
        let op: AnyActivation = name.parse().unwrap();
        let signature = op.signature();
        let strings = |pointers: &[*const std::ffi::c_char]| -> Vec<&str> {
            let given = pointers.iter().filter(|p| !p.is_null());
            given.map(|&p| text(p)).collect()
        };
        assert_eq!(text(found.name), *name);
        assert_eq!(strings(&found.param_names), signature.params);
        assert_eq!(strings(&found.gradient_names), signature.gradients);
        let counts = (found.params, found.optional, found.gated);
        let expected = (signature.params.len() as u64, signature.optional as u64);
        assert_eq!(counts, (expected.0, expected.1, signature.gated.into()));
    }
    let unknown = c"relu".as_ptr();
    let mut found: xact_signature = sized();
    let status = unsafe { xact_activation_describe(unknown, &mut found) };
    assert_eq!(status, XACT_ERROR_UNKNOWN_OP);
    assert!(last_error().contains("relu") && last_error().contains("xielu"));
    assert!(found.name.is_null());
    let sizes = [1, 2, 3, 0, 4, -1].map(|n| xact_dtype_size(n));
    assert_eq!(sizes, [4, 2, 2, 0, 0, 0]);
    let sizes = [1, 2, 3, 4, 5, 0, 6].map(|n| xact_id_size(n));
    assert_eq!(sizes, [1, 2, 4, 4, 8, 0, 0]);
}
