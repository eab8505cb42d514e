//! Grammar texts: llguidance's Lark, and the `name ::= ...` notation of llama.cpp and vLLM, which is translated into it.

use llguidance::api::{GrammarInit, TopLevelGrammar};

use super::error::GrammarError;
use crate::limits::{MAX_GRAMMAR_BYTES, MAX_SCHEMA_DEPTH};

/// The grammar of `text`.
///
/// # Errors
/// [`GrammarError::InvalidGrammar`]: for Lark itself the compiler finds them later, see [`super::engine`].
pub(super) fn compile(text: &str) -> Result<GrammarInit, GrammarError> {
    check_size(text)?;
    let lark = if text.contains("::=") { translate(text)? } else { text.to_owned() };
    check_nesting(&lark)?;
    for directive in ["%json", "%llguidance", "%import"] {
        // Schemas inside a grammar would pass by our refusal of what cannot be enforced.
        if lark.contains(directive) && !(directive == "%import" && lark.contains("%import common.")) {
            return Err(invalid(format!("`{directive}` is not supported")));
        }
    }
    Ok(GrammarInit::Serialized(TopLevelGrammar::from_lark(lark)))
}

/// The grammar of `text`, which this server wrote around schemas of a client.
///
/// # Errors
/// [`GrammarError::TooLarge`].
pub(super) fn of_server(text: &str) -> Result<GrammarInit, GrammarError> {
    check_size(text)?;
    check_nesting(text)?;
    Ok(GrammarInit::Serialized(TopLevelGrammar::from_lark(text.to_owned())))
}

fn check_size(text: &str) -> Result<(), GrammarError> {
    match text.len() > MAX_GRAMMAR_BYTES {
        true => Err(GrammarError::TooLarge { what: "grammar", value: text.len(), limit: MAX_GRAMMAR_BYTES }),
        false => Ok(()),
    }
}

/// The parser of Lark recurses into groups.
fn check_nesting(text: &str) -> Result<(), GrammarError> {
    let mut depth = 0usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_SCHEMA_DEPTH {
            return Err(GrammarError::TooLarge { what: "grammar's nesting", value: depth, limit: MAX_SCHEMA_DEPTH });
        }
    }
    Ok(())
}

fn invalid(reason: String) -> GrammarError {
    GrammarError::InvalidGrammar { reason }
}

/// Lark from `name ::= alternatives` with strings, `[character classes]`, groups, `* + ? {m,n}` and `#` comments. The
/// start rule is `root`.
fn translate(text: &str) -> Result<String, GrammarError> {
    let mut lark = String::with_capacity(text.len() * 2);
    let mut rest = Scanner { text, at: 0 };
    let mut has_root = false;
    rest.skip_blank()?;
    while rest.peek().is_some() {
        let name = rest.name().ok_or_else(|| rest.expected("a rule's name"))?;
        rest.skip_blank()?;
        if !rest.eat("::=") {
            return Err(rest.expected("`::=`"));
        }
        has_root |= name == "root";
        lark.push_str(&rule_name(&name));
        // An empty alternative is allowed there and not in Lark; beside the empty string nothing is empty.
        lark.push_str(": \"\"");
        rest.body(&mut lark)?;
        lark.push('\n');
    }
    if !has_root {
        return Err(invalid("there is no rule `root`".to_owned()));
    }
    Ok(lark)
}

/// Lark's rules are lower case; the prefix keeps them apart from its keywords.
fn rule_name(name: &str) -> String {
    if name == "root" {
        return "start".to_owned();
    }
    let mut lark = "r_".to_owned();
    for letter in name.chars() {
        match letter {
            'a'..='z' | '0'..='9' => lark.push(letter),
            // Every other letter by its code, so that no two names meet.
            other => lark.push_str(&format!("_{:x}_", u32::from(other))),
        }
    }
    lark
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl Scanner<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let letter = self.peek()?;
        self.at += letter.len_utf8();
        Some(letter)
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expected(&self, what: &str) -> GrammarError {
        let line = self.text[..self.at].matches('\n').count() + 1;
        let found: String = self.rest().chars().take(20).collect();
        invalid(format!("line {line}: expected {what}, found {found:?}"))
    }

    fn skip_blank(&mut self) -> Result<(), GrammarError> {
        loop {
            match self.peek() {
                Some(letter) if letter.is_whitespace() => {
                    self.take();
                }
                Some('#') => {
                    while self.peek().is_some_and(|letter| letter != '\n') {
                        self.take();
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        while let Some(letter) = self.peek().filter(|letter| letter.is_ascii_alphanumeric() || "-_".contains(*letter)) {
            name.push(letter);
            self.take();
        }
        (!name.is_empty()).then_some(name)
    }

    /// The alternatives of one rule, up to the next rule.
    fn body(&mut self, lark: &mut String) -> Result<(), GrammarError> {
        let mut depth = 0usize;
        let mut operand = false;
        loop {
            self.skip_blank()?;
            let before = self.at;
            match self.peek() {
                None => break,
                Some('"' | '\'') => lark.push_str(&self.string()?),
                Some('[') => lark.push_str(&self.class()?),
                Some('.') => {
                    self.take();
                    lark.push_str(" /(?s:.)/");
                }
                Some('(') => {
                    self.take();
                    depth += 1;
                    lark.push_str(" (\"\"");
                }
                Some(')') if depth > 0 => {
                    self.take();
                    depth -= 1;
                    lark.push(')');
                }
                Some('|') => {
                    self.take();
                    lark.push_str(" | \"\"");
                }
                Some(mark @ ('*' | '+' | '?')) if operand => {
                    self.take();
                    lark.push(mark);
                }
                Some('{') if operand => lark.push_str(&self.times()?),
                _ => {
                    let Some(name) = self.name() else { return Err(self.expected("a string, a class or a rule")) };
                    let end = self.at;
                    self.skip_blank()?;
                    if self.rest().starts_with("::=") {
                        self.at = before;
                        break;
                    }
                    self.at = end;
                    lark.push(' ');
                    lark.push_str(&rule_name(&name));
                }
            }
            operand = !matches!(self.text[before..self.at].chars().next(), Some('(' | '|'));
        }
        if depth > 0 { Err(self.expected("`)`")) } else { Ok(()) }
    }

    fn string(&mut self) -> Result<String, GrammarError> {
        let quote = self.take();
        let mut content = String::new();
        while self.peek() != quote {
            content.push(self.character()?);
        }
        self.take();
        // Lark reads JSON's escapes.
        Ok(format!(" {}", serde_json::Value::from(content)))
    }

    /// One character, escaped or not.
    fn character(&mut self) -> Result<char, GrammarError> {
        let letter = self.take().ok_or_else(|| self.expected("the end of a string or class"))?;
        if letter != '\\' {
            return Ok(letter);
        }
        let escape = self.take().ok_or_else(|| self.expected("an escaped character"))?;
        let digits = match escape {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other => return Ok(other),
        };
        let code = self.rest().get(..digits).and_then(|code| u32::from_str_radix(code, 16).ok());
        let letter = code.and_then(char::from_u32).ok_or_else(|| self.expected("the code of a character"))?;
        self.at += digits;
        Ok(letter)
    }

    fn class(&mut self) -> Result<String, GrammarError> {
        self.take();
        let mut class = " /[".to_owned();
        if self.eat("^") {
            class.push('^');
        }
        let push = |class: &mut String, letter: char| class.push_str(&format!("\\u{{{:x}}}", u32::from(letter)));
        let mut empty = true;
        while !self.rest().starts_with(']') {
            let first = self.character()?;
            push(&mut class, first);
            if self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                self.take();
                let last = self.character()?;
                if last < first {
                    return Err(self.expected("a range in order"));
                }
                class.push('-');
                push(&mut class, last);
            }
            empty = false;
        }
        self.take();
        if empty { Err(self.expected("a class that is not empty")) } else { Ok(class + "]/") }
    }

    fn times(&mut self) -> Result<String, GrammarError> {
        self.take();
        let mut inside = String::new();
        while let Some(letter) = self.take().filter(|letter| *letter != '}') {
            inside.push(letter);
        }
        let count = |text: &str| text.trim().parse::<u32>().ok();
        let times = match inside.split_once(',') {
            None => count(&inside).map(|exactly| format!("{{{exactly}}}")),
            Some((min, "")) => count(min).map(|min| format!("{{{min},}}")),
            Some((min, max)) => count(min).zip(count(max)).map(|(min, max)| format!("{{{min},{max}}}")),
        };
        times.ok_or_else(|| self.expected("`{m}`, `{m,}` or `{m,n}`"))
    }
}
