//! Compiles programs in C99 and C++17 against the installed library, with all warnings as errors, and runs them alone, under
//! valgrind and under gcc's sanitizers. If a tool is missing, its trials are ignored.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::LazyLock;

use libtest_mimic::{Arguments, Failed, Trial};

/// The C program in the repository's README.md.
const README: &str = "README.md";

/// The way a program is linked.
#[derive(Clone, Copy, PartialEq)]
enum Link {
    Shared,
    Static,
}

/// The tool that a program runs under.
#[derive(Clone, Copy, PartialEq)]
enum Under {
    Nothing,
    Valgrind,
    Sanitizers,
}

impl Under {
    const ALL: [(Under, &str); 3] = [
        (Under::Nothing, ""),
        (Under::Valgrind, "_valgrind"),
        (Under::Sanitizers, "_sanitizers"),
    ];
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let mut add = |name: String, tools: &[&'static str], test: fn(&str) -> Result<(), Failed>| {
        let absent = tools.iter().find(|tool| !is_there(tool));
        let of_trial = name.clone();
        let mut trial = Trial::test(name, move || test(&of_trial));
        if let Some(absent) = absent {
            eprintln!("ignored: {absent} is not here");
            trial = trial
                .with_kind(format!("no {absent}"))
                .with_ignored_flag(true);
        }
        trials.push(trial);
    };
    for (program, compiler) in [
        ("example.c", "gcc"),
        ("example.cpp", "g++"),
        ("fork.c", "gcc"),
        (README, "gcc"),
    ] {
        for (under, suffix) in Under::ALL {
            let tools: &[&str] = match under {
                Under::Valgrind => &[compiler, "pkg-config", "valgrind"],
                Under::Nothing | Under::Sanitizers => &[compiler, "pkg-config"],
            };
            add(format!("{program}{suffix}"), tools, shared);
        }
    }
    add(
        "example.c_static".into(),
        &["gcc", "pkg-config"],
        linked_statically,
    );
    add("exports".into(), &["nm"], exports);
    add("stays_loaded".into(), &["readelf"], stays_loaded);
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn is_there(tool: &str) -> bool {
    let output = Command::new(tool).arg("--version").output();
    output.is_ok_and(|output| output.status.success())
}

/// The trial of a program under a tool.
fn shared(name: &str) -> Result<(), Failed> {
    let (under, suffix) = (Under::ALL.into_iter().rev())
        .find(|(_, suffix)| name.ends_with(suffix))
        .ok_or("a trial without a name")?;
    build_and_run(name.trim_end_matches(suffix), under, Link::Shared)
}

fn linked_statically(_: &str) -> Result<(), Failed> {
    build_and_run("example.c", Under::Nothing, Link::Static)
}

/// Runs a command, and returns its stdout; if it fails, the error is its output.
fn output(command: &mut Command) -> Result<String, Failed> {
    let output = command.output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        return Err(format!("{command:?}: {}\n{out}{err}", output.status).into());
    }
    Ok(text(&output.stdout))
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Builds the library with this profile, and returns its folder. Cargo does not build a library for a test that does not link
/// with it.
static LIBRARY: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
    let test = std::env::current_exe().map_err(|e| e.to_string())?;
    let built = test.ancestors().nth(2).ok_or("no target folder")?;
    let profile = match built.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args([
        "build",
        "--quiet",
        "--package",
        "xact-capi",
        "--profile",
        profile,
    ]);
    output(cargo.current_dir(folder())).map_err(|e| e.message().unwrap_or_default().to_owned())?;
    Ok(built.to_owned())
});

/// Installs the library under a prefix, as in README.md.
fn install(prefix: &Path, link: Link) -> Result<(), Failed> {
    let library = LIBRARY.as_ref().map_err(String::clone)?;
    let name = match link {
        Link::Shared => "libxact.so",
        Link::Static => "libxact.a",
    };
    for part in ["include", "lib/pkgconfig"] {
        fs::create_dir_all(prefix.join(part))?;
    }
    // The libraries are large, so they are linked, not copied.
    std::os::unix::fs::symlink(library.join(name), prefix.join("lib").join(name))?;
    fs::copy(
        folder().join("include/xact.h"),
        prefix.join("include/xact.h"),
    )?;
    let description = fs::read_to_string(folder().join("xact.pc.in"))?
        .replace("@prefix@", &prefix.display().to_string())
        .replace("@version@", env!("CARGO_PKG_VERSION"));
    fs::write(prefix.join("lib/pkgconfig/xact.pc"), description)?;
    Ok(())
}

/// The source file of a program; a program in a page is first written into `scratch`.
fn file_of(source: &str, scratch: &Path) -> Result<PathBuf, Failed> {
    if source != README {
        return Ok(folder().join("tests").join(source));
    }
    let page = fs::read_to_string(folder().join("../..").join(README))?;
    let (_, rest) = page.split_once("\n```c\n").ok_or("no program")?;
    let (program, _) = rest.split_once("\n```\n").ok_or("no end of the program")?;
    let file = scratch.join("readme.c");
    fs::write(&file, format!("{program}\n"))?;
    Ok(file)
}

fn build_and_run(source: &str, under: Under, link: Link) -> Result<(), Failed> {
    let prefix = tempfile::tempdir()?;
    install(prefix.path(), link)?;
    let mut pkg_config = Command::new("pkg-config");
    pkg_config
        .env("PKG_CONFIG_PATH", prefix.path().join("lib/pkgconfig"))
        .args(["--cflags", "--libs"])
        .args((link == Link::Static).then_some("--static"))
        .arg("xact");
    let flags = output(&mut pkg_config)?;
    let (compiler, standard) = match source.ends_with(".cpp") {
        true => ("g++", "c++17"),
        false => ("gcc", "c99"),
    };
    let program = prefix.path().join("program");
    let mut compile = Command::new(compiler);
    compile
        .arg(format!("-std={standard}"))
        .args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-g", "-O1"])
        .args((under == Under::Sanitizers).then_some("-fsanitize=address,leak,undefined"))
        .arg(file_of(source, prefix.path())?)
        .arg("-o")
        .arg(&program)
        .args(flags.split_whitespace())
        .args(["-lm", "-pthread"]);
    output(&mut compile)?;
    let mut run = match under {
        Under::Valgrind => {
            let mut valgrind = Command::new("valgrind");
            valgrind.args(["--quiet", "--error-exitcode=9"]);
            if source != "fork.c" {
                // No leak checks in forked processes, which have the memory of threads that no longer exist. valgrind reports
                // the C library's memory of sleeping threads as possibly lost.
                valgrind
                    .args(["--leak-check=full", "--show-leak-kinds=definite,indirect"])
                    .args(["--errors-for-leak-kinds=definite,indirect"]);
            }
            valgrind.arg(&program);
            valgrind
        }
        Under::Nothing | Under::Sanitizers => Command::new(&program),
    };
    run.env("LD_LIBRARY_PATH", prefix.path().join("lib"))
        .env("UBSAN_OPTIONS", "halt_on_error=1");
    let said = output(&mut run)?;
    if said.is_empty() {
        return Err("it said nothing".into());
    }
    Ok(())
}

/// The shared library exports exactly the functions that the header declares.
fn exports(_: &str) -> Result<(), Failed> {
    let library = LIBRARY.as_ref().map_err(String::clone)?.join("libxact.so");
    let mut nm = Command::new("nm");
    let table = output(nm.args(["--dynamic", "--defined-only"]).arg(library))?;
    let mut exported: Vec<&str> = table
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    let header = fs::read_to_string(folder().join("include/xact.h"))?;
    // A declaration starts at the beginning of a line, and a parenthesis follows its name.
    let declared = header
        .lines()
        .filter(|line| !line.starts_with([' ', '/', '#', '}']));
    let mut declared: Vec<&str> = declared
        .filter_map(|line| line.split_once('(')?.0.split([' ', '*']).next_back())
        .collect();
    exported.sort_unstable();
    declared.sort_unstable();
    if exported != declared || exported.iter().any(|name| !name.starts_with("xact_")) {
        return Err(format!("exported: {exported:?}\ndeclared: {declared:?}").into());
    }
    Ok(())
}

/// `dlclose` does not unload the library, because its sleeping threads run its code.
fn stays_loaded(_: &str) -> Result<(), Failed> {
    let library = LIBRARY.as_ref().map_err(String::clone)?.join("libxact.so");
    let flags = output(Command::new("readelf").arg("--dynamic").arg(library))?;
    if !flags.contains("NODELETE") {
        return Err(flags.into());
    }
    Ok(())
}
