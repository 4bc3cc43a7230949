//! A launch makes almost no allocations on the host. The allocations of xact and cudarc are counted, those of the emulated
//! driver are not.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use xact::cuda::cross_entropy::{self, Divisor};
use xact::cuda::goldfish::{self, DeviceTokens};
use xact::cuda::{self, Pair, PairMut};
use xact::{CrossEntropy, Goldfish, Halves, Order, Strategy, Xielu, Xsilu};
use xact_dev::choose::gpu;

/// The maximum number of allocations of a launch.
const MOST: usize = 2;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !cuda_emulator::in_driver_call() {
            ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        }
        // SAFETY: the caller has the same obligations.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller has the same obligations.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The number of allocations in `call`, after its kernels are loaded.
fn count(mut call: impl FnMut() -> xact::Result<()>) -> usize {
    call().unwrap();
    let before = ALLOCATIONS.get();
    call().unwrap();
    ALLOCATIONS.get() - before
}

#[test]
fn a_launch_asks_the_heap_at_most_twice() {
    assert!(
        count(|| {
            drop(std::hint::black_box(Box::new(1)));
            Ok(())
        }) == 1
    );
    let gpu = gpu();
    let (mut queue, stream) = (gpu.queue().unwrap(), &gpu.stream);
    let line = || stream.alloc_zeros::<f32>(64).unwrap();
    let scalar = || stream.alloc_zeros::<f32>(1).unwrap();
    let (x, v, dy) = (line(), line(), line());
    let (mut y, mut dx, mut dv) = (line(), line(), line());
    let (a, b, mut da, mut db) = (scalar(), scalar(), scalar(), scalar());
    let xielu = Xielu::default();
    let mut counts = vec![
        count(|| cuda::forward(&xielu, &x, Xielu::params(&a, &b), &mut y).launch(&mut queue)),
        count(|| {
            cuda::backward(&xielu, &x, &dy, Xielu::params(&a, &b), &mut dx)
                .gradients(Xielu::gradients(&mut da, &mut db))
                .y(&mut y)
                .launch(&mut queue)
        }),
        count(|| {
            let params = Xsilu::params(&a);
            let call = cuda::gated_forward(&Xsilu, Order::First, (&x, &v), params, &mut y);
            call.launch(&mut queue)
        }),
        count(|| {
            let (params, dxv) = (Xsilu::params(&a), (&mut dx, &mut dv));
            cuda::gated_backward(&Xsilu, Order::Second, (&x, &v), &dy, params, dxv)
                .gradients(Xsilu::gradients(&mut da))
                .launch(&mut queue)
        }),
        count(|| {
            let xv = Pair::halves(&x, 4, Halves::ValueFirst)?;
            let dxv = PairMut::halves(&mut dx, 4, Halves::ValueFirst)?;
            let dy = dy.slice(..32);
            cuda::gated_backward(&Xsilu, Order::First, xv, &dy, Xsilu::params(&a), dxv)
                .launch(&mut queue)
        }),
    ];
    let op = CrossEntropy::default();
    let (mut logits, mut dlogits) = (line(), line());
    let labels = stream.clone_htod(&[1_i64; 4]).unwrap();
    let (weights, mut loss, mut lse) = (
        stream.clone_htod(&[1_f32; 4]).unwrap(),
        stream.alloc_zeros::<f32>(4).unwrap(),
        stream.alloc_zeros::<f32>(4).unwrap(),
    );
    let mut argmax = stream.alloc_zeros::<i32>(4).unwrap();
    let mut saved = stream
        .alloc_zeros::<u8>(op.saved_bytes(4) as usize)
        .unwrap();
    let mut summary = stream.alloc_zeros(1).unwrap();
    let strategy = Strategy::DotTable { k: 4, h: 2 };
    let fish = Goldfish::new(strategy).unwrap().upload(&queue).unwrap();
    counts.extend([
        count(|| {
            cross_entropy::forward(&op, &logits, &labels, &mut summary)
                .weights(&weights)
                .loss(&mut loss)
                .lse(&mut lse)
                .argmax(&mut argmax)
                .saved(&mut saved)
                .goldfish(&fish, DeviceTokens::rows(&labels, 4))
                .launch(&mut queue)
        }),
        count(|| {
            let divisor = Divisor::summary(&summary);
            cross_entropy::backward(&op, &logits, &labels, &saved, divisor, &mut dlogits)
                .goldfish(&fish, DeviceTokens::rows(&labels, 4))
                .launch(&mut queue)
        }),
        count(|| {
            cross_entropy::forward_with_gradient(&op, &mut logits, &labels, &mut summary)
                .goldfish(&fish, DeviceTokens::rows(&labels, 4))
                .dloss(&weights)
                .launch(&mut queue)
        }),
        count(|| {
            let tokens = DeviceTokens::rows(&labels, 4);
            goldfish::mask(&fish, tokens)
                .weights(&mut loss)
                .launch(&mut queue)
        }),
    ]);
    println!("allocations of each call: {counts:?}");
    assert!(counts.iter().all(|&count| count <= MOST), "{counts:?}");
}
