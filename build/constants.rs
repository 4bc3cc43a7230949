//! Makes a C++ header from the `shared!` blocks in src/activation, the numbers that kernels share with the CPU backend.

use std::fmt::Write as _;
use std::fs;

/// The folder of the blocks.
const FOLDER: &str = "src/activation";

/// The text of the header: a namespace for each file, with a `constexpr` for each constant and a function for each
/// polynomial.
pub fn header() -> Result<String, String> {
    let mut text = String::from("// Generated from src/activation.\n#pragma once\n");
    let folder = fs::read_dir(FOLDER).map_err(|e| format!("{FOLDER}: {e}"))?;
    let mut files: Vec<_> = (folder.map(|file| file.map(|file| file.path())))
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{FOLDER}: {e}"))?;
    files.sort();
    for file in files {
        let source = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        text += &block(&stem, &source).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    Ok(text)
}

/// The namespace of one file; empty if it has no block.
fn block(stem: &str, source: &str) -> Result<String, String> {
    let mut lines = source.lines().skip_while(|line| *line != "shared! {");
    if lines.next().is_none() {
        return Ok(String::new());
    }
    let body = lines
        .take_while(|line| *line != "}")
        .map(str::trim)
        .filter(|line| !line.starts_with("//"));
    let body: String = body.collect::<Vec<_>>().join(" ");
    let mut text = format!("namespace xact::{stem} {{\n");
    for item in body
        .split(';')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        let wrong = || format!("{item}: neither a constant nor a polynomial");
        let (head, values) = item.split_once(':').ok_or_else(wrong)?;
        let (kind, name) = head.split_once(' ').ok_or_else(wrong)?;
        let values = (values.split(',').map(|value| literal(value.trim())))
            .collect::<Result<Vec<_>, _>>()?;
        let _ = match (kind, values.as_slice()) {
            ("constant", [value]) => {
                writeln!(text, "constexpr float {} = {value};", camel(name))
            }
            ("polynomial", [first, rest @ ..]) => {
                let steps: String =
                    (rest.iter().map(|c| format!(" r = fmaf(r, x, {c});"))).collect();
                writeln!(
                    text,
                    "__device__ inline float {name}(float x) {{ float r = {first};{steps} return r; }}"
                )
            }
            _ => return Err(wrong()),
        };
    }
    text += "}\n";
    Ok(text)
}

/// The C++ literal of the same f32.
fn literal(rust: &str) -> Result<String, String> {
    let value: f32 = rust
        .replace('_', "")
        .parse()
        .map_err(|e| format!("{rust}: {e}"))?;
    // The shortest digits that give exactly this f32.
    Ok(format!("{value:e}f"))
}

/// `LOG2E_LO` as `kLog2eLo`.
fn camel(name: &str) -> String {
    let words = name.split('_').map(|word| {
        let (first, rest) = word.split_at(1);
        first.to_owned() + &rest.to_lowercase()
    });
    format!("k{}", words.collect::<String>())
}
