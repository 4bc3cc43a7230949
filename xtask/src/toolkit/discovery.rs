//! Finds nvcc and the host compiler that it needs. The same order as xact's build script.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::bail;

/// Variables that name a toolkit folder, in the order in which they are tried.
const HOMES: [&str; 4] = [
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_ROOT",
    "CUDA_TOOLKIT_ROOT_DIR",
];

/// Where toolkits are commonly installed.
const USUAL: [&str; 3] = ["/usr/local/cuda", "/opt/cuda", "/usr"];

/// What discovery looks at, as a value so that tests can make one up.
pub struct Surroundings<'a> {
    /// Reads an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// Folders to look into after PATH.
    pub usual: Vec<PathBuf>,
    /// What relative paths are relative to: the workspace root, where cargo runs build scripts.
    pub root: &'a Path,
    /// The toolkit folder that [`super::install`] fills.
    pub own: &'a Path,
}

impl<'a> Surroundings<'a> {
    /// The surroundings of this process.
    pub fn of_this_process(root: &'a Path, own: &'a Path) -> Self {
        Self {
            variable: &|name| env::var_os(name),
            usual: USUAL.iter().map(PathBuf::from).collect(),
            root,
            own,
        }
    }

    /// A variable that is set to something; an empty one counts as unset.
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
    /// In the toolkit that xtask installed.
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

/// What a search came to.
#[derive(Debug)]
pub struct Search {
    /// The first nvcc, if any.
    pub found: Option<(PathBuf, Source)>,
    /// Settings that led nowhere, in words.
    pub ignored: Vec<String>,
}

/// Looks for nvcc in the documented order.
///
/// # Errors
/// NVCC is set to something that cannot be run: it is the user's own choice, so nothing is taken in its stead.
pub fn find(surroundings: &Surroundings) -> anyhow::Result<Search> {
    let mut ignored = Vec::new();
    let mut first = || {
        if let Some(value) = surroundings.set("NVCC") {
            let Some(nvcc) = surroundings.resolve(&value) else {
                bail!(
                    "NVCC={} is not an executable file: correct the variable or unset it",
                    value.display()
                );
            };
            return Ok(Some((nvcc, Source::Variable("NVCC"))));
        }
        for name in HOMES {
            let Some(home) = surroundings.set(name) else {
                continue;
            };
            match nvcc_in(&surroundings.root.join(&home)) {
                Some(nvcc) => return Ok(Some((nvcc, Source::Variable(name)))),
                None => {
                    ignored.push(format!(
                        "{name}={} has no bin/nvcc; ignored",
                        home.display()
                    ));
                }
            }
        }
        if let Some(nvcc) = surroundings.on_path(executable_name("nvcc")) {
            return Ok(Some((nvcc, Source::Path)));
        }
        for folder in &surroundings.usual {
            if let Some(nvcc) = nvcc_in(folder) {
                return Ok(Some((nvcc, Source::Folder(folder.clone()))));
            }
        }
        Ok(nvcc_in(surroundings.own).map(|nvcc| (nvcc, Source::Own)))
    };
    let found = first()?;
    Ok(Search { found, ignored })
}

/// Checks that nvcc will find a host C++ compiler, which it runs even to write PTX.
///
/// # Errors
/// There is none, or NVCC_CCBIN names one that does not exist.
pub fn check_host_compiler(surroundings: &Surroundings) -> anyhow::Result<()> {
    if let Some(value) = surroundings.set("NVCC_CCBIN") {
        // nvcc also takes the folder that holds the compiler.
        if surroundings.resolve(&value).is_none() && !surroundings.root.join(&value).is_dir() {
            bail!(
                "NVCC_CCBIN={} is no host C++ compiler: correct the variable or unset it",
                value.display()
            );
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
        bail!(
            "nvcc needs a host C++ compiler; not on PATH: {}.\n\
             Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), \
             or set NVCC_CCBIN to one that nvcc supports.",
            missing.join(", ")
        );
    }
    Ok(())
}

/// The nvcc of the toolkit in `home`.
pub fn nvcc_in(home: &Path) -> Option<PathBuf> {
    Some(home.join("bin").join(executable_name("nvcc"))).filter(|nvcc| is_executable(nvcc))
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    /// Surroundings whose variables are `variables`, in which `{}` stands for the scratch folder, and whose
    /// one usual folder is `usual`.
    fn with<T>(
        scratch: &Scratch,
        variables: &[(&str, &str)],
        check: impl FnOnce(&Surroundings) -> T,
    ) -> T {
        let root = scratch.path();
        let text = root.to_str().expect("UTF-8");
        let variable = |name: &str| {
            let (_, value) = variables.iter().find(|(key, _)| *key == name)?;
            Some(OsString::from(value.replace("{}", text)))
        };
        check(&Surroundings {
            variable: &variable,
            usual: vec![root.join("usual")],
            root,
            own: &root.join("target/cuda-toolkit/cuda"),
        })
    }

    fn found(scratch: &Scratch, variables: &[(&str, &str)]) -> Option<(PathBuf, Source)> {
        with(scratch, variables, |surroundings| {
            find(surroundings).expect("no error").found
        })
    }

    /// Every place at once; taking the first away must show the next.
    #[test]
    fn places_are_tried_in_the_documented_order() {
        let scratch = Scratch::new();
        let own = "target/cuda-toolkit/cuda";
        for folder in ["n", "home", "path", "root", "dir", "search", "usual", own] {
            scratch.script(&format!("{folder}/bin/nvcc"), "");
        }
        let mut variables = vec![
            ("NVCC", "{}/n/bin/nvcc"),
            ("CUDA_HOME", "{}/home"),
            ("CUDA_PATH", "{}/path"),
            ("CUDA_ROOT", "{}/root"),
            ("CUDA_TOOLKIT_ROOT_DIR", "{}/dir"),
            ("PATH", "{}/nothing:{}/search/bin"),
        ];
        let order = [
            ("n", Source::Variable("NVCC")),
            ("home", Source::Variable("CUDA_HOME")),
            ("path", Source::Variable("CUDA_PATH")),
            ("root", Source::Variable("CUDA_ROOT")),
            ("dir", Source::Variable("CUDA_TOOLKIT_ROOT_DIR")),
            ("search", Source::Path),
            ("usual", Source::Folder(scratch.path().join("usual"))),
            (own, Source::Own),
        ];
        for (folder, source) in order {
            let nvcc = scratch.path().join(folder).join("bin/nvcc");
            assert_eq!(
                found(&scratch, &variables),
                Some((nvcc.clone(), source)),
                "{variables:?}"
            );
            if variables.is_empty() {
                std::fs::remove_file(nvcc).expect("remove");
            } else {
                variables.remove(0);
            }
        }
        assert_eq!(found(&scratch, &variables), None);
    }

    #[test]
    fn a_wrong_nvcc_variable_is_an_error() {
        let scratch = Scratch::new();
        scratch.script("usual/bin/nvcc", "");
        scratch.write("plain/nvcc", "not executable");
        for value in ["{}/absent/nvcc", "{}/usual/bin", "{}/plain/nvcc", "nvcc-99"] {
            with(&scratch, &[("NVCC", value)], |surroundings| {
                let error = find(surroundings).expect_err(value).to_string();
                assert!(error.starts_with("NVCC="), "{error}");
            });
        }
    }

    #[test]
    fn nvcc_may_be_a_name_or_relative_to_the_workspace() {
        let scratch = Scratch::new();
        let nvcc = scratch.script("bin/nvcc-13", "");
        let expected = Some((nvcc, Source::Variable("NVCC")));
        assert_eq!(
            found(&scratch, &[("NVCC", "nvcc-13"), ("PATH", "{}/bin")]),
            expected
        );
        assert_eq!(found(&scratch, &[("NVCC", "bin/nvcc-13")]), expected);
    }

    #[test]
    fn empty_variables_count_as_unset() {
        let scratch = Scratch::new();
        let nvcc = scratch.script("usual/bin/nvcc", "");
        let variables = [("NVCC", ""), ("CUDA_HOME", ""), ("PATH", "")];
        let folder = scratch.path().join("usual");
        assert_eq!(
            found(&scratch, &variables),
            Some((nvcc, Source::Folder(folder)))
        );
    }

    #[test]
    fn a_home_without_nvcc_is_passed_over_and_named() {
        let scratch = Scratch::new();
        scratch.script("usual/bin/nvcc", "");
        with(&scratch, &[("CUDA_HOME", "{}/stale")], |surroundings| {
            let search = find(surroundings).expect("no error");
            assert!(search.found.is_some());
            assert_eq!(search.ignored.len(), 1);
            assert!(search.ignored[0].starts_with("CUDA_HOME="));
        });
    }

    #[test]
    fn a_host_compiler_must_be_there() {
        let scratch = Scratch::new();
        scratch.script("both/gcc", "");
        scratch.script("both/g++", "");
        scratch.script("c/gcc", "");
        scratch.script("clang/clang++", "");
        let check = |variables: &[(&str, &str)]| {
            with(&scratch, variables, |surroundings| {
                check_host_compiler(surroundings).map_err(|error| error.to_string())
            })
        };
        assert!(check(&[("PATH", "{}/both")]).is_ok());
        assert!(check(&[("NVCC_CCBIN", "{}/clang/clang++")]).is_ok());
        assert!(check(&[("NVCC_CCBIN", "{}/clang")]).is_ok());
        assert!(check(&[("NVCC_PREPEND_FLAGS", "-ccbin clang++")]).is_ok());
        let error = check(&[("PATH", "{}/c")]).expect_err("no g++");
        assert!(error.contains("not on PATH: g++."), "{error}");
        let error = check(&[]).expect_err("nothing");
        assert!(error.contains("not on PATH: gcc, g++."), "{error}");
        let error = check(&[("PATH", "{}/both"), ("NVCC_CCBIN", "g++-99")]).expect_err("wrong");
        assert!(error.starts_with("NVCC_CCBIN="), "{error}");
    }
}
