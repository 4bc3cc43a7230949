//! Tests with malformed and hostile PTX. The emulator may refuse it or stop with a finding. It must never crash, hang, or
//! allocate without bound.
//!
//! Inputs follow from their number alone. Some are programs made from the table of instructions, with operands
//! that mostly fit; some are those with tokens cut, doubled and exchanged; some are nonsense.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::arith::approx::hash;
use crate::driver::{launch, module};
use crate::instructions::{forms, without_optional};
use crate::memory::{self, Buffer};
use crate::settings::{Approx, Schedule, Settings};
use crate::{exec, lower};

/// Inputs of the ordinary test.
const FEW: u64 = 6_000;

/// Random numbers of one input.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash(self.0)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "2",
    "3",
    "4",
    "7",
    "8",
    "15",
    "16",
    "31",
    "32",
    "33",
    "63",
    "64",
    "255",
    "0xffff",
    "0x7fffffff",
    "0x80000000",
    "4294967295",
    "1000000",
    "0x7fffffffffffffff",
    "0x8000000000000000",
    "0xffffffffffffffff",
];

/// Operands and names of a row of the table of instructions.
type Row = (&'static str, Vec<String>);

/// A program from the table of instructions.
fn program(r: &mut Random, table: &[Row]) -> String {
    let mut text = String::from(
        ".version 7.0\n.target sm_80\n.address_size 64\n.global .align 8 .b8 g[64];\n.const .align 8 .u64 c[2] = {g, 5};\n\
         .visible .entry k(.param .u64 p, .param .u32 n)\n{\n.reg .pred %p<4>; .reg .b16 %a16, %b16, %c16, %d16;\n\
         .reg .b32 %a32, %b32, %c32, %d32; .reg .b64 %a64, %b64, %c64, %d64, %x64;\n\
         .shared .align 16 .b8 s[256]; .local .align 16 .b8 l[64];\n\
         ld.param.u64 %x64, [p]; mov.u32 %a32, %tid.x; shl.b32 %b32, %a32, 2; mov.u32 %c32, s; add.u32 %b32, %b32, %c32;\n\
         st.shared.u32 [%b32], %c32; bar.sync 0; mov.u32 %b32, %laneid; mov.u32 %c32, 3; mov.u32 %d32, 1;\n\
         mov.u64 %a64, %x64; mov.u64 %b64, g; mov.u64 %c64, 7; mov.u64 %d64, 0x3ff0000000000000;\n\
         mov.b16 %a16, 1; mov.b16 %b16, 0x3c00; mov.b16 %c16, 0x7fff; mov.b16 %d16, 2;\n\
         setp.lt.u32 %p0, %a32, 20; setp.ne.u32 %p1, %b32, 0; setp.eq.u32 %p2, %a32, %a32; mov.pred %p3, %p1;\n\
         st.local.u64 [l], %x64;\nTABLE: .branchtargets L0, L1, L2;\n",
    );
    let n = 1 + r.below(16);
    let labels = [0, 1, 2].map(|_| r.below(n));
    for i in 0..n {
        for (k, _) in labels.iter().enumerate().filter(|(_, at)| **at == i) {
            writeln!(text, "L{k}:").expect("a string takes all");
        }
        if r.one_in(4) {
            let not = ["", "!"][r.below(2)];
            write!(text, "@{not}%p{} ", r.below(4)).expect("a string takes all");
        }
        let (letters, names) = r.of(table);
        let name = r.of(names);
        writeln!(text, "{name} {};", operands(r, name, letters)).expect("a string takes all");
    }
    text.push_str("ret;\n}\n");
    text
}

/// Operands that mostly fit an instruction.
fn operands(r: &mut Random, name: &str, letters: &str) -> String {
    let combines = [".and.", ".or.", ".xor."].iter().any(|c| name.contains(c));
    let shape = if r.one_in(2) && !combines {
        without_optional(letters)
    } else {
        letters.replace(['{', '}'], "")
    };
    let mut depth = 0;
    let fitting = lower::tests::operands(name, &shape);
    let list = fitting.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    let mut out = Vec::new();
    for (i, o) in list.map(str::trim).enumerate() {
        out.push(if o.starts_with('[') {
            let base = match name {
                n if n.contains(".shared") => "s",
                n if n.contains(".local") => "l",
                n if n.contains(".param") => "p",
                n if n.contains(".const") => "c",
                n if n.contains(".global") => *r.of(&["%x64", "%x64", "%b64", "g"]),
                _ => *r.of(&["%x64", "%x64", "%b64", "%a64"]),
            };
            let offset = match r.below(12) {
                0 => r.of(NUMBERS).to_string(),
                1 => (r.next() % 5000).to_string(),
                _ => (r.next() % 2 * 32).to_string(),
            };
            format!("[{base}+{offset}]")
        } else if o == "%a32" && i > 0 && r.one_in(2) {
            // Masks, amounts and lanes.
            r.of(&["-1", "0", "16", "1", "31", "%d32", "%c32"])
                .to_string()
        } else if o == "LABEL" {
            r.of(&["L0", "L1", "L2"]).to_string()
        } else if i > 0 && o.starts_with('%') && !o.starts_with("%p") && r.one_in(12) {
            r.of(NUMBERS).to_string()
        } else if r.one_in(300) {
            r.of(&["_", "s", "%tid.x", "{%a16, %b16}", "0f3F800000", "!%p1"])
                .to_string()
        } else if let Some(size) = o.strip_prefix("%a") {
            // A register of the same size.
            format!("%{}{size}", r.of(&["a", "b", "c", "d"]))
        } else {
            o.to_string()
        });
    }
    if name.starts_with("setp") && !combines {
        out.truncate(3);
    }
    out.join(", ")
}

/// Pieces of a text: words with their dots and percent signs, and single characters.
fn tokens(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '%' | '.' | '$');
        let end = match word(c) {
            true => rest.find(|c| !word(c)).unwrap_or(rest.len()),
            false => c.len_utf8(),
        };
        out.push(&rest[..end]);
        rest = &rest[end..];
    }
    out
}

/// A text with a few tokens changed.
fn mutate(r: &mut Random, text: &str, table: &[Row]) -> String {
    const WORDS: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ",",
        ";",
        ":",
        "@",
        "!",
        "|",
        "=",
        "<",
        ">",
        "+",
        "-",
        "_",
        "/*",
        "\"",
        "\n",
        "\0",
        "é",
        ".reg",
        ".shared",
        ".local",
        ".global",
        ".param",
        ".align",
        ".entry",
        ".loc",
        ".file",
        ".section",
        ".pragma",
        ".b8",
        ".f64",
        ".maxntid",
        ".reqntid",
        ".extern",
        "0f7FC00000",
    ];
    let mut pieces: Vec<String> = tokens(text).into_iter().map(String::from).collect();
    for _ in 0..=r.below(4) {
        let at = r.below(pieces.len());
        if at >= pieces.len() {
            break;
        }
        let piece = &mut pieces[at];
        match r.below(7) {
            0 => piece.clear(),
            1 => *piece = r.of(WORDS).to_string(),
            2 => *piece = r.of(NUMBERS).to_string(),
            3 => {
                let (_, names) = r.of(table);
                *piece = r.of(names).clone();
            }
            4 => {
                let other = pieces[r.below(pieces.len())].clone();
                pieces[at] = other;
            }
            5 => {
                // Numbers are what hostile declarations are made of.
                if let Some(n) = (at..pieces.len())
                    .find(|&i| pieces[i].starts_with(|c: char| c.is_ascii_digit()))
                {
                    pieces[n] = r.of(NUMBERS).to_string();
                }
            }
            _ => {
                let n = r.below(20);
                let part: Vec<String> = pieces[at..].iter().take(n).cloned().collect();
                let copies = 1 + r.below(3);
                for _ in 0..copies {
                    pieces.splice(at..at, part.iter().cloned());
                }
            }
        }
    }
    pieces.concat()
}

/// The text of input `number`.
fn input(number: u64, table: &[Row]) -> String {
    let r = &mut Random(hash(number));
    let text = program(r, table);
    match number % 8 {
        0..4 => text,
        4..7 => mutate(r, &text, table),
        _ => {
            // Pieces of a program in any order, behind a good header or not.
            let pieces = tokens(&text);
            let mut soup = String::from(
                [
                    "",
                    ".version 7.0 .target sm_80 .address_size 64 .visible .entry k(.param .u64 p) {",
                ][r.below(2)],
            );
            for _ in 0..r.below(60) {
                soup.push_str(pieces[r.below(pieces.len())]);
                soup.push_str(["", " "][r.below(2)]);
            }
            soup
        }
    }
}

/// What became of the inputs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    refused: u64,
    stopped: u64,
    ended: u64,
}

/// Loads a text and runs its entries.
fn run(text: &str, number: u64, buffer: &Buffer, outcome: &mut Outcome) {
    let Ok(module) = module::load(text, 0) else {
        outcome.refused += 1;
        return;
    };
    for name in module.entries() {
        let f = module
            .function(std::ptr::null_mut(), &name)
            .expect("it is one of its names");
        // A whole warp, and one of which a part is there; alone or as a cluster.
        let (grid, block, cluster) = ((2, 1, 1), (48, 1, 1), 1 + number as u32 / 4 % 2);
        if launch::limits(&f, grid, block, cluster, 0).is_some() {
            outcome.refused += 1;
            continue;
        }
        let mut params = vec![0; f.code.param_bytes as usize];
        let address = buffer.base.to_le_bytes();
        let n = params.len().min(8);
        params[..n].copy_from_slice(&address[..n]);
        let settings = Settings {
            schedule: [
                Schedule::InOrder,
                Schedule::Reversed,
                Schedule::Seeded(number),
            ][number as usize / 8 % 3],
            approx: Approx::Seeded(number),
            instruction_budget: 2000,
            workers: NonZeroUsize::new(1 + number as usize / 32 % 2),
        };
        let (report, _) = exec::run(&f.request(grid, block, cluster, 0, params), settings, true);
        match report.finding {
            Some(finding) => {
                assert!(!finding.to_string().is_empty());
                outcome.stopped += 1;
            }
            None => outcome.ended += 1,
        }
    }
}

fn fuzz(numbers: impl Iterator<Item = u64>) -> Outcome {
    let table: Vec<Row> = forms()
        .map(|f| (f.operands, lower::tests::names(f)))
        .collect();
    let buffer = memory::allocate(0, 4096, None, false);
    buffer.fill(0, 4096, 0);
    let mut outcome = Outcome::default();
    for number in numbers {
        let text = input(number, &table);
        let start = std::time::Instant::now();
        let one = catch_unwind(AssertUnwindSafe(|| {
            run(&text, number, &buffer, &mut outcome);
        }));
        assert!(one.is_ok(), "input {number} panics:\n{text}");
        assert!(
            start.elapsed().as_secs() < 10,
            "input {number} takes {:?}:\n{text}",
            start.elapsed()
        );
    }
    memory::free(buffer.base);
    outcome
}

#[test]
fn a_few_thousand_inputs() {
    let outcome = fuzz(0..FEW);
    // All three ways are tried.
    let least = outcome.refused.min(outcome.stopped).min(outcome.ended);
    assert!(least > FEW / 50, "{outcome:?}");
}

/// By hand: `cargo test --release -p cuda-emulator --lib -- --ignored million`.
#[test]
#[ignore = "minutes"]
fn a_million_inputs() {
    println!("{:?}", fuzz(FEW..FEW + 1_000_000));
}

/// Texts that once did harm, or that are made to.
#[test]
fn hostile_texts() {
    const HEAD: &str = ".version 7.0 .target sm_80 .address_size 64 ";
    let entry = |body: &str| format!("{HEAD} .visible .entry k(.param .u64 p) {{ {body} }}");
    let texts = [
        String::new(),
        "\0".into(),
        HEAD.into(),
        format!("{HEAD} .visible .entry"),
        entry(".reg .b32 %r<4294967295>; ret;"),
        entry(".reg .b32 %r<18446744073709551615>; ret;"),
        entry(&format!("mov.b32 %r1, {};", "{".repeat(1_000_000))),
        entry(&format!("mov.b32 %r1, {};", "[".repeat(1_000_000))),
        entry(&format!("mov.b32 %r1, {};", "!".repeat(1_000_000))),
        entry(&format!("mov.b32 %r1, {};", "-".repeat(1_000_000))),
        entry(&"{".repeat(1_000_000)),
        format!("{HEAD} .global .u32 x[4] = {};", "{".repeat(1_000_000)),
        format!("{HEAD} .global .b8 x[18446744073709551615];"),
        format!("{HEAD} .global .b64 x[4294967296][4294967296];"),
        format!("{HEAD} .global .align 9223372036854775808 .b8 x[1];"),
        format!("{HEAD} .global .b8 x[8589934592];"),
        format!("{HEAD} .global .u64 x = nothing;"),
        entry(".local .b8 x[68719476736]; ret;"),
        entry(".shared .b8 x[68719476736]; ret;"),
        entry(".shared .align 4096 .b8 x[1]; .shared .align 4096 .b8 y[49000]; ret;"),
        entry("bar.sync 0, 0; ret;"),
        entry("bar.sync 99; ret;"),
        entry("L: bar.arrive 0, 4294967295; bra L;"),
        entry(".reg .b64 %r<3>; ld.param.u64 %r1, [p+9223372036854775807]; ret;"),
        entry(".reg .b64 %r<3>; ld.param.u64 %r1, [p+18446744073709551615]; ret;"),
        entry(".reg .b64 %r<3>; ld.param.u64 %r1, [p+-9223372036854775808]; ret;"),
        entry("and.pred; ret;"),
        entry("mov.b32; ret;"),
        entry("shfl.sync.bfly.b32; ret;"),
        entry(&format!(
            ".reg .b32 %r<3>; mov.b32 %r1, {{{}}};",
            "%r1,".repeat(256)
        )),
        format!("{HEAD} .visible .entry k() .maxntid 0, 0, 0 {{ ret; }}"),
        format!(
            "{HEAD} .visible .entry k() .maxntid 4294967295, 4294967295, 4294967295 {{ ret; }}"
        ),
        format!("{HEAD} .visible .entry k() {{ ret; }} .visible .entry k() {{ ret; }}"),
        format!(
            "{HEAD} .visible .entry k(.param .align 8 .b8 p[68719476736], .param .b8 q[68719476736]) {{ ret; }}"
        ),
    ];
    let buffer = memory::allocate(0, 64, None, false);
    for (i, text) in texts.iter().enumerate() {
        let start = std::time::Instant::now();
        run(text, i as u64, &buffer, &mut Outcome::default());
        assert!(start.elapsed().as_secs() < 10, "{:.100}", text);
    }
    memory::free(buffer.base);
}
