//! The machine code for `XACT_CUDA_ARCHS`, made with the code of the build script.

use std::path::PathBuf;

use xact::cuda::{Cubin, cubins, images};
use xact_dev::build::{compile, cubin, nvcc};
use xact_dev::toolkit;

/// The machine code of an embedded image, assembled now.
fn assembled(cubin: &Cubin) -> Vec<u8> {
    let image = images()
        .iter()
        .find(|image| image.stem == cubin.stem && image.target == cubin.target)
        .expect("the image that it is made from");
    let folder = tempfile::tempdir().expect("a folder");
    let (ptx, out) = (folder.path().join("a.ptx"), folder.path().join("b.cubin"));
    std::fs::write(&ptx, image.ptx).expect("a file");
    let output = compile::assembler(
        &toolkit::find(env!("CARGO_TARGET_TMPDIR")),
        &ptx,
        &out,
        cubin.architecture,
    )
    .output()
    .expect("nvcc starts");
    assert!(output.status.success(), "{output:?}");
    std::fs::read(&out).expect("machine code")
}

/// The machine code of the smallest kernel file, made as in the build script.
fn examples() -> Vec<Cubin> {
    let toolkit = nvcc::release(&toolkit::find(env!("CARGO_TARGET_TMPDIR")))
        .expect("a release")
        .leak();
    cubin::ALL
        .map(|architecture| {
            let cubin = Cubin {
                stem: "goldfish",
                architecture,
                target: 80,
                toolkit,
                lzip: &[],
            };
            let lzip = cubin::compress(&assembled(&cubin)).expect("compressed");
            Cubin {
                lzip: lzip.leak(),
                ..cubin
            }
        })
        .into()
}

/// The embedded machine code, or an example if there is none, equals the output of the assembler that it names for the
/// embedded PTX and the named architecture.
#[test]
fn machine_code_is_the_embedded_ptx_assembled() {
    let made = examples();
    let all = if cubins().is_empty() { &made } else { cubins() };
    let release = nvcc::release(&toolkit::find(env!("CARGO_TARGET_TMPDIR"))).expect("a release");
    for cubin in all {
        let name = format!("{} for sm_{}", cubin.stem, cubin.architecture);
        assert_eq!(
            cubin.toolkit, release,
            "{name}: another nvcc than that of the build"
        );
        let bytes = cubin.bytes().expect(&name);
        assert!(bytes == assembled(cubin), "{name} differs");
        // e_machine is EM_CUDA. ptxas stores the architecture in the flags.
        assert_eq!(bytes[18..20], 190_u16.to_le_bytes(), "{name}");
        let note = format!("-arch sm_{} ", cubin.architecture);
        let has_note = bytes.windows(note.len()).any(|w| w == note.as_bytes());
        assert!(has_note, "{name}");
    }
}

/// Every kernel file is embedded for every requested architecture, assembled from the newest PTX that the architecture
/// accepts.
#[test]
fn machine_code_is_complete() {
    let mut expected = Vec::new();
    let mut architectures: Vec<_> = cubins().iter().map(|cubin| cubin.architecture).collect();
    architectures.dedup();
    for architecture in architectures {
        let mut stems: Vec<_> = images().iter().map(|image| image.stem).collect();
        stems.sort_unstable();
        stems.dedup();
        for stem in stems {
            let images = images().iter().filter(|image| image.stem == stem);
            let targets = images.map(|image| image.target);
            expected.push((
                architecture,
                stem,
                targets.filter(|t| *t <= architecture).max(),
            ));
        }
    }
    let found: Vec<_> = cubins()
        .iter()
        .map(|cubin| (cubin.architecture, cubin.stem, Some(cubin.target)))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn an_architecture_takes_the_newest_image_of_each_stem() {
    let kernels = ["a.sm_80.ptx", "b.sm_80.ptx", "b.sm_90.ptx", "args.cuh"].map(PathBuf::from);
    let names = |architecture| {
        let images = cubin::images_for(&kernels, architecture);
        images.iter().map(|ptx| ptx.to_str()).collect::<Vec<_>>()
    };
    let (old, new) = (
        [Some("a.sm_80.ptx"), Some("b.sm_80.ptx")],
        Some("b.sm_90.ptx"),
    );
    assert_eq!(names(80), old);
    assert_eq!(names(90), [old[0], new]);
    assert_eq!(names(100), [old[0], new]);
}

#[test]
fn architectures_are_asked_for_by_number() {
    for (value, expected) in [
        ("", vec![]),
        (" ", vec![]),
        ("all", vec![80, 90, 100, 120]),
        ("90", vec![90]),
        ("80;90;100;120", vec![80, 90, 100, 120]),
        ("120, 90,90", vec![90, 120]),
    ] {
        assert_eq!(cubin::asked_for(value), Ok(expected), "{value:?}");
    }
    for (value, remedy) in [
        ("90a", "write 90"),
        ("80;100f", "write 100"),
        ("sm_90", "write 90 for 9.0"),
        ("9.0", "write 90 for 9.0"),
        ("80;;90", "no compute capability"),
        ("80;", "no compute capability"),
        ("+90", "no compute capability"),
        ("99999999999", "no compute capability"),
        ("ALL", "or all"),
        ("all;90", "no compute capability"),
    ] {
        let error = cubin::asked_for(value).expect_err(value);
        assert!(
            error.starts_with(&format!("XACT_CUDA_ARCHS={value}: ")),
            "{error}"
        );
        assert!(error.contains(remedy), "{error}");
    }
}

#[test]
fn an_architecture_that_nvcc_lacks_is_an_error_that_names_those_it_has() {
    let listed = "sm_75\nsm_80\nsm_90\nsm_90a\nsm_86\n";
    let check = |architectures: &[u32]| cubin::check_available(architectures, listed, 80);
    assert_eq!(check(&[80, 86, 90]), Ok(()));
    assert_eq!(
        check(&[75, 90, 100]).expect_err("two are missing"),
        "XACT_CUDA_ARCHS asks for 75, 100, which this nvcc does not make of xact's kernels; it makes 80, 86, 90"
    );
    // The variable of this build has a value that the build script accepts.
    let output = cubin::lister(&toolkit::find(env!("CARGO_TARGET_TMPDIR")))
        .output()
        .expect("nvcc starts");
    let listed = String::from_utf8(output.stdout).expect("text");
    assert_eq!(cubin::check_available(&[80, 90], &listed, 80), Ok(()));
}
