//! The loader with images that a device rejects, on the emulated device, which runs only PTX.

use std::sync::Arc;
use std::thread;

use xact::cuda::{self, Cubin, Image, Kernels, images};
use xact::cudarc::driver::CudaContext;
use xact::{Device, Error, Queue, Xsilu, cpu};
use xact_dev::build::{compile, cubin};

/// A new context on an emulated H100.
fn context() -> Arc<CudaContext> {
    cuda_emulator::install().expect("the emulated device");
    CudaContext::new(0).expect("a context")
}

fn device(kernels: Kernels) -> Device {
    Device::with_kernels(&context(), kernels).expect("a device")
}

/// The embedded PTX, and this machine code of xSiLU, which is labelled for the device.
fn with_machine_code(lzip: Vec<u8>) -> Kernels {
    let cubin = Cubin {
        stem: "xsilu",
        architecture: 90,
        target: 80,
        toolkit: "13.0.88",
        lzip: lzip.leak(),
    };
    Kernels {
        images: images(),
        cubins: vec![cubin].leak(),
    }
}

/// The embedded PTX, with one change in that of xSiLU.
fn with_ptx(change: impl Fn(&str) -> String) -> Kernels {
    let images = images().iter().map(|image| match image.stem {
        "xsilu" => Image {
            ptx: change(image.ptx).leak(),
            ..*image
        },
        _ => *image,
    });
    Kernels {
        images: images.collect::<Vec<_>>().leak(),
        ..with_machine_code(machine_code())
    }
}

/// Compressed data that a driver accepts until it looks inside.
fn machine_code() -> Vec<u8> {
    let header = [&b"\x7fELF\x02\x01\x01"[..], &[7; 1000]].concat();
    cubin::compress(&header).expect("compressed")
}

/// Runs xSiLU, compares the result with the CPU, and returns what was loaded for it.
fn run(device: &Device) -> Result<Vec<String>, Error> {
    let stream = device.context().new_stream().expect("a stream");
    let x = [-3.0_f32, -0.5, 0.0, 2.0];
    let (on_device, alpha) = (
        stream.clone_htod(&x).unwrap(),
        stream.clone_htod(&[0.25_f32]).unwrap(),
    );
    let mut y = stream.alloc_zeros::<f32>(4).unwrap();
    let mut queue = Queue::new(&stream)?;
    cuda::forward(&Xsilu, &on_device, Xsilu::params(&alpha), &mut y).launch(&mut queue)?;
    let mut expected = [0.0; 4];
    cpu::forward(&Xsilu, &x, &[0.25], &mut expected).run()?;
    for (got, expected) in stream.clone_dtoh(&y).unwrap().into_iter().zip(expected) {
        let largest = 4.0_f32;
        assert!(
            (got - expected).abs() <= 10.0 * f32::EPSILON * largest,
            "{got} {expected}"
        );
    }
    Ok(device.loaded_images())
}

#[test]
fn machine_code_that_the_driver_refuses_gives_way_to_ptx() {
    let device = device(with_machine_code(machine_code()));
    assert_eq!(run(&device), Ok(vec!["xsilu.sm_80.ptx".to_owned()]));
}

#[test]
fn damaged_machine_code_gives_way_to_ptx() {
    let whole = machine_code();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    for damaged in [
        Vec::new(),
        b"not compressed".to_vec(),
        whole[..whole.len() - 1].to_vec(),
        whole[..10].to_vec(),
        flipped,
        cubin::compress(b"not ELF").expect("compressed"),
    ] {
        let device = device(with_machine_code(damaged));
        assert_eq!(run(&device), Ok(vec!["xsilu.sm_80.ptx".to_owned()]));
    }
}

#[test]
fn what_the_driver_says_is_in_the_error() {
    let break_it = |ptx: &str| ptx.replacen("fma.rn.f32", "frobnicate.f32", 1);
    let broken = device(with_ptx(break_it));
    let error = run(&broken).expect_err("no image is right");
    let Error::NotLoaded { kernel, log } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(*kernel, "xsilu");
    let mut lines = log.lines();
    let mut next = || lines.next().unwrap_or_default();
    assert_eq!(next(), "xsilu.sm_90.cubin: CUDA_ERROR_NO_BINARY_FOR_GPU");
    assert_eq!(next(), "xsilu.sm_80.ptx: CUDA_ERROR_INVALID_PTX");
    let said = next();
    assert!(
        said.contains("line") && said.contains("`frobnicate.f32`"),
        "{said}"
    );
    let text = error.to_string();
    assert!(
        text.contains("update the driver") && text.contains(said),
        "{text}"
    );
    // A second call gives the same error, and the other kernels are unaffected.
    assert_eq!(run(&broken), Err(error.clone()));
    assert_eq!(broken.preload(), Err(error));
    assert_eq!(
        broken.loaded_images().len(),
        5,
        "{:?}",
        broken.loaded_images()
    );
}

#[test]
fn a_driver_that_is_older_than_the_ptx_is_named() {
    let too_new = device(with_ptx(|ptx| {
        let version = compile::version(ptx).expect("a version");
        ptx.replacen(&format!(".version {version}"), ".version 9.9", 1)
    }));
    assert_eq!(
        run(&too_new),
        Err(Error::DriverTooOld {
            ptx: "7.0",
            driver: "13.0".to_owned(),
        })
    );
}

#[test]
fn a_kernel_without_an_image_is_an_error() {
    let images: Vec<_> = images()
        .iter()
        .filter(|image| image.stem != "xsilu")
        .copied()
        .collect();
    let device = device(Kernels {
        images: images.leak(),
        cubins: &[],
    });
    let error = run(&device).expect_err("no image");
    assert!(
        matches!(
            error,
            Error::NotLoaded {
                kernel: "xsilu",
                ..
            }
        ),
        "{error:?}"
    );
}

/// Two threads that load all kernels at once load each file once.
#[test]
fn everything_is_loaded_before_it_is_needed() {
    let device = device(Kernels {
        images: images(),
        cubins: &[],
    });
    thread::scope(|scope| {
        let other = scope.spawn(|| device.preload());
        assert_eq!(device.preload(), Ok(()));
        assert_eq!(other.join().expect("no panic"), Ok(()));
    });
    let mut loaded = device.loaded_images();
    loaded.sort();
    let newest = [
        "cross_entropy.sm_90.ptx",
        "goldfish.sm_80.ptx",
        "xatlu.sm_80.ptx",
        "xgelu.sm_80.ptx",
        "xielu.sm_80.ptx",
        "xsilu.sm_80.ptx",
    ];
    assert_eq!(loaded, newest);
}
