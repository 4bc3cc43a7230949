//! The Goldfish kernels, compared with the reference and with the results of the official code and its ports; and the
//! errors of their calls.

#![allow(unsafe_code)]

use std::num::NonZeroU32;
use std::process::ExitCode;

use proptest::prelude::*;
use proptest::strategy::Strategy as _;
use xact::cuda::goldfish::{DeviceGoldfish, DeviceTokens, Mask, mask};
use xact::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use xact::cudarc::driver::{CudaSlice, DevicePtr};
use xact::loss::goldfish::{TokenId, Tokens};
use xact::raw::Blocks;
use xact::raw::goldfish as raw;
use xact::{Device, Error, Goldfish, Queue, Strategy};
use xact_dev::choose::{Gpu, gpu};
use xact_dev::goldfish::{How, keep};
use xact_dev::goldfish_chunks::{Division, Share, documents, interleave};
use xact_dev::goldfish_golden::{Golden, dropped};
use xact_dev::inputs::Random;
use xact_dev::{strategy, trials};

fn main() -> ExitCode {
    trials::main(|table| {
        macro_rules! tests {
            ($devices:literal: $($name:ident),+ $(,)?) => {
                $(table.plain(concat!("goldfish::", stringify!($name)), $devices, $name);)+
            };
        }
        tests![
            1:
                the_kernel_makes_the_official_masks,
                the_kernel_decides_as_the_reference,
                chunks_of_documents_are_dropped_as_the_whole,
                hostile_offsets_read_nothing_outside,
                hostile_chunks_read_nothing_outside,
                negative_numbers_of_chunks_count_as_0,
                every_grid_gives_the_same,
                every_schedule_gives_the_same,
                the_safe_call_decides_as_the_reference,
                each_output_can_be_left_out,
                wrong_calls_are_refused_and_nothing_is_written,
                raw_calls_refuse_what_can_be_seen,
                a_mask_can_be_captured_and_replayed,
                two_streams_wait_for_each_other,
        ];
        tests![2: buffers_of_another_device_are_refused];
    })
}

fn strategies(k: u32, h: u32, seed: u64) -> [Strategy; 6] {
    strategy::all(k, h, seed % 9, seed)
}

fn the_kernel_makes_the_official_masks() {
    let (gpu, golden) = (gpu(), Golden::read());
    let mut labels = 0;
    for case in golden.cases() {
        let goldfish = Goldfish::new(case.strategy).unwrap();
        let mask = keep(&gpu, &goldfish, &Tokens::row(&case.ids), How::default()).unwrap();
        assert_eq!(dropped(&mask), case.dropped, "{:?}", case.raw);
        labels += mask.len();
    }
    assert_eq!(labels, 31 * (4 * 96 + 150));
}

/// The numbers that determine a call.
#[derive(Clone, Debug)]
struct Call {
    strategy: usize,
    k: u32,
    h: u32,
    seed: u64,
    rows: usize,
    len: usize,
    halo_len: usize,
    /// Whether the segments are documents instead of rows.
    cu_seqlens: Option<Vec<i32>>,
    /// Whether the rows are the columns of the tensors.
    interleaved: bool,
    /// Whether ids are small numbers, including 0 and negative ones, or any numbers.
    small: bool,
    exempt: Vec<i64>,
    how: How,
}

fn calls() -> impl proptest::strategy::Strategy<Value = Call> {
    let numbers = (
        0..6usize,
        2..9u32,
        1..70u32,
        any::<u64>(),
        any::<[bool; 2]>(),
    );
    let shape = (0..5usize, 0..300usize, 0..80usize);
    let offsets = prop::option::of(prop::collection::vec(-90..700i32, 0..9));
    let rest = (prop::collection::vec(-3..9i64, 0..40), 0..4usize, 0..4u32);
    (numbers, shape, offsets, rest).prop_map(
        |(
            (strategy, k, h, seed, [small, interleaved]),
            (rows, len, halo_len),
            mut cu_seqlens,
            rest,
        )| {
            if let Some(offsets) = &mut cu_seqlens {
                offsets.sort_unstable();
            }
            let (exempt, offset, max_blocks) = rest;
            Call {
                strategy,
                k,
                h,
                seed,
                rows,
                // A row of 0 labels does not exist.
                len: len.max(1),
                halo_len: if rows == 0 { 0 } else { halo_len },
                cu_seqlens,
                interleaved,
                small,
                exempt,
                how: How {
                    offset,
                    blocks: NonZeroU32::new(max_blocks).into(),
                },
            }
        },
    )
}

/// The ids of a call, and its halo.
fn ids_of(call: &Call) -> [Vec<i64>; 2] {
    let mut random = Random(call.seed);
    let segments = if call.cu_seqlens.is_some() {
        1
    } else {
        call.rows
    };
    [call.rows * call.len, segments * call.halo_len].map(|n| {
        let ids = (0..n).map(|_| random.bits() as i64);
        ids.map(|id| if call.small { id % 6 } else { id }).collect()
    })
}

fn compare<I: TokenId>(gpu: &Gpu, call: &Call, ids: &[I], halo: &[I]) {
    let strategy = strategies(call.k, call.h, call.seed)[call.strategy];
    let goldfish = Goldfish::new(strategy).unwrap();
    let tokens = match &call.cu_seqlens {
        Some(cu_seqlens) => Tokens::documents(ids, cu_seqlens),
        None => Tokens::rows(ids, call.len),
    };
    let mut tokens = tokens.halo(halo).exempt(&call.exempt);
    if call.interleaved {
        tokens = tokens.interleaved(call.rows);
    }
    let expected = goldfish.keep(&tokens).unwrap();
    assert_eq!(keep(gpu, &goldfish, &tokens, call.how).unwrap(), expected);
}

fn of_type<I>(documents: &[Vec<i64>], to: impl Fn(i64) -> I + Copy) -> Vec<Vec<I>> {
    let of = |ids: &Vec<i64>| ids.iter().map(|&id| to(id)).collect();
    documents.iter().map(of).collect()
}

/// Compares the decisions about the share of a rank with those about the whole documents, also without needless offsets
/// and with interleaved rows.
fn compare_share<I: TokenId>(
    gpu: &Gpu,
    goldfish: &Goldfish,
    documents: &[Vec<I>],
    division: Division,
    rank: usize,
    other: impl FnMut() -> I,
) -> Result<(), TestCaseError> {
    let share = Share::new(documents, division, rank, other);
    let expected = share.expected(goldfish, documents);
    let got = keep(gpu, goldfish, &share.tokens(), How::default()).unwrap();
    prop_assert_eq!(&got, &expected, "{:?}", share);
    if let Some(rows) = (2..5).find(|rows| share.ids.len().is_multiple_of(*rows)) {
        let ids = interleave(&share.ids, rows);
        let mut tokens = share.tokens().interleaved(rows);
        tokens.hash_ids = &ids;
        let expected = goldfish.keep(&tokens).unwrap();
        let got = keep(gpu, goldfish, &tokens, How::default()).unwrap();
        prop_assert_eq!(got, expected, "{:?}", share);
    }
    let share = share.without_needless_offsets();
    let got = keep(gpu, goldfish, &share.tokens(), How::default()).unwrap();
    prop_assert_eq!(&got, &expected, "{:?}", share);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    fn the_kernel_decides_as_the_reference(call in calls()) {
        let gpu = gpu();
        let [ids, halo] = ids_of(&call);
        compare(&gpu, &call, &ids, &halo);
        let narrow = |ids: &[i64]| ids.iter().map(|&id| id as i32).collect::<Vec<_>>();
        compare(&gpu, &call, &narrow(&ids), &narrow(&halo));
    }

    fn chunks_of_documents_are_dropped_as_the_whole(
        lens in prop::collection::vec(0usize..200, 1..6),
        (ranks, zig_zag, each_document) in (1usize..5, any::<bool>(), any::<bool>()),
        (h, more) in (1u32..40, 0usize..50),
        seed in any::<u64>(),
    ) {
        let gpu = gpu();
        let mut random = Random(seed);
        let documents = documents(&lens, &mut random);
        let narrow = of_type(&documents, |id| id as i32);
        let unsigned = of_type(&documents, |id| id as u32);
        let small = of_type(&documents, |id| id as u8);
        let division = Division { ranks, zig_zag, each_document, halo_len: more };
        let goldfish = Goldfish::new(strategies(2, h, seed)[seed as usize % 6]).unwrap();
        for rank in 0..ranks {
            let mut other = || random.bits() as i64;
            compare_share(&gpu, &goldfish, &documents, division, rank, &mut other)?;
            compare_share(&gpu, &goldfish, &narrow, division, rank, || other() as i32)?;
            compare_share(&gpu, &goldfish, &unsigned, division, rank, || other() as u32)?;
            compare_share(&gpu, &goldfish, &small, division, rank, || other() as u8)?;
        }
    }

    /// Invalid offsets and numbers of preceding labels, which the host does not see.
    fn hostile_chunks_read_nothing_outside(
        call in calls(),
        chunks in prop::collection::vec(
            (
                prop_oneof![any::<i32>(), -90..700i32],
                prop_oneof![any::<i64>(), -90..700i64],
            ),
            1..20,
        ),
    ) {
        let gpu = gpu();
        let (cu_seqlens, preceding): (Vec<_>, Vec<_>) = chunks.into_iter().unzip();
        let preceding = &preceding[1..];
        let mut random = Random(call.seed);
        let mut ids = |n| (0..n).map(|_| random.bits() as i32 % 50).collect::<Vec<_>>();
        let (ids, halo) = (ids(call.rows * call.len), ids(preceding.len() * call.halo_len));
        let goldfish = Goldfish::new(strategies(call.k, call.h, call.seed)[call.strategy]).unwrap();
        let tokens = Tokens::chunks(&ids, &cu_seqlens, preceding)
            .halo(&halo)
            .exempt(&call.exempt)
            .interleaved(if call.interleaved { call.rows } else { 1 });
        let mask = keep(&gpu, &goldfish, &tokens, call.how).unwrap();
        prop_assert_eq!(mask.len(), ids.len());
    }

    /// Invalid offsets, which the host does not see. The emulator reports any access out of bounds.
    fn hostile_offsets_read_nothing_outside(
        call in calls(),
        cu_seqlens in prop::collection::vec(prop_oneof![any::<i32>(), -90..700i32], 1..20),
    ) {
        let gpu = gpu();
        let call = Call { cu_seqlens: Some(vec![]), ..call };
        let [ids, halo] = ids_of(&call);
        let goldfish = Goldfish::new(strategies(call.k, call.h, call.seed)[call.strategy]).unwrap();
        let tokens = Tokens::documents(&ids, &cu_seqlens)
            .halo(&halo)
            .exempt(&call.exempt);
        let mask = keep(&gpu, &goldfish, &tokens, call.how).unwrap();
        prop_assert_eq!(mask.len(), ids.len());
    }
}

fn negative_numbers_of_chunks_count_as_0() {
    let gpu = gpu();
    let mut random = Random(3);
    let ids: Vec<i32> = (0..300).map(|_| random.bits() as i32 % 50).collect();
    let halo = &ids[50..70];
    for strategy in strategies(2, 6, 1) {
        let goldfish = Goldfish::new(strategy).unwrap();
        let tokens = Tokens::chunks(&ids, &[-7, 100, 290], &[-3, i64::MIN]).halo(halo);
        let counted = Tokens::chunks(&ids, &[0, 100, 290], &[0, 0]).halo(halo);
        let mask = keep(&gpu, &goldfish, &tokens, How::default()).unwrap();
        assert_eq!(mask, goldfish.keep(&counted).unwrap(), "{strategy:?}");
    }
}

/// More labels than one pass of the largest grid here, and more blocks than one pass of the second stage.
fn every_grid_gives_the_same() {
    let gpu = gpu();
    let mut random = Random(1);
    let ids: Vec<i32> = (0..70_001).map(|_| random.bits() as i32 % 1000).collect();
    let goldfish = Goldfish::new(Strategy::Hash64 {
        k: 3,
        h: 2,
        seed: 0,
    })
    .unwrap();
    let expected = goldfish.keep(&Tokens::row(&ids)).unwrap();
    let few = [1, 2, 200].map(|blocks| NonZeroU32::new(blocks).into());
    for blocks in few.into_iter().chain([Blocks::All, Blocks::Resident]) {
        let how = How {
            blocks,
            ..How::default()
        };
        let mask = keep(&gpu, &goldfish, &Tokens::row(&ids), how).unwrap();
        assert!(mask == expected, "{blocks:?}");
    }
}

/// With other orders of the threads there is no race, and the result is the same.
fn every_schedule_gives_the_same() {
    use cuda_emulator::{Schedule, Settings};
    let gpu = gpu();
    let golden = Golden::read();
    let ids = golden.sequence("rand_v131072_len256").repeat(3);
    let goldfish = Goldfish::new(Strategy::DotTable { k: 3, h: 5 }).unwrap();
    let tokens = Tokens::row(&ids);
    let expected = goldfish.keep(&tokens).unwrap();
    let full = std::env::var("XACT_FULL").is_ok_and(|v| v == "1");
    let seeds = if full { 20 } else { 3 };
    for schedule in (0..seeds).map(Schedule::Seeded).chain([Schedule::Reversed]) {
        let settings = Settings {
            schedule,
            ..Settings::default()
        };
        let mask = cuda_emulator::with_settings(settings, || {
            keep(&gpu, &goldfish, &tokens, How::default()).unwrap()
        });
        assert_eq!(mask, expected, "{schedule:?}");
    }
}

/// The buffers of a safe call with one row of ids.
struct Buffers {
    ids: CudaSlice<i32>,
    keep: CudaSlice<u8>,
    weights: CudaSlice<f32>,
    counts: CudaSlice<i64>,
}

const N: usize = 600;

impl Buffers {
    fn new(gpu: &Gpu) -> Buffers {
        let mut random = Random(2);
        let ids: Vec<i32> = (0..N).map(|_| random.bits() as i32 % 1000).collect();
        Buffers {
            ids: gpu.stream.clone_htod(&ids).unwrap(),
            keep: gpu.stream.clone_htod(&[7; N]).unwrap(),
            weights: gpu.stream.clone_htod(&[7.0; N]).unwrap(),
            counts: gpu.stream.clone_htod(&[7; 2]).unwrap(),
        }
    }

    /// A mask of one row with all outputs.
    fn call<'a>(&'a mut self, goldfish: &'a DeviceGoldfish) -> Mask<'a, i32> {
        mask(goldfish, DeviceTokens::rows(&self.ids, N))
            .keep(&mut self.keep)
            .weights(&mut self.weights)
            .counts(&mut self.counts)
    }

    fn written(&self, gpu: &Gpu) -> bool {
        let stream = &gpu.stream;
        stream.clone_dtoh(&self.keep).unwrap() != [7; N]
            || stream.clone_dtoh(&self.weights).unwrap() != [7.0; N]
            || stream.clone_dtoh(&self.counts).unwrap() != [7; 2]
    }
}

fn the_safe_call_decides_as_the_reference() {
    let gpu = gpu();
    let mut queue = gpu.queue().unwrap();
    let mut buffers = Buffers::new(&gpu);
    let ids = gpu.stream.clone_dtoh(&buffers.ids).unwrap();
    let (halo, exempt, cu_seqlens) = ([5i32; 12], [1i64, 2, 3], [-4i32, 100, 350, 600]);
    let (offsets, preceding) = ([0i32, 100, 350, 590], [0i64, 2, 70]);
    let on_device = (
        gpu.stream.clone_htod(&halo).unwrap(),
        gpu.stream.clone_htod(&exempt).unwrap(),
        gpu.stream.clone_htod(&cu_seqlens).unwrap(),
    );
    let chunks = (
        gpu.stream.clone_htod(&offsets).unwrap(),
        gpu.stream.clone_htod(&preceding).unwrap(),
    );
    for strategy in strategies(3, 9, 4) {
        let goldfish = Goldfish::new(strategy).unwrap();
        let uploaded = goldfish.upload(&queue).unwrap();
        assert_eq!(uploaded.goldfish().strategy(), strategy);
        for layout in 0..4 {
            let (host, tokens) = match layout {
                0 => (
                    Tokens::documents(&ids, &cu_seqlens),
                    DeviceTokens::documents(&buffers.ids, &on_device.2),
                ),
                1 => (
                    Tokens::chunks(&ids, &offsets, &preceding),
                    DeviceTokens::chunks(&buffers.ids, &chunks.0, &chunks.1),
                ),
                2 => (
                    Tokens::rows(&ids, N / 4).interleaved(4),
                    DeviceTokens::rows(&buffers.ids, N / 4).interleaved(4),
                ),
                _ => (
                    Tokens::rows(&ids, N / 4),
                    DeviceTokens::rows(&buffers.ids, N / 4),
                ),
            };
            let expected = goldfish.keep(&host.halo(&halo).exempt(&exempt));
            let expected = expected.unwrap();
            mask(&uploaded, tokens.halo(&on_device.0).exempt(&on_device.1))
                .keep(&mut buffers.keep)
                .weights(&mut buffers.weights)
                .counts(&mut buffers.counts)
                .launch(&mut queue)
                .unwrap();
            let keep = gpu.stream.clone_dtoh(&buffers.keep).unwrap();
            assert_eq!(
                keep,
                expected.iter().map(|&k| u8::from(k)).collect::<Vec<_>>()
            );
            let kept = expected.iter().filter(|&&k| k).count() as i64;
            let counts = gpu.stream.clone_dtoh(&buffers.counts).unwrap();
            assert_eq!(counts, [kept, N as i64 - kept]);
        }
    }
}

fn each_output_can_be_left_out() {
    let gpu = gpu();
    let goldfish = Goldfish::new(Strategy::Hash64 {
        k: 3,
        h: 2,
        seed: 0,
    })
    .unwrap();
    let mut queue = gpu.queue().unwrap();
    let goldfish = goldfish.upload(&queue).unwrap();
    let mut all = Buffers::new(&gpu);
    all.call(&goldfish).launch(&mut queue).unwrap();
    for left in 0..8 {
        let mut buffers = Buffers::new(&gpu);
        let mut call = mask(&goldfish, DeviceTokens::rows(&buffers.ids, N));
        if left & 1 != 0 {
            call = call.keep(&mut buffers.keep);
        }
        if left & 2 != 0 {
            call = call.weights(&mut buffers.weights);
        }
        if left & 4 != 0 {
            call = call.counts(&mut buffers.counts);
        }
        call.launch(&mut queue).unwrap();
        let same = |a: bool, b: bool| assert_eq!(a, b, "{left}");
        let download = |b: &Buffers| {
            (
                gpu.stream.clone_dtoh(&b.keep).unwrap(),
                gpu.stream.clone_dtoh(&b.weights).unwrap(),
                gpu.stream.clone_dtoh(&b.counts).unwrap(),
            )
        };
        let (got, expected) = (download(&buffers), download(&all));
        same(got.0 == expected.0, left & 1 != 0);
        same(got.1 == expected.1, left & 2 != 0);
        same(got.2 == expected.2, left & 4 != 0);
    }
}

fn wrong_calls_are_refused_and_nothing_is_written() {
    let gpu = gpu();
    let goldfish = Goldfish::new(Strategy::ProductTable { k: 3, h: 2 }).unwrap();
    let mut queue = gpu.queue().unwrap();
    let goldfish = goldfish.upload(&queue).unwrap();
    let mut buffers = Buffers::new(&gpu);
    let halo = gpu.stream.clone_htod(&[1i32; 3]).unwrap();
    let mut short = gpu.stream.clone_htod(&[7u8; N - 1]).unwrap();
    let mut weights = gpu.stream.clone_htod(&[7.0f32; N + 1]).unwrap();
    let mut one = gpu.stream.clone_htod(&[7i64]).unwrap();
    let length = |what, expected, got| Error::Length {
        what,
        expected,
        got,
    };
    let n = N as u64;
    /// Replaces the tokens or an output of a call.
    macro_rules! refused {
        ($expected:expr, tokens: $tokens:expr) => {{
            let call = mask(&goldfish, $tokens)
                .keep(&mut buffers.keep)
                .weights(&mut buffers.weights)
                .counts(&mut buffers.counts);
            assert_eq!(call.launch(&mut queue), Err($expected));
            assert!(!buffers.written(&gpu));
        }};
        ($expected:expr, $($change:tt)+) => {{
            let call = buffers.call(&goldfish).$($change)+;
            assert_eq!(call.launch(&mut queue), Err($expected));
            assert!(!buffers.written(&gpu));
        }};
    }
    let ids = buffers.ids.clone();
    let rows = |len| DeviceTokens::rows(&ids, len);
    refused!(length("hash_ids", 602, n), tokens: rows(7));
    refused!(length("hash_ids", 0, n), tokens: rows(0));
    refused!(length("the halo", 4, 3), tokens: rows(N / 2).halo(&halo));
    let (offsets, preceding) = (
        gpu.stream.clone_htod(&[0i32, 300, 600]).unwrap(),
        gpu.stream.clone_htod(&[0i64; 3]).unwrap(),
    );
    let two = gpu.stream.clone_htod(&[0i64; 2]).unwrap();
    refused!(length("cu_seqlens", 4, 3), tokens: DeviceTokens::chunks(&ids, &offsets, &preceding));
    refused!(length("the halo", 4, 3), tokens: DeviceTokens::chunks(&ids, &offsets, &two).halo(&halo));
    refused!(length("hash_ids", 602, n), tokens: rows(N).interleaved(7));
    refused!(length("hash_ids", 0, n), tokens: rows(N).interleaved(0));
    refused!(length("keep", n, n - 1), keep(&mut short));
    refused!(length("weights", n, n + 1), weights(&mut weights));
    refused!(length("counts", 2, 1), counts(&mut one));
    assert!(gpu.stream.clone_dtoh(&short).unwrap() == [7; N - 1]);
    assert!(gpu.stream.clone_dtoh(&weights).unwrap() == [7.0; N + 1]);
    assert_eq!(gpu.stream.clone_dtoh(&one).unwrap(), [7]);

    let needed = buffers.call(&goldfish).workspace_bytes().unwrap();
    assert_eq!(needed, 24);
    for got in [0, 8] {
        let mut small = Queue::new(&gpu.stream).unwrap();
        small.reserve(got).unwrap();
        let refusal = buffers.call(&goldfish).launch(&mut small);
        assert_eq!(refusal, Err(Error::Workspace { needed, got }));
        assert!(!buffers.written(&gpu));
        // Only the counts need the workspace.
        let mut keep = gpu.stream.clone_htod(&[7u8; N]).unwrap();
        let call = mask(&goldfish, rows(N)).keep(&mut keep);
        assert_eq!(call.workspace_bytes(), Ok(0));
        call.launch(&mut small).unwrap();
        small.reserve(needed).unwrap();
        let mut counts = gpu.stream.clone_htod(&[7i64; 2]).unwrap();
        let call = mask(&goldfish, rows(N)).counts(&mut counts);
        call.launch(&mut small).unwrap();
    }
}

fn buffers_of_another_device_are_refused() {
    let gpu = gpu();
    let second = Device::new(1).unwrap();
    let stream = second.context().new_stream().unwrap();
    let mut queue = gpu.queue().unwrap();
    let mut their_queue = Queue::new(&stream).unwrap();
    their_queue.reserve(1 << 20).unwrap();
    let wrong = |what| Error::WrongContext { what };
    let goldfish = Goldfish::new(Strategy::DotTable { k: 3, h: 2 }).unwrap();
    let there = goldfish.upload(&their_queue).unwrap();
    let mut buffers = Buffers::new(&gpu);
    assert_eq!(
        buffers.call(&there).launch(&mut queue),
        Err(wrong("the bitmap"))
    );
    assert_eq!(
        buffers.call(&there).launch(&mut their_queue),
        Err(wrong("hash_ids"))
    );
    let here = goldfish.upload(&queue).unwrap();
    let (halo, exempt) = (
        stream.clone_htod(&[1i32; 3]).unwrap(),
        stream.clone_htod(&[1i64; 3]).unwrap(),
    );
    let mut keep = stream.clone_htod(&[7u8; N]).unwrap();
    let mut weights = stream.clone_htod(&[7.0f32; N]).unwrap();
    let mut out = stream.clone_htod(&[7i64; 2]).unwrap();
    macro_rules! refused {
        ($what:literal, tokens: $tokens:expr) => {{
            let call = mask(&here, $tokens)
                .keep(&mut buffers.keep)
                .weights(&mut buffers.weights)
                .counts(&mut buffers.counts);
            assert_eq!(call.launch(&mut queue), Err(wrong($what)));
            assert!(!buffers.written(&gpu));
        }};
        ($what:literal, $($change:tt)+) => {{
            let call = buffers.call(&here).$($change)+;
            assert_eq!(call.launch(&mut queue), Err(wrong($what)));
            assert!(!buffers.written(&gpu));
        }};
    }
    let ids = buffers.ids.clone();
    refused!("the halo", tokens: DeviceTokens::rows(&ids, N).halo(&halo));
    refused!("the exempt ids", tokens: DeviceTokens::rows(&ids, N).exempt(&exempt));
    refused!("cu_seqlens", tokens: DeviceTokens::documents(&ids, &halo));
    let offsets = gpu.stream.clone_htod(&[0i32; 4]).unwrap();
    refused!("preceding", tokens: DeviceTokens::chunks(&ids, &offsets, &exempt));
    refused!("keep", keep(&mut keep));
    refused!("weights", weights(&mut weights));
    refused!("counts", counts(&mut out));
}

fn raw_calls_refuse_what_can_be_seen() {
    let gpu = gpu();
    let goldfish = Goldfish::new(Strategy::DotTable { k: 3, h: 2 }).unwrap();
    let uploaded = gpu.stream.clone_htod(&vec![7u8; 1 << 20]).unwrap();
    let base = uploaded.device_ptr(&gpu.stream).0;
    let run = |at, len| raw::DeviceSlice {
        ptr: base + at,
        len,
    };
    // Each buffer has a region of 64 kB.
    let at = |n: u64| base + n * 0x10000;
    let call = raw::Mask {
        decision: raw::Decision {
            goldfish: &goldfish,
            bitmap: at(0),
            coefficients: at(2),
            tokens: raw::Tokens {
                hash_ids: at(3),
                id_type: raw::IdType::I32,
                layout: raw::Layout::Rows { len: 100 },
                halo: run(0x40000, 10),
                exempt: run(0x50000, 10),
                interleaved: 1,
            },
        },
        labels: 1000,
        keep: Some(at(6)),
        weights: Some(at(7)),
        counts: Some(raw::Counts {
            out: at(8),
            workspace: at(9),
            workspace_bytes: 32,
        }),
        blocks: Blocks::All,
    };
    let refused = |change: &dyn Fn(&mut raw::Mask<'_>), expected: Error| {
        let mut call = call;
        change(&mut call);
        // SAFETY: all pointers are into `uploaded`, or the call returns an error.
        let refusal = unsafe { raw::mask(&gpu.device, gpu.stream.cu_stream(), &call) };
        assert_eq!(refusal, Err(expected));
        let after = gpu.stream.clone_dtoh(&uploaded).unwrap();
        assert!(after.iter().all(|&byte| byte == 7));
    };
    let null = |what| Error::Null { what };
    let misaligned = |what, address, alignment| Error::Misaligned {
        what,
        address,
        alignment,
    };
    let overlap = |output, other| Error::Overlap { output, other };
    let documents = |ptr, len| raw::Layout::Documents {
        cu_seqlens: raw::DeviceSlice { ptr, len },
    };
    refused(&|c| c.decision.tokens.hash_ids = 0, null("hash_ids"));
    refused(&|c| c.decision.tokens.halo.ptr = 0, null("the halo"));
    refused(
        &|c| c.decision.tokens.exempt.ptr = 0,
        null("the exempt ids"),
    );
    refused(
        &|c| c.decision.tokens.layout = documents(0, 3),
        null("cu_seqlens"),
    );
    let chunks = |offsets, preceding, number| raw::Layout::Chunks {
        cu_seqlens: raw::DeviceSlice {
            ptr: offsets,
            len: 6,
        },
        preceding: raw::DeviceSlice {
            ptr: preceding,
            len: number,
        },
    };
    refused(
        &|c| c.decision.tokens.layout = chunks(0, at(11), 5),
        null("cu_seqlens"),
    );
    refused(
        &|c| c.decision.tokens.layout = chunks(at(10), 0, 5),
        null("preceding"),
    );
    refused(
        &|c| c.decision.tokens.layout = chunks(at(10), at(11) + 4, 5),
        misaligned("preceding", at(11) + 4, 8),
    );
    refused(
        &|c| c.decision.tokens.layout = chunks(at(10), at(6) + 992, 5),
        overlap("keep", "preceding"),
    );
    for (number, expected) in [(6, 7), (u64::MAX, u64::MAX)] {
        refused(
            &|c| c.decision.tokens.layout = chunks(at(10), at(11), number),
            Error::Length {
                what: "cu_seqlens",
                expected,
                got: 6,
            },
        );
    }
    refused(&|c| c.decision.bitmap = 0, null("the bitmap"));
    refused(&|c| c.decision.coefficients = 0, null("the coefficients"));
    refused(&|c| c.keep = Some(0), null("keep"));
    refused(&|c| c.weights = Some(0), null("weights"));
    refused(
        &|c| c.decision.tokens.hash_ids += 2,
        misaligned("hash_ids", at(3) + 2, 4),
    );
    refused(
        &|c| {
            c.decision.tokens.hash_ids += 4;
            c.decision.tokens.id_type = raw::IdType::I64;
        },
        misaligned("hash_ids", at(3) + 4, 8),
    );
    refused(
        &|c| c.decision.tokens.exempt.ptr += 4,
        misaligned("the exempt ids", at(5) + 4, 8),
    );
    refused(
        &|c| c.decision.tokens.layout = documents(at(10) + 2, 3),
        misaligned("cu_seqlens", at(10) + 2, 4),
    );
    refused(
        &|c| c.decision.bitmap += 1,
        misaligned("the bitmap", at(0) + 1, 4),
    );
    refused(
        &|c| c.decision.coefficients += 4,
        misaligned("the coefficients", at(2) + 4, 8),
    );
    refused(
        &|c| c.weights = Some(at(7) + 2),
        misaligned("weights", at(7) + 2, 4),
    );
    refused(
        &|c| c.keep = Some(at(3) + 3999),
        overlap("keep", "hash_ids"),
    );
    refused(
        &|c| c.keep = Some(at(0) + 125_003),
        overlap("keep", "the bitmap"),
    );
    refused(&|c| c.weights = Some(at(6)), overlap("weights", "keep"));
    let counts = |c: &mut raw::Mask<'_>, change: &dyn Fn(&mut raw::Counts)| {
        if let Some(counts) = &mut c.counts {
            change(counts);
        }
    };
    refused(&|c| counts(c, &|c| c.out = 0), null("counts"));
    refused(&|c| counts(c, &|c| c.workspace = 0), null("the workspace"));
    refused(
        &|c| counts(c, &|c| c.out += 4),
        misaligned("counts", at(8) + 4, 8),
    );
    refused(
        &|c| counts(c, &|c| c.workspace_bytes = 31),
        Error::Workspace {
            needed: 32,
            got: 31,
        },
    );
    refused(
        &|c| counts(c, &|c| c.workspace = at(8) + 8),
        overlap("the workspace", "counts"),
    );
    refused(
        &|c| c.decision.tokens.layout = raw::Layout::Rows { len: 300 },
        Error::Length {
            what: "hash_ids",
            expected: 1200,
            got: 1000,
        },
    );
    refused(
        &|c| {
            c.labels = u64::MAX - 1;
            c.decision.tokens.layout = raw::Layout::Rows { len: 2 };
            c.decision.tokens.halo.len = 0;
        },
        Error::TooLarge {
            rows: 1,
            cols: u64::MAX - 1,
        },
    );
}

fn a_mask_can_be_captured_and_replayed() {
    let Gpu { device, .. } = gpu();
    // cudarc's documentation asks for this: waits on events from outside would break the capture.
    // SAFETY: everything below runs on one stream, as does each of the other tests.
    unsafe { device.context().disable_event_tracking() };
    let stream = device.context().new_stream().unwrap();
    let gpu = Gpu {
        stream: stream.clone(),
        ..gpu()
    };
    let goldfish = Goldfish::new(Strategy::DotTable { k: 3, h: 4 }).unwrap();
    let mut queue = gpu.queue().unwrap();
    let uploaded = goldfish.upload(&queue).unwrap();
    // Loads only the kernels of this op, which preload would do for all.
    let mut first = Buffers::new(&gpu);
    first.call(&uploaded).launch(&mut queue).unwrap();
    let mut buffers = Buffers::new(&gpu);
    stream.synchronize().unwrap();
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
    buffers.call(&uploaded).launch(&mut queue).unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("launches");
    assert!(!buffers.written(&gpu));
    let ids = stream.clone_dtoh(&buffers.ids).unwrap();
    let expected = goldfish.keep(&Tokens::row(&ids)).unwrap();
    for _ in 0..2 {
        graph.launch().unwrap();
        let keep = stream.clone_dtoh(&buffers.keep).unwrap();
        assert!(
            keep.iter()
                .zip(&expected)
                .all(|(&got, &keep)| got == u8::from(keep))
        );
    }
}

/// Calls alternate with copies of their buffers on another stream, without synchronisation. The order is only determined by
/// what each call tells cudarc about its reads and writes, and the emulator reports accesses without an order.
fn two_streams_wait_for_each_other() {
    let Gpu { device, .. } = gpu();
    let [calls, copies] = [(); 2].map(|()| device.context().new_stream().unwrap());
    let gpu = Gpu {
        stream: calls.clone(),
        ..gpu()
    };
    let mut queue = gpu.queue().unwrap();
    let there = Queue::new(&copies).unwrap();
    for strategy in strategies(3, 9, 4) {
        let goldfish = Goldfish::new(strategy).unwrap();
        let mut b = Buffers::new(&gpu);
        let ids = copies.clone_dtoh(&b.ids).unwrap();
        // The tables are written on one stream and read on the other.
        let uploaded = goldfish.upload(&there).unwrap();
        b.call(&uploaded).launch(&mut queue).unwrap();
        copies.memcpy_htod(&ids, &mut b.ids).unwrap();
        b.call(&uploaded).launch(&mut queue).unwrap();
        let keep = copies.clone_dtoh(&b.keep).unwrap();
        b.call(&uploaded).launch(&mut queue).unwrap();
        let weights = copies.clone_dtoh(&b.weights).unwrap();
        b.call(&uploaded).launch(&mut queue).unwrap();
        let counts = copies.clone_dtoh(&b.counts).unwrap();
        let expected = goldfish.keep(&Tokens::row(&ids)).unwrap();
        for (i, &kept) in expected.iter().enumerate() {
            assert_eq!((keep[i], weights[i]), (u8::from(kept), f32::from(kept)));
        }
        assert_eq!(counts.iter().sum::<i64>(), N as i64);
    }
}
