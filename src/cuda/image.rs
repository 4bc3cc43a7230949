//! The embedded images of the kernels, and which of them a device and a driver accept.

use std::cmp::Reverse;
use std::io::Read;

use lzma_rust2::LzipReader;

use crate::error::{Error, Result};

/// A kernel file compiled for one virtual architecture.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// The stem of the kernel file and of its entries.
    pub stem: &'static str,
    /// The virtual architecture: compute capability times ten.
    pub target: u32,
    /// The PTX version of the text.
    pub version: &'static str,
    /// The PTX version that nvcc wrote, before the build lowered it.
    pub nvcc_version: &'static str,
    /// The PTX text.
    pub ptx: &'static str,
}

/// Machine code of a kernel file: an [`Image`], assembled.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Cubin {
    /// The stem of the kernel file and of its entries.
    pub stem: &'static str,
    /// The architecture of the machine code: compute capability times ten.
    pub architecture: u32,
    /// The target of the [`Image`] that was assembled.
    pub target: u32,
    /// The release of the CUDA toolkit that assembled it, such as `13.0.88`.
    pub toolkit: &'static str,
    /// The machine code, compressed with lzip.
    pub lzip: &'static [u8],
}

/// The images of all kernel files.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    /// The PTX, for one or more targets per kernel file.
    pub images: &'static [Image],
    /// The machine code for the architectures that the build asked for. May be empty.
    pub cubins: &'static [Cubin],
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));
include!(concat!(env!("OUT_DIR"), "/cubins.rs"));

/// The embedded kernels.
pub(super) const KERNELS: Kernels = Kernels {
    images: IMAGES,
    cubins: CUBINS,
};

/// Returns the embedded PTX, for tests and tools; empty if the crate was built without nvcc.
#[doc(hidden)]
pub fn images() -> &'static [Image] {
    IMAGES
}

/// Returns the embedded machine code, for tests and tools; empty if the build asked for none.
#[doc(hidden)]
pub fn cubins() -> &'static [Cubin] {
    CUBINS
}

/// The compute capabilities (times ten) of Jetson and DRIVE modules. NVIDIA guarantees only that machine code for exactly
/// these architectures runs on them.
const TEGRA: [u32; 3] = [87, 101, 110];

impl Cubin {
    /// Decompresses the machine code.
    ///
    /// # Errors
    /// A text, if the embedded data is damaged.
    pub fn bytes(&self) -> std::result::Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        LzipReader::new(self.lzip)
            .read_to_end(&mut bytes)
            .map_err(|e| e.to_string())?;
        // The driver gets no length: it reads the length from the ELF header.
        if !bytes.starts_with(b"\x7fELF") {
            return Err("not an ELF file".to_owned());
        }
        Ok(bytes)
    }

    /// Whether a device of this compute capability (times ten) runs the machine code under a driver of this CUDA version (a
    /// number of `cuDriverGetVersion`).
    fn runs_on(&self, capability: u32, driver: u32) -> bool {
        let same_major = self.architecture / 10 == capability / 10;
        let runs = self.architecture == capability
            || same_major
                && self.architecture < capability
                && ![self.architecture, capability]
                    .iter()
                    .any(|one| TEGRA.contains(one));
        let major = self.toolkit.split('.').next().and_then(|m| m.parse().ok());
        // A driver also accepts the machine code of later toolkits of the same major version.
        runs && major.is_some_and(|major: u32| driver / 1000 >= major)
    }
}

/// An image that the loader may try.
#[derive(Clone, Copy, Debug)]
pub(super) enum Candidate {
    Cubin(&'static Cubin),
    Ptx(&'static Image),
}

impl Candidate {
    /// The name of the image, such as `xielu.sm_80.ptx`.
    pub(super) fn name(self) -> String {
        match self {
            Candidate::Cubin(cubin) => format!("{}.sm_{}.cubin", cubin.stem, cubin.architecture),
            Candidate::Ptx(image) => format!("{}.sm_{}.ptx", image.stem, image.target),
        }
    }

    /// The target of the PTX, which determines its entries.
    pub(super) fn target(self) -> u32 {
        match self {
            Candidate::Cubin(cubin) => cubin.target,
            Candidate::Ptx(image) => image.target,
        }
    }
}

/// The images of a kernel file to try on a device of this compute capability (times ten) under a driver of this CUDA version,
/// best first: machine code, which loads as it is, then PTX, which the driver compiles. There is at least one. Whether the
/// driver accepts the PTX version, it says itself when it loads the image.
pub(super) fn candidates(
    kernels: Kernels,
    stem: &'static str,
    capability: u32,
    driver: u32,
) -> Result<Vec<Candidate>> {
    let of_stem = || kernels.images.iter().filter(|image| image.stem == stem);
    let Some(oldest) = of_stem().map(|image| image.target).min() else {
        return Err(Error::NotLoaded {
            kernel: stem,
            log: "the crate has no image of this kernel file".to_owned(),
        });
    };
    if capability < oldest {
        return Err(Error::DeviceTooOld {
            device: capability,
            oldest,
        });
    }
    let mut images: Vec<_> = of_stem()
        .filter(|image| image.target <= capability)
        .collect();
    images.sort_by_key(|image| Reverse(image.target));
    let mut cubins: Vec<_> = kernels
        .cubins
        .iter()
        .filter(|cubin| cubin.stem == stem && cubin.runs_on(capability, driver))
        .collect();
    cubins.sort_by_key(|cubin| Reverse(cubin.architecture));
    let cubins = cubins.into_iter().map(Candidate::Cubin);
    Ok(cubins
        .chain(images.into_iter().map(Candidate::Ptx))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn image(stem: &'static str, target: u32, version: &'static str) -> Image {
        Image {
            stem,
            target,
            version,
            nvcc_version: "9.0",
            ptx: "",
        }
    }

    const fn cubin(architecture: u32, target: u32) -> Cubin {
        Cubin {
            stem: "a",
            architecture,
            target,
            toolkit: "13.0.88",
            lzip: &[],
        }
    }

    const TEST_KERNELS: Kernels = Kernels {
        images: &[
            image("a", 80, "7.0"),
            image("b", 80, "7.0"),
            image("a", 90, "8.1"),
        ],
        cubins: &[cubin(80, 80), cubin(90, 90), cubin(100, 90), cubin(120, 90)],
    };

    fn names(kernels: Kernels, stem: &'static str, capability: u32, driver: u32) -> Vec<String> {
        let candidates = candidates(kernels, stem, capability, driver).expect("candidates");
        candidates.into_iter().map(Candidate::name).collect()
    }

    /// The first that a driver takes which takes PTX up to this version.
    fn loaded(capability: u32, driver: u32, newest_ptx: &str) -> String {
        let candidates = candidates(TEST_KERNELS, "a", capability, driver).expect("candidates");
        let taken = |candidate: &Candidate| match candidate {
            Candidate::Cubin(_) => true,
            Candidate::Ptx(image) => image.version <= newest_ptx,
        };
        let candidate = candidates.into_iter().find(taken);
        candidate.expect("an image").name()
    }

    /// Toolkit 13.0, every device, under drivers of CUDA 11.8, 12.0, 12.9, 13.0 and 13.2 (which need not know the device:
    /// then there is no such machine).
    #[test]
    fn each_device_and_driver_has_its_image() {
        let drivers = [
            (11080, "7.8"),
            (12000, "8.0"),
            (12090, "8.8"),
            (13000, "9.0"),
            (13020, "9.2"),
        ];
        let [old, new] = ["sm_80.ptx", "sm_90.ptx"];
        for (capability, expected) in [
            (80, [old, old, old, "sm_80.cubin", "sm_80.cubin"]),
            (86, [old, old, old, "sm_80.cubin", "sm_80.cubin"]),
            (89, [old, old, old, "sm_80.cubin", "sm_80.cubin"]),
            (90, [old, old, new, "sm_90.cubin", "sm_90.cubin"]),
            (100, [old, old, new, "sm_100.cubin", "sm_100.cubin"]),
            (103, [old, old, new, "sm_100.cubin", "sm_100.cubin"]),
            (120, [old, old, new, "sm_120.cubin", "sm_120.cubin"]),
            (121, [old, old, new, "sm_120.cubin", "sm_120.cubin"]),
            // Jetson Orin and Thor.
            (87, [old, old, old, old, old]),
            (110, [old, old, new, new, new]),
        ] {
            let got = drivers.map(|(driver, newest)| loaded(capability, driver, newest));
            assert_eq!(
                got,
                expected.map(|name| format!("a.{name}")),
                "{capability}"
            );
        }
    }

    #[test]
    fn ptx_follows_machine_code_the_newest_first() {
        let all = names(TEST_KERNELS, "a", 90, 13000);
        assert_eq!(all, ["a.sm_90.cubin", "a.sm_90.ptx", "a.sm_80.ptx"]);
        assert_eq!(names(TEST_KERNELS, "b", 90, 13000), ["b.sm_80.ptx"]);
        // The driver does not say what it is.
        assert_eq!(
            names(TEST_KERNELS, "a", 90, 0),
            ["a.sm_90.ptx", "a.sm_80.ptx"]
        );
    }

    #[test]
    fn the_nearest_architecture_comes_first_and_a_later_one_never() {
        const CUBINS: &[Cubin] = &[cubin(80, 80), cubin(89, 80), cubin(86, 80), cubin(87, 80)];
        let kernels = Kernels {
            cubins: CUBINS,
            ..TEST_KERNELS
        };
        let of = |capability| names(kernels, "a", capability, 13000);
        assert_eq!(of(86), ["a.sm_86.cubin", "a.sm_80.cubin", "a.sm_80.ptx"]);
        assert_eq!(of(80), ["a.sm_80.cubin", "a.sm_80.ptx"]);
        assert_eq!(of(87), ["a.sm_87.cubin", "a.sm_80.ptx"]);
    }

    #[test]
    fn a_device_may_be_too_old_and_an_image_may_be_missing() {
        let error = |stem| candidates(TEST_KERNELS, stem, 75, 13000).expect_err("nothing to load");
        let too_old = Error::DeviceTooOld {
            device: 75,
            oldest: 80,
        };
        assert_eq!(error("a"), too_old);
        assert!(matches!(error("c"), Error::NotLoaded { kernel: "c", .. }));
    }

    #[test]
    fn what_is_not_machine_code_is_not_given_to_the_driver() {
        for lzip in [&b""[..], b"LZIP", b"\x7fELF"] {
            assert!(
                Cubin {
                    lzip,
                    ..cubin(80, 80)
                }
                .bytes()
                .is_err()
            );
        }
    }
}
