//! How a kernel file becomes PTX, and PTX machine code.
//!
//! One file for all who compile: `build.rs` and `cargo xtask mutants` include it, so that a mutant differs from
//! what ships in its source alone.

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
        let mut command = Command::new(nvcc);
        command
            .args(["-ptx", "-std=c++20", "-O3"])
            // What is fused is what the source says.
            .arg("-fmad=false")
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

/// nvcc, told to assemble PTX for an architecture: it knows where its assembler is, which need not be beside it.
pub fn assembler(nvcc: &Path, ptx: &Path, cubin: &Path, architecture: u32) -> Command {
    let mut command = Command::new(nvcc);
    command
        .arg("-cubin")
        .arg("-Wno-deprecated-gpu-targets")
        .arg(format!("-arch=sm_{architecture}"))
        .arg(ptx)
        .arg("-o")
        .arg(cubin);
    command
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
