//! Finds nvcc, and checks for the host compiler that it needs.
//!
//! `build.rs` and `cargo xtask` both include this file, so that they find the same nvcc. Its tests are in
//! `xtask/src/toolkit/discovery.rs`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Variables that name a toolkit folder, in the order in which they are tried.
pub const HOMES: [&str; 4] = [
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_ROOT",
    "CUDA_TOOLKIT_ROOT_DIR",
];

/// Folders in which toolkits are commonly installed.
const USUAL: [&str; 3] = ["/usr/local/cuda", "/opt/cuda", "/usr"];

/// The minimum release of nvcc: the first that supports C++20, in which the kernels are written.
pub const LEAST: [u32; 2] = [12, 0];

/// The minimum CUDA release of cudarc's bindings: the first that has `cuLaunchKernelEx`.
pub const LEAST_BINDINGS: [u32; 2] = [11, 8];

/// The environment of the search, as a value so that tests can replace it.
pub struct Surroundings<'a> {
    /// Reads an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The release of an nvcc: [`release`].
    pub release: &'a dyn Fn(&Path) -> Result<String, String>,
    /// Folders to look into after PATH.
    pub usual: Vec<PathBuf>,
    /// The folder that relative paths start from: that of xact's manifest, where cargo runs build scripts.
    pub root: &'a Path,
    /// Toolkit folders that `cargo xtask toolkit` may have filled.
    pub own: Vec<PathBuf>,
}

impl<'a> Surroundings<'a> {
    /// The surroundings of this process.
    pub fn of_this_process(root: &'a Path, own: Vec<PathBuf>) -> Self {
        Self {
            variable: &|name| env::var_os(name),
            release: &release,
            usual: USUAL.iter().map(PathBuf::from).collect(),
            root,
            own,
        }
    }

    /// The value of a variable. An empty variable counts as unset.
    fn set(&self, name: &str) -> Option<OsString> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    /// The first executable called `name` on PATH.
    fn on_path(&self, name: impl AsRef<Path>) -> Option<PathBuf> {
        let path = self.set("PATH")?;
        env::split_paths(&path)
            .filter(|folder| !folder.as_os_str().is_empty())
            .map(|folder| self.root.join(folder).join(&name))
            .find(|candidate| is_executable(candidate))
    }

    /// The executable that `value` means: a path, or a name to look up on PATH.
    fn resolve(&self, value: &OsStr) -> Option<PathBuf> {
        let path = Path::new(value);
        if path.components().count() == 1 && path.is_relative() {
            return self.on_path(path);
        }
        Some(self.root.join(path)).filter(|path| is_executable(path))
    }
}

/// Where an nvcc was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// Through this environment variable.
    Variable(&'static str),
    /// On PATH.
    Path,
    /// In one of the usual folders.
    Folder(PathBuf),
    /// In a toolkit that xtask installed.
    Own,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "from {name}"),
            Self::Path => f.write_str("on PATH"),
            Self::Folder(folder) => write!(f, "in {}", folder.display()),
            Self::Own => f.write_str("installed by cargo xtask toolkit"),
        }
    }
}

/// The result of a search.
#[derive(Debug)]
pub struct Search {
    /// The first nvcc, if any.
    pub found: Option<(PathBuf, Source)>,
    /// Messages about settings that were ignored.
    pub ignored: Vec<String>,
}

/// Looks for nvcc in the documented order.
///
/// An nvcc on PATH or in a usual folder that is too old is ignored.
///
/// # Errors
/// - NVCC is set to something that cannot be run, or a variable names an nvcc that is too old. The user has chosen it, so no
///   other nvcc is used instead.
/// - Every nvcc is too old.
pub fn find(surroundings: &Surroundings) -> Result<Search, String> {
    let mut ignored = Vec::new();
    let mut old = Vec::new();
    // Whether an nvcc that was found is new enough. An nvcc that does not print its release is accepted, and fails later
    // with its own message.
    let mut is_new_enough = |nvcc: &Path| match too_old(surroundings, nvcc) {
        None => true,
        Some(why) => {
            old.push(why);
            false
        }
    };
    let mut first = || {
        if let Some(value) = surroundings.set("NVCC") {
            let Some(nvcc) = surroundings.resolve(&value) else {
                return Err(format!(
                    "NVCC={} is not an executable file: correct the variable or unset it",
                    value.display()
                ));
            };
            return chosen(surroundings, nvcc, "NVCC");
        }
        for name in HOMES {
            let Some(home) = surroundings.set(name) else {
                continue;
            };
            match nvcc_in(&surroundings.root.join(&home)) {
                Some(nvcc) => return chosen(surroundings, nvcc, name),
                None => {
                    ignored.push(format!(
                        "{name}={} has no bin/nvcc; ignored",
                        home.display()
                    ));
                }
            }
        }
        if let Some(nvcc) = surroundings.on_path(executable_name("nvcc"))
            && is_new_enough(&nvcc)
        {
            return Ok(Some((nvcc, Source::Path)));
        }
        for folder in &surroundings.usual {
            if let Some(nvcc) = nvcc_in(folder)
                && is_new_enough(&nvcc)
            {
                return Ok(Some((nvcc, Source::Folder(folder.clone()))));
            }
        }
        let own = surroundings.own.iter().find_map(|home| nvcc_in(home));
        Ok(own.map(|nvcc| (nvcc, Source::Own)))
    };
    let found = first()?.map(|(nvcc, source)| (unlinked(nvcc), source));
    if found.is_none() && !old.is_empty() {
        return Err(format!(
            "{}; install a newer CUDA toolkit and set CUDA_HOME to its folder",
            old.join("; ")
        ));
    }
    ignored.extend(old.into_iter().map(|why| format!("{why}; ignored")));
    Ok(Search { found, ignored })
}

/// The nvcc that a variable names, if it is new enough.
fn chosen(
    surroundings: &Surroundings,
    nvcc: PathBuf,
    name: &'static str,
) -> Result<Option<(PathBuf, Source)>, String> {
    match too_old(surroundings, &nvcc) {
        Some(why) => Err(format!("{why}: set {name} to a newer one, or unset it")),
        None => Ok(Some((nvcc, Source::Variable(name)))),
    }
}

/// A message if an nvcc is older than [`LEAST`].
fn too_old(surroundings: &Surroundings, nvcc: &Path) -> Option<String> {
    let release = (surroundings.release)(nvcc).ok()?;
    let [major, minor] = LEAST;
    (major_minor(&release)? < LEAST).then(|| {
        format!(
            "{} is of CUDA {release}, and xact's kernels need {major}.{minor} or later",
            nvcc.display()
        )
    })
}

/// `[13, 0]` of `13.0.88`.
fn major_minor(release: &str) -> Option<[u32; 2]> {
    let mut numbers = release.split('.').map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next()??])
}

/// Checks that xact compiles with the bindings that cudarc makes. cudarc takes their version from CUDARC_CUDA_VERSION or else
/// from the nvcc on PATH. Without this check, the errors of rustc would not tell the cause.
///
/// # Errors
/// The bindings have a version that is too old.
pub fn check_bindings(surroundings: &Surroundings) -> Result<(), String> {
    const NAME: &str = "CUDARC_CUDA_VERSION";
    let [major, minor] = LEAST_BINDINGS;
    let needed = format!(
        "xact needs those of CUDA {major}.{minor} or later: set {NAME}=12080, say, whatever driver there will be"
    );
    if let Some(value) = surroundings.set(NAME) {
        let number = value.to_str().and_then(|value| value.parse::<u32>().ok());
        return match number {
            // cudarc itself refuses other values.
            Some(number) if number < major * 1000 + minor * 10 => Err(format!(
                "{NAME}={number} makes cudarc's bindings too old; {needed}"
            )),
            _ => Ok(()),
        };
    }
    let Some(nvcc) = surroundings.on_path(executable_name("nvcc")) else {
        return Ok(());
    };
    let release = (surroundings.release)(&nvcc).ok();
    let version = release.as_deref().and_then(major_minor);
    match (version, release) {
        (Some(version), Some(release)) if version < LEAST_BINDINGS => Err(format!(
            "cudarc makes bindings of CUDA {release}, because {} is on PATH; {needed}",
            nvcc.display()
        )),
        _ => Ok(()),
    }
}

/// A hint for an error message of nvcc that does not say what to do.
pub fn remedy(said: &str) -> Option<&'static str> {
    let host =
        said.contains("unsupported GNU version") || said.contains("unsupported clang version");
    host.then_some(
        "Set NVCC_CCBIN to a host C++ compiler that this nvcc supports, such as /usr/bin/g++-12.",
    )
}

/// nvcc looks for its parts beside the path by which it was called. For a link without these parts beside it, as in
/// /usr/local/bin, this returns the target of the link.
fn unlinked(nvcc: PathBuf) -> PathBuf {
    let has_parts = |nvcc: &Path| nvcc.with_file_name("nvcc.profile").is_file();
    match nvcc.canonicalize() {
        Ok(real) if !has_parts(&nvcc) && has_parts(&real) => real,
        _ => nvcc,
    }
}

/// The release of an nvcc, such as `13.0.88`, which is also that of its assembler.
///
/// # Errors
/// nvcc does not run, or does not print its release.
pub fn release(nvcc: &Path) -> Result<String, String> {
    let output = Command::new(nvcc)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{} --version: {e}", nvcc.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!(
            "{} --version: {}\n{}",
            nvcc.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        ));
    }
    parse_release(&said)
        .ok_or_else(|| format!("{} --version says no release:\n{said}", nvcc.display()))
}

/// `13.0.88` from `Cuda compilation tools, release 13.0, V13.0.88`.
pub fn parse_release(said: &str) -> Option<String> {
    let line = said.lines().find(|line| line.contains("release "))?;
    let (_, release) = line.rsplit_once(", V")?;
    Some(release.trim().to_owned())
}

/// Checks that nvcc will find a host C++ compiler, which it runs even to write PTX.
///
/// # Errors
/// There is no host compiler, or NVCC_CCBIN names one that does not exist.
pub fn check_host_compiler(surroundings: &Surroundings) -> Result<(), String> {
    if let Some(value) = surroundings.set("NVCC_CCBIN") {
        // nvcc also takes the folder that holds the compiler.
        if surroundings.resolve(&value).is_none() && !surroundings.root.join(&value).is_dir() {
            return Err(format!(
                "NVCC_CCBIN={} is no host C++ compiler: correct the variable or unset it",
                value.display()
            ));
        }
        return Ok(());
    }
    // nvcc reads its flags from these, and they may name a compiler. On Windows it looks for cl.exe by itself.
    let named = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"]
        .iter()
        .filter_map(|name| surroundings.set(name))
        .any(|flags| flags.to_string_lossy().contains("-ccbin"));
    if named || cfg!(windows) {
        return Ok(());
    }
    let missing: Vec<&str> = ["gcc", "g++"]
        .into_iter()
        .filter(|name| surroundings.on_path(name).is_none())
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "nvcc needs a host C++ compiler; not on PATH: {}.\n\
             Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), \
             or set NVCC_CCBIN to one that nvcc supports.",
            missing.join(", ")
        ));
    }
    Ok(())
}

/// The nvcc of the toolkit in `home`, if it is there.
pub fn nvcc_in(home: &Path) -> Option<PathBuf> {
    Some(place_in(home)).filter(|nvcc| is_executable(nvcc))
}

/// Where a toolkit in `home` has its nvcc.
pub fn place_in(home: &Path) -> PathBuf {
    home.join("bin").join(executable_name("nvcc"))
}

/// The folder that `cargo xtask toolkit` installs into.
pub fn own_folder(target: &Path) -> PathBuf {
    target.join("cuda-toolkit")
}

/// The toolkit in it, as CUDA_HOME would name it.
pub fn own_home(target: &Path) -> PathBuf {
    own_folder(target).join("cuda")
}

fn executable_name(stem: &str) -> String {
    format!("{stem}{}", env::consts::EXE_SUFFIX)
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;

    path.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(path: &Path) -> bool {
    path.is_file()
}
