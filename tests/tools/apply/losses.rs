//! `apply` with cross-entropy.

use xact::CrossEntropy;

use super::*;

const CLASSES: usize = 9;

const MEANS: [&str; 6] = [
    "mean",
    "mean --normalizer kept",
    "mean --normalizer labels",
    "mean --normalizer weight",
    "mean --normalizer none",
    "mean --divide-by 3",
];

/// Six rows of eleven columns, of which nine are classes.
fn loss_input<T: Element>(dtype: Dtype) -> Vec<(&'static str, Tensor)> {
    let logits: Vec<f64> = (0..66)
        .map(|i| f64::from(i * 37 % 29) * 0.25 - 3.0)
        .collect();
    vec![
        ("logits", tensor::<T>(&[6, 11], &logits)),
        ("labels", integers(dtype, &[6], &[0, 8, -1, 3, 3, 5])),
        (
            "weights",
            tensor::<f32>(&[6], &[1.0, 0.5, 1.0, 2.0, 0.0, 1.0]),
        ),
        (
            "dloss",
            tensor::<f32>(&[6], &[1.0, -2.0, 1.0, 0.25, 1.0, 3.0]),
        ),
        (
            "hash_ids",
            integers(Dtype::I32, &[2, 3], &[0, 8, 4, 3, 3, 5]),
        ),
    ]
}

/// Row 2 is ignored, row 4 has weight 0, and Goldfish drops the second label of each row of ids.
fn losses_are_within_the_bounds<T: Element>(dtype: Dtype, device: &str, reductions: &[&str]) {
    let op = CrossEntropy::default()
        .ignore_index(-1)
        .label_smoothing(0.125)
        .z_loss(0.0625)
        .softcap(5.0)
        .vocab(CLASSES as u64);
    let scratch = Scratch::new();
    let input = loss_input::<T>(dtype);
    let logits: Vec<T> = values(&input[0].1);
    let labels = [0, 8, -1, 3, 3, 5];
    let [weights, dloss] = [2, 3].map(|i| values::<f32>(&input[i].1));
    scratch.write(&input);
    let options = "--ignore-index -1 --label-smoothing 0.125 --z-loss 0.0625 --softcap 5 --vocab 9";
    for (goldfish, kept) in [
        ("", &[0, 1, 3, 5][..]),
        ("--goldfish static --k 3 --start 1", &[0, 3, 5]),
    ] {
        for &reduction in reductions {
            let run = |direction| {
                let line = format!(
                    "--device {device} --direction {direction} --reduction {reduction} {options} {goldfish}"
                );
                scratch.outputs_of("cross_entropy", &line)
            };
            let total: f32 = kept.iter().map(|&r| weights[r]).sum();
            let divisor = match reduction {
                "mean" | "mean --normalizer kept" => kept.len() as f64,
                "mean --normalizer weight" => f64::from(total),
                "mean --normalizer labels" => 5.0,
                "mean --divide-by 3" => 3.0,
                _ => 1.0,
            };
            let rows: BTreeMap<usize, _> = (kept.iter())
                .map(|&r| {
                    let row = &logits[r * 11..][..CLASSES];
                    let upstream = f64::from(dloss[r]) / divisor;
                    (
                        r,
                        op.evaluate(row, labels[r] as usize, f64::from(weights[r]), upstream),
                    )
                })
                .collect();
            let forward = run("forward");
            assert_eq!(forward.len(), 2);
            let (loss, lse) = (&forward["loss"], &forward["lse"]);
            assert_eq!(
                (loss.0, lse.0, &lse.1[..]),
                (Dtype::F32, Dtype::F32, &[6][..])
            );
            let within = |got: f32, expected: f64, bound: f64| {
                assert!(
                    (f64::from(got) - expected).abs() <= bound,
                    "{got} for {expected} ± {bound}"
                );
            };
            for (r, &got) in values::<f32>(lse).iter().enumerate() {
                rows.get(&r).map_or_else(
                    || assert_eq!(got, 0.0),
                    |row| within(got, row.lse, row.lse_bound),
                );
            }
            if reduction == "none" {
                assert_eq!(loss.1, [6]);
                for (r, &got) in values::<f32>(loss).iter().enumerate() {
                    rows.get(&r).map_or_else(
                        || assert_eq!(got, 0.0),
                        |row| within(got, row.loss, row.loss_bound),
                    );
                }
            } else {
                assert_eq!(loss.1, [0usize; 0]);
                let sum = |f: &dyn Fn(&xact::loss::cross_entropy::Row) -> f64| -> f64 {
                    rows.values().map(f).sum()
                };
                // In addition to the errors of the rows, the sum and the quotient are each rounded once.
                let expected = sum(&|row| row.loss) / divisor;
                within(
                    values::<f32>(loss)[0],
                    expected,
                    sum(&|row| row.loss_bound) / divisor + expected.abs() / f64::from(1 << 23),
                );
            }
            let backward = run("backward");
            assert_eq!(backward.len(), 1);
            let Tensor(of, shape, _) = &backward["dlogits"];
            assert_eq!((*of, &shape[..]), (input[0].1.0, &[6, 11][..]));
            for (i, got) in values::<T>(&backward["dlogits"]).into_iter().enumerate() {
                let (r, class) = (i / 11, i % 11);
                match rows.get(&r).filter(|_| class < CLASSES) {
                    None => assert_eq!(got.to_f64(), 0.0),
                    Some(row) => {
                        let (d, bound) = (row.dlogits[class], row.dlogits_bound[class]);
                        let ends = [d - bound, d + bound].map(|end| T::from_f64(end).to_f64());
                        assert!(
                            (ends[0]..=ends[1]).contains(&got.to_f64()),
                            "{got:?} for {d} ± {bound}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn losses_and_their_gradients_are_within_the_bounds_on_every_backend() {
    for device in ["reference", "cpu", &the_device()] {
        losses_are_within_the_bounds::<f32>(Dtype::I64, device, &MEANS);
        losses_are_within_the_bounds::<f32>(Dtype::I64, device, &["none", "sum"]);
        losses_are_within_the_bounds::<half::f16>(Dtype::I32, device, &["mean"]);
        losses_are_within_the_bounds::<half::bf16>(Dtype::I64, device, &["mean"]);
    }
}

#[test]
fn losses_of_nothing_and_of_what_cannot_be() {
    let op = "cross_entropy";
    for device in ["reference", "cpu", "emulated"] {
        let with = |line: &str| format!("--device {device} --direction forward {line}");
        let scratch = Scratch::new();
        scratch.write(&[
            ("logits", tensor::<f32>(&[0, 5], &[])),
            ("labels", integers(Dtype::I32, &[0], &[])),
        ]);
        let outputs = scratch.outputs_of(op, &with(""));
        assert_eq!(values::<f32>(&outputs["loss"]), [0.0]);
        assert!(outputs["lse"].2.is_empty());

        let scratch = Scratch::new();
        let input = || loss_input::<f32>(Dtype::I64);
        scratch.write(&input());
        for (line, words) in [
            (
                "--label-smoothing 1",
                &["label_smoothing is 1", "[0, 1)"][..],
            ),
            ("--z-loss=-1", &["z_loss is -1"]),
            ("--softcap=-2", &["softcap is -2"]),
            ("--vocab 0", &["at least one class"]),
            ("--vocab 12", &["12 are needed"]),
            ("--goldfish hash64 --h 0", &["h is 0"]),
            ("--reduction all", &["all", "mean"]),
            ("--normalizer labels-of-mine", &["weight", "kept"]),
            (
                "--reduction sum --normalizer kept",
                &["--normalizer", "mean"],
            ),
            ("--reduction none --divide-by 2", &["--divide-by", "mean"]),
            ("--normalizer kept --divide-by 2", &["leave one"]),
            ("--k 3", &["--k", "--goldfish"]),
            ("--seed 3", &["--seed", "--goldfish"]),
            ("--goldfish hash64 --start 3", &["hash64", "--start"]),
            ("--dropped-loss", &["--goldfish"]),
            ("--outputs loss,logits", &["logits", "argmax"]),
        ] {
            scratch.refused(op, &with(line), words);
        }
        let replaced = |name: &'static str, by: Tensor| {
            let mut input: Vec<_> = input().into_iter().filter(|(n, _)| *n != name).collect();
            input.push((name, by));
            scratch.write(&input);
        };
        let refused = |line: &str, words: &[&str]| scratch.refused(op, &with(line), words);
        replaced("labels", integers(Dtype::I64, &[5], &[0; 5]));
        refused("", &["labels has 5", "6 rows"]);
        replaced("labels", tensor::<f32>(&[6], &[0.0; 6]));
        refused("", &["labels is F32", "U32, I32 or I64"]);
        replaced("labels", integers(Dtype::U16, &[6], &[0; 6]));
        refused("", &["labels is U16", "U32, I32 or I64"]);
        replaced("weights", tensor::<f32>(&[2], &[0.0; 2]));
        refused("", &["weights has 2"]);
        replaced("weights", tensor::<half::f16>(&[6], &[0.0; 6]));
        refused("", &["weights is F16", "F32"]);
        replaced("logits", tensor::<f32>(&[6], &[0.0; 6]));
        refused("", &["logits is [6]", "[N, V]"]);
        replaced("logits", tensor::<f32>(&[6, 0], &[]));
        refused("", &["logits is [6, 0]", "at least one column"]);
        replaced("normalizer", tensor::<f32>(&[2], &[1.0; 2]));
        refused("", &["normalizer has 2 elements"]);
        replaced("normalizer", tensor::<f32>(&[], &[2.0]));
        refused("--divide-by 2", &["--divide-by", "tensor normalizer"]);
        refused("--normalizer kept", &["--normalizer", "tensor normalizer"]);
        replaced("hash_ids", integers(Dtype::I64, &[2, 2], &[0; 4]));
        refused("--goldfish hash64", &["hash_ids is [2, 2]"]);
    }
}

/// The lines of the output, without the name of the device.
fn lines(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.starts_with("device:"))
        .collect()
}

/// The sum of the losses of four rows divided by 4, in two micro-batches of three rows and of one.
#[test]
fn a_number_to_divide_by_is_used() {
    let batches = [
        (vec![0.2, 0.3, -0.1, 0.4, -0.2, 0.1], vec![0, 1, 0]),
        (vec![0.0, 0.5], vec![1]),
    ];
    for device in ["reference", "cpu", &the_device()] {
        for by_flag in [false, true] {
            let (mut mean, mut first) = (0.0, Vec::new());
            for (logits, labels) in &batches {
                let scratch = Scratch::new();
                let n = labels.len();
                let mut input = vec![
                    ("logits", tensor::<f32>(&[n, 2], logits)),
                    ("labels", integers(Dtype::I64, &[n], labels)),
                ];
                let mut flag = "--divide-by 4";
                if !by_flag {
                    input.push(("normalizer", tensor::<f32>(&[1], &[4.0])));
                    flag = "";
                }
                scratch.write(&input);
                let run = |direction: &str| {
                    let line = format!("--device {device} --direction {direction} {flag}");
                    scratch.says("cross_entropy", &line)
                };
                let (forward, text) = run("forward");
                assert!(text.contains("divided by 4: mean"), "{text}");
                mean += values::<f32>(&forward["loss"])[0];
                let dlogits = values::<f32>(&run("backward").0["dlogits"]);
                first.extend(dlogits.iter().step_by(2));
            }
            near(&[mean], &[0.636_726_5], 1e-6);
            near(&[first[0], first[3]], &[-0.131_244_8, 0.094_385_2], 1e-6);
        }
    }
}

#[test]
fn advantages_may_be_weights() {
    let scratch = Scratch::new();
    scratch.write(&[
        ("logits", tensor::<f32>(&[4, 2], &[0.0, 1.0].repeat(4))),
        ("labels", integers(Dtype::I64, &[4], &[0, 1, 0, 1])),
        ("weights", tensor::<f32>(&[4], &[1.0, 0.0, -1.0, 0.5])),
    ]);
    for device in ["reference", "cpu", &the_device()] {
        for (flags, expected) in [
            ("--reduction sum", 0.156_630_8),
            ("--divide-by 4", 0.039_157_7),
            ("--reduction mean", 0.052_210_3),
            ("--normalizer kept", 0.052_210_3),
            ("--normalizer weight", 0.313_261_7),
            ("--normalizer labels", 0.039_157_7),
            ("--normalizer none", 0.156_630_8),
        ] {
            let line = format!("--device {device} --direction forward {flags}");
            let (outputs, text) = scratch.says("cross_entropy", &line);
            near(&values::<f32>(&outputs["loss"]), &[expected], 2e-6);
            assert!(
                text.contains("kept 3 rows, dropped 0, of 4 with a label"),
                "{text}"
            );
        }
    }
}

/// All outputs, from every backend.
#[test]
fn every_output_and_count_is_the_same_everywhere() {
    let options = "--ignore-index -1 --z-loss 0.0625 --vocab 9 --goldfish static --k 3 --start 1";
    let scratch = Scratch::new();
    let mut input = loss_input::<f32>(Dtype::I32);
    // The label of row 5 is no class.
    input[1].1 = integers(Dtype::I32, &[6], &[0, 8, -1, 3, 3, 9]);
    scratch.write(&input);
    let run = |device: &str, flags: &str| {
        let line = format!("--device {device} --direction forward {options} {flags}");
        scratch.says("cross_entropy", &line)
    };
    let flags = "--dropped-loss --reduction none --outputs argmax,z_loss,lse,loss";
    let (expected, said) = run("reference", flags);
    assert_eq!(
        expected.keys().collect::<Vec<_>>(),
        ["argmax", "loss", "lse", "z_loss"]
    );
    for words in [
        "not read of the input: dloss",
        "the label of row 5, 9, is no class",
        "kept 3 rows, dropped 1, of 5 with a label",
        "correct 1",
        "loss of the dropped rows",
    ] {
        assert!(said.contains(words), "{words} is not in: {said}");
    }
    for device in ["cpu", &the_device()] {
        let (outputs, text) = run(device, flags);
        assert_eq!(outputs.len(), 4);
        assert_eq!(outputs["argmax"].2, expected["argmax"].2);
        for name in ["loss", "lse", "z_loss"] {
            let [got, exact] = [&outputs, &expected].map(|of| values::<f32>(&of[name]));
            for (got, exact) in got.into_iter().zip(exact) {
                let is_close = (got - exact).abs() <= 1e-6 * exact.abs();
                assert!(
                    is_close || got.is_nan() && exact.is_nan(),
                    "{name}: {got} {exact}"
                );
            }
        }
        // All but the digits of the dropped rows' loss.
        let [said, text] = [lines(&said), lines(&text)].map(|lines| lines[..5].to_vec());
        assert_eq!(said, text);
    }
    // A dropped row has an lse only if its loss is requested.
    let (plain, text) = run("cpu", "");
    assert_eq!(values::<f32>(&plain["lse"])[1], 0.0);
    assert_ne!(values::<f32>(&expected["lse"])[1], 0.0);
    assert!(
        !text.contains("dropped rows") && !text.contains("correct"),
        "{text}"
    );
}

#[test]
fn a_mean_over_nothing_is_0_or_nan() {
    let scratch = Scratch::new();
    scratch.write(&[
        ("logits", tensor::<f32>(&[1, 2], &[0.0, 1.0])),
        ("labels", integers(Dtype::I64, &[1], &[-100])),
    ]);
    for device in ["reference", "cpu", &the_device()] {
        let loss = |flag: &str| {
            let line = format!("--device {device} --direction forward {flag}");
            values::<f32>(&scratch.says("cross_entropy", &line).0["loss"])[0]
        };
        assert_eq!(loss(""), 0.0);
        assert!(loss("--empty-is-nan").is_nan());
    }
}

#[test]
fn one_dloss_is_that_of_all_rows() {
    let run = |device: &str, dloss: Tensor| {
        let scratch = Scratch::new();
        let mut input = loss_input::<f32>(Dtype::I64);
        input[3].1 = dloss;
        scratch.write(&input);
        let line = format!("--device {device} --direction backward --ignore-index -1");
        scratch.says("cross_entropy", &line).0["dlogits"].2.clone()
    };
    for device in ["reference", "cpu", &the_device()] {
        let expected = run(device, tensor::<f32>(&[6], &[-0.75; 6]));
        assert_eq!(run(device, tensor::<f32>(&[], &[-0.75])), expected);
        assert_eq!(run(device, tensor::<f32>(&[1], &[-0.75])), expected);
    }
    let scratch = Scratch::new();
    let mut input = loss_input::<f32>(Dtype::I64);
    input[3].1 = tensor::<f32>(&[2], &[1.0; 2]);
    scratch.write(&input);
    let backward = "--direction backward --device cpu";
    scratch.refused("cross_entropy", backward, &["dloss has 2", "6 rows"]);
    let outputs = format!("{backward} --outputs loss");
    scratch.refused("cross_entropy", &outputs, &["--outputs", "forward"]);
}

/// Ranks with some of the classes each give the results of one rank with all of them.
#[test]
fn shards_agree_with_the_whole() {
    let options = "--ignore-index -1 --label-smoothing 0.125 --z-loss 0.0625 --softcap 5 --vocab 9";
    let scratch = Scratch::new();
    scratch.write(&loss_input::<f32>(Dtype::I64));
    for device in ["cpu", &the_device()] {
        let run = |direction: &str, flags: &str| {
            let line = format!("--device {device} --direction {direction} {options} {flags}");
            scratch.says("cross_entropy", &line)
        };
        let outputs = "--outputs loss,lse,z_loss,argmax --goldfish static --k 3 --start 1";
        let (whole, said) = run("forward", outputs);
        let dlogits = values::<f32>(&run("backward", "").0["dlogits"]);
        for shards in [1, 2, 4, 9] {
            let flags = format!("--shards {shards}");
            let (sharded, text) = run("forward", &format!("{flags} {outputs}"));
            assert_eq!(sharded["argmax"].2, whole["argmax"].2);
            for name in ["loss", "lse", "z_loss"] {
                let expected: Vec<f64> = values::<f32>(&whole[name])
                    .iter()
                    .map(|&v| v.into())
                    .collect();
                near(&values::<f32>(&sharded[name]), &expected, 2e-6);
            }
            assert_eq!(lines(&said)[1..3], lines(&text)[1..3]);
            let got = values::<f32>(&run("backward", &flags).0["dlogits"]);
            for (got, expected) in got.into_iter().zip(&dlogits) {
                assert!((got - expected).abs() <= 1e-6, "{got} for {expected}");
            }
        }
    }
    std::fs::remove_file(scratch.path("out.safetensors")).unwrap();
    let refused = |line: &str, words: &[&str]| {
        scratch.refused(
            "cross_entropy",
            &format!("--direction forward {line}"),
            words,
        );
    };
    refused(
        "--device cpu --vocab 9 --shards 10",
        &["--shards is 10", "9 classes"],
    );
    refused("--device cpu --shards 0", &["--shards"]);
    refused(
        "--device reference --shards 2",
        &["--shards", "--device reference"],
    );
}

/// Labels at the end of rows, with the ids before them, are dropped as in the whole rows.
#[test]
fn a_halo_decides_about_losses() {
    let ids = [0, 8, 4, 3, 3, 5, 1, 2, 9, 7, 6, 5];
    let logits: Vec<f64> = (0..60).map(|i| f64::from(i * 37 % 29) * 0.25).collect();
    for device in ["reference", "cpu", &the_device()] {
        let line = format!(
            "--device {device} --direction forward --reduction none --goldfish hash64 --k 2 --h 3"
        );
        let losses = |range: std::ops::Range<usize>, halo: Option<Tensor>| {
            let n = range.len();
            let scratch = Scratch::new();
            let of_range = &ids[range.clone()];
            let labels: Vec<i64> = of_range.iter().map(|id| id % 5).collect();
            let mut input = vec![
                (
                    "logits",
                    tensor::<f32>(&[n, 5], &logits[5 * range.start..5 * range.end]),
                ),
                ("labels", integers(Dtype::I64, &[n], &labels)),
                ("hash_ids", integers(Dtype::I32, &[1, n], of_range)),
            ];
            input.extend(halo.map(|halo| ("halo", halo)));
            scratch.write(&input);
            values::<f32>(&scratch.says("cross_entropy", &line).0["loss"])
        };
        let whole = losses(0..12, None);
        assert!(whole[6..].contains(&0.0));
        let halo = integers(Dtype::I32, &[1, 2], &ids[4..6]);
        assert_eq!(losses(6..12, Some(halo)), whole[6..]);
    }
}

#[test]
fn the_reference_takes_logits_of_f64() {
    let scratch = Scratch::new();
    let logits = [0.1, 0.2, 0.4, -1.5];
    scratch.write(&[
        ("logits", doubles(&[2, 2], &logits)),
        ("labels", integers(Dtype::I64, &[2], &[1, 0])),
        ("weights", doubles(&[2], &[0.3, 1.0])),
        ("dloss", tensor::<f32>(&[], &[1.0])),
    ]);
    for device in ["cpu", "emulated"] {
        let forward = format!("--device {device} --direction forward");
        let words = ["logits is F64", "--device reference"];
        scratch.refused("cross_entropy", &forward, &words);
    }
    let of = |tensor: &Tensor| -> Vec<f64> {
        assert_eq!(tensor.0, Dtype::F64);
        bytemuck::pod_collect_to_vec(&tensor.2)
    };
    let op = CrossEntropy::default();
    let rows = [
        op.evaluate(&logits[..2], 1, 0.3, 0.5),
        op.evaluate(&logits[2..], 0, 1.0, 0.5),
    ];
    let run =
        |line: &str| scratch.outputs_of("cross_entropy", &format!("--device reference {line}"));
    let forward = run("--direction forward");
    assert_eq!(of(&forward["loss"]), [(rows[0].loss + rows[1].loss) / 2.0]);
    assert_eq!(of(&forward["lse"]), [rows[0].lse, rows[1].lse]);
    let backward = run("--direction backward");
    let dlogits = [&rows[0].dlogits[..], &rows[1].dlogits].concat();
    assert_eq!(of(&backward["dlogits"]), dlogits);
}

#[test]
fn labels_of_u32_are_read_unsigned() {
    let run = |device: &str, dtype: Dtype, last: i64| {
        let scratch = Scratch::new();
        let mut input = loss_input::<f32>(Dtype::I64);
        input[1].1 = integers(dtype, &[6], &[0, 8, 4, 3, 3, last]);
        scratch.write(&input);
        let line = format!("--device {device} --direction forward --reduction none");
        let (outputs, text) = scratch.says("cross_entropy", &line);
        (outputs["loss"].2.clone(), text)
    };
    for device in ["reference", "cpu", &the_device()] {
        assert_eq!(run(device, Dtype::U32, 5), run(device, Dtype::I32, 5));
        // As i32, this label would be the ignored one.
        let (_, text) = run(device, Dtype::U32, 4_294_967_196);
        assert!(text.contains("row 5, 4294967196, is no class"), "{text}");
        let (_, text) = run(device, Dtype::I32, 4_294_967_196);
        assert!(!text.contains("no class"), "{text}");
    }
}

#[test]
fn a_row_of_nan_is_named() {
    for device in ["reference", "cpu", &the_device()] {
        let scratch = Scratch::new();
        scratch.write(&[
            (
                "logits",
                tensor::<f32>(&[3, 2], &[0.0, 1.0, f64::NAN, 1.0, f64::INFINITY, 0.0]),
            ),
            ("labels", integers(Dtype::I64, &[3], &[1, 1, 0])),
        ]);
        let line = format!("--device {device} --direction forward");
        let (_, text) = scratch.says("cross_entropy", &line);
        assert!(text.contains("warning: the loss of row 1 is NaN"), "{text}");
        assert!(!text.contains("no class"), "{text}");
    }
}
