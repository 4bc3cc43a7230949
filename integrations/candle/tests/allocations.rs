//! Views are not copied: a call allocates only its results.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use common::{scalar, tensor, var};
use xact::{CrossEntropy, Halves, Order, Xsilu};

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work; this one only counts.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller has the same obligations.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The counter is for the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The bytes that a call allocates, in units of its result's bytes, after a first call to warm up.
fn allocated(result: usize, call: impl Fn() -> Tensor) -> f64 {
    call();
    let before = ALLOCATED.load(Ordering::Relaxed);
    let tensor = call();
    let bytes = ALLOCATED.load(Ordering::Relaxed) - before;
    drop(tensor);
    bytes as f64 / result as f64
}

#[test]
fn forwards_allocate_their_result() {
    let _one = ONE_AT_A_TIME.lock().unwrap();
    let (rows, n) = (64, 4096);
    let xv = var(&tensor(1, &[rows, 2 * n], 3.0, DType::F32));
    let (x, v) = (xv.narrow(1, 0, n).unwrap(), xv.narrow(1, n, n).unwrap());
    let alpha = scalar(0.25);
    let size = 4 * rows * n;
    let plain = || xact_candle::xsilu(&x, &alpha).unwrap();
    let pair = || xact_candle::gated(Xsilu, Order::First, &x, &v, &[&alpha]).unwrap();
    let halves = Halves::ValueFirst;
    let packed = || xact_candle::gated_halves(Xsilu, Order::First, &xv, halves, &[&alpha]).unwrap();
    for ratio in [
        allocated(size, plain),
        allocated(size, pair),
        allocated(size, packed),
    ] {
        assert!(ratio < 1.05, "{ratio}");
    }
    // The counter notices a copy that is necessary.
    let turned = || xact_candle::xsilu(&xv.t().unwrap(), &alpha).unwrap();
    let ratio = allocated(2 * size, turned);
    assert!((1.95..2.05).contains(&ratio), "{ratio}");
}

#[test]
fn backwards_allocate_their_results_and_what_candle_adds_them_to() {
    let _one = ONE_AT_A_TIME.lock().unwrap();
    let (rows, n) = (64, 4096);
    let xv = var(&tensor(1, &[rows, 2 * n], 3.0, DType::F32));
    let alpha = scalar(0.25);
    let y = xact_candle::gated_halves(Xsilu, Order::First, &xv, Halves::GateFirst, &[&alpha]);
    let y = y.unwrap();
    let size = 4 * rows * 2 * n;
    let backward = || y.backward().unwrap().get(&xv).unwrap().clone();
    // The gradient of ones in y's shape, the result; candle's zeros and their sum.
    let ratio = allocated(size, backward);
    assert!(ratio < 3.6, "{ratio}");
}

#[test]
fn a_loss_allocates_little_and_its_gradient_once() {
    let _one = ONE_AT_A_TIME.lock().unwrap();
    let (b, s, v) = (4, 17, 4096);
    let all = var(&tensor(1, &[b, s, v], 3.0, DType::BF16));
    let logits = all.narrow(1, 0, s - 1).unwrap();
    let labels = Tensor::zeros((b, s - 1), DType::I64, &Device::Cpu).unwrap();
    let op = CrossEntropy::default();
    let size = 2 * b * (s - 1) * v;
    let forward = || {
        xact_candle::cross_entropy(&op, &logits, &labels)
            .run()
            .unwrap()
    };
    let ratio = allocated(size, forward);
    assert!(ratio < 0.1, "{ratio}");
}
