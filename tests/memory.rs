//! The memory that a call of the head allocates: within its budget, and what its cost says.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use xact::LinearCrossEntropy;
use xact::cpu::linear_cross_entropy as head;
use xact::half::bf16;
use xact_dev::inputs::Random;

/// The bytes that are allocated, and the most there were since [`peak`] began.
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller has the same obligations.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller has the same obligations.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most bytes that `call` has allocated at a time.
fn peak(call: impl FnOnce()) -> usize {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    call();
    MOST.load(Ordering::Relaxed) - before
}

/// In one test, because the counters are the process's.
#[test]
fn a_call_of_the_head_stays_within_its_budget() {
    const N: usize = 700;
    const H: usize = 40;
    const V: usize = 5000;
    assert_eq!(peak(|| drop(std::hint::black_box(vec![0u8; 1000]))), 1000);
    let mut random = Random(1);
    let (hidden, weight) = (
        random.normal::<bf16>(N * H, 1.0),
        random.normal::<bf16>(V * H, 0.2),
    );
    let labels: Vec<i64> = (0..N as i64).collect();
    let (mut d_hidden, mut d_weight) = (vec![bf16::ZERO; N * H], vec![0f32; V * H]);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().expect("a pool");
        for max_bytes in [1 << 30, 12 << 20, 9 << 20] {
            let op = LinearCrossEntropy::default().max_bytes(max_bytes);
            let mut run = |only_cost: bool| {
                let call = head::forward_with_gradient(&op, &hidden, &weight, &labels);
                let call = call.d_hidden(&mut d_hidden).d_weight(&mut d_weight);
                match only_cost {
                    true => Some(call.cost().expect("a cost")),
                    false => call.run().map(|_| None).expect("a call"),
                }
            };
            let cost = pool.install(|| run(true)).expect("a cost");
            // The first call also starts what rayon and std keep.
            pool.install(|| run(false));
            let peak = pool.install(|| peak(|| assert!(run(false).is_none()))) as u64;
            println!("{threads} threads, {max_bytes} bytes: {cost:?}, peak {peak}");
            assert!(
                cost.bytes <= max_bytes && peak <= cost.bytes,
                "{peak} of {cost:?}"
            );
            // The cost counts no more than the logits and twice what else there is.
            assert!(peak > cost.bytes / 2, "{peak} of {cost:?}");
        }
    }
}
