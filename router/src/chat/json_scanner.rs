//! Reads JSON one character at a time: is this still the beginning of an object, and where do its members stand?

use crate::limits::MAX_ARGUMENTS_DEPTH;

/// An object that is being read. Its own members are reported, what lies deeper is only checked.
#[derive(Debug)]
pub(super) struct JsonScanner {
    state: State,
    /// The open brackets, outermost first.
    open: Vec<Bracket>,
}

/// What a character did. `..Begins` and `..Ends` are about members of the outermost object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Nothing,
    KeyBegins,
    /// With the closing quote.
    KeyEnds,
    ValueBegins,
    /// With the last character of a string, an object or a list. The end of a number or a word is not reported.
    ValueEnds,
    /// The outermost object is complete.
    Complete,
    /// No JSON text goes on like this, or it is nested too deep.
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bracket {
    Object,
    List,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Key,
    Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the object.
    Start,
    /// A value must follow.
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After `{`.
    KeyOrEnd,
    Key,
    Colon,
    /// A comma or the end of the container must follow.
    Next,
    String(Role),
    Escape(Role),
    /// That many hexadecimal digits must follow.
    Hex(Role, u8),
    /// The rest of `true`, `false` or `null`.
    Word(&'static str),
    Number(Number),
    Done,
}

/// The part of a number that was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

impl JsonScanner {
    pub(super) fn new() -> Self {
        Self { state: State::Start, open: Vec::new() }
    }

    /// Reads one more character. After [`Event::Complete`] and [`Event::Broken`] everything is broken.
    pub(super) fn push(&mut self, c: char) -> Event {
        use State::{Colon, Done, Escape, Hex, Key, KeyOrEnd, Next, Start, String, Value, ValueOrEnd, Word};
        if let State::Number(number) = self.state {
            if let Some(next) = number.next(c) {
                self.state = State::Number(next);
                return Event::Nothing;
            }
            if !number.may_end() {
                return self.broken();
            }
            self.state = Next;
        }
        let is_space = matches!(c, ' ' | '\t' | '\n' | '\r');
        match (self.state, c) {
            (Start | Value | ValueOrEnd | KeyOrEnd | Key | Colon | Next, _) if is_space => Event::Nothing,
            (Start, '{') => self.open(Bracket::Object, KeyOrEnd, Event::Nothing),
            (Value | ValueOrEnd, _) if c != ']' => self.begin_value(c),
            (ValueOrEnd, ']') => self.close(Bracket::List),
            (KeyOrEnd, '}') => self.close(Bracket::Object),
            (KeyOrEnd | Key, '"') => self.go(String(Role::Key), Event::KeyBegins),
            (Colon, ':') => self.go(Value, Event::Nothing),
            (Next, ',') => match self.open.last() {
                Some(Bracket::Object) => self.go(Key, Event::Nothing),
                _ => self.go(Value, Event::Nothing),
            },
            (Next, '}') => self.close(Bracket::Object),
            (Next, ']') => self.close(Bracket::List),
            (String(Role::Key), '"') => self.go(Colon, Event::KeyEnds),
            (String(Role::Value), '"') => self.go(Next, Event::ValueEnds),
            (String(role), '\\') => self.go(Escape(role), Event::Nothing),
            (String(_), _) if c >= ' ' => Event::Nothing,
            (Escape(role), 'u') => self.go(Hex(role, 4), Event::Nothing),
            (Escape(role), '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => self.go(String(role), Event::Nothing),
            (Hex(role, left), _) if c.is_ascii_hexdigit() => {
                self.go(if left == 1 { String(role) } else { Hex(role, left - 1) }, Event::Nothing)
            }
            (Word(rest), _) if rest.starts_with(c) => {
                let rest = &rest[c.len_utf8()..];
                self.go(if rest.is_empty() { Next } else { Word(rest) }, Event::Nothing)
            }
            (Start | Value | ValueOrEnd | KeyOrEnd | Key | Colon | Next | String(_) | Escape(_) | Hex(..), _)
            | (Word(_) | State::Number(_) | Done, _) => self.broken(),
        }
    }

    fn begin_value(&mut self, c: char) -> Event {
        match c {
            '{' => self.open(Bracket::Object, State::KeyOrEnd, Event::ValueBegins),
            '[' => self.open(Bracket::List, State::ValueOrEnd, Event::ValueBegins),
            '"' => self.go(State::String(Role::Value), Event::ValueBegins),
            't' => self.go(State::Word("rue"), Event::ValueBegins),
            'f' => self.go(State::Word("alse"), Event::ValueBegins),
            'n' => self.go(State::Word("ull"), Event::ValueBegins),
            '-' => self.go(State::Number(Number::Minus), Event::ValueBegins),
            '0' => self.go(State::Number(Number::Zero), Event::ValueBegins),
            '1'..='9' => self.go(State::Number(Number::Integer), Event::ValueBegins),
            _ => self.broken(),
        }
    }

    /// Enters `state`; the event counts only among the outermost members.
    fn go(&mut self, state: State, event: Event) -> Event {
        self.state = state;
        if self.open.len() == 1 { event } else { Event::Nothing }
    }

    fn open(&mut self, bracket: Bracket, state: State, event: Event) -> Event {
        if self.open.len() == MAX_ARGUMENTS_DEPTH {
            return self.broken();
        }
        let event = self.go(state, event);
        self.open.push(bracket);
        event
    }

    fn close(&mut self, bracket: Bracket) -> Event {
        if self.open.pop() != Some(bracket) {
            return self.broken();
        }
        if self.open.is_empty() {
            self.state = State::Done;
            return Event::Complete;
        }
        self.go(State::Next, Event::ValueEnds)
    }

    fn broken(&mut self) -> Event {
        self.state = State::Done;
        Event::Broken
    }
}

impl Number {
    /// The part that `c` belongs to; `None` if the number does not go on with it.
    fn next(self, c: char) -> Option<Self> {
        match (self, c) {
            (Self::Minus, '0') => Some(Self::Zero),
            (Self::Minus | Self::Integer, '0'..='9') => Some(Self::Integer),
            (Self::Zero | Self::Integer, '.') => Some(Self::Point),
            (Self::Point | Self::Fraction, '0'..='9') => Some(Self::Fraction),
            (Self::Zero | Self::Integer | Self::Fraction, 'e' | 'E') => Some(Self::E),
            (Self::E, '+' | '-') => Some(Self::Sign),
            (Self::E | Self::Sign | Self::Exponent, '0'..='9') => Some(Self::Exponent),
            _ => None,
        }
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Integer | Self::Fraction | Self::Exponent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of `text`: `k`/`K` a key begins and ends, `v`/`V` a value, `.` complete, `!` broken.
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let mut scanner = JsonScanner::new();
        let events: String = text
            .chars()
            .filter_map(|c| match scanner.push(c) {
                Event::Nothing => None,
                Event::KeyBegins => Some('k'),
                Event::KeyEnds => Some('K'),
                Event::ValueBegins => Some('v'),
                Event::ValueEnds => Some('V'),
                Event::Complete => Some('.'),
                Event::Broken => Some('!'),
            })
            .collect();
        assert_eq!(events, expected, "{text}");
        let is_valid = serde_json::from_str::<serde_json::Value>(text).is_ok();
        assert_eq!(events.ends_with('.'), is_valid, "serde_json disagrees about {text}");
    }

    #[test]
    fn members_are_reported() {
        check("{}", ".");
        check(r#" { "a" : 1 , "b" : "x" } "#.trim_end(), "kKvkKvV.");
        check(r#"{"a": {"b": [1, {"c": "]}"}]}, "d": true}"#, "kKvVkKv.");
        check(r#"{"a": -0.5e+3}"#, "kKv.");
        check(r#"{"a\"\u00e9": "\\"}"#, "kKvV.");
        check("{\"a\": \"é\"}", "kKvV.");
    }

    #[test]
    fn what_is_not_json_is_broken() {
        for text in ["{a", "{\"a\",", "{\"a\":,", "{\"a\":01", "{\"a\":.", "{\"a\":tru}", "{\"a\":[1,]", "{\"a\":1,}"] {
            assert!(
                text.chars().scan(JsonScanner::new(), |scanner, c| Some(scanner.push(c))).any(|e| e == Event::Broken),
                "{text}"
            );
        }
        for text in [
            "[1",
            "x",
            "{\"a\":\"\n",
            "{\"a\":\"\\x",
            "{\"a\":\"\\u00g",
            "{\"a\":[}",
            "{\"a\":1 2",
            "{}x",
            "{\"a\":-}",
            "{\"a\":1e}",
        ] {
            assert!(
                text.chars().scan(JsonScanner::new(), |scanner, c| Some(scanner.push(c))).any(|e| e == Event::Broken),
                "{text}"
            );
        }
    }

    #[test]
    fn depth_is_bounded() {
        let mut scanner = JsonScanner::new();
        scanner.push('{');
        "\"a\":".chars().for_each(|c| _ = scanner.push(c));
        let depth = (0..).find(|_| scanner.push('[') == Event::Broken);
        assert_eq!(depth, Some(MAX_ARGUMENTS_DEPTH - 1));
    }
}
