//! Reads a listing of `nvdisasm -c`: the instructions of each function, and the successors of each instruction.
//!
//! Anything unknown in the listing is an error, because a control-flow graph with a wrong edge would silently give wrong
//! figures.

use std::collections::HashMap;
use std::fmt;

use anyhow::{Context, bail};

/// A machine instruction.
#[derive(Debug)]
pub struct Instruction {
    /// Byte offset in the function, as the listing prints it.
    pub address: u64,
    /// The guarding predicate, `@!P0` without the `@`; empty if there is none.
    pub guard: Option<String>,
    /// The operation with its modifiers: `LDG.E.128`.
    pub opcode: String,
    /// The operands as printed.
    pub operands: Vec<String>,
    /// The indices of the instructions that may execute next.
    pub next: Vec<usize>,
    /// The line of the PTX that it comes from, counted from 1; 0 if the listing does not say.
    pub line: u32,
}

impl Instruction {
    /// The operation without its modifiers.
    pub fn base(&self) -> &str {
        self.opcode.split('.').next().unwrap_or_default()
    }

    /// Whether one of the modifiers is `name`.
    pub fn is(&self, name: &str) -> bool {
        self.opcode.split('.').skip(1).any(|part| part == name)
    }

    /// Whether the instruction calls a subroutine, whose costs are not on the path.
    pub fn is_call(&self) -> bool {
        self.base() == "CALL" && !self.is_call_within()
    }

    /// Whether it is a `CALL` of a label inside the function that never returns. ptxas leaves loops in this way.
    fn is_call_within(&self) -> bool {
        let target = self.operands.last();
        self.base() == "CALL" && target.is_some_and(|target| target.starts_with("`(.L"))
    }
}

/// Prints the instruction as in the listing, without the column widths.
impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}  ", self.address)?;
        if let Some(guard) = &self.guard {
            write!(f, "@{guard} ")?;
        }
        write!(f, "{} {}", self.opcode, self.operands.join(", "))
    }
}

/// The code of a kernel.
#[derive(Debug)]
pub struct Function {
    /// The name of the entry.
    pub name: String,
    /// The instructions in the order of addresses.
    pub code: Vec<Instruction>,
}

/// Reads the functions of a listing.
///
/// # Errors
/// A line or a jump is unknown.
pub fn parse(text: &str) -> anyhow::Result<Vec<Function>> {
    let mut functions = Vec::new();
    let mut reader: Option<Reader> = None;
    for line in text.lines() {
        if let Some(name) = section(line) {
            if let Some(reader) = reader.take() {
                functions.push(reader.finish()?);
            }
            reader = Some(Reader {
                name: name.to_owned(),
                ..Reader::default()
            });
        } else if let Some(reader) = &mut reader {
            reader
                .line(line)
                .with_context(|| format!("{}: {}", reader.name, line.trim()))?;
        }
    }
    if let Some(reader) = reader {
        functions.push(reader.finish()?);
    }
    Ok(functions)
}

/// The name of the kernel whose code starts at this line, `.text.NAME:`.
fn section(line: &str) -> Option<&str> {
    line.strip_prefix(".text.")?.strip_suffix(':')
}

/// A function being read.
#[derive(Default)]
struct Reader {
    name: String,
    code: Vec<Instruction>,
    /// The index of the instruction after each label.
    labels: HashMap<String, usize>,
    /// The labels that each indirect jump may go to.
    indirect: HashMap<usize, Vec<String>>,
    /// The line of the PTX that the next instruction comes from.
    source: u32,
}

/// What nvdisasm prints before the instructions of a line of the PTX, which ptxas stores in a section of this name.
const SOURCE: &str = "//## File \".nv_debug_ptx_txt\", line ";

impl Reader {
    fn line(&mut self, line: &str) -> anyhow::Result<()> {
        if let Some(number) = line.trim_start().strip_prefix(SOURCE) {
            self.source = number.trim_end().parse().context("no line number")?;
            return Ok(());
        }
        if let Some(label) = line.strip_suffix(':')
            && !line.starts_with(char::is_whitespace)
        {
            self.labels.insert(label.to_owned(), self.code.len());
            return Ok(());
        }
        let Some((address, rest)) = line
            .trim_start()
            .strip_prefix("/*")
            .and_then(|rest| rest.split_once("*/"))
        else {
            return Ok(());
        };
        let address = u64::from_str_radix(address, 16).context("no address")?;
        let text = rest.trim();
        let text = text.strip_suffix(';').context("no semicolon")?.trim_end();
        // nvdisasm lists the targets of an indirect jump in a comment.
        let text = match text.split_once("(*") {
            None => text,
            Some((text, note)) => {
                let targets = note
                    .strip_prefix("\"BRANCH_TARGETS ")
                    .and_then(|note| note.strip_suffix("\"*)"))
                    .context("an unknown note")?;
                let targets = targets.split(',').map(str::to_owned).collect();
                self.indirect.insert(self.code.len(), targets);
                text.trim_end()
            }
        };
        let (guard, text) = match text.strip_prefix('@') {
            None => (None, text),
            Some(text) => {
                let (guard, text) = text.split_once(' ').context("no opcode")?;
                (Some(guard.to_owned()), text.trim_start())
            }
        };
        let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
        if !opcode.starts_with(|c: char| c.is_ascii_uppercase()) {
            bail!("no opcode");
        }
        self.code.push(Instruction {
            address,
            guard,
            opcode: opcode.to_owned(),
            operands: operands
                .split(',')
                .map(|operand| operand.trim().to_owned())
                .filter(|operand| !operand.is_empty())
                .collect(),
            next: Vec::new(),
            line: self.source,
        });
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<Function> {
        for index in 0..self.code.len() {
            let next = self.next(index);
            self.code[index].next =
                next.with_context(|| format!("{}: {}", self.name, self.code[index]))?;
        }
        Ok(Function {
            name: self.name,
            code: self.code,
        })
    }

    /// The successors of an instruction.
    fn next(&self, index: usize) -> anyhow::Result<Vec<usize>> {
        let instruction = &self.code[index];
        let following = || -> anyhow::Result<usize> {
            if index + 1 == self.code.len() {
                bail!("the code ends here");
            }
            Ok(index + 1)
        };
        let mut next = Vec::new();
        let mut falls_through = instruction.guard.is_some();
        match instruction.base() {
            "EXIT" | "RET" => {}
            "CALL" if instruction.is_call_within() => next.push(self.target(instruction)?),
            "BRA" => {
                // Another operand before the target is a second condition.
                falls_through |= instruction.operands.len() > 1;
                next.push(self.target(instruction)?);
            }
            "BRX" | "BRXU" => {
                let targets = self.indirect.get(&index).context("targets are not known")?;
                for target in targets {
                    next.push(self.label(target)?);
                }
            }
            "BSYNC" => {
                // At a BSYNC, threads wait for each other and continue at the target of the BSSY, which ptxas puts directly
                // after the BSYNC.
                let barrier = instruction.operands.last().context("no barrier")?;
                let is_target = |other: &Instruction| {
                    other.base() == "BSSY"
                        && other.operands.first() == Some(barrier)
                        && self.target(other).ok() == Some(index + 1)
                };
                if !self.code.iter().any(is_target) {
                    bail!("no BSSY leads behind it");
                }
                falls_through = true;
            }
            base if base.starts_with('J') || base.starts_with("BR") && base != "BREAK" => {
                bail!("an unknown jump");
            }
            // A call returns. The padding after the last instruction is not executed.
            "NOP" if index + 1 == self.code.len() => {}
            _ => falls_through = true,
        }
        if falls_through {
            next.push(following()?);
        }
        next.sort_unstable();
        next.dedup();
        Ok(next)
    }

    /// The target of an instruction, which is its last operand: `` `(.L_x_1) ``.
    fn target(&self, instruction: &Instruction) -> anyhow::Result<usize> {
        let operand = instruction.operands.last().context("no target")?;
        let label = operand
            .strip_prefix("`(")
            .and_then(|label| label.strip_suffix(')'))
            .context("a target that is no label")?;
        self.label(label)
    }

    fn label(&self, label: &str) -> anyhow::Result<usize> {
        let index = self.labels.get(label);
        let index = index.with_context(|| format!("no label {label}"))?;
        if *index == self.code.len() {
            bail!("{label} is behind the code");
        }
        Ok(*index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(code: &str) -> anyhow::Result<Function> {
        let mut functions = parse(&format!(".text.f:\n{code}"))?;
        assert_eq!(functions.len(), 1);
        Ok(functions.remove(0))
    }

    fn next(code: &str) -> Vec<Vec<usize>> {
        let function = one(code).expect("readable");
        function.code.into_iter().map(|i| i.next).collect()
    }

    #[test]
    fn a_line_is_taken_apart() {
        let function = one(
            "        /*0f30*/              @!P0 LDG.E.128 R4, desc[UR10][R2.64+0x10] ;\n\
             \x20       /*0f40*/                   EXIT ;\n",
        )
        .expect("readable");
        let load = &function.code[0];
        assert_eq!(load.address, 0xf30);
        assert_eq!(load.guard.as_deref(), Some("!P0"));
        assert_eq!(load.base(), "LDG");
        assert!(load.is("128") && !load.is("64"));
        assert_eq!(load.operands, ["R4", "desc[UR10][R2.64+0x10]"]);
    }

    #[test]
    fn instructions_know_their_lines() {
        let function = one(
            "  /*0000*/ NOP ;\n\t//## File \".nv_debug_ptx_txt\", line 81\n  /*0010*/ NOP ;\n  /*0020*/ EXIT ;\n",
        )
        .expect("readable");
        let lines: Vec<u32> = function.code.iter().map(|i| i.line).collect();
        assert_eq!(lines, [0, 81, 81]);
    }

    #[test]
    fn jumps_have_the_successors_that_the_hardware_has() {
        let code = "\
            \x20 /*0000*/ @P0 BRA `(.L_x_1) ;\n\
            \x20 /*0010*/ BRA.U !UP0, `(.L_x_1) ;\n\
            \x20 /*0020*/ BSSY B0, `(.L_x_2) ;\n\
            .L_x_1:\n\
            \x20 /*0030*/ BSYNC B0 ;\n\
            .L_x_2:\n\
            \x20 /*0040*/ BRXU UR2 -0x50 (*\"BRANCH_TARGETS .L_x_1,.L_x_2\"*);\n\
            \x20 /*0050*/ @P1 EXIT ;\n\
            \x20 /*0060*/ CALL.REL.NOINC `($sub) ;\n\
            \x20 /*0070*/ BRA `(.L_x_2) ;\n\
            $sub:\n\
            \x20 /*0080*/ RET.REL.NODEC R2 `(f) ;\n\
            \x20 /*0090*/ @!P0 CALL.REL.NOINC `(.L_x_2) ;\n\
            \x20 /*00a0*/ NOP;\n";
        assert_eq!(
            next(code),
            [
                vec![1, 3],
                vec![2, 3],
                vec![3],
                vec![4],
                vec![3, 4],
                vec![6],
                vec![7],
                vec![4],
                vec![],
                vec![4, 10],
                vec![],
            ]
        );
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (code, why) in [
            ("  /*0000*/ BRX R2 -0x10 ;\n", "targets are not known"),
            ("  /*0000*/ JMX R2 ;\n", "an unknown jump"),
            ("  /*0000*/ BRA `(.L_x_9) ;\n", "no label .L_x_9"),
            ("  /*0000*/ BSYNC B0 ;\n  /*0010*/ EXIT ;\n", "no BSSY"),
            ("  /*0000*/ MOV R1, R2 ;\n", "the code ends here"),
            ("  /*0000*/ MOV R1, R2\n", "no semicolon"),
        ] {
            let error = one(code).expect_err(code);
            let text = format!("{error:#}");
            assert!(text.contains(why), "{text}");
        }
    }
}
