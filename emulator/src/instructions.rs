#![doc = include_str!("instructions.md")]

// The table above is the only list: this module reads it, and the emulator refuses what it does not hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// One row of the table.
pub(crate) struct Form {
    pub opcode: &'static str,
    /// What follows the opcode.
    pub groups: Vec<Group>,
    /// As written.
    pub operands: &'static str,
    /// How many operands there are at least, and at most.
    pub count: (usize, usize),
}

/// A place in the name of an instruction.
pub(crate) struct Group {
    /// It may be left out.
    pub optional: bool,
    /// What may stand there: modifiers, one or two at a time.
    pub choices: Vec<Vec<&'static str>>,
}

static TABLE: LazyLock<BTreeMap<&'static str, Vec<Form>>> = LazyLock::new(|| {
    let mut table: BTreeMap<_, Vec<Form>> = BTreeMap::new();
    for row in include_str!("instructions.md").lines() {
        if let Some(row) = row.strip_prefix("| `") {
            let form = Form::parse(row);
            table.entry(form.opcode).or_default().push(form);
        }
    }
    table
});

impl Form {
    /// Reads a row from behind its first backtick.
    fn parse(row: &'static str) -> Form {
        let (name, rest) = row.split_once("` |").expect("a row has cells");
        let operands = match rest.trim_start().strip_prefix('`') {
            Some(rest) => rest.split_once('`').expect("a closing backtick").0,
            None => "",
        };
        let end = name.find(['.', '{', '(']).unwrap_or(name.len());
        let (opcode, mut rest) = name.split_at(end);
        let mut groups = Vec::new();
        while !rest.is_empty() {
            let close = match rest.as_bytes()[0] {
                b'(' => ')',
                b'{' => '}',
                _ => {
                    let end = rest[1..]
                        .find(['.', '{', '('])
                        .map_or(rest.len(), |i| i + 1);
                    let (word, after) = rest.split_at(end);
                    groups.push(Group {
                        optional: false,
                        choices: vec![vec![&word[1..]]],
                    });
                    rest = after;
                    continue;
                }
            };
            let (inside, after) = rest[1..].split_once(close).expect("a closing bracket");
            groups.push(Group {
                optional: close == '}',
                choices: inside
                    .split(',')
                    .map(|c| c[1..].split('.').collect())
                    .collect(),
            });
            rest = after;
        }
        let commas = |s: &str| s.matches(',').count();
        let required = without_optional(operands);
        let least = usize::from(!operands.is_empty());
        Form {
            opcode,
            groups,
            operands,
            count: (least + commas(&required) * least, least + commas(operands)),
        }
    }

    /// Whether the modifiers are those of this row.
    fn takes<S: AsRef<str>>(&self, modifiers: &[S]) -> bool {
        fn fits<S: AsRef<str>>(groups: &[Group], left: &[S]) -> bool {
            let Some((group, rest)) = groups.split_first() else {
                return left.is_empty();
            };
            let begins = |c: &[&str]| {
                c.len() <= left.len() && c.iter().zip(left).all(|(c, l)| *c == l.as_ref())
            };
            let mut choices = group.choices.iter();
            choices.any(|c| begins(c) && fits(rest, &left[c.len()..]))
                || group.optional && fits(rest, left)
        }
        fits(&self.groups, modifiers)
    }
}

/// A list of operands without those in braces.
pub(crate) fn without_optional(operands: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in operands.chars() {
        match c {
            '{' => inside = true,
            '}' => inside = false,
            c if !inside => out.push(c),
            _ => {}
        }
    }
    out
}

/// The row of an instruction.
pub(crate) fn form<S: AsRef<str>>(opcode: &str, modifiers: &[S]) -> Option<&'static Form> {
    TABLE.get(opcode)?.iter().find(|f| f.takes(modifiers))
}

/// Whether the emulator executes an instruction, named with its modifiers.
///
/// ```
/// use cuda_emulator::instructions::is_supported;
/// assert!(is_supported("ld.global.v4.b32"));
/// assert!(!is_supported("wmma.load.a.sync"));
/// ```
pub fn is_supported(name: &str) -> bool {
    let mut words = name.split('.');
    let opcode = words.next().unwrap_or_default();
    form(opcode, &words.collect::<Vec<_>>()).is_some()
}

/// All opcodes, without modifiers.
pub fn opcodes() -> BTreeSet<&'static str> {
    TABLE.keys().copied().collect()
}

#[cfg(test)]
pub(crate) fn forms() -> impl Iterator<Item = &'static Form> {
    TABLE.values().flatten()
}
