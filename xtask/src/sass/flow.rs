//! The registers that an instruction writes and reads, and the dependence of values on loads in straight-line code.
//!
//! Predicates count as registers. If the listing leaves the width of an operand open, the larger width is assumed. At
//! worst, two values then seem to depend on each other, and no path is found.

use std::collections::HashMap;

use super::listing::Instruction;

/// A set of loads, one bit each.
pub type Loads = u64;

/// The kind and number of a register: `R16`, `UR4`, `P0`, `UP1`.
type Register = (&'static str, u32);

/// For each register, the loads that its value depends on.
#[derive(Default)]
pub struct Flow {
    of: HashMap<Register, Loads>,
}

impl Flow {
    /// Executes one instruction. `load` is the bit of the load if the instruction is one that is tracked, else 0.
    pub fn step(&mut self, instruction: &Instruction, load: Loads) {
        let (writes, reads) = operands(instruction);
        let value = load | self.any(&reads) | self.guard(instruction);
        for register in writes {
            // A guarded instruction may leave the old value.
            let kept = match &instruction.guard {
                Some(_) => self.any(&[register]),
                None => 0,
            };
            self.of.insert(register, value | kept);
        }
    }

    /// Whether some value depends on all of these loads.
    pub fn gathers(&self, loads: Loads) -> bool {
        let mut values = self.of.values();
        values.any(|of| of & loads == loads)
    }

    /// The loads that must complete before the instruction can be issued.
    pub fn needed(&self, instruction: &Instruction) -> Loads {
        self.guard(instruction) | self.any(&operands(instruction).1)
    }

    /// The loads that decide whether the instruction is executed or jumps.
    pub fn condition(&self, instruction: &Instruction) -> Loads {
        let conditions = instruction.operands.iter().filter_map(|o| register(o));
        let conditions: Vec<_> = conditions.collect();
        self.guard(instruction) | self.any(&conditions)
    }

    /// The loads that the value of a 128-bit store depends on.
    pub fn stored(&self, store: &Instruction) -> Loads {
        let value = store.operands.last().and_then(|operand| register(operand));
        value.map_or(0, |first| self.any(&run(first, 4)))
    }

    fn guard(&self, instruction: &Instruction) -> Loads {
        let guard = instruction.guard.as_deref().and_then(register);
        guard.map_or(0, |guard| self.any(&[guard]))
    }

    fn any(&self, registers: &[Register]) -> Loads {
        let known = registers.iter().filter_map(|r| self.of.get(r));
        known.fold(0, |all, loads| all | loads)
    }
}

/// Operations that read all of their operands.
const WRITE_NOTHING: [&str; 23] = [
    "ST", "STG", "STS", "STL", "RED", "REDG", "BRA", "BRX", "BRXU", "EXIT", "RET", "CALL", "BSSY",
    "BSYNC", "BREAK", "BAR", "NOP", "WARPSYNC", "MEMBAR", "DEPBAR", "ERRBAR", "CCTL", "YIELD",
];

/// The registers that an instruction writes and reads. The results come first: predicates, then at most one value, then
/// predicates for its carry.
fn operands(instruction: &Instruction) -> (Vec<Register>, Vec<Register>) {
    let base = instruction.base();
    let mut operands = instruction.operands.iter().peekable();
    let mut writes = Vec::new();
    if !WRITE_NOTHING.contains(&base) {
        let is_predicate =
            |operand: &&String| operand.starts_with('P') || operand.starts_with("UP");
        while let Some(operand) = operands.next_if(is_predicate) {
            writes.extend(register(operand));
        }
        let only_predicates = base.contains("SETP") || base.ends_with("PLOP3");
        if !only_predicates && let Some(operand) = operands.next() {
            if let Some(first) = register(operand) {
                writes.extend(run(first, width(instruction)));
            }
            while let Some(operand) = operands.next_if(is_predicate) {
                writes.extend(register(operand));
            }
        }
    }
    let wide = if instruction.is("WIDE") || is_pair(base) {
        2
    } else if base.starts_with("ST") {
        width(instruction)
    } else {
        1
    };
    let read = operands.flat_map(|operand| registers(operand));
    let reads = read.flat_map(|(first, is_64)| run(first, if is_64 { 2 } else { wide }));
    (writes, reads.collect())
}

/// The number of registers of the instruction's value.
fn width(instruction: &Instruction) -> u32 {
    let base = instruction.base();
    // In a shift, only the source has 64 bits.
    let to_64 = base == "F2I" && (instruction.is("U64") || instruction.is("S64"));
    let wide = instruction.is("64") || instruction.is("WIDE") || base == "CS2R";
    if instruction.is("128") {
        4
    } else if wide || to_64 || is_pair(base) {
        2
    } else {
        1
    }
}

/// Whether the operation works on pairs of registers: doubles, or two floats.
fn is_pair(base: &str) -> bool {
    matches!(base, "DADD" | "DMUL" | "DFMA" | "FADD2" | "FMUL2" | "FFMA2")
}

/// This register and the following ones.
fn run((kind, first): Register, count: u32) -> Vec<Register> {
    (first..first + count)
        .map(|number| (kind, number))
        .collect()
}

/// The register in an operand, without a sign or modifiers: `-|R5|.reuse`, `!P0`.
fn register(operand: &str) -> Option<Register> {
    if operand.contains('[') {
        return None;
    }
    registers(operand).first().map(|(register, _)| *register)
}

/// The registers in an operand, including those of an address, each with whether it is read as 64 bits.
fn registers(operand: &str) -> Vec<(Register, bool)> {
    let mut found = Vec::new();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = operand;
    while let Some(start) = rest.find(is_word) {
        let word = &rest[start..];
        let end = word.find(|c| !is_word(c)).unwrap_or(word.len());
        let after = &word[end..];
        for kind in ["UR", "UP", "R", "P"] {
            let number = word[..end].strip_prefix(kind).map(str::parse);
            if let Some(Ok(number)) = number {
                found.push(((kind, number), after.starts_with(".64")));
                break;
            }
        }
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sass::listing;

    fn instruction(text: &str) -> Instruction {
        let text = format!(".text.f:\n /*0000*/ {text} ;\n.L:\n /*0010*/ EXIT ;\n");
        let mut functions = listing::parse(&text).expect("readable");
        functions.remove(0).code.remove(0)
    }

    #[test]
    fn results_and_sources_are_told_apart() {
        for (text, writes, reads) in [
            ("FFMA R6, -|R5|.reuse, 1.5, -R6", "R6", "R5 R6"),
            ("ISETP.NE.AND P0, PT, RZ, UR4, PT", "P0", "UR4"),
            ("LOP3.LUT P3, R36, R36, 0xf, RZ, 0xc0, !PT", "P3 R36", "R36"),
            ("IADD3 R17, P0, RZ, -R2, RZ", "R17 P0", "R2"),
            ("IADD3.X R19, RZ, RZ, ~R3, P0, !PT", "R19", "R3 P0"),
            ("FSEL R23, R23, 1, !P1", "R23", "R23 P1"),
            ("SHF.R.U64 R24, R4, 0x10, R5.reuse", "R24", "R4 R5"),
            (
                "LDG.E.128 R4, desc[UR10][R2.64+0x10]",
                "R4 R5 R6 R7",
                "UR10 R2 R3",
            ),
            (
                "STG.E.64 desc[UR10][R22.64], R16",
                "",
                "UR10 UR11 R22 R23 R16 R17",
            ),
            (
                "IMAD.WIDE.U32 R2, R16, R18, UR14",
                "R2 R3",
                "R16 R17 R18 R19 UR14 UR15",
            ),
            ("F2FP.BF16.F32.PACK_AB R24, R27, R24", "R24", "R27 R24"),
        ] {
            let names = |registers: &[Register]| {
                let names = registers.iter().map(|(kind, n)| format!("{kind}{n}"));
                names.collect::<Vec<_>>().join(" ")
            };
            let found = operands(&instruction(text));
            let found = [names(&found.0), names(&found.1)];
            assert_eq!(found, [writes, reads], "{text}");
        }
    }

    #[test]
    fn values_are_followed_and_overwritten() {
        let mut flow = Flow::default();
        flow.step(&instruction("LDG.E.128 R4, [R2.64]"), 1);
        flow.step(&instruction("FADD R8, R7, R0"), 0);
        flow.step(&instruction("FSETP.GT.AND P0, PT, R8, RZ, PT"), 0);
        assert_eq!(flow.condition(&instruction("@P0 EXIT")), 1);
        assert_eq!(flow.condition(&instruction("@P1 EXIT")), 0);
        assert_eq!(flow.condition(&instruction("BRA !P0, `(.L)")), 1);
        // The loads of the address do not count, only those of the value.
        assert_eq!(flow.stored(&instruction("STG.E.128 [R4.64], R20")), 0);
        assert_eq!(flow.stored(&instruction("STG.E.128 [R2.64], R8")), 1);
        // The register is overwritten, first by a guarded instruction.
        flow.step(&instruction("@P1 MOV R8, R0"), 0);
        assert_eq!(flow.stored(&instruction("STG.E.128 [R2.64], R8")), 1);
        flow.step(&instruction("MOV R8, R0"), 0);
        assert_eq!(flow.stored(&instruction("STG.E.128 [R2.64], R8")), 0);
    }
}
