//! Calls with random fields. Every call returns a status, and writes nothing if that is an error. Host and device refuse the
//! same calls. The buffers are always long enough, because the library cannot check that.

use std::ffi::CStr;

use super::goldfish::create;
use super::*;

/// A pseudo-random generator.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// A random element of the list.
    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.next() as usize % all.len()]
    }

    /// `usual` in most calls, and rarely another value.
    fn rarely<T: Copy>(&mut self, usual: T, others: &[T]) -> T {
        match self.next() % 12 {
            0 => self.of(others),
            _ => usual,
        }
    }
}

const BUFFERS: usize = 24;
const BYTES: usize = 1024;

/// Memory of a backend for all buffers of a call.
struct Arena<'a> {
    backend: &'a Backend,
    memory: Buffer,
}

impl Arena<'_> {
    fn new(backend: &Backend) -> Arena<'_> {
        // The workspace of the loss follows the other buffers.
        let memory = backend.workspace((BUFFERS * BYTES + (1 << 15)) as u64);
        Arena { backend, memory }
    }

    /// The address of a separate buffer; rarely null, the address of another buffer, or a shifted or misaligned address.
    fn ptr<T>(&self, dice: &mut Dice, number: usize) -> *mut T {
        let offset = number * BYTES;
        let other = dice.next() as usize % BUFFERS * BYTES;
        let offset = dice.rarely(offset, &[other, other, offset + 4, offset + 1, usize::MAX]);
        match offset {
            usize::MAX => ptr::null_mut(),
            offset => self.memory.at(offset).cast(),
        }
    }

    /// As above, for an optional buffer, which may also be null.
    fn optional<T>(&self, dice: &mut Dice, number: usize) -> *mut T {
        match dice.next() % 2 {
            0 => ptr::null_mut(),
            _ => self.ptr(dice, number),
        }
    }

    fn matrix(&self, dice: &mut Dice, number: usize) -> xact_matrix {
        xact_matrix {
            ptr: self.ptr(dice, number),
            pitch: dice.of(&[0, 0, 4, 5, 10]),
        }
    }

    fn logits(&self, dice: &mut Dice, number: usize) -> xact_logits_matrix {
        xact_logits_matrix {
            ptr: self.ptr(dice, number),
            pitch: dice.of(&[0, 0, 4, 5, 10]),
            group_rows: dice.of(&[0, 0, 0, 1, 2, 3]),
            group_pitch: dice.of(&[0, 5, 10, 15, 20]),
        }
    }

    /// Makes a call, and fails if it returns an error but has written something. Returns the status and the text.
    fn check(&self, call: impl Fn() -> xact_status) -> (xact_status, String) {
        let before: Vec<u64> = self.memory.get(BUFFERS * BYTES / 8);
        let status = call();
        assert_ne!(status, XACT_ERROR_PANIC, "{}", last_error());
        if status == XACT_OK {
            return (status, String::new());
        }
        let is_known = (1..=27).contains(&status) || (100..=102).contains(&status);
        assert!(is_known && !last_error().is_empty(), "{status}");
        let after: Vec<u64> = self.memory.get(BUFFERS * BYTES / 8);
        assert!(before == after, "{}", last_error());
        (status, last_error())
    }
}

/// Makes calls with random arguments; some of them must succeed.
fn many(test: impl Fn(&mut Dice, &Arena<'_>) -> (xact_status, String)) {
    let results = |backend: &Backend, count: usize| -> Vec<_> {
        let (mut dice, arena) = (Dice(1), Arena::new(backend));
        (0..count).map(|_| test(&mut dice, &arena)).collect()
    };
    let on_host = results(&Backend::host(), 20_000);
    let good = on_host.iter().filter(|(status, _)| *status == XACT_OK);
    assert!((200..10_000).contains(&good.count()));
    // The emulator is slower, so there are fewer calls.
    #[cfg(feature = "cuda")]
    for (host, device) in on_host.iter().zip(results(&Backend::device(), 2000)) {
        let of_device = device.1.contains("workspace") || device.1.contains("blocks");
        // Numbers in device memory are not seen.
        let of_host = host.0 == XACT_ERROR_OFFSETS || host.1.contains("[0, 2^");
        let alike = (host.0 == XACT_OK) == (device.0 == XACT_OK);
        assert!(alike || of_device || of_host, "{host:?} {device:?}");
    }
}

fn decision(
    dice: &mut Dice,
    arena: &Arena<'_>,
    goldfish: *const crate::goldfish::xact_goldfish,
) -> xact_decision {
    xact_decision {
        goldfish: dice.rarely(goldfish, &[ptr::null()]),
        hash_ids: arena.ptr(dice, 16),
        id_type: dice.of(&[1, 2, 3, 4, 5, 5, 5, 0, 7]),
        layout: dice.rarely(
            XACT_LAYOUT_ROWS,
            &[XACT_LAYOUT_DOCUMENTS, XACT_LAYOUT_CHUNKS, 3],
        ),
        row_len: dice.of(&[0, 0, 0, 1, 2, 3]),
        cu_seqlens: arena.optional(dice, 17),
        cu_seqlens_len: dice.of(&[0, 1, 3]),
        halo: arena.optional(dice, 18),
        halo_len: dice.rarely(0, &[1, 2, 3, 6]),
        exempt: arena.optional(dice, 19),
        exempt_len: dice.rarely(0, &[1, 5]),
        bitmap: ptr::null(),
        coefficients: ptr::null(),
        preceding: arena.optional(dice, 20),
        preceding_len: dice.of(&[0, 2]),
        interleaved: dice.rarely(0, &[1, 2, 3, u64::MAX]),
        ..sized()
    }
}

#[test]
fn activations_of_random_fields() {
    many(|dice, arena| {
        let name: &CStr = dice.of(&[c"xielu", c"xatlu", c"xgelu", c"xsilu"]);
        let mut op = activation(name.to_str().unwrap());
        op.compat = dice.of(&[0, 1, 2, 3]);
        let count = if name == c"xielu" { 2 } else { 1 };
        let params: [*const c_void; 3] =
            std::array::from_fn(|i| arena.ptr::<c_void>(dice, i).cast_const());
        let dparams: [*mut f32; 3] = std::array::from_fn(|i| arena.ptr(dice, 3 + i));
        let args = xact_activation_args {
            rows: dice.of(&[0, 1, 2, 3, 3]),
            cols: dice.of(&[0, 1, 4, 5, 5]),
            dtype: dice.of(&[1, 2, 3, 0]),
            order: dice.of(&[0, 0, 1, 2, 5]),
            param_dtype: dice.of(&[0, 0, 0, 1, 2, 3, 9]),
            blocks: dice.of(&[0, -1, 3, -2]),
            params: dice.rarely(params.as_ptr(), &[ptr::null()]),
            param_count: dice.rarely(count, &[0, 1, 2, 3, 4, u64::MAX]),
            x: arena.matrix(dice, 6),
            v: arena.matrix(dice, 7),
            y: arena.matrix(dice, 8),
            dy: arena.matrix(dice, 9),
            dx: arena.matrix(dice, 10),
            dv: arena.matrix(dice, 11),
            dparams: dice.of(&[dparams.as_ptr(), ptr::null()]),
            dparam_count: dice.of(&[0, count, count]),
            accumulate: dice.of(&[0, 0, 1, 2]),
            workspace: arena.ptr(dice, 12),
            workspace_bytes: dice.rarely(BYTES as u64, &[0]),
            ..sized()
        };
        match dice.next() % 2 {
            0 => arena.check(|| arena.backend.forward(&op, &args)),
            _ => arena.check(|| arena.backend.backward(&op, &args)),
        }
    });
}

#[test]
fn losses_and_masks_of_random_fields() {
    let strategy = xact_goldfish_strategy {
        kind: XACT_STRATEGY_HASH64,
        k: 2,
        h: 2,
        ..sized()
    };
    let goldfish = create(&strategy);
    many(|dice, arena| {
        let op = xact_cross_entropy {
            vocab: dice.of(&[0, 4, 4, 6]),
            label_smoothing: dice.of(&[0.0, 0.0, 0.5, 2.0]),
            softcap: dice.of(&[0.0, 0.0, 3.0, -1.0]),
            normalizer: dice.of(&[0, 1, 2, 3, 4]),
            ..cross_entropy()
        };
        let decision = decision(dice, arena, goldfish);
        let args = xact_cross_entropy_args {
            rows: dice.of(&[0, 1, 2, 3, 3]),
            cols: dice.of(&[0, 4, 5, 5, 5]),
            dtype: dice.of(&[1, 2, 3, 4]),
            label_type: dice.of(&[3, 4, 5, 5, 1]),
            logits: arena.logits(dice, 0),
            dlogits: arena.logits(dice, 1),
            labels: arena.ptr(dice, 2),
            weights: arena.optional(dice, 3),
            decision: dice.of(&[ptr::null(), &decision]),
            first_class: dice.rarely(0, &[1, 4]),
            classes: dice.rarely(0, &[4, 8]),
            dloss: arena.optional(dice, 4),
            dloss_stride: dice.of(&[0, 1, 3]),
            normalizer: arena.optional(dice, 5),
            loss: arena.optional(dice, 6),
            z_loss: arena.optional(dice, 7),
            lse: arena.optional(dice, 8),
            argmax: arena.optional(dice, 9),
            saved: arena.optional(dice, 10),
            summary: arena.ptr(dice, 11),
            gathered: arena.ptr(dice, 12),
            ranks: dice.of(&[0, 1, 2]),
            workspace: arena.ptr(dice, BUFFERS),
            workspace_bytes: dice.rarely((1 << 15) - 8, &[0]),
            blocks: dice.of(&[0, -1, 3, -2]),
            cluster: dice.of(&[0, 2, 99]),
            with_argmax: dice.of(&[0, 1, 2]),
            ..sized()
        };
        let mask = xact_goldfish_args {
            labels: args.rows,
            decision: &decision,
            keep: arena.optional(dice, 13),
            weights: arena.optional(dice, 14),
            counts: arena.optional(dice, 15),
            workspace: arena.ptr(dice, 20),
            workspace_bytes: dice.rarely(BYTES as u64, &[0]),
            ..sized()
        };
        let function = dice.of(&[
            None,
            Some(Loss::Forward),
            Some(Loss::WithGradient),
            Some(Loss::Backward),
            Some(Loss::PartialStats),
            Some(Loss::Finish),
        ]);
        match function {
            None => arena.check(|| arena.backend.mask(&mask)),
            Some(function) => arena.check(|| arena.backend.loss(function, &op, &args)),
        }
    });
    ok(unsafe { xact_goldfish_free(goldfish) });
}
