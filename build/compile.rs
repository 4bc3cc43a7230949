//! The commands that compile a kernel file to PTX and assemble PTX to machine code.
//!
//! `build.rs` and `cargo xtask mutants` both include this file, so that a mutant differs from the shipped kernel only in its
//! source.

use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// A virtual architecture that kernels are compiled for. The PTX runs on devices of this and every later architecture.
pub struct Target {
    /// Compute capability times ten.
    pub capability: u32,
    /// The oldest PTX version that supports the architecture.
    pub since: &'static str,
    /// Text in the sources that are compiled for this target. Empty: all sources are.
    mark: &'static str,
}

/// All targets.
pub const TARGETS: [Target; 2] = [
    Target {
        capability: 80,
        since: "7.0",
        mark: "",
    },
    Target {
        capability: 90,
        since: "7.8",
        mark: "__CUDA_ARCH__ >= 900",
    },
];

impl Target {
    /// The targets that a file with this text is compiled for.
    pub fn of(source: &str) -> impl Iterator<Item = &'static Self> {
        TARGETS
            .iter()
            .filter(move |target| source.contains(target.mark))
    }

    /// The name of the file that holds a stem's PTX.
    pub fn file(&self, stem: &str) -> String {
        format!("{stem}.sm_{}.ptx", self.capability)
    }

    /// The nvcc command that compiles a source to PTX. `headers` is the folder of the generated headers.
    pub fn compiler(
        &self,
        nvcc: &Path,
        source: &Path,
        headers: &Path,
        defines: &[(&str, u64)],
        ptx: &Path,
    ) -> Command {
        let mut command = with_our_flags_last(nvcc);
        command
            .args(["-ptx", "-std=c++20", "-O3"])
            // With -fmad=false only the source decides what is fused. The other flags are nvcc's defaults, given here so that
            // flags of the environment do not change them.
            .args([
                "-fmad=false",
                "-ftz=false",
                "-prec-div=true",
                "-prec-sqrt=true",
            ])
            .arg("-Wno-deprecated-gpu-targets")
            .arg(format!("-arch=compute_{}", self.capability))
            .arg("-I")
            .arg(headers);
        for (name, value) in defines {
            command.arg(format!("-D{name}={value}"));
        }
        command.arg(source).arg("-o").arg(ptx);
        command
    }
}

/// An nvcc command in which the flags of the environment come before the flags of the build. nvcc appends
/// NVCC_APPEND_FLAGS at the end, and the last value of a flag counts, so `-arch` or `-ftz` there would change the kernels.
fn with_our_flags_last(nvcc: &Path) -> Command {
    let flags = FLAGS.map(|name| env::var_os(name).unwrap_or_default());
    let mut command = Command::new(nvcc);
    command.env(FLAGS[0], flags.join(OsStr::new(" ")));
    command.env_remove(FLAGS[1]);
    command
}

/// The variables with flags of nvcc: those that it puts first, and those that it puts last.
pub const FLAGS: [&str; 2] = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

/// The nvcc command that assembles PTX for an architecture. nvcc knows where its assembler is, which need not be beside it.
pub fn assembler(nvcc: &Path, ptx: &Path, cubin: &Path, architecture: u32) -> Command {
    let mut command = with_our_flags_last(nvcc);
    command
        .arg("-cubin")
        .arg("-Wno-deprecated-gpu-targets")
        .arg(format!("-arch=sm_{architecture}"))
        .arg(ptx)
        .arg("-o")
        .arg(cubin);
    command
}

/// Fails unless the PTX has exactly the target that was asked for.
pub fn check_target(text: &str, target: &Target) -> Result<(), String> {
    let line = text.lines().find(|line| line.starts_with(".target "));
    let wanted = format!(".target sm_{}", target.capability);
    match line {
        Some(line) if line.trim_end() == wanted => Ok(()),
        _ => Err(format!(
            "nvcc wrote {:?} and not {wanted:?}: look for flags of nvcc in {} and {}",
            line.unwrap_or("no target"),
            FLAGS[0],
            FLAGS[1]
        )),
    }
}

/// The PTX of nvcc with another version, and without the hint about the used bytes of a load, which PTX before 8.3 does not
/// support. `None` if nvcc wrote no version.
pub fn with_version(text: &str, version: &str) -> Option<String> {
    let line = version_line(text)?;
    let text: String = text
        .split_inclusive('\n')
        .filter(|line| !line.trim_start().starts_with(".pragma \"used_bytes_mask"))
        .collect();
    Some(text.replacen(line, &format!(".version {version}"), 1))
}

/// The version of a PTX text.
pub fn version(text: &str) -> Option<&str> {
    Some(version_line(text)?[".version ".len()..].trim())
}

fn version_line(text: &str) -> Option<&str> {
    text.lines().find(|line| line.starts_with(".version "))
}
