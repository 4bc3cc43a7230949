//! Finds the CUDA C++ compiler, or installs it under the target folder.

pub mod discovery;
pub mod install;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, process};

use anyhow::{Context, Error, bail};

use crate::folders::Folders;
use discovery::{Source, Surroundings};

/// An nvcc that runs.
pub struct Toolkit {
    /// Its path.
    pub nvcc: PathBuf,
    /// Its release, such as `13.0.88`.
    pub version: String,
    source: Source,
}

impl Toolkit {
    /// A line of text with the release and the path of the compiler.
    pub fn describe(&self) -> String {
        format!(
            "nvcc {} {}: {}",
            self.version,
            self.source,
            self.nvcc.display()
        )
    }

    /// Compiles a small kernel with the compiler.
    ///
    /// # Errors
    /// The compiler's output and what to do.
    pub fn try_out(&self, folders: &Folders) -> anyhow::Result<()> {
        compile_probe(&self.nvcc, &folders.target).with_context(|| match self.source {
            Source::Own => format!(
                "the installed toolkit does not work; to install it anew, remove {}",
                discovery::own_folder(&folders.target).display()
            ),
            _ => format!("the nvcc {} does not work", self.source),
        })
    }
}

/// Finds nvcc, or installs it.
///
/// # Errors
/// nvcc is missing and cannot be installed, or does not run, or there is no host C++ compiler.
pub fn ensure(folders: &Folders) -> anyhow::Result<Toolkit> {
    let own = vec![discovery::own_home(&folders.target)];
    let surroundings = Surroundings::of_this_process(&folders.root, own);
    let search = discovery::find(&surroundings).map_err(Error::msg)?;
    for note in &search.ignored {
        eprintln!("note: {note}");
    }
    // The host compiler is checked first, because without it a download would be useless.
    discovery::check_host_compiler(&surroundings).map_err(Error::msg)?;
    if let Some((nvcc, source)) = search.found {
        let version = version_of(&nvcc);
        let outdated = source == Source::Own && !install::is_current(&folders.target);
        match version {
            Ok(version) if !outdated => {
                return Ok(Toolkit {
                    nvcc,
                    version,
                    source,
                });
            }
            Err(error) if source != Source::Own => {
                return Err(error).with_context(|| format!("the nvcc {source} does not run"));
            }
            _ => eprintln!("The toolkit in the target folder is incomplete or outdated."),
        }
    } else {
        eprintln!("nvcc was not found.");
    }
    let nvcc = install::install(&folders.target)?;
    Ok(Toolkit {
        version: version_of(&nvcc)?,
        nvcc,
        source: Source::Own,
    })
}

/// Compiles a small kernel with the headers that xact's kernels use, in a new folder under `parent`. Only a compilation
/// shows whether the parts of the toolkit and the host compiler work together.
///
/// # Errors
/// The compiler's output.
fn compile_probe(nvcc: &Path, parent: &Path) -> anyhow::Result<()> {
    const PROBE: &str = "#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n\
        extern \"C\" __global__ void probe(__half *a, __nv_bfloat16 *b) {\n\
        \x20   *a = __float2half(__bfloat162float(*b));\n\
        }\n";
    let folder = parent.join(format!("nvcc-probe.{}", process::id()));
    fs::create_dir_all(&folder)
        .with_context(|| format!("{} cannot be created", folder.display()))?;
    let _removed = install::Removed(folder.clone());
    fs::write(folder.join("probe.cu"), PROBE)?;
    let output = Command::new(nvcc)
        .current_dir(&folder)
        .args([
            "-std=c++20",
            "-ptx",
            "-arch=compute_80",
            "-o",
            "probe.ptx",
            "probe.cu",
        ])
        .output()
        .with_context(|| format!("{} does not start", nvcc.display()))?;
    let text = || {
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    };
    if !output.status.success() || !folder.join("probe.ptx").is_file() {
        bail!(
            "{} cannot compile a small kernel ({}):\n{}",
            nvcc.display(),
            output.status,
            text().trim_end()
        );
    }
    Ok(())
}

/// The release of an nvcc, as in [`discovery::release`].
fn version_of(nvcc: &Path) -> anyhow::Result<String> {
    discovery::release(nvcc).map_err(Error::msg)
}

/// The text that says how to get nvcc otherwise, and what works without it.
fn other_ways() -> String {
    let mut text = String::from(
        "Other ways to get nvcc:\n\
         \x20 1. Install the CUDA toolkit and put nvcc on PATH.\n\
         \x20 2. Set NVCC to the path of an existing nvcc, or CUDA_HOME to the folder that holds bin/nvcc.\n\
         \x20 3. Install these packages with any other pip or conda, and set CUDA_HOME to their folder nvidia/cu13:\n",
    );
    for package in install::packages() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "       {package}");
    }
    text.push_str(
        "Without nvcc the crate still builds, and its CPU references and CPU backend work: \
         cargo test --package xact --no-default-features --tests\n\
         Only calls that need a kernel fail, with Error::KernelsNotBuilt.",
    );
    text
}

/// Whether `program` starts and succeeds with `arguments`; its output is discarded.
fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether the packages exist for this platform.
fn packages_exist_here() -> bool {
    cfg!(target_os = "linux") && matches!(env::consts::ARCH, "x86_64" | "aarch64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_ways_name_the_pinned_packages() {
        let text = other_ways();
        assert!(text.contains("       nvidia-nvvm==13.0.88\n"), "{text}");
        assert!(!text.contains("sha256"), "{text}");
    }

    #[cfg(unix)]
    #[test]
    fn a_compiler_that_fails_the_probe_is_quoted() {
        let scratch = crate::testing::Scratch::new();
        let nvcc = scratch.script("nvcc", "echo 'unsupported GNU version' >&2; exit 1");
        let error = compile_probe(&nvcc, scratch.path()).expect_err("fails");
        assert!(
            error.to_string().contains("unsupported GNU version"),
            "{error}"
        );
        let left = fs::read_dir(scratch.path()).expect("folder").count();
        assert_eq!(left, 1, "only nvcc is left");
    }
}
