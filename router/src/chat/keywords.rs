//! Reads keyword arguments as Python writes them (`city="Paris", days=[1, None]`), and translates them into a JSON object.

use super::parameters::{push_escaped, quoted};
use super::section::Match;
use crate::limits::{MAX_ARGUMENTS_DEPTH, MAX_NAME_BYTES};

/// Reads from behind a call's opening parenthesis to its closing one. Values are literals: strings, numbers, `True`,
/// `False`, `None`, lists and dictionaries; also JSON's words. A string is given out as it comes.
#[derive(Debug)]
pub(super) struct KeywordsReader {
    state: State,
    /// The open brackets, outermost first, and whether something stands in them.
    open: Vec<(Bracket, bool)>,
    /// The keyword, number or word that is being read.
    word: String,
    /// A keyword was read: the JSON text has begun.
    is_begun: bool,
    /// The string that is being read is the key of a dictionary.
    is_key: bool,
    /// Nothing stands in it yet.
    is_empty: bool,
    /// Quotes in a row that may end it, if three do.
    quotes: usize,
    /// The first half of a pair of surrogates.
    high_surrogate: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bracket {
    List,
    Dictionary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a keyword or the closing parenthesis.
    KeywordOrEnd,
    Keyword,
    /// Behind a keyword.
    Equals,
    /// A value must follow.
    Value,
    /// In brackets: another item or their end.
    ItemOrEnd,
    /// Behind the key of a dictionary.
    Colon,
    /// A comma or the end of what is open must follow.
    Next,
    /// A number, or a word that is a value.
    Word,
    String(Quote),
    Escape(Quote),
    /// That many hexadecimal digits must follow, after those whose value is there.
    Hex(Quote, u8, u32),
    /// Behind a string, which goes on if another follows. Two quotes in a row may begin three.
    StringEnd(Option<Quote>),
}

/// What a string ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quote {
    mark: char,
    is_triple: bool,
}

/// What a character did.
enum Step {
    Taken,
    /// It ends what was read before; it has to be read again.
    Again,
    /// It is the closing parenthesis.
    End,
    Broken,
}

impl KeywordsReader {
    pub(super) fn new() -> Self {
        Self {
            state: State::KeywordOrEnd,
            open: Vec::new(),
            word: String::new(),
            is_begun: false,
            is_key: false,
            is_empty: true,
            quotes: 0,
            high_surrogate: None,
        }
    }

    /// Reads `text`: how many bytes were taken, the JSON text that they make, and whether the closing parenthesis follows.
    pub(super) fn run(&mut self, text: &str) -> (usize, String, Match) {
        let mut json = String::new();
        for (at, c) in text.char_indices() {
            let outcome = loop {
                match self.push(c, &mut json) {
                    Step::Again => {}
                    Step::Taken => break None,
                    Step::End => break Some(Match::Full(0)),
                    Step::Broken => break Some(Match::No),
                }
            };
            if let Some(outcome) = outcome {
                return (at, json, outcome);
            }
        }
        (text.len(), json, Match::Partial)
    }

    /// A keyword or the end was read: this is a call.
    pub(super) fn is_begun(&self) -> bool {
        self.is_begun
    }

    fn push(&mut self, c: char, json: &mut String) -> Step {
        use State::{
            Colon, Equals, Escape, Hex, ItemOrEnd, Keyword, KeywordOrEnd, Next, String, StringEnd, Value, Word,
        };
        let is_space = c.is_ascii_whitespace();
        match (self.state, c) {
            (KeywordOrEnd | Equals | Value | ItemOrEnd | Colon | Next, _) if is_space => Step::Taken,
            (KeywordOrEnd, ')') => self.end(json),
            (KeywordOrEnd, _) => {
                self.word.clear();
                self.go(Keyword, Step::Again)
            }
            (Keyword | Equals, '=') if !self.word.is_empty() => {
                json.push_str(if self.is_begun { ", " } else { "{" });
                json.push_str(&quoted(&self.word));
                json.push_str(": ");
                self.is_begun = true;
                self.go(Value, Step::Taken)
            }
            (Keyword, _) if is_space => self.go(Equals, Step::Taken),
            (Keyword, _) if !"\"'()[]{},=\\".contains(c) && self.word.len() < MAX_NAME_BYTES => {
                self.word.push(c);
                Step::Taken
            }
            (Value, _) => self.begin_value(c, json),
            (ItemOrEnd | Next, ']') => self.close(Bracket::List, c, json),
            (ItemOrEnd | Next, '}') => self.close(Bracket::Dictionary, c, json),
            (ItemOrEnd, _) => self.begin_item(c, json),
            (Colon, ':') => {
                json.push_str(": ");
                self.go(Value, Step::Taken)
            }
            (Next, ',') => self.go(if self.open.is_empty() { KeywordOrEnd } else { ItemOrEnd }, Step::Taken),
            (Next, ')') if self.open.is_empty() => self.end(json),
            (Word, _) if c.is_ascii_alphanumeric() || "+-._".contains(c) => {
                self.word.push(c);
                if self.word.len() <= MAX_NAME_BYTES { Step::Taken } else { Step::Broken }
            }
            (Word, _) => match translate(&self.word) {
                Some(value) => {
                    json.push_str(&value);
                    self.go(Next, Step::Again)
                }
                None => Step::Broken,
            },
            (String(quote), _) => self.string(quote, c, json),
            (Escape(quote), _) => self.escape(quote, c, json),
            (Hex(quote, left, value), _) => match c.to_digit(16) {
                None => Step::Broken,
                Some(digit) if left > 1 => self.go(Hex(quote, left - 1, value << 4 | digit), Step::Taken),
                Some(digit) => {
                    self.code_point(value << 4 | digit, json);
                    self.go(String(quote), Step::Taken)
                }
            },
            (StringEnd(Some(quote)), _) if c == quote.mark => {
                self.is_empty = true;
                self.go(String(Quote { is_triple: true, ..quote }), Step::Taken)
            }
            // Strings that follow each other are one.
            (StringEnd(_), '"' | '\'') => self.begin_string(c),
            (StringEnd(_), _) if is_space => self.go(StringEnd(None), Step::Taken),
            (StringEnd(_), _) => {
                json.push('"');
                self.go(if self.is_key { Colon } else { Next }, Step::Again)
            }
            (Keyword | Equals | Colon | Next, _) => Step::Broken,
        }
    }

    fn go(&mut self, state: State, step: Step) -> Step {
        self.state = state;
        step
    }

    fn end(&mut self, json: &mut String) -> Step {
        json.push_str(if self.is_begun { "}" } else { "{}" });
        self.is_begun = true;
        Step::End
    }

    fn begin_item(&mut self, c: char, json: &mut String) -> Step {
        let (bracket, has_items) = self.open.last_mut().expect("items stand in brackets");
        if std::mem::replace(has_items, true) {
            json.push_str(", ");
        }
        self.is_key = *bracket == Bracket::Dictionary;
        match (self.is_key, c) {
            (false, _) => self.begin_value(c, json),
            (true, '"' | '\'') => {
                json.push('"');
                self.begin_string(c)
            }
            (true, _) => Step::Broken,
        }
    }

    fn begin_value(&mut self, c: char, json: &mut String) -> Step {
        self.is_key = false;
        match c {
            '"' | '\'' => {
                json.push('"');
                self.begin_string(c)
            }
            '[' => self.open(Bracket::List, c, json),
            '{' => self.open(Bracket::Dictionary, c, json),
            _ => {
                self.word.clear();
                self.go(State::Word, Step::Again)
            }
        }
    }

    fn begin_string(&mut self, mark: char) -> Step {
        self.is_empty = true;
        self.go(State::String(Quote { mark, is_triple: false }), Step::Taken)
    }

    fn open(&mut self, bracket: Bracket, c: char, json: &mut String) -> Step {
        // The object of all arguments is open, too.
        if self.open.len() + 1 == MAX_ARGUMENTS_DEPTH {
            return Step::Broken;
        }
        self.open.push((bracket, false));
        json.push(c);
        self.go(State::ItemOrEnd, Step::Taken)
    }

    fn close(&mut self, bracket: Bracket, c: char, json: &mut String) -> Step {
        if self.open.pop().is_none_or(|(open, _)| open != bracket) {
            return Step::Broken;
        }
        json.push(c);
        self.go(State::Next, Step::Taken)
    }

    /// One character within quotes.
    fn string(&mut self, quote: Quote, c: char, json: &mut String) -> Step {
        if c == quote.mark {
            self.quotes += 1;
            if quote.is_triple && self.quotes < 3 {
                return Step::Taken;
            }
            self.quotes = 0;
            self.end_pair(json);
            let may_be_triple = !quote.is_triple && self.is_empty;
            return self.go(State::StringEnd(may_be_triple.then_some(quote)), Step::Taken);
        }
        for _ in 0..std::mem::take(&mut self.quotes) {
            self.give(quote.mark, json);
        }
        if c == '\\' {
            self.is_empty = false;
            return self.go(State::Escape(quote), Step::Taken);
        }
        self.give(c, json);
        Step::Taken
    }

    /// The character behind a backslash.
    fn escape(&mut self, quote: Quote, c: char, json: &mut String) -> Step {
        let digits = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        if digits > 0 {
            return self.go(State::Hex(quote, digits, 0), Step::Taken);
        }
        match c {
            '\n' => {}
            'n' => self.give('\n', json),
            't' => self.give('\t', json),
            'r' => self.give('\r', json),
            'a' => self.give('\x07', json),
            'b' => self.give('\x08', json),
            'v' => self.give('\x0b', json),
            'f' => self.give('\x0c', json),
            // The slash by JSON.
            '\\' | '\'' | '"' | '/' => self.give(c, json),
            _ => {
                self.give('\\', json);
                self.give(c, json);
            }
        }
        self.go(State::String(quote), Step::Taken)
    }

    /// A character by its code. Two surrogates are one character, as in JSON; one alone is none.
    fn code_point(&mut self, code: u32, json: &mut String) {
        match (code, self.high_surrogate.take()) {
            (0xDC00..=0xDFFF, Some(high)) => {
                let both = 0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00);
                self.give(char::from_u32(both).unwrap_or(char::REPLACEMENT_CHARACTER), json);
            }
            (_, high) => {
                self.high_surrogate = high;
                self.end_pair(json);
                match code {
                    0xD800..=0xDBFF => self.high_surrogate = Some(code),
                    _ => self.give(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), json),
                }
            }
        }
    }

    fn give(&mut self, c: char, json: &mut String) {
        self.end_pair(json);
        self.is_empty = false;
        push_escaped(json, c.encode_utf8(&mut [0; 4]));
    }

    /// No second half of a pair comes any more.
    fn end_pair(&mut self, json: &mut String) {
        if self.high_surrogate.take().is_some() {
            json.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

/// The JSON text of a number or a word; `None` if it is no value.
fn translate(word: &str) -> Option<String> {
    match word {
        "True" | "true" => return Some("true".to_owned()),
        "False" | "false" => return Some("false".to_owned()),
        "None" | "null" => return Some("null".to_owned()),
        _ => {}
    }
    let (sign, digits) = match word.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", word.strip_prefix('+').unwrap_or(word)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let digits = digits.replace('_', "");
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(digits) = digits.to_ascii_lowercase().strip_prefix(prefix) {
            return u128::from_str_radix(digits, radix).ok().map(|number| format!("{sign}{number}"));
        }
    }
    let (mantissa, exponent) = match digits.find(['e', 'E']) {
        Some(at) => digits.split_at(at),
        None => (digits.as_str(), ""),
    };
    let mantissa = match mantissa.split_once('.') {
        Some(("", "")) => return None,
        Some((whole, fraction)) => {
            let or_zero = |digits: &str| if digits.is_empty() { "0".to_owned() } else { digits.to_owned() };
            format!("{}.{}", or_zero(whole), or_zero(fraction))
        }
        None => mantissa.to_owned(),
    };
    let number = format!("{sign}{mantissa}{exponent}");
    serde_json::from_str::<serde::de::IgnoredAny>(&number).is_ok().then_some(number)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The JSON text of `text` up to its closing parenthesis, read at once and in single characters; `None` if it is broken
    /// or goes on.
    fn read(text: &str) -> Option<Value> {
        let text = format!("{text})");
        let mut whole = KeywordsReader::new();
        let (taken, all, outcome) = whole.run(&text);
        let (mut single, mut joined) = (KeywordsReader::new(), String::new());
        for c in text.chars() {
            let (_, json, outcome) = single.run(c.encode_utf8(&mut [0; 4]));
            joined.push_str(&json);
            if outcome != Match::Partial {
                break;
            }
        }
        assert_eq!(joined, all, "{text}");
        let is_complete = outcome == Match::Full(0) && taken == text.len() - 1;
        is_complete.then(|| serde_json::from_str(&all).unwrap_or_else(|error| panic!("{text}: {all}: {error}")))
    }

    #[track_caller]
    fn check(value: &str, expected: Value) {
        assert_eq!(read(&format!("x={value}")), Some(json!({"x": expected})), "{value}");
    }

    #[test]
    fn literals_are_translated() {
        for (value, expected) in [
            (r#""a""#, json!("a")),
            ("'a'", json!("a")),
            (r#"'a "b" \'c\''"#, json!("a \"b\" 'c'")),
            (r#""a 'b' \"c\"""#, json!("a 'b' \"c\"")),
            (r#""\n\t\\\x41\u00e9\U0001F600\/\q\a""#, json!("\n\t\\Aé😀/\\q\x07")),
            (r#""\ud83d\ude00 \ud83d \ude00 \ud83d""#, json!("😀 \u{fffd} \u{fffd} \u{fffd}")),
            ("'two\nlines'", json!("two\nlines")),
            ("'one\\\nline'", json!("oneline")),
            (r#""""a "b" ""c""" "#, json!("a \"b\" \"\"c")),
            ("'''it's'''", json!("it's")),
            (r#""""""""#, json!("")),
            (r#"'' "#, json!("")),
            (r#"'a' "b""#, json!("ab")),
            (r#""é)]}=,""#, json!("é)]}=,")),
            ("-1", json!(-1)),
            ("+1_000", json!(1000)),
            ("1.5e-3", json!(1.5e-3)),
            (".5", json!(0.5)),
            ("-5.", json!(-5.0)),
            ("0xFF", json!(255)),
            ("True", json!(true)),
            ("false", json!(false)),
            ("None", json!(null)),
            ("[]", json!([])),
            ("[1, 'a', [None,],]", json!([1, "a", [null]])),
            ("{}", json!({})),
            (r#"{'a': 1, "b": {'c': [True]},}"#, json!({"a": 1, "b": {"c": [true]}})),
        ] {
            check(value, expected);
        }
    }

    #[test]
    fn keywords_make_an_object() {
        assert_eq!(read(""), Some(json!({})));
        assert_eq!(read(" "), Some(json!({})));
        assert_eq!(read("a = 1 ,b=2,"), Some(json!({"a": 1, "b": 2})));
        assert_eq!(read("unit-id='x', größe=1"), Some(json!({"unit-id": "x", "größe": 1})));
    }

    #[test]
    fn what_is_no_literal_is_broken() {
        for text in [
            "1",
            "'a'",
            "a",
            "a=",
            "a=,",
            "a=b",
            "a=1 2",
            "a==1",
            "=1",
            "a=1,,b=2",
            "a=[,]",
            "a=[1",
            "a=[1}",
            "a={1: 2}",
            "a={'b'}",
            "a={'b': }",
            "a=(1)",
            "a=01",
            "a=1.2.3",
            "a=0xg",
            "a=.",
            "a=1e",
            "a='",
            "a='\\x4'",
            "a=f(1",
            "a=b'c'",
            "a='b'c",
            "a=\"\"\"\"\"",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let nested = |depth: usize| format!("a={}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read(&nested(MAX_ARGUMENTS_DEPTH - 1)).is_some());
        assert_eq!(read(&nested(MAX_ARGUMENTS_DEPTH)), None);
        assert!(read(&format!("{}=1", "a".repeat(MAX_NAME_BYTES))).is_some());
        assert_eq!(read(&format!("{}=1", "a".repeat(MAX_NAME_BYTES + 1))), None);
        assert_eq!(read(&format!("a={}", "1".repeat(MAX_NAME_BYTES + 1))), None);
    }
}
