//! Declarations of registers and variables.

use super::*;

/// Limits that no kernel comes near: what is beyond them is no sane text, and would cost memory and time.
const MAX_REGISTERS: u64 = 1 << 17;
const MAX_BYTES: u64 = 1 << 36;
const MAX_ALIGN: u64 = 1 << 12;
/// Braces in braces of an initialiser.
const MAX_DEPTH: u32 = 8;

impl Parser<'_> {
    /// `.reg .type name<n>, …;`, into the innermost scope.
    pub(super) fn registers(&mut self, e: &mut Entry, scopes: &mut Scopes) -> Result<(), PtxError> {
        self.at += 1;
        let Token::Dot(ty) = self.next()? else {
            return self.error("expected a register type");
        };
        let Some(size) = type_size(ty) else {
            return self.error(format!("unsupported register type `.{ty}`"));
        };
        loop {
            let name = self.word()?;
            let numbered = if self.take(b'<') {
                let n = self.integer()?;
                self.expect(b'>')?;
                Some(n)
            } else {
                None
            };
            let n = numbered.unwrap_or(1);
            if n.saturating_add(e.registers.len() as u64) > MAX_REGISTERS {
                return self.error(format!("more than {MAX_REGISTERS} registers"));
            }
            let scope = scopes.stack.last_mut().expect("a scope is open");
            for i in 0..n {
                let name = numbered.map_or_else(|| name.to_string(), |_| format!("{name}{i}"));
                if scope.contains_key(&name) {
                    return self.error(format!("register `{name}` twice"));
                }
                scope.insert(name, e.registers.len() as u32);
                e.registers.push(Register { size });
            }
            if self.take(b';') {
                return Ok(());
            }
            self.expect(b',')?;
        }
    }

    /// `.space .align N .type name[n] = { … }`, without what ends it.
    pub(super) fn variable(&mut self, is_extern: bool) -> Result<Variable, PtxError> {
        let (mut space, mut align, mut elem) = (None, None, None);
        while let Some(Token::Dot(d)) = self.peek() {
            self.at += 1;
            match d {
                "global" => space = Some(Space::Global),
                "const" => space = Some(Space::Const),
                "shared" => space = Some(Space::Shared),
                "local" => space = Some(Space::Local),
                "param" => space = Some(Space::Param),
                "align" => align = Some(self.integer()?),
                // `.param .u64 .ptr .global .align 1 name`: hints about what it points to.
                "ptr" => {
                    while let Some(Token::Dot(d)) = self.peek() {
                        self.at += 1;
                        match d {
                            "global" | "const" | "shared" | "local" => {}
                            "align" => {
                                self.integer()?;
                            }
                            _ => {
                                return self
                                    .error(format!("unsupported directive `.{d}` after .ptr"));
                            }
                        }
                    }
                }
                d => match type_size(d) {
                    Some(size) if size > 0 => elem = Some(u64::from(size)),
                    _ => {
                        return self
                            .error(format!("unsupported directive `.{d}` in a declaration"));
                    }
                },
            }
        }
        let (Some(space), Some(elem)) = (space, elem) else {
            return self.error("declaration without space or type");
        };
        let name = self.word()?.to_string();
        let mut size = elem;
        let mut unsized_array = false;
        while self.take(b'[') {
            if self.take(b']') {
                unsized_array = true;
                continue;
            }
            size = size.saturating_mul(self.integer()?);
            self.expect(b']')?;
        }
        let mut v = Variable {
            name,
            space,
            align: align.unwrap_or(elem),
            size,
            is_extern,
            init: Vec::new(),
            init_symbols: Vec::new(),
        };
        if self.take(b'=') {
            self.initialiser(&mut v, elem, 0)?;
        }
        if unsized_array {
            v.size = v.init.len() as u64;
        }
        if !v.align.is_power_of_two()
            || v.align > MAX_ALIGN
            || v.size > MAX_BYTES
            || v.init.len() as u64 > v.size
        {
            return self.error(format!(
                "bad alignment, size or initialiser of `{}`",
                v.name
            ));
        }
        Ok(v)
    }

    fn initialiser(&mut self, v: &mut Variable, elem: u64, depth: u32) -> Result<(), PtxError> {
        if self.take(b'{') {
            if depth == MAX_DEPTH {
                return self.error("too many braces");
            }
            while !self.take(b'}') {
                self.initialiser(v, elem, depth + 1)?;
                self.take(b',');
            }
            return Ok(());
        }
        let negative = self.take(b'-');
        let value = match self.next()? {
            Token::Integer(i) => {
                if negative {
                    i.wrapping_neg()
                } else {
                    i
                }
            }
            Token::F32(b) => u64::from(b ^ if negative { 1 << 31 } else { 0 }),
            Token::F64(b) if elem == 4 => {
                u64::from((f64::from_bits(b) as f32).to_bits() ^ if negative { 1 << 31 } else { 0 })
            }
            Token::F64(b) => b ^ if negative { 1 << 63 } else { 0 },
            // `generic(name)` or `name`.
            Token::Word(w) if elem == 8 => {
                let name = if w == "generic" {
                    self.expect(b'(')?;
                    let n = self.word()?;
                    self.expect(b')')?;
                    n
                } else {
                    w
                };
                v.init_symbols.push((v.init.len() as u64, name.to_string()));
                0
            }
            t => return self.error(format!("unsupported initialiser {t:?}")),
        };
        v.init
            .extend_from_slice(&value.to_le_bytes()[..elem as usize]);
        Ok(())
    }
}
