//! Finds nvcc and its host compiler with the code of xact's build script.

#[allow(dead_code)] // the build script uses all of it
#[path = "../../../build/nvcc.rs"]
mod nvcc;

pub use nvcc::*;

#[cfg(all(test, unix))]
mod tests {
    use std::ffi::OsString;
    use std::path::PathBuf;

    use super::*;
    use crate::testing::Scratch;

    /// Surroundings with these variables, in which `{}` is replaced by the scratch folder, and with the one usual folder
    /// `usual`.
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
            // What the script would print.
            release: &|nvcc| {
                let text = std::fs::read_to_string(nvcc).map_err(|e| e.to_string())?;
                let release = text
                    .lines()
                    .find_map(|line| line.strip_prefix("# release "));
                Ok(release.unwrap_or("13.0.88").to_owned())
            },
            usual: vec![root.join("usual")],
            root,
            own: vec![root.join("absent"), own_home(&root.join("target"))],
        })
    }

    fn found(scratch: &Scratch, variables: &[(&str, &str)]) -> Option<(PathBuf, Source)> {
        with(scratch, variables, |surroundings| {
            find(surroundings).expect("no error").found
        })
    }

    /// Has an nvcc in every place at once. Removing the first one must find the next.
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
                let error = find(surroundings).expect_err(value);
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
    fn a_link_that_stands_alone_is_followed() {
        let scratch = Scratch::new();
        let nvcc = scratch.script("toolkit/bin/nvcc", "");
        scratch.write("toolkit/bin/nvcc.profile", "");
        let wrapper = scratch.script("wrapper/cache", "");
        for (folder, points_to, expected) in [
            ("alone", &nvcc, &nvcc),
            ("whole", &nvcc, &scratch.path().join("whole/nvcc")),
            ("wrapped", &wrapper, &scratch.path().join("wrapped/nvcc")),
        ] {
            scratch.write(&format!("{folder}/other"), "");
            let link = scratch.path().join(folder).join("nvcc");
            std::os::unix::fs::symlink(points_to, link).expect("link");
            if folder == "whole" {
                scratch.write("whole/nvcc.profile", "");
            }
            let path = format!("{{}}/{folder}");
            let (found, _) = found(&scratch, &[("PATH", &path)]).expect("found");
            assert_eq!(found, *expected);
        }
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
    fn an_old_nvcc_is_passed_over_or_named() {
        let scratch = Scratch::new();
        scratch.script("old/bin/nvcc", "# release 11.5.119");
        let old = [("PATH", "{}/old/bin")];
        // The old nvcc is the only one, so the error is about it.
        with(&scratch, &old, |surroundings| {
            let error = find(surroundings).expect_err("too old");
            assert!(
                error.contains("11.5.119") && error.contains("CUDA_HOME"),
                "{error}"
            );
        });
        // A newer nvcc in another place is used.
        let nvcc = scratch.script("usual/bin/nvcc", "# release 12.0.140");
        with(&scratch, &old, |surroundings| {
            let search = find(surroundings).expect("no error");
            assert_eq!(search.found.map(|(found, _)| found), Some(nvcc.clone()));
            assert!(
                search.ignored[0].contains("11.5.119"),
                "{:?}",
                search.ignored
            );
        });
        // The variable names this nvcc explicitly, so no other is used.
        for name in ["NVCC", "CUDA_HOME"] {
            let value = if name == "NVCC" {
                "{}/old/bin/nvcc"
            } else {
                "{}/old"
            };
            with(&scratch, &[(name, value)], |surroundings| {
                let error = find(surroundings).expect_err(name);
                assert!(error.contains(&format!("set {name} to a newer")), "{error}");
            });
        }
    }

    #[test]
    fn bindings_are_new_enough() {
        let scratch = Scratch::new();
        scratch.script("old/nvcc", "# release 11.5.119");
        scratch.script("new/nvcc", "# release 13.0.88");
        let check = |variables: &[(&str, &str)]| with(&scratch, variables, check_bindings);
        for variables in [
            &[][..],
            &[("PATH", "{}/new:{}/old")],
            &[("PATH", "{}/old"), ("CUDARC_CUDA_VERSION", "12080")],
            &[("CUDARC_CUDA_VERSION", "11080")],
        ] {
            assert_eq!(check(variables), Ok(()), "{variables:?}");
        }
        for variables in [
            &[("PATH", "{}/old:{}/new"), ("NVCC", "{}/new/nvcc")][..],
            &[("CUDARC_CUDA_VERSION", "11070")],
        ] {
            let error = check(variables).expect_err("too old");
            assert!(error.contains("set CUDARC_CUDA_VERSION=12080"), "{error}");
        }
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
                check_host_compiler(surroundings)
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

    #[test]
    fn the_release_is_read_from_nvcc() {
        let text = "nvcc: NVIDIA (R) Cuda compiler driver\n\
            Cuda compilation tools, release 13.0, V13.0.88\n\
            Build cuda_13.0.r13.0/compiler.36424714_0\n";
        assert_eq!(parse_release(text).as_deref(), Some("13.0.88"));
        assert_eq!(parse_release("not nvcc"), None);
    }
}
