//! Generates small changes to CUDA sources, each of which a test should notice.
//!
//! The changes are made to tokens, not to a syntax tree. The sources are formatted by clang-format, so a space on both
//! sides distinguishes a binary operator from a template bracket, a pointer or a sign. A change that does not compile only
//! costs time; it is not counted.

use std::fmt;

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Changes a number slightly.
    Constant,
    /// Replaces a comparison by another.
    Comparison,
    /// Replaces an operator by another, or removes a sign.
    Operator,
    /// Uses the neighbour of an index.
    Index,
    /// Makes a condition always true, always false or its opposite.
    Condition,
    /// Removes a barrier.
    Barrier,
    /// Reduces the number of lanes.
    Mask,
    /// Removes a statement.
    Statement,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

/// A change to a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// The kind of the change.
    pub kind: Kind,
    /// The byte offset of the start.
    pub start: usize,
    /// The byte offset of the end.
    pub end: usize,
    /// The replacement.
    pub replacement: String,
}

impl Mutation {
    /// The text with the change applied.
    pub fn apply(&self, source: &str) -> String {
        let (before, after) = (&source[..self.start], &source[self.end..]);
        format!("{before}{}{after}", self.replacement)
    }

    /// The number of the line in which the change begins, from 1.
    pub fn line(&self, source: &str) -> usize {
        source[..self.start].matches('\n').count() + 1
    }
}

/// All changes to `source`, in the order of their places.
pub fn mutations(source: &str) -> Vec<Mutation> {
    let tokens = tokens(source);
    let mut scan = Scan {
        source,
        tokens: &tokens,
        found: Vec::new(),
    };
    for at in 0..tokens.len() {
        scan.at(at);
    }
    let mut found = scan.found;
    found.sort_by(|a, b| (a.start, a.end, &a.replacement).cmp(&(b.start, b.end, &b.replacement)));
    found
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Word,
    Number,
    Punctuation,
    /// A string or character literal, which is not changed.
    Literal,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    what: What,
    text: &'a str,
    start: usize,
}

impl Token<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

/// The operators, the longest first.
const PUNCTUATION: [&str; 22] = [
    "<<=", ">>=", "...", "->", "++", "--", "<<", ">>", "<=", ">=", "==", "!=", "&&", "||", "+=",
    "-=", "*=", "/=", "%=", "&=", "|=", "::",
];

/// The tokens outside comments, preprocessor lines and static assertions.
fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut at = 0;
    let mut line_start = true;
    while at < source.len() {
        let rest = &source[at..];
        let first = rest.chars().next().expect("not at the end");
        if first == '\n' {
            line_start = true;
            at += 1;
            continue;
        }
        if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        }
        let (what, length) = if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        } else if rest.starts_with("/*") {
            at += rest.find("*/").map_or(rest.len(), |end| end + 2);
            continue;
        } else if first == '#' && line_start {
            at += directive(rest);
            continue;
        } else if first == '"' || first == '\'' {
            (What::Literal, literal(rest, first))
        } else if first.is_ascii_digit()
            || first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())
        {
            (What::Number, number(rest))
        } else if first.is_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            (What::Word, end.unwrap_or(rest.len()))
        } else {
            let known = PUNCTUATION.iter().find(|p| rest.starts_with(**p));
            (
                What::Punctuation,
                known.map_or(first.len_utf8(), |p| p.len()),
            )
        };
        line_start = false;
        let token = Token {
            what,
            text: &rest[..length],
            start: at,
        };
        if token.text == "static_assert" {
            at += rest.find(';').map_or(rest.len(), |end| end + 1);
            continue;
        }
        tokens.push(token);
        at += length;
    }
    tokens
}

/// The length of a preprocessor directive with its continuation lines.
fn directive(rest: &str) -> usize {
    let mut length = 0;
    for line in rest.split_inclusive('\n') {
        length += line.len();
        if !line.trim_end().ends_with('\\') {
            break;
        }
    }
    // The end of the line counts as white space.
    rest[..length].trim_end_matches('\n').len()
}

fn literal(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn number(rest: &str) -> usize {
    let mut previous = '0';
    let is_hex = rest.starts_with("0x");
    let end = rest.find(|c: char| {
        let exponent = !is_hex && matches!(previous, 'e' | 'E') && matches!(c, '+' | '-');
        previous = c;
        !(c.is_ascii_alphanumeric() || c == '.' || c == '\'' || exponent)
    });
    end.unwrap_or(rest.len())
}

struct Scan<'a> {
    source: &'a str,
    tokens: &'a [Token<'a>],
    found: Vec<Mutation>,
}

impl Scan<'_> {
    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| token.text)
    }

    /// The text of the previous token.
    fn before(&self, at: usize) -> &str {
        at.checked_sub(1).map_or("", |at| self.text(at))
    }

    fn is_word(&self, at: usize) -> bool {
        self.tokens
            .get(at)
            .is_some_and(|token| token.what == What::Word)
    }

    fn add(&mut self, kind: Kind, start: usize, end: usize, replacement: &str) {
        self.found.push(Mutation {
            kind,
            start,
            end,
            replacement: replacement.to_owned(),
        });
    }

    fn replace(&mut self, kind: Kind, at: usize, replacement: &str) {
        let token = self.tokens[at];
        self.add(kind, token.start, token.end(), replacement);
    }

    /// Whether there is a space on both sides of the token.
    fn is_spaced(&self, at: usize) -> bool {
        let token = self.tokens[at];
        self.source[..token.start].ends_with([' ', '\n'])
            && self.source[token.end()..].starts_with([' ', '\n'])
    }

    fn at(&mut self, at: usize) {
        let token = self.tokens[at];
        match token.what {
            What::Number => {
                for (kind, changed) in changed_number(token.text) {
                    self.replace(kind, at, &changed);
                }
            }
            What::Punctuation => self.punctuation(at),
            What::Word => self.word(at),
            What::Literal => {}
        }
        // A statement begins at this token.
        if matches!(self.before(at), ";" | "{" | "}" | ")" | "else") {
            self.statement(at);
        }
    }

    fn punctuation(&mut self, at: usize) {
        let spaced = self.is_spaced(at);
        let (kind, changed) = match self.text(at) {
            "<" if spaced => (Kind::Comparison, "<="),
            ">" if spaced => (Kind::Comparison, ">="),
            "<=" => (Kind::Comparison, "<"),
            ">=" => (Kind::Comparison, ">"),
            "==" => (Kind::Comparison, "!="),
            "!=" => (Kind::Comparison, "=="),
            "+" if spaced => (Kind::Operator, "-"),
            "-" if spaced => (Kind::Operator, "+"),
            "*" if spaced => (Kind::Operator, "/"),
            "/" if spaced => (Kind::Operator, "*"),
            "%" if spaced => (Kind::Operator, "/"),
            "&" if spaced => (Kind::Operator, "|"),
            "|" if spaced => (Kind::Operator, "&"),
            "<<" if spaced => (Kind::Operator, ">>"),
            ">>" if spaced => (Kind::Operator, "<<"),
            "+=" => (Kind::Operator, "-="),
            "-=" => (Kind::Operator, "+="),
            "*=" => (Kind::Operator, "/="),
            "/=" => (Kind::Operator, "*="),
            "++" => (Kind::Operator, "--"),
            "--" => (Kind::Operator, "++"),
            "&&" if spaced => (Kind::Condition, "||"),
            "||" if spaced => (Kind::Condition, "&&"),
            // A minus is a sign if the token before it is not an operand.
            "-" if matches!(
                self.before(at),
                "(" | "," | "=" | "return" | "?" | ":" | "[" | "{" | "*" | "+"
            ) =>
            {
                (Kind::Operator, "")
            }
            "!" => (Kind::Condition, ""),
            "?" => return self.choice(at),
            "[" => return self.subscript(at),
            _ => return,
        };
        self.replace(kind, at, changed);
    }

    /// Inverts the condition of `name ? a : b`. Other conditions are changed by their operators.
    fn choice(&mut self, at: usize) {
        let mut first = at;
        while self.before(first) == "."
            || first > 0 && self.is_word(first - 1) && self.before(first) != "return"
        {
            first -= 1;
        }
        if first < at && matches!(self.before(first), "=" | "(" | "," | ":" | "return") {
            let start = self.tokens[first].start;
            self.add(Kind::Condition, start, start, "!");
        }
    }

    /// Changes `v[i]` for a variable `i`. The sizes of arrays are constants, which begin with `k` or a capital letter, and
    /// are left as they are.
    fn subscript(&mut self, at: usize) {
        let index = self.text(at + 1);
        let is_constant = index.starts_with(|c: char| c.is_uppercase())
            || index.starts_with('k') && index[1..].starts_with(|c: char| c.is_uppercase());
        if self.is_word(at + 1)
            && !is_constant
            && self.text(at + 2) == "]"
            && at > 0
            && (self.is_word(at - 1) || self.before(at) == "]")
        {
            let end = self.tokens[at + 1].end();
            self.add(Kind::Index, end, end, " + 1");
        }
    }

    fn word(&mut self, at: usize) {
        let token = self.tokens[at];
        match token.text {
            "threadIdx" | "blockIdx" | "gridDim" if self.text(at + 1) == "." => {
                let end = self.tokens[at + 2].end();
                let text = format!("({} + 1)", &self.source[token.start..end]);
                self.add(Kind::Index, token.start, end, &text);
            }
            "__syncthreads" | "__syncwarp" => {
                if let Some(end) = self.end_of_statement(at) {
                    self.add(Kind::Barrier, token.start, end, ";");
                }
            }
            "if" if self.text(at + 1) == "(" => {
                if let Some(close) = self.close(at + 1) {
                    let (start, end) = (self.tokens[at + 1].end(), self.tokens[close].start);
                    self.add(Kind::Condition, start, end, "true");
                    self.add(Kind::Condition, start, end, "false");
                }
            }
            "true" => self.replace(Kind::Constant, at, "false"),
            "false" => self.replace(Kind::Constant, at, "true"),
            _ => {}
        }
    }

    /// Removes an assignment, a call or a jump. Declarations stay, because the uses of the variable would not compile.
    fn statement(&mut self, at: usize) {
        let start = self.tokens[at].start;
        let is_jump = matches!(self.text(at), "continue" | "break")
            || self.text(at) == "return" && self.text(at + 1) == ";";
        let is_place = matches!(self.text(at), "*" | "++" | "--") || self.is_word(at);
        if !is_place || !is_jump && KEYWORDS.split(' ').any(|word| word == self.text(at)) {
            return;
        }
        if !is_jump {
            // An assigned variable or a called function: words joined by `.`, `->` or `::`, and indices.
            let mut next = at;
            while matches!(self.text(next), "*" | "++" | "--") {
                next += 1;
            }
            loop {
                if !self.is_word(next) {
                    return;
                }
                next += 1;
                while self.text(next) == "[" {
                    let Some(close) = self.close(next) else {
                        return;
                    };
                    next = close + 1;
                }
                if !matches!(self.text(next), "." | "->" | "::") {
                    break;
                }
                next += 1;
            }
            let is_effect =
                EFFECTS.contains(&self.text(next)) || matches!(self.text(at), "++" | "--");
            // A barrier has its own kind. A call that is followed by a body is a definition.
            let is_call = self.text(next) == "(";
            if !is_effect || self.text(at).starts_with("__sync") {
                return;
            }
            if is_call {
                let Some(close) = self.close(next) else {
                    return;
                };
                if self.text(close + 1) != ";" {
                    return;
                }
            }
        }
        if let Some(end) = self.end_of_statement(at) {
            self.add(Kind::Statement, start, end, ";");
        }
    }

    /// The end of the statement that begins at a token, including the semicolon.
    fn end_of_statement(&self, at: usize) -> Option<usize> {
        let mut next = at;
        loop {
            match self.text(next) {
                ";" => return Some(self.tokens[next].end()),
                "(" | "[" | "{" => next = self.close(next)? + 1,
                "" | ")" | "]" | "}" => return None,
                _ => next += 1,
            }
        }
    }

    /// The index of the closing bracket.
    fn close(&self, open: usize) -> Option<usize> {
        let mut depth = 0_usize;
        for at in open..self.tokens.len() {
            match self.text(at) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => {
                    depth = depth.checked_sub(1)?;
                    if depth == 0 {
                        return Some(at);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// The tokens that make a statement of a variable or a name.
const EFFECTS: [&str; 13] = [
    "=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "<<=", ">>=", "++", "--", "(",
];

/// The words that cannot begin an assignment or a call.
const KEYWORDS: &str = "if else for while do return asm template using namespace struct switch case default goto union enum \
    extern constexpr const static inline explicit";

/// Other numbers close to this one.
fn changed_number(text: &str) -> Vec<(Kind, String)> {
    let constant = |text: String| (Kind::Constant, text);
    if let Some(hex) = text.strip_prefix("0x") {
        let digits = hex.trim_end_matches(['u', 'U', 'l', 'L']);
        let suffix = &hex[digits.len()..];
        if digits.len() == 8 && digits.chars().all(|c| c == 'f') {
            return vec![(Kind::Mask, format!("0xffff{suffix}"))];
        }
        let value = u64::from_str_radix(digits, 16).into_iter();
        return value
            .map(|v| constant(format!("{:#x}{suffix}", v ^ 1)))
            .collect();
    }
    if text.contains(['.', 'e', 'f']) {
        let digits = text.trim_end_matches('f');
        let suffix = &text[digits.len()..];
        let Ok(value) = digits.parse::<f64>() else {
            return Vec::new();
        };
        // A relative change of 0 is 0.
        let changed = if value == 0.0 { 1e-3 } else { value * 1.001 };
        return vec![constant(format!("{changed:.9e}{suffix}"))];
    }
    let digits = text.trim_end_matches(['u', 'U', 'l', 'L']);
    let suffix = &text[digits.len()..];
    let Ok(value) = digits.parse::<u64>() else {
        return Vec::new();
    };
    let others = match value {
        0 => vec![1],
        1 => vec![2],
        // The number is a width, a size or a number of lanes. Tests cannot distinguish values between powers of two.
        _ if value >= 4 && value.is_power_of_two() => vec![value * 2, value / 2],
        _ => vec![value + 1, value - 1],
    };
    let others = others.into_iter();
    others
        .map(|other| constant(format!("{other}{suffix}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(source: &str) -> Vec<(Kind, String)> {
        let found = mutations(source);
        found.iter().map(|m| (m.kind, m.apply(source))).collect()
    }

    fn check(source: &str, expected: &[(Kind, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(kind, text)| (*kind, (*text).to_owned()))
            .collect();
        assert_eq!(of(source), expected, "{source}");
    }

    #[test]
    fn numbers() {
        for (number, others) in [
            ("1.0f", "1.001000000e0f"),
            ("0.0f", "1.000000000e-3f"),
            ("1.5e-05f", "1.501500000e-5f"),
            ("0", "1"),
            ("15u", "16u 14u"),
            ("1", "2"),
            ("16u", "32u 8u"),
            ("0x1f", "0x1e"),
            ("0xffffffffu", "0xffffu"),
        ] {
            let (kinds, found): (Vec<_>, Vec<_>) = changed_number(number).into_iter().unzip();
            assert_eq!(found.join(" "), others);
            let is_mask = |kind: &Kind| *kind == Kind::Mask;
            assert_eq!(kinds.iter().all(is_mask), number == "0xffffffffu");
        }
    }

    #[test]
    fn operators_are_told_from_brackets_pointers_and_signs() {
        use Kind::{Comparison, Condition, Operator};
        check(
            "bool b = x < y && y >= z;",
            &[
                (Comparison, "bool b = x <= y && y >= z;"),
                (Condition, "bool b = x < y || y >= z;"),
                (Comparison, "bool b = x < y && y > z;"),
            ],
        );
        check("template <class T> f(Pack<T>* p, const T& q);", &[]);
        check(
            "float y = -x * z;",
            &[
                (Operator, "float y = x * z;"),
                (Operator, "float y = -x / z;"),
            ],
        );
        check(
            "float y = p ? a : b;",
            &[(Condition, "float y = !p ? a : b;")],
        );
        check(
            "return e.near ? a : b;",
            &[(Condition, "return !e.near ? a : b;")],
        );
    }

    #[test]
    fn statements_are_dropped_and_declarations_are_not() {
        use Kind::{Barrier, Constant, Index, Statement};
        check("{ float a = b; }", &[]);
        check("{ a = b; }", &[(Statement, "{ ; }")]);
        check(
            "{ s.v[i] = b; }",
            &[(Statement, "{ ; }"), (Index, "{ s.v[i + 1] = b; }")],
        );
        check("{ sums.add(v); }", &[(Statement, "{ ; }")]);
        check("{ *out = v; }", &[(Statement, "{ ; }")]);
        check("{ __syncthreads(); }", &[(Barrier, "{ ; }")]);
        check("for (;;) { continue; }", &[(Statement, "for (;;) { ; }")]);
        check(
            "{ float v[2]; }",
            &[(Constant, "{ float v[1]; }"), (Constant, "{ float v[3]; }")],
        );
        check("float f(float x) { return x; }", &[]);
    }

    #[test]
    fn conditions_and_indices() {
        use Kind::{Condition, Index, Statement};
        check(
            "if (whole) { f(); }",
            &[
                (Condition, "if (false) { f(); }"),
                (Condition, "if (true) { f(); }"),
                (Statement, "if (whole) { ; }"),
            ],
        );
        check(
            "int i = threadIdx.x;",
            &[(Index, "int i = (threadIdx.x + 1);")],
        );
        check("bool b = !a;", &[(Condition, "bool b = a;")]);
    }

    #[test]
    fn comments_directives_strings_and_assertions_stay() {
        check(
            "// a < b + 1\n/* 2 */\n#pragma unroll 1\n#define A(x) \\\n    (x + 1)\nstatic_assert(a % 32 == 0, \"2\");\n\
             asm(\"ex2.approx.ftz.f32 %0, %1;\" : \"=f\"(r) : \"f\"(t));\n",
            &[],
        );
    }

    #[test]
    fn lines_are_counted_from_one() {
        let source = "\n// 1\nint a = 1;\n";
        let lines: Vec<_> = mutations(source).iter().map(|m| m.line(source)).collect();
        assert_eq!(lines, [3]);
    }
}
