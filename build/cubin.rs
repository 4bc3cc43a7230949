//! The machine code that is embedded beside the PTX: its architectures, the PTX that it is made from, and its compression.
//! `build.rs`, `cargo xtask sass` and `tests/cubins.rs` include this file.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use lzma_rust2::{LzipOptions, LzipWriter};

/// The variable with the architectures: compute capabilities times ten, separated by `;` or `,`.
pub const VARIABLE: &str = "XACT_CUDA_ARCHS";

/// The architectures that `all` stands for: A100; H100 and H200; B200; RTX 50 and RTX PRO Blackwell.
pub const ALL: [u32; 4] = [80, 90, 100, 120];

/// The architectures that a value of [`VARIABLE`] asks for, in order.
///
/// # Errors
/// A text, if the value does not have this form.
pub fn asked_for(value: &str) -> Result<Vec<u32>, String> {
    let value = value.trim();
    if value.is_empty() {
        return Ok(Vec::new());
    }
    if value == "all" {
        return Ok(ALL.to_vec());
    }
    let mut architectures = value
        .split([';', ','])
        .map(|word| {
            let word = word.trim();
            let digits = word.trim_end_matches(['a', 'f']);
            if digits.len() < word.len() && digits.parse::<u32>().is_ok() {
                return Err(format!(
                    "{VARIABLE}={value}: machine code for {word} runs on no other device than that; write {digits}"
                ));
            }
            let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
            let number = is_number.then(|| word.parse().ok()).flatten();
            number.ok_or_else(|| {
                format!("{VARIABLE}={value}: {word:?} is no compute capability; write 90 for 9.0, as in \"80;90\", or all")
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    architectures.sort_unstable();
    architectures.dedup();
    Ok(architectures)
}

/// Fails unless nvcc assembles for all of these architectures, and the kernels have PTX that each of them accepts.
pub fn check_available(
    architectures: &[u32],
    listed: &str,
    oldest_target: u32,
) -> Result<(), String> {
    let mut available: Vec<u32> = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("sm_")?.parse().ok())
        .filter(|architecture| *architecture >= oldest_target)
        .collect();
    available.sort_unstable();
    let words = |numbers: &[u32]| {
        let words: Vec<_> = numbers.iter().map(u32::to_string).collect();
        words.join(", ")
    };
    let lacking: Vec<u32> = architectures
        .iter()
        .copied()
        .filter(|architecture| !available.contains(architecture))
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{VARIABLE} asks for {}, which this nvcc does not make of xact's kernels; it makes {}",
        words(&lacking),
        words(&available)
    ))
}

/// The nvcc command that lists the architectures that it assembles for.
pub fn lister(nvcc: &Path) -> Command {
    let mut command = Command::new(nvcc);
    command.arg("--list-gpu-code");
    command
}

/// Stem and target of an image, from `xielu.sm_80.ptx`.
pub fn image_name(ptx: &Path) -> Option<(String, u32)> {
    let name = ptx.file_name()?.to_str()?;
    let (stem, target) = name.strip_suffix(".ptx")?.split_once(".sm_")?;
    Some((stem.to_owned(), target.parse().ok()?))
}

/// The images for an architecture: for each stem the image with the highest target that the architecture accepts.
pub fn images_for(kernels: &[PathBuf], architecture: u32) -> Vec<&PathBuf> {
    let mut newest = BTreeMap::new();
    for ptx in kernels {
        let Some((stem, target)) = image_name(ptx) else {
            continue;
        };
        let best = newest.entry(stem).or_insert((0, ptx));
        if (best.0..=architecture).contains(&target) {
            *best = (target, ptx);
        }
    }
    newest.into_values().map(|(_, ptx)| ptx).collect()
}

/// Compresses machine code to an lzip member, whose checksum detects damage.
pub fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    // Higher presets save a tenth of the size in ten times the time, because build scripts are not optimised.
    let mut writer = LzipWriter::new(Vec::new(), LzipOptions::with_preset(3));
    writer.write_all(bytes)?;
    writer.finish()
}
