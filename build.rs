//! Compiles every `kernels/*/*.cu` to PTX and generates `images.rs`, which embeds them.
//!
//! Without nvcc the crate still builds: `images.rs` then holds no image and the reason why, and the
//! first GPU call returns `Error::KernelsNotBuilt`. `XACT_REQUIRE_NVCC=1` makes that a build error.
//! An nvcc that is present but fails always is one.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

#[path = "src/geometry.rs"]
mod geometry;

/// What `src/args.rs` becomes here: the text of a C++ header.
macro_rules! kernel_args {
    ($(#[doc = $struct_doc:literal])* $name:ident { $($(#[doc = $doc:literal])* $field:ident: $type:tt,)* }) => {
        pub fn header() -> String {
            let mut text = String::from("// Generated from src/args.rs.\n#pragma once\nnamespace xact {\n");
            text += concat!("struct ", stringify!($name), " {\n");
            $(
                $(text += concat!("    //", $doc, "\n");)*
                text += &super::c_field(stringify!($field), stringify!($type));
            )*
            text += "};\n}  // namespace xact\n";
            text
        }
    };
}

mod args {
    include!("src/args.rs");
}

fn c_field(name: &str, rust_type: &str) -> String {
    let (element, count) = match rust_type
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
    {
        Some(array) => {
            let (element, count) = array.split_once(';').expect("[type; count]");
            (element.trim(), format!("[{}]", count.trim()))
        }
        None => (rust_type, String::new()),
    };
    let c_type = match element {
        "u64" => "unsigned long long",
        "u32" => "unsigned",
        "f32" => "float",
        other => panic!("src/args.rs: no C++ type for {other}"),
    };
    format!("    {c_type} {name}{count};\n")
}

/// The virtual architecture the kernels are compiled for, with the oldest PTX version that knows it
/// and the versions after that. PTX runs on its own and every later architecture.
const TARGETS: [(u32, &[&str]); 1] = [(
    80,
    &[
        "7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "7.7", "7.8", "8.0", "8.1", "8.2", "8.3",
        "8.4", "8.5", "8.6", "8.7", "8.8", "9.0", "9.1", "9.2", "9.3", "9.4",
    ],
)];

/// Variables that hold the folder of a CUDA toolkit.
const TOOLKIT_VARIABLES: [&str; 4] = [
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_ROOT",
    "CUDA_TOOLKIT_ROOT_DIR",
];

/// Variables that nvcc itself reads.
const NVCC_VARIABLES: [&str; 3] = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    for path in ["build.rs", "src/args.rs", "src/geometry.rs", "kernels"] {
        println!("cargo::rerun-if-changed={path}");
    }
    for variable in ["NVCC", "PATH", "XACT_REQUIRE_NVCC", "DOCS_RS"]
        .iter()
        .chain(&TOOLKIT_VARIABLES)
        .chain(&NVCC_VARIABLES)
    {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    if env::var_os("DOCS_RS").is_some() {
        return write_images(&out, &[], "this is a documentation build");
    }
    match find_nvcc(&out)? {
        Ok(nvcc) => {
            println!("cargo::rerun-if-changed={}", nvcc.display());
            let images = compile_all(&nvcc, &out)?;
            write_images(&out, &images, "")
        }
        Err(reason) => {
            if env::var("XACT_REQUIRE_NVCC").is_ok_and(|v| v == "1") {
                return Err(format!("XACT_REQUIRE_NVCC=1, but {reason}"));
            }
            println!("cargo::warning=xact is built without its CUDA kernels: {reason}");
            write_images(&out, &[], &reason)
        }
    }
}

/// The nvcc to use, or why there is none. The outer error is a setting that names something absent.
fn find_nvcc(out: &Path) -> Result<Result<PathBuf, String>, String> {
    let exe = format!("nvcc{}", env::consts::EXE_SUFFIX);
    if let Some(nvcc) = env::var_os("NVCC").filter(|v| !v.is_empty()) {
        let nvcc = PathBuf::from(nvcc);
        // A bare name is looked up in PATH, as a shell would.
        let found = if nvcc.components().count() == 1 {
            in_path(&nvcc)
        } else {
            nvcc.is_file().then(|| nvcc.clone())
        };
        return match found {
            Some(nvcc) => Ok(Ok(nvcc)),
            None => Err(format!("NVCC is {}, which does not exist", nvcc.display())),
        };
    }
    let mut folders: Vec<PathBuf> = TOOLKIT_VARIABLES
        .iter()
        .filter_map(|v| env::var_os(v).filter(|v| !v.is_empty()))
        .map(|folder| PathBuf::from(folder).join("bin"))
        .collect();
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    for folder in ["/usr/local/cuda", "/opt/cuda", "/usr"] {
        folders.push(Path::new(folder).join("bin"));
    }
    // What `cargo xtask toolkit` installs into the target folder, a few levels above OUT_DIR.
    let installed = "cuda-toolkit/cuda/bin";
    folders.extend(out.ancestors().skip(3).take(3).map(|a| a.join(installed)));
    if let Some(nvcc) = folders.iter().map(|f| f.join(&exe)).find(|n| n.is_file()) {
        return Ok(Ok(nvcc));
    }
    let is_checkout = Path::new("xtask").is_dir();
    if is_checkout {
        // A path that does not exist makes cargo ask again each time, so that a toolkit installed
        // later is noticed.
        if let Some(target) = out.ancestors().nth(4) {
            println!(
                "cargo::rerun-if-changed={}",
                target.join(installed).display()
            );
        }
    }
    let remedy = if is_checkout {
        "run `cargo xtask toolkit`, or set NVCC or CUDA_HOME"
    } else {
        "install the CUDA toolkit, or set NVCC or CUDA_HOME"
    };
    Ok(Err(format!(
        "no nvcc was found when xact was compiled (in NVCC, {}, PATH or the usual folders); {remedy}, \
         and build again",
        TOOLKIT_VARIABLES.join(", ")
    )))
}

fn in_path(name: &Path) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// One kernel file compiled for one target.
struct Image {
    stem: String,
    target: u32,
    /// The `.version` in the embedded text.
    version: String,
    /// The `.version` nvcc wrote.
    nvcc_version: String,
    path: PathBuf,
}

fn compile_all(nvcc: &Path, out: &Path) -> Result<Vec<Image>, String> {
    let include = out.join("include");
    fs::create_dir_all(&include).map_err(|e| format!("{}: {e}", include.display()))?;
    write(&include.join("args.cuh"), &args::header())?;
    let mut jobs = Vec::new();
    for source in sources()? {
        for target in &TARGETS {
            jobs.push((source.clone(), target));
        }
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = jobs
            .iter()
            .map(|(source, target)| {
                let include = &include;
                scope.spawn(move || compile(nvcc, source, target, include, out))
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("compile does not panic"))
            .collect()
    })
}

/// Every `kernels/<folder>/<stem>.cu`, in a fixed order.
fn sources() -> Result<Vec<PathBuf>, String> {
    let list = |folder: &Path| -> Result<Vec<PathBuf>, String> {
        let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let mut paths: Vec<_> = entries
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<_, _>>()
            .map_err(|e| format!("{}: {e}", folder.display()))?;
        paths.sort();
        Ok(paths)
    };
    let mut sources = Vec::new();
    for folder in list(Path::new("kernels"))? {
        if folder.is_dir() {
            sources.extend(list(&folder)?);
        }
    }
    sources.retain(|path| path.extension().is_some_and(|e| e == "cu"));
    Ok(sources)
}

fn compile(
    nvcc: &Path,
    source: &Path,
    &(target, versions): &(u32, &[&str]),
    include: &Path,
    out: &Path,
) -> Result<Image, String> {
    let stem = source
        .file_stem()
        .expect("a .cu file")
        .to_string_lossy()
        .into_owned();
    let path = out.join(format!("{stem}.sm_{target}.ptx"));
    let mut command = Command::new(nvcc);
    command
        .args(["-ptx", "-std=c++20", "-O3"])
        // What is fused is what the source says.
        .arg("-fmad=false")
        .arg("-Wno-deprecated-gpu-targets")
        .arg(format!("-arch=compute_{target}"))
        .arg("-I")
        .arg(include);
    for (name, value) in geometry::DEFINES {
        command.arg(format!("-D{name}={value}"));
    }
    run(command.arg(source).arg("-o").arg(&path))?;
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let (text, version, nvcc_version) = lower_version(nvcc, &text, target, versions, &path)?;
    write(&path, &text)?;
    Ok(Image {
        stem,
        target,
        version,
        nvcc_version,
        path,
    })
}

/// nvcc stamps its own PTX version on its output, and a driver older than nvcc refuses that. Rewrites
/// the stamp to the oldest version with which ptxas still accepts the text.
fn lower_version(
    nvcc: &Path,
    text: &str,
    target: u32,
    versions: &[&str],
    path: &Path,
) -> Result<(String, String, String), String> {
    // A hint to ptxas about which bytes of a load are used, that PTX before 8.3 does not know.
    let text: String = text
        .split_inclusive('\n')
        .filter(|line| !line.trim_start().starts_with(".pragma \"used_bytes_mask"))
        .collect();
    let start = text.find(".version ").ok_or("nvcc wrote no .version")? + ".version ".len();
    let end = start
        + text[start..]
            .find('\n')
            .ok_or("nvcc wrote no line after .version")?;
    let stamped = text[start..end].trim().to_owned();
    let ptxas = nvcc.with_file_name(format!("ptxas{}", env::consts::EXE_SUFFIX));
    let candidate = path.with_extension("lowered.ptx");
    for version in versions.iter().take_while(|v| **v != stamped) {
        let lowered = format!("{}{version}{}", &text[..start], &text[end..]);
        write(&candidate, &lowered)?;
        let mut command = Command::new(&ptxas);
        command
            .arg("-fmad=false")
            .arg(format!("-arch=sm_{target}"))
            .arg(&candidate)
            .arg("-o")
            .arg(path.with_extension("cubin"));
        if run(&mut command).is_ok() {
            return Ok((lowered, (*version).to_owned(), stamped));
        }
    }
    Ok((text, stamped.clone(), stamped))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?} failed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

fn write_images(out: &Path, images: &[Image], note: &str) -> Result<(), String> {
    let mut text = String::from("pub static IMAGES: &[Image] = &[\n");
    for image in images {
        let _ = writeln!(
            text,
            "    Image {{ stem: {:?}, target: {}, version: {:?}, nvcc_version: {:?}, ptx: include_str!({:?}) }},",
            image.stem, image.target, image.version, image.nvcc_version, image.path
        );
    }
    let _ = writeln!(text, "];\npub static BUILD_NOTE: &str = {note:?};");
    write(&out.join("images.rs"), &text)
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
