//! How a kernel file becomes PTX, and PTX machine code.
//!
//! One file for all who compile: `build.rs` and `cargo xtask mutants` include it, so that a mutant differs from
//! what ships in its source alone.

use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// A virtual architecture that kernels are compiled for. PTX runs on its own and every later one.
pub struct Target {
    /// Compute capability times ten.
    pub capability: u32,
    /// The oldest PTX version that knows it.
    pub since: &'static str,
    /// What stands in the sources that gain from it; in all, if it is empty.
    mark: &'static str,
}

/// All of them.
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
    /// Those that a file with this text is compiled for.
    pub fn of(source: &str) -> impl Iterator<Item = &'static Self> {
        TARGETS
            .iter()
            .filter(move |target| source.contains(target.mark))
    }

    /// The name of the file that holds a stem's PTX.
    pub fn file(&self, stem: &str) -> String {
        format!("{stem}.sm_{}.ptx", self.capability)
    }

    /// nvcc, told to write a source's PTX; `headers` holds the generated one.
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
            // What is fused is what the source says. The others are nvcc's own choice, named so that nobody else's counts.
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

/// nvcc with the flags of the environment before those that follow. It has two variables for them, of which
/// NVCC_APPEND_FLAGS stands last, and of two values of a flag the last counts: `-arch` or `-ftz` there would make other
/// kernels than these.
fn with_our_flags_last(nvcc: &Path) -> Command {
    let flags = FLAGS.map(|name| env::var_os(name).unwrap_or_default());
    let mut command = Command::new(nvcc);
    command.env(FLAGS[0], flags.join(OsStr::new(" ")));
    command.env_remove(FLAGS[1]);
    command
}

/// Variables with flags of nvcc: those before the others, and those behind.
pub const FLAGS: [&str; 2] = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

/// nvcc, told to assemble PTX for an architecture: it knows where its assembler is, which need not be beside it.
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

/// Fails unless PTX is of the target that was asked for, and of nothing more than that.
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

/// nvcc's PTX with another version, and without a hint to ptxas about which bytes of a load are used, which PTX
/// before 8.3 does not know; `None` where nvcc wrote no version.
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
