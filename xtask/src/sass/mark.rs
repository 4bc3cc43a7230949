//! Reads the marks by which kernels name their loops: comments `// xact loop NAME SUMS Y` in the PTX (`XACT_MARK` in
//! `kernels/common/map.cuh`), each before the loads of one loop. ptxas says for each machine instruction from which line of
//! the PTX it comes, so a mark finds its loop.

use anyhow::{Context, bail};

/// What a mark says about its loop.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    /// The name of the functor; empty if the op has only one.
    pub functor: String,
    /// The number of parameter gradients that are summed.
    pub sums: u32,
    /// Whether y is written too.
    pub with_y: bool,
}

impl Label {
    /// The label behind the name of its entry.
    pub fn suffix(&self) -> String {
        let functor = if self.functor.is_empty() { "" } else { " " };
        let y = if self.with_y { " y" } else { "" };
        format!("{functor}{}{y}", self.functor)
    }
}

/// A mark.
#[derive(Debug, PartialEq, Eq)]
pub struct Mark {
    /// The entry that contains it.
    pub entry: String,
    /// The line of the first vector load after it, counted from 1.
    pub load: u32,
    /// What it says.
    pub label: Label,
}

const PREFIX: &str = "// xact loop ";

/// The marks of a PTX text.
///
/// # Errors
/// A mark is unknown, or no load follows it.
pub fn marks(ptx: &str) -> anyhow::Result<Vec<Mark>> {
    let lines: Vec<&str> = ptx.lines().map(str::trim).collect();
    let (mut entry, mut marks) = ("", Vec::new());
    for (index, line) in lines.iter().enumerate() {
        if let Some((_, name)) = line.split_once(".entry ") {
            entry = name.trim_end_matches('(');
        }
        let Some(text) = line.strip_prefix(PREFIX) else {
            continue;
        };
        let label = label(text).with_context(|| format!("{entry}: {line}"))?;
        let is_load = |line: &&str| line.starts_with("ld.global.v4");
        let load = lines[index..].iter().position(is_load);
        let load = load.with_context(|| format!("{entry}: no load follows {line}"))?;
        marks.push(Mark {
            entry: entry.to_owned(),
            load: u32::try_from(index + load + 1)?,
            label,
        });
    }
    Ok(marks)
}

fn label(text: &str) -> anyhow::Result<Label> {
    let numbers = text.split(' ').map(str::parse::<u64>);
    let numbers: Vec<u64> = numbers.collect::<Result<_, _>>()?;
    let &[name, sums, with_y @ (0 | 1)] = numbers.as_slice() else {
        bail!("not a name, a number of sums, and 0 or 1");
    };
    // The characters are the bytes of the number, the first the highest.
    let bytes = name.to_be_bytes();
    let name = std::str::from_utf8(&bytes)?.trim_start_matches('\0');
    Ok(Label {
        functor: name.to_owned(),
        sums: sums.try_into()?,
        with_y: with_y == 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = "\
        .visible .entry a_forward_f32(\n\
        // begin inline asm\n\
        \t// xact loop 0 0 0\n\
        // end inline asm\n\
        \tld.param.u64 %rd1, [x];\n\
        \tld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];\n\
        \tld.global.v4.b32 {%r5, %r6, %r7, %r8}, [%rd2];\n\
        .visible .entry a_backward_f32(\n\
        \t// xact loop 444234804588 2 1\n\
        \tld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];\n";

    #[test]
    fn a_mark_names_the_load_after_it() {
        let found = marks(PTX).expect("readable");
        let mark = |entry: &str, load, functor: &str, sums, with_y| Mark {
            entry: entry.to_owned(),
            load,
            label: Label {
                functor: functor.to_owned(),
                sums,
                with_y,
            },
        };
        assert_eq!(
            found,
            [
                mark("a_forward_f32", 6, "", 0, false),
                mark("a_backward_f32", 10, "gnu-l", 2, true),
            ]
        );
    }

    #[test]
    fn a_mark_that_is_not_understood_is_an_error() {
        for (change, why) in [
            (PTX.replace("0 0 0", "0 0 2"), "a_forward_f32"),
            (PTX.replace("0 0 0", "0 0"), "not a name"),
            (PTX.replace("0 0 0", "x 0 0"), "invalid digit"),
            (PTX.replace("ld.global.v4", "ld.global.v2"), "no load"),
        ] {
            let error = format!("{:#}", marks(&change).expect_err(why));
            assert!(error.contains(why), "{error}");
        }
    }
}
