//! Tokens of PTX text.

use super::PtxError;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// A name: of an opcode, register, label or variable.
    Word(&'a str),
    /// `.word`, without its dot.
    Dot(&'a str),
    Integer(u64),
    F32(u32),
    F64(u64),
    String(&'a str),
    Punct(u8),
}

/// A token and the line it stands on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spanned<'a> {
    pub token: Token<'a>,
    pub line: u32,
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%')
}

/// Splits a whole text into tokens.
pub(super) fn tokens(text: &str) -> Result<Vec<Spanned<'_>>, PtxError> {
    let b = text.as_bytes();
    let mut out = Vec::with_capacity(b.len() / 4);
    let (mut i, mut line) = (0, 1u32);
    while i < b.len() {
        let c = b[i];
        match c {
            b'\n' => {
                line += 1;
                i += 1;
            }
            b' ' | b'\t' | b'\r' => i += 1,
            b'/' if b.get(i + 1) == Some(&b'/') => {
                while i < b.len() && b[i] != b'\n' {
                    i += 1;
                }
            }
            b'/' if b.get(i + 1) == Some(&b'*') => {
                let start = line;
                i += 2;
                loop {
                    match b.get(i) {
                        None => return Err(PtxError::new(start, "comment without end")),
                        Some(b'*') if b.get(i + 1) == Some(&b'/') => break,
                        Some(b'\n') => line += 1,
                        _ => {}
                    }
                    i += 1;
                }
                i += 2;
            }
            b'"' => {
                let end = text[i + 1..]
                    .find('"')
                    .ok_or_else(|| PtxError::new(line, "string without end"))?;
                let s = &text[i + 1..i + 1 + end];
                out.push(Spanned {
                    token: Token::String(s),
                    line,
                });
                line += s.matches('\n').count() as u32;
                i += end + 2;
            }
            b'0'..=b'9' => {
                let (token, end) = number(text, i, line)?;
                out.push(Spanned { token, line });
                i = end;
            }
            b'.' if b.get(i + 1).copied().is_some_and(is_word) => {
                let start = i + 1;
                i = start;
                // `.L2::128B` is one word.
                while i < b.len()
                    && (is_word(b[i])
                        || b[i..].starts_with(b"::")
                        || (b[i] == b':' && b[i - 1] == b':'))
                {
                    i += 1;
                }
                out.push(Spanned {
                    token: Token::Dot(&text[start..i]),
                    line,
                });
            }
            c if is_word(c) => {
                let start = i;
                while i < b.len() && is_word(b[i]) {
                    i += 1;
                }
                out.push(Spanned {
                    token: Token::Word(&text[start..i]),
                    line,
                });
            }
            b'{' | b'}' | b'(' | b')' | b'[' | b']' | b'<' | b'>' | b',' | b';' | b':' | b'+'
            | b'-' | b'=' | b'@' | b'!' | b'|' => {
                out.push(Spanned {
                    token: Token::Punct(c),
                    line,
                });
                i += 1;
            }
            0 if b[i..].iter().all(|&c| c == 0) => break,
            _ => {
                let c = text[i..].chars().next().unwrap_or('?');
                return Err(PtxError::new(line, format!("unexpected character {c:?}")));
            }
        }
    }
    Ok(out)
}

/// A literal that starts at byte `i`, and the byte after it.
fn number(text: &str, i: usize, line: u32) -> Result<(Token<'_>, usize), PtxError> {
    let b = text.as_bytes();
    let bad = |s: &str| PtxError::new(line, format!("bad number `{s}`"));
    let mut end = i;
    while end < b.len() && b[end].is_ascii_alphanumeric() {
        end += 1;
    }
    let word = &text[i..end];
    let hex_float = |digits: usize| {
        let s = &word[2..];
        if s.len() == digits {
            u64::from_str_radix(s, 16).map_err(|_| bad(word))
        } else {
            Err(bad(word))
        }
    };
    match word.as_bytes().get(1) {
        Some(b'f' | b'F') => return Ok((Token::F32(hex_float(8)? as u32), end)),
        Some(b'd' | b'D') => return Ok((Token::F64(hex_float(16)?), end)),
        _ => {}
    }
    // A decimal fraction: `1.5`. A version number `9.0` is read the same way.
    if b.get(end) == Some(&b'.') && b.get(end + 1).is_some_and(u8::is_ascii_digit) {
        end += 1;
        while end < b.len() && (b[end].is_ascii_alphanumeric()) {
            end += 1;
        }
        let s = &text[i..end];
        let v: f64 = s.parse().map_err(|_| bad(s))?;
        return Ok((Token::F64(v.to_bits()), end));
    }
    let s = word.strip_suffix('U').unwrap_or(word);
    let value = if let Some(h) = s.strip_prefix("0x").or(s.strip_prefix("0X")) {
        u64::from_str_radix(h, 16)
    } else if let Some(h) = s.strip_prefix("0b").or(s.strip_prefix("0B")) {
        u64::from_str_radix(h, 2)
    } else if s.len() > 1 && s.starts_with('0') {
        u64::from_str_radix(&s[1..], 8)
    } else {
        s.parse()
    };
    Ok((Token::Integer(value.map_err(|_| bad(word))?), end))
}
