//! Compiles every `kernels/*/*.cu` to PTX and generates `images.rs`, which embeds the PTX.
//!
//! Without nvcc the crate still builds: `images.rs` then has no image but the reason, and the first GPU call returns
//! `Error::KernelsNotBuilt`. `XACT_REQUIRE_NVCC=1` makes a missing nvcc a build error; an nvcc that fails is always a build
//! error. For the architectures in `XACT_CUDA_ARCHS`, machine code is assembled from the PTX, and `cubins.rs` embeds it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io, thread};

use cache::Cache;
use compile::Target;
use nvcc::Surroundings;

#[path = "build/cache.rs"]
mod cache;
#[path = "build/compile.rs"]
mod compile;
#[path = "build/constants.rs"]
mod constants;
#[path = "build/cubin.rs"]
mod cubin;
#[path = "src/geometry.rs"]
mod geometry;
#[path = "build/nvcc.rs"]
mod nvcc;

/// Makes the C++ structs of the header from the blocks of `src/args.rs`.
macro_rules! kernel_args {
    ($($(#[$attribute:meta])* $name:ident {
        $($(#[doc = $doc:literal])* $vis:vis $field:ident: $type:tt,)*
    })*) => {
        pub fn header() -> String {
            let mut text = String::from("// Generated from src/args.rs.\n#pragma once\nnamespace xact {\n");
            $(
                text += concat!("struct ", stringify!($name), " {\n");
                $(
                    $(text += concat!("    //", $doc, "\n");)*
                    text += &super::c_field(stringify!($field), stringify!($type));
                )*
                text += "};\n";
            )*
            text += "}  // namespace xact\n";
            text
        }
    };
}

/// Makes the C++ constants of the header from the numbers of `src/args.rs`.
macro_rules! kernel_numbers {
    ($($(#[doc = $doc:literal])* $name:ident = $value:literal,)*) => {
        pub fn numbers() -> String {
            let mut text = String::from("namespace xact {\n");
            $(
                $(text += concat!("//", $doc, "\n");)*
                text += concat!("constexpr unsigned ", stringify!($name), " = ", stringify!($value), ";\n");
            )*
            text += "}  // namespace xact\n";
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
        "i64" => "long long",
        // A block that is declared earlier.
        block if block.starts_with(char::is_uppercase) => block,
        other => panic!("src/args.rs: no C++ type for {other}"),
    };
    format!("    {c_type} {name}{count};\n")
}

/// All PTX versions, from the first that supports the oldest of [`TARGETS`].
const VERSIONS: [&str; 23] = [
    "7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "7.7", "7.8", "8.0", "8.1", "8.2", "8.3",
    "8.4", "8.5", "8.6", "8.7", "8.8", "9.0", "9.1", "9.2", "9.3", "9.4",
];

/// The variable that names the host compiler of nvcc.
const NVCC_CCBIN: &str = "NVCC_CCBIN";

fn main() {
    if let Err(message) = build() {
        // `cargo::error` fails the build. An exit status would too, but then cargo shows all output.
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Result<(), String> {
    for path in [
        "build.rs",
        "build",
        "src/activation",
        "src/args.rs",
        "src/geometry.rs",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    println!("cargo::rerun-if-changed=kernels");
    for variable in [
        "DOCS_RS",
        "NVCC",
        "PATH",
        "CUDARC_CUDA_VERSION",
        "XACT_WORKSPACE",
        NVCC_CCBIN,
        cubin::VARIABLE,
    ]
    .iter()
    .chain(&nvcc::HOMES)
    .chain(&compile::FLAGS)
    {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let folder = |name: &str| PathBuf::from(env::var_os(name).expect("cargo sets it"));
    let out = folder("OUT_DIR");
    if env::var_os("DOCS_RS").is_some() {
        return write_nothing(&out, "this is a documentation build");
    }
    let architectures = env::var_os(cubin::VARIABLE).unwrap_or_default();
    let architectures = cubin::asked_for(&architectures.to_string_lossy())?;
    let root = folder("CARGO_MANIFEST_DIR");
    let surroundings = Surroundings::of_this_process(&root, own_homes(&root, &out));
    nvcc::check_bindings(&surroundings)?;
    let search = nvcc::find(&surroundings)?;
    for note in &search.ignored {
        println!("cargo::warning={note}");
    }
    if let Some((nvcc, _)) = search.found {
        println!("cargo::rerun-if-changed={}", nvcc.display());
        if !architectures.is_empty() {
            let listed = run(&mut cubin::lister(&nvcc))?;
            cubin::check_available(&architectures, &listed, compile::TARGETS[0].capability)?;
        }
        return compile_all(&nvcc, &out, &architectures).map_err(|message| {
            let remedy = nvcc::remedy(&message).map(str::to_owned);
            let cause = remedy.or_else(|| nvcc::check_host_compiler(&surroundings).err());
            cause.map_or(message.clone(), |cause| format!("{message}\n{cause}"))
        });
    }
    let reason = reason(&root, &search.ignored);
    // The variable is read only here, so that kernels that are already compiled do not depend on it.
    println!("cargo::rerun-if-env-changed=XACT_REQUIRE_NVCC");
    if required()? {
        return Err(format!("XACT_REQUIRE_NVCC=1, but {reason}"));
    }
    if is_own_workspace(&root) {
        // While one of these files does not exist, cargo runs the script in every build, and so notices when it appears.
        for home in &surroundings.own {
            let place = nvcc::place_in(home);
            println!("cargo::rerun-if-changed={}", place.display());
        }
    }
    println!("cargo::warning=xact is built without its CUDA kernels: {reason}");
    write_nothing(&out, &reason)
}

/// A text that identifies an nvcc, for the key of the cache.
fn identity(nvcc: &Path) -> Result<String, String> {
    let metadata = fs::metadata(nvcc).map_err(|e| format!("{}: {e}", nvcc.display()))?;
    Ok(format!(
        "{} {} {:?}",
        nvcc.display(),
        metadata.len(),
        metadata.modified().ok()
    ))
}

/// The options of a command without the files that it reads and writes, for the key of the cache.
fn told(command: &Command) -> String {
    let ccbin = env::var_os(NVCC_CCBIN);
    let flags: Vec<_> = command.get_envs().collect();
    let arguments: Vec<_> = command.get_args().collect();
    format!("{ccbin:?} {flags:?} {arguments:?}")
}

/// The text of a source and of all files that it includes, without comments. Included files are looked up as the compiler
/// does: beside the file that includes them, then in `headers`.
fn code(source: &Path, headers: &Path) -> Result<String, String> {
    let mut text = String::new();
    let mut files = vec![source.to_owned()];
    let mut next = 0;
    while let Some(file) = files.get(next).cloned() {
        next += 1;
        let failed = |e: io::Error| format!("{}: {e}", file.display());
        let part = cache::without_comments(&fs::read_to_string(&file).map_err(failed)?);
        let included = part
            .lines()
            .filter_map(|line| line.strip_prefix("#include \"")?.strip_suffix('"'));
        for name in included {
            let beside = file.with_file_name(name);
            let path = if beside.is_file() {
                beside
            } else {
                headers.join(name)
            };
            // Two paths to the same header count as one.
            let path = path
                .canonicalize()
                .map_err(|e| format!("{}: {e}", path.display()))?;
            if !files.contains(&path) {
                files.push(path);
            }
        }
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        text += &format!("{name}\n{part}");
    }
    Ok(text)
}

/// The files of a folder in a fixed order.
fn list(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<_> = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{}: {e}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

/// Whether a missing nvcc is an error.
fn required() -> Result<bool, String> {
    match env::var_os("XACT_REQUIRE_NVCC") {
        None => Ok(false),
        Some(value) if value.is_empty() || value == "0" => Ok(false),
        Some(value) if value == "1" => Ok(true),
        Some(value) => Err(format!(
            "XACT_REQUIRE_NVCC={} is neither 1 nor 0",
            value.display()
        )),
    }
}

/// Whether this is a build of xact's own workspace, and not of one that depends on xact or on a checkout of it.
/// `.cargo/config.toml` sets a variable for this, and cargo reads that file in the folder where it is called.
fn is_own_workspace(root: &Path) -> bool {
    let named = env::var_os("XACT_WORKSPACE").map(PathBuf::from);
    named.is_some_and(|named| named.components().eq(root.components()))
}

/// The folders in which `cargo xtask toolkit` may have installed a toolkit.
fn own_homes(root: &Path, out: &Path) -> Vec<PathBuf> {
    // OUT_DIR is `<target>/<profile>/build/<package>/out`, with a triple before the profile if one is given. Newer cargos
    // add a hash after the package.
    let mut targets: Vec<&Path> = out.ancestors().skip(4).take(3).collect();
    // `build.build-dir` may move OUT_DIR out of the target folder.
    let usual = root.join("target");
    if is_own_workspace(root) && !targets.contains(&usual.as_path()) {
        targets.push(&usual);
    }
    targets.into_iter().map(nvcc::own_home).collect()
}

/// The text that says why there is no nvcc, and what to do.
fn reason(root: &Path, ignored: &[String]) -> String {
    // Cargo notices a changed variable, but not a new file in one of the usual folders.
    let remedy = if is_own_workspace(root) {
        "run `cargo xtask toolkit`, or set NVCC to its path, and build again"
    } else {
        "install the CUDA toolkit, set CUDA_HOME to its folder, and build again"
    };
    let ignored: String = ignored.iter().map(|note| format!(" ({note})")).collect();
    format!(
        "no nvcc was found when xact was compiled (in NVCC, {}, PATH or the usual folders){ignored}; {remedy}",
        nvcc::HOMES.join(", ")
    )
}

/// One kernel file compiled for one target.
struct Image {
    stem: String,
    target: u32,
    /// The `.version` in the embedded text.
    version: String,
    /// The `.version` nvcc wrote.
    nvcc_version: String,
    /// The name of the file in [`IMAGES`].
    file: String,
}

/// The folder of the images, inside OUT_DIR.
const IMAGES: &str = "kernels";

/// Compiles every kernel file for every target, assembles the PTX for `architectures`, and writes `images.rs` and `cubins.rs`.
/// It runs as many jobs at a time as cargo allows, and takes from the cache what was compiled before.
fn compile_all(nvcc: &Path, out: &Path, architectures: &[u32]) -> Result<(), String> {
    let folder = empty_folder(out, IMAGES)?;
    write(
        &folder.join("args.cuh"),
        &(args::header() + &args::numbers()),
    )?;
    write(&folder.join("constants.cuh"), &constants::header()?)?;
    let mut jobs = Vec::new();
    for source in sources()? {
        let text = fs::read_to_string(&source).map_err(|e| format!("{}: {e}", source.display()))?;
        let code = code(&source, &folder)?;
        let targets = Target::of(&text);
        jobs.extend(targets.map(|target| (source.clone(), target, code.clone())));
    }
    // The longest jobs start first.
    jobs.sort_by_key(|(.., code)| std::cmp::Reverse(code.len()));
    // These files determine how the PTX version is lowered; no flag does.
    let mut identity = identity(nvcc)?;
    for script in ["build.rs", "build/compile.rs"] {
        identity += &fs::read_to_string(script).map_err(|e| format!("{script}: {e}"))?;
    }
    let cache = Cache::beside(out);
    let mut images = in_parallel(&jobs, |(source, target, code)| {
        let name = target.file(stem(source));
        let command = |headers: &Path, ptx: &Path| {
            target.compiler(nvcc, source, headers, &geometry::DEFINES, ptx)
        };
        let told = told(&command(Path::new("headers"), Path::new("ptx")));
        let kept = cache.get(&format!("{identity}\n{told}\n{code}"), || {
            let path = folder.join(&name);
            compile(nvcc, &mut command(&folder, &path), target, &path).map(String::into_bytes)
        })?;
        let text = String::from_utf8(kept).map_err(|e| format!("{name}: {e}"))?;
        let (nvcc_version, ptx) = text.split_once('\n').unwrap_or_default();
        write(&folder.join(&name), ptx)?;
        Ok(Image {
            stem: stem(source).to_owned(),
            target: target.capability,
            version: compile::version(ptx).unwrap_or_default().to_owned(),
            nvcc_version: nvcc_version.to_owned(),
            file: name,
        })
    })?;
    images.sort_by(|a, b| (&a.stem, a.target).cmp(&(&b.stem, b.target)));
    write_images(out, &images, "")?;
    embed_cubins(nvcc, out, &identity, &cache, architectures)
}

/// Makes an empty folder in OUT_DIR. OUT_DIR outlives this run, so files of removed kernels are deleted.
fn empty_folder(out: &Path, name: &str) -> Result<PathBuf, String> {
    let folder = out.join(name);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(format!("{}: {error}", folder.display()));
        }
        _ => {}
    }
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(folder)
}

/// Runs jobs, as many at a time as cargo allows. Returns all results in the order of the jobs, or all errors.
fn in_parallel<J: Sync, T: Send + Sync>(
    jobs: &[J],
    work: impl Fn(&J) -> Result<T, String> + Sync,
) -> Result<Vec<T>, String> {
    let workers = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok());
    let next = AtomicUsize::new(0);
    let done: Vec<_> = jobs.iter().map(|_| OnceLock::new()).collect();
    thread::scope(|scope| {
        for _ in 0..workers.unwrap_or(1).min(jobs.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(index) else {
                        return;
                    };
                    let is_first = done[index].set(work(job)).is_ok();
                    assert!(is_first, "each job is done once");
                }
            });
        }
    });
    let (mut results, mut errors) = (Vec::new(), Vec::new());
    for result in done {
        match result.into_inner().expect("every job is done") {
            Ok(result) => results.push(result),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() {
        Ok(results)
    } else {
        Err(errors.join("\n"))
    }
}

/// Every `kernels/<folder>/<stem>.cu`, in a fixed order.
fn sources() -> Result<Vec<PathBuf>, String> {
    let mut sources: Vec<PathBuf> = Vec::new();
    for folder in list(Path::new("kernels"))? {
        if !folder.is_dir() {
            continue;
        }
        for path in list(&folder)? {
            if path.extension().is_none_or(|e| e != "cu") {
                continue;
            }
            let same = |other: &&PathBuf| other.file_stem() == path.file_stem();
            if let Some(other) = sources.iter().find(same) {
                return Err(format!(
                    "{} and {} have the same stem",
                    other.display(),
                    path.display()
                ));
            }
            sources.push(path);
        }
    }
    if sources.is_empty() {
        return Err("kernels/ holds no .cu file".to_owned());
    }
    Ok(sources)
}

/// The name by which the crate finds an image.
fn stem(source: &Path) -> &str {
    let stem = source.file_stem().and_then(|stem| stem.to_str());
    stem.expect("a .cu file of an op")
}

/// Runs a command that writes PTX to `path`, and lowers its version. Returns a line with the version of nvcc, and the PTX.
fn compile(
    nvcc: &Path,
    command: &mut Command,
    target: &Target,
    path: &Path,
) -> Result<String, String> {
    let said = run(command)?;
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        println!("cargo::warning={line}");
    }
    let read = || fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    let text = read()?;
    compile::check_target(&text, target).map_err(|e| format!("{}: {e}", path.display()))?;
    let nvcc_version = lower_version(nvcc, &text, target, path)?;
    Ok(format!("{nvcc_version}\n{}", read()?))
}

/// Writes the PTX to `path` with the lowest version with which it still assembles, and returns the version of nvcc. nvcc writes
/// its own PTX version, which a driver older than nvcc refuses.
fn lower_version(nvcc: &Path, text: &str, target: &Target, path: &Path) -> Result<String, String> {
    let no_version = || format!("{}: nvcc wrote no .version", path.display());
    let stamped = compile::version(text).ok_or_else(no_version)?;
    let older = VERSIONS
        .iter()
        .skip_while(|v| **v != target.since)
        .take_while(|v| **v != stamped);
    let cubin = path.with_extension("cubin");
    let mut refused = String::new();
    for &version in older.chain([&stamped]) {
        let lowered = compile::with_version(text, version).ok_or_else(no_version)?;
        write(path, &lowered)?;
        let mut assembler = compile::assembler(nvcc, path, &cubin, target.capability);
        // The machine code is not used, so it need not be optimised.
        match run(assembler.arg("-Xptxas=-O0")) {
            Ok(_) => {
                fs::remove_file(&cubin).map_err(|e| format!("{}: {e}", cubin.display()))?;
                return Ok(stamped.to_owned());
            }
            Err(message) => refused = message,
        }
    }
    // The text does not assemble even as nvcc wrote it.
    Err(refused)
}

/// Runs a command and returns its output.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if output.status.success() {
        return Ok(said.into_owned());
    }
    Err(format!("{command:?} failed ({}):\n{said}", output.status))
}

fn write_images(out: &Path, images: &[Image], note: &str) -> Result<(), String> {
    let mut text = String::from("pub static IMAGES: &[Image] = &[\n");
    for image in images {
        // The path is relative to this file.
        let path = format!("{IMAGES}/{}", image.file);
        let _ = writeln!(
            text,
            "    Image {{ stem: {:?}, target: {}, version: {:?}, nvcc_version: {:?}, ptx: include_str!({path:?}) }},",
            image.stem, image.target, image.version, image.nvcc_version
        );
    }
    let _ = writeln!(text, "];\npub static BUILD_NOTE: &str = {note:?};");
    write(&out.join("images.rs"), &text)
}

/// The folder of compressed machine code, inside OUT_DIR.
const CUBINS: &str = "cubins";

/// Assembles the images of [`IMAGES`] for every architecture that accepts them, and writes `cubins.rs`.
fn embed_cubins(
    nvcc: &Path,
    out: &Path,
    identity: &str,
    cache: &Cache,
    architectures: &[u32],
) -> Result<(), String> {
    let folder = empty_folder(out, CUBINS)?;
    let mut cubins = Vec::new();
    let mut toolkit = String::new();
    if !architectures.is_empty() {
        toolkit = nvcc::release(nvcc)?;
        let script = "build/cubin.rs";
        let script = fs::read_to_string(script).map_err(|e| format!("{script}: {e}"))?;
        let images = list(&out.join(IMAGES))?;
        let jobs: Vec<_> = architectures
            .iter()
            .flat_map(|&architecture| {
                let images = cubin::images_for(&images, architecture).into_iter();
                images.map(move |ptx| (ptx, architecture))
            })
            .collect();
        cubins = in_parallel(&jobs, |&(ptx, architecture)| {
            let (stem, target) = cubin::image_name(ptx).expect("the name of an image");
            let failed = |e: io::Error| format!("{}: {e}", ptx.display());
            let file = format!("{stem}.sm_{architecture}.cubin.lz");
            let cubin = folder.join(format!("{stem}.sm_{architecture}.cubin"));
            let any = Path::new("any");
            let told = told(&compile::assembler(nvcc, any, any, architecture));
            let text = fs::read_to_string(ptx).map_err(failed)?;
            let kept = cache.get(&format!("{identity}\n{told}\n{script}\n{text}"), || {
                run(&mut compile::assembler(nvcc, ptx, &cubin, architecture))?;
                let bytes = fs::read(&cubin).map_err(failed)?;
                fs::remove_file(&cubin).map_err(failed)?;
                cubin::compress(&bytes).map_err(failed)
            })?;
            fs::write(folder.join(&file), kept).map_err(failed)?;
            Ok((stem, target, architecture, file))
        })?;
    }
    write_cubins(out, &toolkit, &cubins)
}

/// The machine code of a kernel file: stem, target of the PTX, architecture, name of the file in [`CUBINS`].
type Cubin = (String, u32, u32, String);

fn write_cubins(out: &Path, toolkit: &str, cubins: &[Cubin]) -> Result<(), String> {
    let mut text = String::from("pub static CUBINS: &[Cubin] = &[\n");
    for (stem, target, architecture, file) in cubins {
        // The path is relative to this file.
        let path = format!("{CUBINS}/{file}");
        let _ = writeln!(
            text,
            "    Cubin {{ stem: {stem:?}, architecture: {architecture}, target: {target}, toolkit: {toolkit:?}, lzip: include_bytes!({path:?}) }},",
        );
    }
    text += "];\n";
    write(&out.join("cubins.rs"), &text)
}

/// Writes `images.rs` and `cubins.rs` without images and machine code, and with the reason.
fn write_nothing(out: &Path, note: &str) -> Result<(), String> {
    write_images(out, &[], note)?;
    write_cubins(out, "", &[])
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}
