//! Builds the shim: a `libcuda.so` whose functions jump to addresses in a table.
//!
//! The functions are those of `src/driver`, found by their `pub unsafe extern "C" fn cu…` lines, so
//! that there is no second list to keep.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=src/driver");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(shim)");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let calls = driver_calls(Path::new("src/driver"));

    let mut table = String::from("[\n");
    for (module, name) in &calls {
        writeln!(table, "    crate::driver::{module}::{name} as *const (),")
            .expect("a string takes all");
    }
    table.push(']');
    fs::write(out.join("table.rs"), table).expect("OUT_DIR is writable");

    let var = |name: &str| env::var(name).unwrap_or_default();
    let jump = match (
        var("CARGO_CFG_TARGET_OS").as_str(),
        var("CARGO_CFG_TARGET_ARCH").as_str(),
    ) {
        ("linux", "x86_64") => "jmp qword ptr [rip + {table} + 8 * {index}]",
        ("linux", "aarch64") => {
            "adrp x16, {table}\", \"add x16, x16, :lo12:{table}\", \"ldr x16, [x16, 8 * {index}]\", \"br x16"
        }
        _ => return,
    };
    let shim = out.join("libcuda.so");
    build_shim(&calls, jump, &out.join("shim.rs"), &shim);
    println!("cargo::rustc-env=CUDA_EMULATOR_SHIM={}", shim.display());
    println!("cargo::rustc-cfg=shim");
}

/// Modules and names of the driver calls.
fn driver_calls(folder: &Path) -> Vec<(String, String)> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .expect("src/driver exists")
        .map(|e| e.expect("readable").path())
        .collect();
    files.sort();
    let mut calls = Vec::new();
    for file in files {
        let module = file
            .file_stem()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        for line in fs::read_to_string(&file).expect("readable").lines() {
            if let Some(rest) = line.strip_prefix("pub unsafe extern \"C\" fn ") {
                let name = rest.split(['(', '<']).next().unwrap_or(rest);
                calls.push((module.clone(), name.to_string()));
            }
        }
    }
    calls
}

fn build_shim(calls: &[(String, String)], jump: &str, source: &Path, shim: &Path) {
    let n = calls.len();
    let mut text = format!(
        "#![no_std]\n#![allow(non_snake_case)]\n\
         static mut TABLE: [usize; {n}] = [0; {n}];\n\
         #[panic_handler]\nfn panic(_: &core::panic::PanicInfo) -> ! {{ loop {{}} }}\n\
         #[unsafe(no_mangle)]\npub extern \"C\" fn cuda_emulator_table() -> *mut usize {{ &raw mut TABLE as *mut usize }}\n"
    );
    for (i, (_, name)) in calls.iter().enumerate() {
        let jump = jump.replace("{index}", &i.to_string());
        writeln!(
            text,
            "#[unsafe(no_mangle)]\n#[unsafe(naked)]\n\
             pub extern \"C\" fn {name}() {{ core::arch::naked_asm!(\"{jump}\", table = sym TABLE) }}"
        )
        .expect("a string takes all");
    }
    fs::write(source, text).expect("OUT_DIR is writable");
    let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"));
    rustc.args([
        "--edition=2024",
        "--crate-name=cuda",
        "--crate-type=cdylib",
        "-Cpanic=abort",
        "-Copt-level=1",
    ]);
    rustc.args(["-Clink-arg=-Wl,-soname,libcuda.so", "-Cstrip=none"]);
    rustc
        .arg("--target")
        .arg(env::var("TARGET").expect("cargo sets TARGET"));
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut arg = std::ffi::OsString::from("-Clinker=");
        arg.push(linker);
        rustc.arg(arg);
    }
    let status = rustc
        .arg("-o")
        .arg(shim)
        .arg(source)
        .status()
        .expect("rustc runs");
    assert!(
        status.success(),
        "the shim does not compile: {}",
        source.display()
    );
}
