//! Variables: where each lies in its space.

use super::{Lowerer, RED_ZONE, SHARED_START};
use crate::ptx::PtxError;
use crate::ptx::ast::{Module, Operand, Space, Variable};

/// Local memory of a thread, as CUDA limits it.
const MAX_LOCAL: u64 = 512 << 10;

/// What a name in the module or entry stands for.
#[derive(Clone, Copy)]
pub(super) enum Symbol {
    /// Address in its space (param, shared, local).
    Offset(Space, u64),
    /// Module variable.
    Variable(Space, u32),
}

fn align(offset: u64, to: u64) -> u64 {
    offset.div_ceil(to) * to
}

impl<'a> Lowerer<'a> {
    /// Gives every variable its place.
    pub(super) fn layout(&mut self, module: &'a Module) -> Result<(), PtxError> {
        let mut offset = 0;
        for p in &self.entry.params {
            offset = align(offset, p.align);
            self.symbols
                .insert(&p.name, Symbol::Offset(Space::Param, offset));
            self.params.push((offset, p.size));
            offset += p.size;
        }
        for (i, v) in module.variables.iter().enumerate() {
            if v.space != Space::Shared {
                self.symbols
                    .insert(&v.name, Symbol::Variable(v.space, i as u32));
            }
        }
        // A module-level shared variable takes space in the kernels that use it.
        let used = |v: &Variable| {
            self.entry
                .body
                .iter()
                .any(|i| i.operands.iter().any(|o| mentions(o, &v.name)))
        };
        let shared = module
            .variables
            .iter()
            .filter(|v| v.space == Space::Shared && used(v));
        let shared: Vec<&Variable> = shared
            .chain(
                self.entry
                    .variables
                    .iter()
                    .filter(|v| v.space == Space::Shared),
            )
            .collect();
        let mut at = SHARED_START;
        for v in shared.iter().filter(|v| !v.is_extern) {
            at = align(at, v.align);
            self.shared_bytes = align(self.shared_bytes, v.align) + v.size;
            self.symbols
                .insert(&v.name, Symbol::Offset(Space::Shared, at));
            self.shared.push((v.name.clone(), at, v.size));
            at += v.size + RED_ZONE;
        }
        let widest = shared
            .iter()
            .filter(|v| v.is_extern)
            .map(|v| v.align)
            .max()
            .unwrap_or(16)
            .max(16);
        self.dynamic_start = align(at, widest);
        for v in shared.iter().filter(|v| v.is_extern) {
            self.symbols
                .insert(&v.name, Symbol::Offset(Space::Shared, self.dynamic_start));
        }
        for v in &self.entry.variables {
            match v.space {
                Space::Shared => {}
                Space::Local => {
                    self.local_bytes = align(self.local_bytes, v.align);
                    self.symbols
                        .insert(&v.name, Symbol::Offset(Space::Local, self.local_bytes));
                    self.local_bytes += v.size;
                    if self.local_bytes > MAX_LOCAL {
                        let message = format!("more than {MAX_LOCAL} bytes of local memory");
                        return Err(PtxError::new(self.entry.line, message));
                    }
                }
                _ => {
                    return Err(PtxError::new(
                        self.entry.line,
                        format!("unsupported variable `{}` inside an entry", v.name),
                    ));
                }
            }
        }
        Ok(())
    }
}

fn mentions(o: &Operand, name: &str) -> bool {
    match o {
        Operand::Symbol(s, _) => s == name,
        Operand::Address(base, _) => mentions(base, name),
        Operand::Vector(v) => v.iter().any(|o| mentions(o, name)),
        _ => false,
    }
}
