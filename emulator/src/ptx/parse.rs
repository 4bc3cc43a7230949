//! The parser: tokens to [`Module`].

mod declarations;

use std::collections::HashMap;

use super::PtxError;
use super::ast::*;
use super::lex::{Spanned, Token, tokens};

/// Parses a whole module.
pub(crate) fn parse(text: &str) -> Result<Module, PtxError> {
    let tokens = tokens(text)?;
    let mut p = Parser {
        tokens: &tokens,
        at: 0,
    };
    p.module()
}

struct Parser<'a> {
    tokens: &'a [Spanned<'a>],
    at: usize,
}

/// Registers of the open scopes, innermost last.
struct Scopes {
    stack: Vec<HashMap<String, u32>>,
}

impl Scopes {
    fn find(&self, name: &str) -> Option<u32> {
        self.stack.iter().rev().find_map(|s| s.get(name).copied())
    }
}

/// Bytes of a fundamental type; 0 for `.pred`.
pub(crate) fn type_size(name: &str) -> Option<u8> {
    Some(match name {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        "pred" => 0,
        _ => return None,
    })
}

const SPECIAL: &[&str] = &["tid", "ntid", "ctaid", "nctaid", "clusterid", "nclusterid"];
const SPECIAL_SCALAR: &[&str] = &[
    "%laneid",
    "%warpid",
    "%nwarpid",
    "%lanemask_eq",
    "%lanemask_le",
    "%lanemask_lt",
    "%lanemask_ge",
    "%lanemask_gt",
    "%clock",
    "%clock_hi",
    "%clock64",
    "%globaltimer",
    "%globaltimer_lo",
    "%globaltimer_hi",
    "%smid",
    "%nsmid",
    "%gridid",
    "%cluster_ctarank",
    "%cluster_nctarank",
    "%dynamic_smem_size",
    "%total_smem_size",
];

impl<'a> Parser<'a> {
    fn line(&self) -> u32 {
        self.tokens
            .get(self.at.min(self.tokens.len().saturating_sub(1)))
            .map_or(0, |t| t.line)
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, PtxError> {
        Err(PtxError::new(self.line(), message))
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|t| t.token)
    }

    fn peek2(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at + 1).map(|t| t.token)
    }

    fn next(&mut self) -> Result<Token<'a>, PtxError> {
        match self.peek() {
            Some(t) => {
                self.at += 1;
                Ok(t)
            }
            None => self.error("unexpected end of the text"),
        }
    }

    fn is(&self, c: u8) -> bool {
        self.peek() == Some(Token::Punct(c))
    }

    fn take(&mut self, c: u8) -> bool {
        let found = self.is(c);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, c: u8) -> Result<(), PtxError> {
        if self.take(c) {
            return Ok(());
        }
        let found = self.peek();
        self.error(format!("expected `{}`, found {found:?}", c as char))
    }

    fn word(&mut self) -> Result<&'a str, PtxError> {
        match self.next()? {
            Token::Word(w) => Ok(w),
            t => {
                self.at -= 1;
                self.error(format!("expected a name, found {t:?}"))
            }
        }
    }

    fn integer(&mut self) -> Result<u64, PtxError> {
        match self.next()? {
            Token::Integer(v) => Ok(v),
            t => {
                self.at -= 1;
                self.error(format!("expected an integer, found {t:?}"))
            }
        }
    }

    fn small(&mut self) -> Result<u32, PtxError> {
        let v = self.integer()?;
        u32::try_from(v).or_else(|_| self.error(format!("{v} is too large")))
    }

    fn signed(&mut self) -> Result<i64, PtxError> {
        let negative = self.take(b'-');
        let v = self.integer()? as i64;
        Ok(if negative { v.wrapping_neg() } else { v })
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.at < self.tokens.len() && self.tokens[self.at].line == line {
            self.at += 1;
        }
    }

    fn skip_braces(&mut self) -> Result<(), PtxError> {
        self.expect(b'{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.next()? {
                Token::Punct(b'{') => depth += 1,
                Token::Punct(b'}') => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    fn module(&mut self) -> Result<Module, PtxError> {
        let mut m = Module::default();
        let mut linkage_extern = false;
        while let Some(token) = self.peek() {
            match token {
                Token::Dot("version") => {
                    self.at += 1;
                    match self.next()? {
                        Token::F64(v) => {
                            let tenths = (f64::from_bits(v) * 10.0).round() as u32;
                            m.version = (tenths / 10, tenths % 10);
                        }
                        _ => return self.error("bad .version"),
                    }
                }
                Token::Dot("target") => {
                    self.at += 1;
                    let name = self.word()?;
                    let number = name.strip_prefix("sm_").unwrap_or("");
                    let digits = number.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                    m.arch_specific = digits.len() != number.len();
                    m.target = match digits.parse() {
                        Ok(v) => v,
                        Err(_) => return self.error(format!("unknown target `{name}`")),
                    };
                    while self.take(b',') {
                        match self.word()? {
                            "debug" | "texmode_independent" | "texmode_unified" => {}
                            w => return self.error(format!("unknown target option `{w}`")),
                        }
                    }
                }
                Token::Dot("address_size") => {
                    self.at += 1;
                    if self.integer()? != 64 {
                        return self.error("only 64-bit addresses are supported");
                    }
                }
                Token::Dot("file") => {
                    let line = self.line();
                    self.at += 1;
                    let number = self.small()?;
                    if let Token::String(path) = self.next()? {
                        m.files.insert(number, path.to_string());
                    }
                    while self.at < self.tokens.len() && self.tokens[self.at].line == line {
                        self.at += 1;
                    }
                }
                Token::Dot("section") => {
                    self.at += 1;
                    while !self.is(b'{') {
                        self.next()?;
                    }
                    self.skip_braces()?;
                }
                Token::Dot("visible" | "weak" | "common") => {
                    self.at += 1;
                    linkage_extern = false;
                }
                Token::Dot("extern") => {
                    self.at += 1;
                    linkage_extern = true;
                }
                Token::Dot("entry") => {
                    self.at += 1;
                    let entry = self.entry()?;
                    if m.entries.iter().any(|e| e.name == entry.name) {
                        return self.error(format!("entry `{}` twice", entry.name));
                    }
                    m.entries.push(entry);
                    linkage_extern = false;
                }
                Token::Dot("global" | "const" | "shared") => {
                    m.variables.push(self.variable(linkage_extern)?);
                    self.expect(b';')?;
                    linkage_extern = false;
                }
                Token::Dot("pragma") => {
                    while !self.take(b';') {
                        self.next()?;
                    }
                }
                Token::Dot(d) => return self.error(format!("unsupported directive `.{d}`")),
                t => return self.error(format!("unexpected {t:?}")),
            }
        }
        if m.version == (0, 0) || m.target == 0 {
            return self.error("no .version or no .target");
        }
        Ok(m)
    }

    fn dims(&mut self) -> Result<(u32, u32, u32), PtxError> {
        let mut d = [1u32; 3];
        for (i, slot) in d.iter_mut().enumerate() {
            if i > 0 && !self.take(b',') {
                break;
            }
            *slot = self.small()?;
        }
        Ok((d[0], d[1], d[2]))
    }

    fn entry(&mut self) -> Result<Entry, PtxError> {
        let mut e = Entry {
            line: self.line(),
            name: self.word()?.to_string(),
            ..Entry::default()
        };
        if self.take(b'(') && !self.take(b')') {
            loop {
                let v = self.variable(false)?;
                e.params.push(v);
                if self.take(b')') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        loop {
            match self.peek() {
                Some(Token::Dot("maxntid")) => {
                    self.at += 1;
                    e.max_ntid = Some(self.dims()?);
                }
                Some(Token::Dot("reqntid")) => {
                    self.at += 1;
                    e.req_ntid = Some(self.dims()?);
                }
                Some(Token::Dot("maxnreg")) => {
                    self.at += 1;
                    e.max_nreg = Some(self.small()?);
                }
                Some(Token::Dot("minnctapersm" | "maxnctapersm")) => {
                    self.at += 1;
                    self.integer()?;
                }
                Some(Token::Dot("pragma")) => {
                    while !self.take(b';') {
                        self.next()?;
                    }
                }
                Some(Token::Dot(d)) => {
                    return self.error(format!("unsupported directive `.{d}` of an entry"));
                }
                _ => break,
            }
        }
        self.body(&mut e)?;
        Ok(e)
    }

    fn body(&mut self, e: &mut Entry) -> Result<(), PtxError> {
        self.expect(b'{')?;
        let mut scopes = Scopes {
            stack: vec![HashMap::new()],
        };
        let mut source = None;
        loop {
            match self.peek() {
                Some(Token::Punct(b'{')) => {
                    self.at += 1;
                    scopes.stack.push(HashMap::new());
                }
                Some(Token::Punct(b'}')) => {
                    self.at += 1;
                    scopes.stack.pop();
                    if scopes.stack.is_empty() {
                        return Ok(());
                    }
                }
                Some(Token::Dot("reg")) => self.registers(e, &mut scopes)?,
                Some(Token::Dot("loc")) => {
                    // .loc file line column[, function_name …, inlined_at …]
                    if let (Some(Token::Integer(file)), Some(Token::Integer(line))) =
                        (self.peek2(), self.tokens.get(self.at + 2).map(|t| t.token))
                        && line > 0
                    {
                        source = Some((file as u32, line as u32));
                    }
                    self.skip_line();
                }
                Some(Token::Dot("pragma")) => {
                    while !self.take(b';') {
                        self.next()?;
                    }
                }
                Some(Token::Dot("shared" | "local" | "global" | "const")) => {
                    e.variables.push(self.variable(false)?);
                    self.expect(b';')?;
                }
                Some(Token::Dot(d)) => {
                    return self.error(format!("unsupported directive `.{d}` in a body"));
                }
                Some(Token::Word(label)) if self.peek2() == Some(Token::Punct(b':')) => {
                    self.at += 2;
                    if let Some(Token::Dot("branchtargets")) = self.peek() {
                        self.at += 1;
                        let mut targets = vec![self.word()?.to_string()];
                        while self.take(b',') {
                            targets.push(self.word()?.to_string());
                        }
                        self.expect(b';')?;
                        e.branch_targets.insert(label.to_string(), targets);
                    } else if e.labels.insert(label.to_string(), e.body.len()).is_some() {
                        return self.error(format!("label `{label}` twice"));
                    }
                }
                Some(Token::Punct(b';')) => self.at += 1,
                Some(_) => {
                    let i = self.instruction(&scopes, source)?;
                    e.body.push(i);
                }
                None => return self.error("body without end"),
            }
        }
    }

    fn instruction(
        &mut self,
        scopes: &Scopes,
        source: Option<(u32, u32)>,
    ) -> Result<Instruction, PtxError> {
        let mut guard = None;
        if self.take(b'@') {
            let negated = self.take(b'!');
            let name = self.word()?;
            let Some(r) = scopes.find(name) else {
                return self.error(format!("unknown predicate `{name}`"));
            };
            guard = Some((r, negated));
        }
        let line = self.line();
        let opcode = self.word()?.to_string();
        let mut modifiers = Vec::new();
        while let Some(Token::Dot(m)) = self.peek() {
            self.at += 1;
            modifiers.push(m.to_string());
        }
        let mut operands = Vec::new();
        while !self.take(b';') {
            if !operands.is_empty() {
                self.expect(b',')?;
            }
            let mut o = self.operand(scopes)?;
            if self.take(b'|') {
                let p = self.simple(scopes)?;
                o = Operand::Pair(Box::new(o), Box::new(p));
            }
            operands.push(o);
        }
        Ok(Instruction {
            line,
            source,
            guard,
            opcode,
            modifiers,
            operands,
        })
    }

    fn operand(&mut self, scopes: &Scopes) -> Result<Operand, PtxError> {
        if self.take(b'[') {
            let (base, offset) = match self.simple(scopes)? {
                Operand::Symbol(s, o) => (Operand::Symbol(s, 0), o),
                b => (b, 0),
            };
            // `+4`, `+-4` or `-4`.
            let more = if self.take(b'+') || self.is(b'-') {
                self.signed()?
            } else {
                0
            };
            self.expect(b']')?;
            return Ok(Operand::Address(Box::new(base), offset.wrapping_add(more)));
        }
        if self.take(b'{') {
            let mut v = Vec::new();
            while !self.take(b'}') {
                if !v.is_empty() {
                    self.expect(b',')?;
                }
                v.push(self.simple(scopes)?);
            }
            return Ok(Operand::Vector(v));
        }
        if self.take(b'!') {
            return match self.simple(scopes)? {
                Operand::Register(r) => Ok(Operand::NotRegister(r)),
                _ => self.error("`!` before something that is not a register"),
            };
        }
        self.simple(scopes)
    }

    /// An operand that has no others inside.
    fn simple(&mut self, scopes: &Scopes) -> Result<Operand, PtxError> {
        match self.next()? {
            Token::Punct(b'-') => match self.next()? {
                Token::Integer(v) => Ok(Operand::Integer(v.wrapping_neg())),
                Token::F32(b) => Ok(Operand::F32(b ^ (1 << 31))),
                Token::F64(b) => Ok(Operand::F64(b ^ (1 << 63))),
                t => self.error(format!("unexpected {t:?} after `-`")),
            },
            Token::Integer(v) => Ok(Operand::Integer(v)),
            Token::F32(b) => Ok(Operand::F32(b)),
            Token::F64(b) => Ok(Operand::F64(b)),
            Token::Word("_") => Ok(Operand::Sink),
            Token::Word(w) => {
                if let Some(r) = scopes.find(w) {
                    return Ok(Operand::Register(r));
                }
                if let Some(rest) = w.strip_prefix('%') {
                    if SPECIAL.contains(&rest)
                        && let Some(Token::Dot(d @ ("x" | "y" | "z"))) = self.peek()
                    {
                        self.at += 1;
                        return Ok(Operand::Special(format!("{w}.{d}")));
                    }
                    if SPECIAL_SCALAR.contains(&w) {
                        return Ok(Operand::Special(w.to_string()));
                    }
                    return self.error(format!("unknown register `{w}`"));
                }
                let mut offset = 0;
                if self.is(b'+') {
                    self.at += 1;
                    offset = self.signed()?;
                }
                Ok(Operand::Symbol(w.to_string(), offset))
            }
            t => {
                self.at -= 1;
                self.error(format!("unexpected {t:?}"))
            }
        }
    }
}
