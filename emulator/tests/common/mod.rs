//! What the tests share: modules from a body of PTX, and launches.
#![allow(dead_code)]
#![allow(clippy::undocumented_unsafe_blocks)] // Launches: the emulator survives any argument.

use std::sync::Arc;

use cuda_emulator::{
    Finding, LaunchReport, Schedule, Settings, install, last_finding, record, with_settings,
};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg,
    ValidAsZeroBits, sys,
};
use cudarc::nvrtc::Ptx;

pub type Status = Result<(), sys::CUresult>;

/// Every schedule that a test of correct code tries.
pub const SCHEDULES: [Schedule; 4] = [
    Schedule::InOrder,
    Schedule::Reversed,
    Schedule::Seeded(1),
    Schedule::Seeded(2),
];

/// A comparison by its name, and when it holds.
pub type Comparison = (&'static str, fn(f64, f64) -> bool);

/// The comparisons of floats, of any type that f64 holds.
pub const COMPARISONS: [Comparison; 14] = [
    ("eq", |a, b| a == b),
    ("ne", |a, b| a.partial_cmp(&b).is_some_and(|o| o.is_ne())),
    ("lt", |a, b| a < b),
    ("le", |a, b| a <= b),
    ("gt", |a, b| a > b),
    ("ge", |a, b| a >= b),
    ("equ", |a, b| a.partial_cmp(&b).is_none_or(|o| o.is_eq())),
    ("neu", |a, b| a != b),
    ("ltu", |a, b| a.partial_cmp(&b).is_none_or(|o| o.is_lt())),
    ("leu", |a, b| a.partial_cmp(&b).is_none_or(|o| o.is_le())),
    ("gtu", |a, b| a.partial_cmp(&b).is_none_or(|o| o.is_gt())),
    ("geu", |a, b| a.partial_cmp(&b).is_none_or(|o| o.is_ge())),
    ("num", |a, b| !a.is_nan() && !b.is_nan()),
    ("nan", |a, b| a.is_nan() || b.is_nan()),
];

pub fn device(ordinal: usize) -> (Arc<CudaContext>, Arc<CudaStream>) {
    install().unwrap();
    let ctx = CudaContext::new(ordinal).unwrap();
    let stream = ctx.default_stream();
    (ctx, stream)
}

/// A module with one entry `k`.
pub fn module(declarations: &str, params: &str, body: &str) -> String {
    format!(
        ".version 7.8\n.target sm_80\n.address_size 64\n{declarations}\n.visible .entry k({params})\n{{\n{body}\nret;\n}}\n"
    )
}

pub fn function(ctx: &Arc<CudaContext>, text: &str) -> CudaFunction {
    ctx.load_module(Ptx::from_src(text))
        .unwrap()
        .load_function("k")
        .unwrap()
}

pub fn config(grid: u32, block: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (grid, 1, 1),
        block_dim: (block, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// Launches with clusters of so many blocks.
pub fn launch_clusters(
    f: &CudaFunction,
    stream: &CudaStream,
    cluster: u32,
    config: LaunchConfig,
    params: &mut [*mut std::ffi::c_void],
) -> Status {
    let attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                x: cluster,
                y: 1,
                z: 1,
            },
        },
    };
    let mut attributes = [attribute];
    let config = sys::CUlaunchConfig {
        gridDimX: config.grid_dim.0,
        gridDimY: config.grid_dim.1,
        gridDimZ: config.grid_dim.2,
        blockDimX: config.block_dim.0,
        blockDimY: config.block_dim.1,
        blockDimZ: config.block_dim.2,
        sharedMemBytes: config.shared_mem_bytes,
        hStream: stream.cu_stream(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: 1,
    };
    let extra = std::ptr::null_mut();
    let f = f.cu_function();
    unsafe { sys::cuLaunchKernelEx(&config, f, params.as_mut_ptr(), extra) }
        .result()
        .map_err(|e| e.0)
}

/// Launches an entry that takes one buffer; gives its contents, the report and the status.
pub fn run<T: DeviceRepr + ValidAsZeroBits + Default + Clone>(
    text: &str,
    config: LaunchConfig,
    schedule: Schedule,
    data: &[T],
) -> (Vec<T>, LaunchReport, Status) {
    let (ctx, stream) = device(0);
    let f = function(&ctx, text);
    let buffer: CudaSlice<T> = stream.clone_htod(data).unwrap();
    let settings = Settings {
        schedule,
        ..Settings::default()
    };
    let (status, mut reports) = with_settings(settings, || {
        record(|| {
            unsafe { stream.launch_builder(&f).arg(&buffer).launch(config) }
                .map(|_| ())
                .map_err(|e| e.0)
        })
    });
    (
        stream.clone_dtoh(&buffer).unwrap(),
        reports.pop().unwrap(),
        status,
    )
}

/// The finding of an entry that takes one buffer of `words` zeros.
pub fn finding(
    text: &str,
    config: LaunchConfig,
    schedule: Schedule,
    words: usize,
) -> Option<Finding> {
    let (_, report, status) = run(text, config, schedule, &vec![0u32; words]);
    assert_eq!(status.is_err(), report.finding.is_some());
    assert_eq!(last_finding(), report.finding);
    report.finding
}

/// Runs `body`, which computes %d from %a, %b and %c, for every element. The registers hold `bits`
/// bits each: those of a, b and c, and of d.
pub fn apply(body: &str, bits: [u32; 4], a: &[u64], b: &[u64], c: &[u64]) -> Vec<u64> {
    let settings = Settings::default();
    apply_with(settings, body, bits, a, b, c)
}

pub fn apply_with(
    settings: Settings,
    body: &str,
    bits: [u32; 4],
    a: &[u64],
    b: &[u64],
    c: &[u64],
) -> Vec<u64> {
    let (ctx, stream) = device(0);
    let load = |name: &str, bits: u32, at: usize| {
        if bits == 64 {
            format!("ld.u64 %{name}, [%rd1+{}];", 8 * at)
        } else {
            format!("ld.u{bits} %{name}, [%rd1+{}];", 8 * at)
        }
    };
    let text = module(
        "",
        ".param .u64 p, .param .u32 n",
        &format!(
            ".reg .pred %p<4>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .b16 %h<9>;
             .reg .b{} %a; .reg .b{} %b; .reg .b{} %c; .reg .b{} %d;
             ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n];
             mov.u32 %r2, %ctaid.x; mov.u32 %r3, %tid.x; mad.lo.u32 %r4, %r2, 256, %r3;
             setp.ge.u32 %p1, %r4, %r1; @%p1 exit;
             mad.wide.u32 %rd1, %r4, 32, %rd1;
             {} {} {}
             {{ {body} }}
             mov.u64 %rd2, 0; st.u64 [%rd1+24], %rd2; st.u{} [%rd1+24], %d;",
            bits[0],
            bits[1],
            bits[2],
            bits[3],
            load("a", bits[0], 0),
            load("b", bits[1], 1),
            load("c", bits[2], 2),
            bits[3],
        ),
    );
    let f = function(&ctx, &text);
    let n = a.len();
    let at = |v: &[u64], i: usize| if v.is_empty() { 0 } else { v[i % v.len()] };
    let data: Vec<u64> = (0..n).flat_map(|i| [a[i], at(b, i), at(c, i), 0]).collect();
    let mut buffer = stream.clone_htod(&data).unwrap();
    let config = config((n as u32).div_ceil(256), 256);
    with_settings(settings, || unsafe {
        stream
            .launch_builder(&f)
            .arg(&mut buffer)
            .arg(&(n as u32))
            .launch(config)
    })
    .unwrap_or_else(|e| panic!("`{body}`: {e:?}"));
    stream
        .clone_dtoh(&buffer)
        .unwrap()
        .chunks(4)
        .map(|c| c[3])
        .collect()
}

/// Random 64-bit numbers.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Floats of all kinds: bits at random, near each other, small integers, special values.
    pub fn f32(&mut self) -> f32 {
        const SPECIAL: [f32; 12] = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            f32::MIN_POSITIVE,
            f32::MAX,
            1e-45,
            -1e-45,
            0.5,
        ];
        let r = self.next();
        match r % 8 {
            0 => SPECIAL[(r >> 8) as usize % SPECIAL.len()],
            1 | 2 => f32::from_bits((r >> 32) as u32),
            3 => ((r >> 40) as i32 % 64 - 32) as f32,
            _ => {
                f32::from_bits((r >> 32) as u32 & 0x807f_ffff | (120 + (r >> 8) as u32 % 16) << 23)
            }
        }
    }
}
