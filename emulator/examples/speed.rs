//! How fast the emulator is: PTX instructions per second, of a kernel compiled from `kernels/`.
//!
//!     cargo run --release -p cuda-emulator --example speed -- xielu.ptx xielu_forward_bf16
//!
//! The entry must take the parameter struct of the activations.

use std::time::Instant;

use cuda_emulator::{Approx, Schedule, Settings, install, record, with_settings};
use cudarc::driver::{CudaContext, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Args {
    pointers: [u64; 3],
    pitches: [u64; 3],
    rows: u64,
    cols: u64,
    tiles_per_row: u64,
    tiles_per_chunk: u64,
    chunks: u64,
    partials: u64,
    params: [u64; 2],
    dparams: [u64; 2],
    flags: [u32; 4],
    beta: f32,
    eps: f32,
}

// SAFETY: plain numbers in the layout that the kernels declare.
unsafe impl DeviceRepr for Args {}

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(entry)) = (args.next(), args.next()) else {
        eprintln!("usage: speed FILE.ptx ENTRY [ELEMENTS]");
        return;
    };
    let elements: usize = args
        .next()
        .map_or(1 << 20, |n| n.parse().expect("a number"));
    install().expect("Linux");
    let ctx = CudaContext::new(0).expect("emulated");
    let stream = ctx.default_stream();
    let start = Instant::now();
    let text = std::fs::read_to_string(path).expect("a PTX file");
    let module = ctx.load_module(Ptx::from_src(text)).expect("supported PTX");
    println!("load: {:.1?}", start.elapsed());
    let f = module.load_function(&entry).expect("the entry is there");
    let size = if entry.ends_with("f32") { 4 } else { 2 };
    // Values in (-4, 4), in the type of the entry.
    let bytes: Vec<u8> = (0..elements)
        .flat_map(|i| {
            let x = ((i * 7919) % 8191) as f32 / 1024.0 - 4.0;
            match size {
                4 => x.to_le_bytes().to_vec(),
                _ if entry.ends_with("bf16") => half::bf16::from_f32(x).to_le_bytes().to_vec(),
                _ => half::f16::from_f32(x).to_le_bytes().to_vec(),
            }
        })
        .collect();
    let x = stream.clone_htod(&bytes).expect("memory");
    let y = stream.alloc_zeros::<u8>(elements * size).expect("memory");
    let params = stream.clone_htod(&[0.8f32, 0.8]).expect("memory");
    let partials = stream.alloc_zeros::<u8>(1 << 20).expect("memory");
    let tile = (256 * 2 * 16 / size) as u64;
    let pointer = |s: &cudarc::driver::CudaSlice<u8>| s.device_ptr(&stream).0;
    let p = params.device_ptr(&stream).0;
    let tiles = (elements as u64).div_ceil(tile);
    let a = Args {
        pointers: [pointer(&x), pointer(&x), pointer(&y)],
        pitches: [elements as u64; 3],
        rows: 1,
        cols: elements as u64,
        tiles_per_row: tiles,
        tiles_per_chunk: tiles.div_ceil(32),
        chunks: tiles.div_ceil(tiles.div_ceil(32)),
        partials: pointer(&partials),
        params: [p, p + 4],
        dparams: [0; 2],
        flags: [1, 0, 1, 0],
        beta: 0.5,
        eps: f32::INFINITY,
    };
    for (name, schedule, counting) in [
        ("in order", Schedule::InOrder, false),
        ("in order, counting", Schedule::InOrder, true),
        ("reversed", Schedule::Reversed, false),
        ("seeded", Schedule::Seeded(1), false),
    ] {
        let settings = Settings {
            schedule,
            approx: Approx::Nearest,
        };
        let launch = || {
            let cfg = LaunchConfig {
                grid_dim: (a.chunks as u32, 1, 1),
                block_dim: (256, 1, 1),
                shared_mem_bytes: 0,
            };
            let start = Instant::now();
            // SAFETY: the arguments are those that the kernel declares.
            unsafe { stream.launch_builder(&f).arg(&a).launch(cfg) }.expect("no finding");
            start.elapsed()
        };
        let (time, reports) = with_settings(settings, || record(launch));
        let time = if counting {
            time
        } else {
            with_settings(settings, launch)
        };
        let n = reports[0].instructions;
        println!(
            "{name:>20}: {n} instructions in {time:.1?}: {:.1} million per second, {:.1} per element",
            n as f64 / time.as_secs_f64() / 1e6,
            n as f64 / elements as f64
        );
        if schedule == Schedule::InOrder && counting {
            for b in &reports[0].buffers {
                println!("{b:?}");
            }
            let mut ops = reports[0].by_opcode.clone();
            ops.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
            println!("{:?}", &ops[..ops.len().min(12)]);
        }
    }
}
