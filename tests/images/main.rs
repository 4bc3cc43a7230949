//! The embedded PTX, compared with the registry, and the machine code.

mod cubins;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use xact::cuda::entry_names;
use xact::{activation, loss};
use xact_dev::build::{cache, compile};
use xact_dev::toolkit;

/// The names of the entries of a PTX text.
fn entries(ptx: &str) -> BTreeSet<String> {
    ptx.lines()
        .filter_map(|line| line.split_once(".entry "))
        .map(|(_, rest)| rest.trim_end_matches('(').trim().to_owned())
        .collect()
}

#[test]
fn the_ptx_holds_exactly_the_entries_of_the_registry() {
    let embedded: BTreeSet<_> = xact::cuda::images()
        .iter()
        .flat_map(|image| entries(image.ptx))
        .collect();
    let expected: BTreeSet<_> = entry_names().into_iter().collect();
    assert_eq!(embedded, expected);
}

#[test]
fn every_image_is_of_an_op_and_every_op_has_one() {
    let stems: BTreeSet<_> = xact::cuda::images()
        .iter()
        .map(|image| image.stem)
        .collect();
    let names = [activation::NAMES, loss::NAMES].concat();
    assert_eq!(stems, names.into_iter().collect());
}

/// Old drivers can load the PTX: its version is the oldest for the target, not nvcc's own.
#[test]
fn the_version_is_lowered() {
    for image in xact::cuda::images() {
        let header = |word: &str| {
            let line = image.ptx.lines().find_map(|line| line.strip_prefix(word));
            line.unwrap_or_else(|| panic!("{} has no {word}", image.stem))
                .trim()
        };
        assert_eq!(header(".version "), image.version);
        assert_eq!(header(".target "), format!("sm_{}", image.target));
        // sm_90 needs 7.8, and its `st.async` 8.1.
        let oldest = [(80, "7.0"), (90, "8.1")];
        assert!(
            oldest.contains(&(image.target, image.version)),
            "{} for {}, nvcc wrote {}",
            image.version,
            image.target,
            image.nvcc_version
        );
    }
}

/// An image of a newer target has all entries of the older one, and those that only the newer target can have.
#[test]
fn a_newer_image_adds_entries() {
    let of_target = |target: u32| -> BTreeSet<_> {
        let images = xact::cuda::images()
            .iter()
            .filter(|image| image.target == target);
        images
            .filter(|image| image.stem == "cross_entropy")
            .flat_map(|image| entries(image.ptx))
            .collect()
    };
    let (sm_80, sm_90) = (of_target(80), of_target(90));
    assert!(sm_80.is_subset(&sm_90));
    let added: Vec<_> = sm_90.difference(&sm_80).map(String::as_str).collect();
    let clusters = ["bf16", "f16", "f32"].map(|dtype| format!("cross_entropy_cluster_{dtype}"));
    assert_eq!(added, clusters);
}

/// Each stem occurs once, over all folders.
#[test]
fn every_op_has_its_two_files() {
    let root = xact_dev::root();
    for (folder, names) in [("activation", activation::NAMES), ("loss", loss::NAMES)] {
        for stem in names {
            for path in [
                format!("kernels/{folder}/{stem}.cu"),
                format!("src/{folder}/{stem}.rs"),
            ] {
                assert!(root.join(&path).is_file(), "{path}");
            }
        }
    }
}

/// The instructions of a PTX text, with their modifiers.
fn instructions(ptx: &str) -> BTreeSet<&str> {
    let statements = ptx.lines().map(|line| {
        let line = line.split("//").next().unwrap_or_default();
        // Inline assembly is in braces on a line of its own.
        let line = line.trim_start_matches([' ', '\t', '{', '}']);
        let guard = line.strip_prefix('@').and_then(|l| l.split_once(' '));
        guard.map_or(line, |(_, rest)| rest.trim_start())
    });
    statements
        .filter(|s| s.contains(';') && s.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|s| s.split([' ', '\t', ';']).next())
        .collect()
}

/// The emulator's table has exactly the instructions of the kernels and those that are named here.
#[test]
fn the_emulator_has_the_instructions_of_the_ptx() {
    // Instructions that nvcc generates from the same sources for another architecture or after a small change, and
    // instructions of kernels whose last block ends the grid.
    const BESIDES: [&str; 21] = [
        "addc",
        "atom",
        "barrier",
        "bfe",
        "brx",
        "clz",
        "exit",
        "fence",
        "griddepcontrol",
        "lg2",
        "membar",
        "popc",
        "prmt",
        "red",
        "rsqrt",
        "set",
        "shf",
        "sqrt",
        "subc",
        "tanh",
        "trap",
    ];
    let shipped: BTreeSet<_> = xact::cuda::images()
        .iter()
        .flat_map(|image| instructions(image.ptx))
        .collect();
    assert!(shipped.contains("fma.rn.f32") && shipped.contains("ret"));
    for name in &shipped {
        assert!(
            cuda_emulator::instructions::is_supported(name),
            "`{name}` is shipped, and not in emulator/src/instructions.md"
        );
    }
    let shipped = shipped.iter().filter_map(|name| name.split('.').next());
    let known: BTreeSet<_> = shipped.chain(BESIDES).collect();
    let more: Vec<_> = cuda_emulator::instructions::opcodes()
        .into_iter()
        .filter(|opcode| !known.contains(opcode))
        .collect();
    assert!(more.is_empty(), "nothing that we ship uses {more:?}");
}

#[test]
fn what_was_made_is_kept_by_what_it_was_made_from() {
    let folder = tempfile::tempdir().expect("a folder");
    // All profiles and triples of a target folder share the cache.
    let outs =
        ["debug/build/xact-1/out", "release/build/xact/2/out"].map(|out| folder.path().join(out));
    let made = |out: &Path, key: &str, content: &str| {
        let make = || Ok(content.as_bytes().to_vec());
        let kept = cache::Cache::beside(out).get(key, make).expect("made");
        String::from_utf8(kept).expect("text")
    };
    assert_eq!(made(&outs[0], "a", "first"), "first");
    assert_eq!(made(&outs[1], "a", "again"), "first");
    assert_eq!(made(&outs[0], "b", "other"), "other");
    let failed = cache::Cache::beside(&outs[0]).get("c", || Err("not made".to_owned()));
    assert_eq!(failed, Err("not made".to_owned()));
    assert_eq!(made(&outs[0], "c", "made"), "made");
    // The file that was used last is kept.
    for key in 0..200 {
        made(&outs[0], &key.to_string(), "x");
        made(&outs[0], "a", "again");
    }
    assert_eq!(made(&outs[0], "a", "again"), "first");
    let files = folder
        .path()
        .join("xact-kernels")
        .read_dir()
        .expect("a folder");
    assert!(files.count() < 150);
}

#[test]
fn a_comment_is_no_change() {
    for (text, code) in [
        (
            "int a;  // one\n\n  int b; /* two\n lines */ int c;\n",
            "int a;\nint b;   int c;\n",
        ),
        (
            "s = \"// no /* comment\"; // one\n",
            "s = \"// no /* comment\";\n",
        ),
        (
            "c = '\"'; // one\nd = '\\''; /* two */\n",
            "c = '\"';\nd = '\\'';\n",
        ),
        (
            "n = 1'000; // one\nm = 2; // two\n",
            "n = 1'000; // one\nm = 2;\n",
        ),
    ] {
        assert_eq!(cache::without_comments(text), code, "{text}");
    }
}

/// The variables of the environment change nvcc's options before ours, and do not affect the kernels.
#[test]
fn flags_of_the_environment_change_no_kernel() {
    let nvcc = toolkit::find(env!("CARGO_TARGET_TMPDIR"));
    let folder = tempfile::tempdir().expect("a folder");
    let root = xact_dev::root();
    let (source, ptx) = (folder.path().join("k.cu"), folder.path().join("k.ptx"));
    let text = "extern \"C\" __global__ void k(float* a) { a[0] = a[0] / a[1] + a[2] * a[3]; }\n";
    fs::write(&source, text).expect("a source");
    let target = &compile::TARGETS[0];
    let compile = |flags: &str| {
        let mut command = target.compiler(&nvcc, &source, root, &[], &ptx);
        let names: Vec<_> = command
            .get_envs()
            .map(|(name, _)| name.to_owned())
            .collect();
        assert_eq!(names, ["NVCC_APPEND_FLAGS", "NVCC_PREPEND_FLAGS"]);
        // The position at which `compiler` inserts the options of both variables.
        command.env("NVCC_PREPEND_FLAGS", flags);
        let output = command.output().expect("nvcc");
        assert!(output.status.success(), "{output:?}");
        fs::read_to_string(&ptx).expect("PTX")
    };
    let expected = compile("");
    assert_eq!(compile::check_target(&expected, target), Ok(()));
    for flags in [
        "--use_fast_math",
        "-ftz=true -prec-div=false",
        "-arch=sm_90",
        "-fmad=true -O0",
    ] {
        assert_eq!(compile(flags), expected, "{flags}");
    }
    let debug = compile("-G");
    let error = compile::check_target(&debug, target).expect_err("debug code");
    assert!(error.contains("NVCC_APPEND_FLAGS"), "{error}");
}
