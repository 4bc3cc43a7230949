//! Every row of the table of instructions, against the code that lowers it.

use super::lower;
use crate::arith::approx::hash;
use crate::instructions::{Form, form, forms, without_optional};
use crate::ptx::{parse, type_size};

/// Names per row that are tried, if it has more.
const TRIED: u64 = 600;

/// Some names of a row: all of them, or each choice of each group and others at random.
pub(crate) fn names(form: &Form) -> Vec<String> {
    let choices = |i: usize| form.groups[i].choices.len() + usize::from(form.groups[i].optional);
    let all: u64 = (0..form.groups.len()).map(|i| choices(i) as u64).product();
    (0..all.min(TRIED))
        .map(|n| {
            let mut digits = n;
            let mut name = form.opcode.to_string();
            for (i, group) in form.groups.iter().enumerate() {
                let radix = choices(i) as u64;
                let pick = if all <= TRIED {
                    digits % radix
                } else {
                    hash(n << 8 ^ i as u64) % radix
                };
                digits /= radix;
                for word in group.choices.get(pick as usize).into_iter().flatten() {
                    name.push('.');
                    name.push_str(word);
                }
            }
            name
        })
        // No access is larger than 32 bytes.
        .filter(|name| !(name.contains(".v8.") && name.ends_with("64")))
        .collect()
}

/// Operands for a name, from the letters of its row.
pub(crate) fn operands(name: &str, letters: &str) -> String {
    let words: Vec<&str> = name.split('.').collect();
    let opcode = words[0];
    let types: Vec<&str> = words[1..]
        .iter()
        .copied()
        .filter(|w| type_size(w).is_some())
        .collect();
    let size = |w: Option<&&str>| w.map_or(4, |w| type_size(w).unwrap_or(4).max(2));
    let (to, from) = match (types.as_slice(), opcode) {
        ([to, from], _) => (size(Some(to)), size(Some(from))),
        ([one], "mul" | "mad") if words.contains(&"wide") => (2 * size(Some(one)), size(Some(one))),
        ([one], "popc" | "clz") => (4, size(Some(one))),
        (types, _) => (size(types.first()), size(types.first())),
    };
    let register = |letter: char, size: u8| format!("%{letter}{}", 8 * u32::from(size));
    let vector = words.iter().find_map(|w| match *w {
        "v2" => Some(2),
        "v4" => Some(4),
        "v8" => Some(8),
        _ => None,
    });
    let mut out = String::new();
    for c in letters.chars() {
        match c {
            'd' if let Some(n) = vector => {
                out.push_str(&format!("{{{}}}", vec![register('d', to); n].join(",")));
            }
            'd' => out.push_str(&register('d', to)),
            // c of mad.wide is as wide as the result.
            'c' if matches!(opcode, "mad" | "fma") => out.push_str(&register('a', to)),
            'a' if out.ends_with('[') => out.push_str("%a64"),
            'a' | 'b' | 'c' => out.push_str(&register('a', from)),
            'n' | 'm' => out.push_str("%a32"),
            'p' | 'q' => out.push_str("%p1"),
            'L' => out.push_str("LABEL"),
            'T' => out.push_str("TABLE"),
            '\\' => {}
            c => out.push(c),
        }
    }
    out
}

#[test]
fn the_code_takes_every_row() {
    let mut count = 0;
    for form in forms() {
        let mut body = String::new();
        let mut lines = Vec::new();
        for name in names(form) {
            let everything = form.operands.replace(['{', '}'], "");
            let mut shapes = vec![without_optional(form.operands), everything];
            if form.operands.contains("{, q}") {
                let combines = [".and.", ".or.", ".xor."].iter().any(|c| name.contains(c));
                // The fourth operand is there if, and only if, the name combines.
                shapes.remove(usize::from(!combines));
                if !combines {
                    shapes.push("p\\|q, a, b".into());
                }
            }
            for shape in shapes {
                let instruction = format!("{name} {};", operands(&name, &shape));
                body.push_str(&format!("{instruction}\n"));
                lines.push(instruction);
            }
        }
        assert!(!lines.is_empty(), "{}", form.opcode);
        count += lines.len();
        let text = format!(
            ".version 9.0 .target sm_90 .address_size 64 .visible .entry k() {{ .reg .pred %p1; .reg .b16 %a16, %d16; \
             .reg .b32 %a32, %d32; .reg .b64 %a64, %d64; TABLE: .branchtargets LABEL; LABEL:\n{body}}}"
        );
        let module = parse(&text).unwrap_or_else(|e| panic!("{e}: {}", lines[e.line as usize - 2]));
        if let Err(e) = lower(&module, &module.entries[0]) {
            panic!("{e}: {}", lines[e.line as usize - 2]);
        }
    }
    assert!(count > 10_000, "{count}");
}

/// One name, one row: the table says everything once.
#[test]
fn no_name_is_of_two_rows() {
    for of in forms() {
        for name in names(of) {
            let words: Vec<&str> = name.split('.').skip(1).collect();
            let found = form(of.opcode, &words).expect("it is in the table");
            assert!(std::ptr::eq(found, of), "{name}");
        }
    }
}

/// Which instructions keep the blocks of a launch from running at once.
#[test]
fn blocks_depend_on_each_other() {
    let independent = |instruction: &str| {
        let text = format!(
            ".version 8.1 .target sm_90 .address_size 64
            .visible .entry k() {{ .reg .b32 %r<9>; .reg .b64 %rd<9>; .shared .b32 s;
            ld.global.u32 %r1, [%rd1]; st.global.u32 [%rd1], %r1; ld.global.nc.u32 %r1, [%rd1]; bar.sync 0;
            {instruction} }}"
        );
        let module = parse(&text).expect("it is PTX");
        let code = lower(&module, &module.entries[0]);
        code.unwrap_or_else(|e| panic!("{e}: {instruction}"))
            .independent
    };
    for yes in [
        "",
        "atom.shared.add.u32 %r1, [s], 1;",
        "ld.volatile.shared.u32 %r1, [s];",
        "barrier.cluster.arrive.release; barrier.cluster.wait.acquire;",
        "fence.mbarrier_init.release.cluster;",
    ] {
        assert!(independent(yes), "{yes}");
    }
    for no in [
        "membar.gl;",
        "fence.acq_rel.gpu;",
        "red.global.add.u32 [%rd1], 1;",
        "atom.add.u32 %r1, [%rd1], 1;",
        "atom.acq_rel.shared.add.u32 %r1, [s], 1;",
        "ld.volatile.u32 %r1, [%rd1];",
        "ld.acquire.gpu.global.u32 %r1, [%rd1];",
        "ld.relaxed.gpu.global.u32 %r1, [%rd1];",
        "st.release.gpu.global.u32 [%rd1], %r1;",
        "st.volatile.global.u32 [%rd1], %r1;",
    ] {
        assert!(!independent(no), "{no}");
    }
}

/// What the table does not hold is refused with its text and line, wherever the difference is.
#[test]
fn anything_else_is_refused_by_name() {
    let refused = |instruction: &str| {
        let text = format!(
            ".version 7.0 .target sm_80 .address_size 64\n.visible .entry k() {{ .reg .b32 %r<9>; .reg .f32 %f<9>;\n\n{instruction}\nret; }}"
        );
        let module = parse(&text).expect("it is PTX");
        lower(&module, &module.entries[0])
            .err()
            .map(|e| e.to_string())
    };
    for instruction in [
        "wmma.load.a.sync %r1, %r2;",
        "add.f32.rn %f1, %f2, %f3;",
        "add.sat.ftz.f32 %f1, %f2, %f3;",
        "add.rn.rn.f32 %f1, %f2, %f3;",
        "add.sat.u32 %r1, %r2, %r3;",
        "fma.f32 %f1, %f2, %f3, %f4;",
        "div.f32 %f1, %f2, %f3;",
        "tanh.approx.ftz.f32 %f1, %f2;",
        "cvt.f16.f32 %r1, %f2;",
        "ld.nc.u32 %r1, [%r2];",
        "st.const.u32 [%r1], %r2;",
        "shfl.bfly.b32 %r1, %r2, 1, 31;",
        "cvt.sat.f64.f32 %r1, %f1;",
        "add %r1, %r2, %r3;",
    ] {
        let name = instruction.split(' ').next().expect("a name");
        let message = refused(instruction).unwrap_or_else(|| panic!("{instruction} is taken"));
        assert!(
            message.starts_with("ptx line 4: ") && message.contains(&format!("`{name}`")),
            "{message}"
        );
    }
    // The right name with too many, too few or the wrong operands.
    for instruction in [
        "add.s32 %r1, %r2;",
        "add.s32 %r1, %r2, %r3, %r4;",
        "ret %r1;",
        "bar.sync;",
        "bar.sync 0, 32, 1;",
        "mov.b32 {%r1, %r2, %r3}, %r4;",
        "mov.b32 {%r1}, %r2;",
        "and.pred %r1, %r2, %r3;",
        "st.global.u32 %r1, %r2;",
        "bra %r1;",
        "setp.lt.and.f32 %r1, %f1, %f2;",
    ] {
        let name = instruction.split([' ', ';']).next().expect("a name");
        let message = refused(instruction).unwrap_or_else(|| panic!("{instruction} is taken"));
        assert!(message.contains(&format!("`{name}`")), "{message}");
    }
    assert_eq!(refused("add.s32 %r1, %r2, %r3;"), None);
}
