//! Rewritings inside expressions, for operators that minijinja does not let us define.
//!
//! - `{% for x in items %}` goes through the filter [`ITERATED`]: Python refuses to iterate over None.
//! - `a[1:]` becomes a call of [`SLICE`]: minijinja's own slices with a negative step are wrong at the ends of a list, and
//!   panic on an empty one.
//! - `a + b` becomes a call of [`ADD`] where a template marks text as safe: Python then escapes what is added to it.

use crate::limits::TEMPLATE_BRACKET_DEPTH;

/// The filter around what a `for` iterates over.
pub(super) const ITERATED: &str = "__iterated__";
/// The function that adds its arguments from left to right.
pub(super) const ADD: &str = "__add__";

/// The function of a value, start, stop and step.
pub(super) const SLICE: &str = "__slice__";

/// Filters whose result is safe text.
const SAFE_FILTERS: [&str; 4] = ["safe", "escape", "e", "forceescape"];
/// Words and operators that bind less tightly than `+`.
const LOOSER: [&str; 20] = [
    ",",
    ":",
    "=",
    "==",
    "!=",
    "<",
    ">",
    "<=",
    ">=",
    "and",
    "or",
    "not",
    "if",
    "else",
    "in",
    "recursive",
    "set",
    "for",
    "elif",
    "with",
];

/// A piece of an expression without white space.
#[derive(Clone, Copy)]
struct Token<'a> {
    text: &'a str,
    start: usize,
}

impl Token<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }

    fn is_operand(&self) -> bool {
        let is_word = self.text.starts_with(|first: char| first.is_alphanumeric() || "_'\")]}".contains(first));
        is_word && !LOOSER.contains(&self.text)
    }
}

/// Whether a template marks text as safe anywhere.
pub(super) fn marks_safe_text(template: &str) -> bool {
    template.split('|').skip(1).any(|after| {
        let after = after.trim_start();
        let end = after.find(|character: char| !character.is_alphanumeric()).unwrap_or(after.len());
        SAFE_FILTERS.contains(&&after[..end])
    })
}

/// `for x in items if condition` with the filter around `items`; `None` for other statements.
pub(super) fn with_iterated(statement: &str) -> Option<String> {
    let tokens = tokens(statement);
    if tokens.first()?.text != "for" {
        return None;
    }
    let mut depth = 0_usize;
    let mut top_level = tokens.iter().filter(|token| {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0
    });
    let start = top_level.find(|token| token.text == "in")?.end();
    let end =
        top_level.find(|token| matches!(token.text, "if" | "recursive")).map_or(statement.len(), |token| token.start);
    Some(format!("{} ({})|{ITERATED} {}", &statement[..start], &statement[start..end], &statement[end..]))
}

/// `expression` with each slice as a call of [`SLICE`], and if `has_sums` each sum as one of [`ADD`].
pub(super) fn with_calls(expression: &str, has_sums: bool) -> String {
    let tokens = tokens(expression);
    if depth(&tokens) > TEMPLATE_BRACKET_DEPTH {
        return expression.to_owned();
    }
    let mut out = String::with_capacity(expression.len());
    let range = Range { tokens: &tokens, from: 0, to: expression.len() };
    Calls { text: expression, has_sums }.write(range, &mut out);
    out
}

/// A part of an expression.
#[derive(Clone, Copy)]
struct Range<'a> {
    tokens: &'a [Token<'a>],
    from: usize,
    to: usize,
}

impl<'a> Range<'a> {
    /// The parts between the colons that stand in no brackets; `None` without such a colon.
    fn slice_parts(self) -> Option<Vec<Self>> {
        let mut parts = Vec::new();
        let (mut depth, mut first, mut from) = (0_usize, 0, self.from);
        for (index, token) in self.tokens.iter().enumerate() {
            match token.text {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth = depth.saturating_sub(1),
                ":" if depth == 0 => {
                    parts.push(Range { tokens: &self.tokens[first..index], from, to: token.start });
                    (first, from) = (index + 1, token.end());
                }
                _ => {}
            }
        }
        parts.push(Range { tokens: &self.tokens[first..], from, to: self.to });
        matches!(parts.len(), 2 | 3).then_some(parts)
    }
}

/// A sum as far as it is read: its operands, rewritten.
#[derive(Default)]
struct Sum {
    operands: Vec<String>,
    has_minus: bool,
}

impl Sum {
    fn operand(&mut self) -> &mut String {
        if self.operands.is_empty() {
            self.operands.push(String::new());
        }
        self.operands.last_mut().expect("one was pushed")
    }

    /// Ends the sum and writes it.
    fn flush(&mut self, out: &mut String) {
        let Self { operands, has_minus } = std::mem::take(self);
        match operands.len() {
            0 | 1 => out.extend(operands),
            _ if has_minus => out.push_str(&operands.join("+")),
            _ => out.extend([" ", ADD, "(", &operands.join(","), ") "]),
        }
    }
}

/// Writes an expression with calls in place of operators.
struct Calls<'a> {
    text: &'a str,
    has_sums: bool,
}

impl Calls<'_> {
    fn write(&self, range: Range<'_>, out: &mut String) {
        let Range { tokens, from, to } = range;
        let mut sum = Sum::default();
        // Where in the operand the value begins to which a bracket behind it belongs.
        let mut value_start = 0;
        let (mut at, mut index) = (from, 0);
        while let Some(token) = tokens.get(index) {
            let before = index.checked_sub(1).map(|index| tokens[index]);
            let follows_operand = before.is_some_and(|before| before.is_operand());
            let follows = |text| before.is_some_and(|before| before.text == text);
            sum.operand().push_str(&self.text[at..token.start]);
            at = token.end();
            index += 1;
            let is_open = matches!(token.text, "(" | "[" | "{");
            let is_close = matches!(token.text, ")" | "]" | "}");
            if if is_open { !follows_operand } else { token.is_operand() && !is_close && !follows(".") } {
                value_start = sum.operand().len();
            }
            match token.text {
                "+" if follows_operand && self.has_sums => sum.operands.push(String::new()),
                // minijinja does not know the sign.
                "+" if !follows_operand => {}
                open if is_open => {
                    let close = index + matching_close(&tokens[index..]);
                    let end = tokens.get(close).map_or(to, |close| close.start);
                    let inner = Range { tokens: &tokens[index..close], from: at, to: end };
                    let parts = inner.slice_parts().filter(|_| open == "[" && follows_operand);
                    (at, index) = (end, close);
                    let Some(parts) = parts else {
                        sum.operand().push_str(open);
                        self.write(inner, sum.operand());
                        continue;
                    };
                    self.write_slice(&parts, value_start, sum.operand());
                    // The closing bracket is that of the call.
                    (at, index) = tokens.get(close).map_or((to, close), |close_token| (close_token.end(), close + 1));
                }
                looser if LOOSER.contains(&looser) && !follows("is") => {
                    sum.flush(out);
                    out.push_str(looser);
                }
                other => {
                    sum.has_minus |= other == "-" && follows_operand;
                    sum.operand().push_str(other);
                }
            }
        }
        sum.operand().push_str(&self.text[at..to]);
        sum.flush(out);
    }

    /// Puts the value at the end of `operand` into a call; a missing part is None.
    fn write_slice(&self, parts: &[Range<'_>], value_start: usize, operand: &mut String) {
        let value = operand.split_off(value_start);
        operand.extend([SLICE, "(", &value]);
        for part in parts {
            operand.push(',');
            if part.tokens.is_empty() {
                operand.push_str("none");
            }
            self.write(*part, operand);
        }
        operand.push(')');
    }
}

/// The place of the bracket that closes the one before `tokens`; their number if none does.
fn matching_close(tokens: &[Token<'_>]) -> usize {
    let mut depth = 1_usize;
    for (index, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    tokens.len()
}

/// The most brackets that are open at once.
fn depth(tokens: &[Token<'_>]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for token in tokens {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut start = 0;
    while let Some(first) = text[start..].chars().next() {
        let rest = &text[start..];
        let is_word = |character: char| character.is_alphanumeric() || character == '_';
        let len = match first {
            _ if first.is_whitespace() => {
                start += first.len_utf8();
                continue;
            }
            '"' | '\'' => string_len(rest),
            _ if is_word(first) => rest.find(|character| !is_word(character)).unwrap_or(rest.len()),
            _ if ["==", "!=", "<=", ">=", "//", "**"].iter().any(|operator| rest.starts_with(operator)) => 2,
            _ => first.len_utf8(),
        };
        tokens.push(Token { text: &rest[..len], start });
        start += len;
    }
    tokens
}

/// Bytes of the string literal that `text` begins with.
pub(super) fn string_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != bytes[0] {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    // A backslash may hide a wide character, or the end.
    let mut end = (at + 1).min(text.len());
    while !text.is_char_boundary(end) {
        end += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_iterate_through_the_filter() {
        let cases = [
            ("for a, b in x['if'].items() if a in c", "for a, b in ( x['if'].items() )|__iterated__ if a in c"),
            ("for a in 1, 2 recursive", "for a in ( 1, 2 )|__iterated__ recursive"),
            ("for a in (b if c else d)", "for a in ( (b if c else d))|__iterated__ "),
        ];
        for (statement, expected) in cases {
            assert_eq!(with_iterated(statement).as_deref(), Some(expected));
        }
        assert_eq!(with_iterated("if for in x"), None);
    }

    #[test]
    fn sums_and_slices_become_calls() {
        let cases = [
            ("a + b", " __add__(a , b) "),
            ("a", "a"),
            ("'+' + a.b['x' + y]|f(1 + 2) == -3", " __add__('+' , a.b[ __add__('x' , y) ]|f( __add__(1 , 2) ) ) == -3"),
            ("a - b + c", "a - b + c"),
            ("'x' + a is not none", " __add__('x' , a is not none) "),
            ("set x = +1 + -y if z else {'k': a + b}", "set x = __add__( 1 , -y ) if z else {'k': __add__( a , b) }"),
            ("'é\\'' + (", " __add__('é\\'' , () "),
        ];
        for (expression, expected) in cases {
            let squeeze = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(squeeze(&with_calls(expression, true)), squeeze(expected), "{expression}");
        }
        let cases = [
            ("a[1:]", "__slice__(a,1,none)"),
            (
                "not a.b['x'](1)[::-1][0].c[:n - 1]|f",
                "not __slice__( __slice__(a.b['x'](1),none,none,-1)[0].c,none,n - 1)|f",
            ),
            (
                "x == (a + b)[:1] + {'k': [1][1:2]}['k']",
                "x == __slice__((a + b),none,1) + {'k': __slice__([1],1,2)}['k']",
            ),
            ("a['x:y'] if {'a': 1} else [b for c:d]", "a['x:y'] if {'a': 1} else [b for c:d]"),
            ("'abc'[x[0:1]:", "__slice__('abc',__slice__(x,0,1),none)"),
        ];
        for (expression, expected) in cases {
            let squeeze = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(squeeze(&with_calls(expression, false)), squeeze(expected), "{expression}");
        }
        assert!(marks_safe_text("{{ x | safe }}") && marks_safe_text("{{x|e}}") && !marks_safe_text("{{ x|each }}"));
    }
}
