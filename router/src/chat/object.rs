//! Reads a call that is a JSON object, or the JSON object of a call's arguments.

use super::Tool;
use super::json_scanner::{Event, JsonScanner};
use crate::limits::TOOL_CALL_HEAD_BYTES;

/// Reads `{"name": .., "arguments": {..}}` with its members in any order, or a bare object of arguments.
#[derive(Debug)]
pub(super) struct ObjectReader {
    scanner: JsonScanner,
    shape: Shape,
    slot: Slot,
    /// The text of the key or of the name that is being read, with its quotes.
    string: String,
    name: Option<String>,
    /// Arguments that are not taken yet.
    arguments: String,
    has_arguments: bool,
    is_complete: bool,
    is_given_out: bool,
    /// Bytes read since [`Self::take_read`], and in all.
    read: usize,
    length: usize,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    Arguments,
    Call { name: &'static str, arguments: &'static str },
}

/// What the characters that are being read belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Nothing,
    Key,
    /// Behind the key of the name, then in it.
    BeforeName,
    Name,
    BeforeArguments,
    Arguments,
}

/// How far the object came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Member {
    More,
    Complete,
    /// This is no call of a known function, or no JSON object.
    Broken,
}

impl ObjectReader {
    pub(super) fn arguments() -> Self {
        Self::new(Shape::Arguments)
    }

    pub(super) fn call(name: &'static str, arguments: &'static str) -> Self {
        Self::new(Shape::Call { name, arguments })
    }

    fn new(shape: Shape) -> Self {
        Self {
            scanner: JsonScanner::new(),
            slot: Slot::Nothing,
            shape,
            string: String::new(),
            name: None,
            arguments: String::new(),
            has_arguments: false,
            is_complete: false,
            is_given_out: false,
            read: 0,
            length: 0,
        }
    }

    /// Reads `text`, as far as the object goes.
    pub(super) fn run(&mut self, text: &str, tools: &[Tool]) -> Member {
        for c in text.chars() {
            let event = self.scanner.push(c);
            if event == Event::Broken {
                return Member::Broken;
            }
            self.read += c.len_utf8();
            self.length += c.len_utf8();
            match self.shape {
                Shape::Arguments if self.arguments.is_empty() && !self.has_arguments && c != '{' => {}
                Shape::Arguments => {
                    self.has_arguments = true;
                    self.arguments.push(c);
                }
                Shape::Call { name, arguments } => {
                    let is_call = self.member(c, event, name, arguments, tools);
                    let may_wait = self.is_known(None) || self.is_given_out || self.length <= TOOL_CALL_HEAD_BYTES;
                    if !is_call || !may_wait {
                        return Member::Broken;
                    }
                }
            }
            if event == Event::Complete {
                self.is_complete = true;
                if !self.has_arguments {
                    self.arguments.push_str("{}");
                }
                return Member::Complete;
            }
        }
        Member::More
    }

    /// How many bytes were read since this was asked last.
    pub(super) fn take_read(&mut self) -> usize {
        std::mem::take(&mut self.read)
    }

    /// Enough is read to say that this is a call: the name and the begin of the arguments. `outer` is a name that stood
    /// before the object.
    pub(super) fn is_known(&self, outer: Option<&str>) -> bool {
        (self.name.is_some() || outer.is_some()) && (self.has_arguments || self.is_complete)
    }

    pub(super) fn take_name(&mut self) -> Option<String> {
        self.name.take()
    }

    /// From now on the arguments are taken as they come.
    pub(super) fn give_out(&mut self) {
        self.is_given_out = true;
    }

    pub(super) fn is_given_out(&self) -> bool {
        self.is_given_out
    }

    pub(super) fn take_arguments(&mut self) -> String {
        std::mem::take(&mut self.arguments)
    }

    /// One character of the outer object; false if it is no call.
    fn member(&mut self, c: char, event: Event, name: &str, arguments: &str, tools: &[Tool]) -> bool {
        match (self.slot, event) {
            (_, Event::KeyBegins) => {
                self.slot = Slot::Key;
                self.string.clear();
                self.string.push(c);
            }
            (Slot::Key, Event::KeyEnds) => {
                self.string.push(c);
                let key: String = serde_json::from_str(&self.string).unwrap_or_default();
                self.slot = if key == name && self.name.is_none() && !self.is_given_out {
                    Slot::BeforeName
                } else if (key == arguments || key == "arguments" || key == "parameters") && !self.has_arguments {
                    Slot::BeforeArguments
                } else {
                    Slot::Nothing
                };
            }
            (Slot::BeforeName, Event::ValueBegins) => {
                if c != '"' {
                    return false;
                }
                self.slot = Slot::Name;
                self.string.clear();
                self.string.push(c);
            }
            (Slot::Name, Event::ValueEnds) => {
                self.string.push(c);
                self.slot = Slot::Nothing;
                let name: String = serde_json::from_str(&self.string).unwrap_or_default();
                self.name = tools.iter().any(|tool| tool.name == name).then_some(name);
                return self.name.is_some();
            }
            (Slot::BeforeArguments, Event::ValueBegins) => {
                if c != '{' {
                    return false;
                }
                self.slot = Slot::Arguments;
                self.has_arguments = true;
                self.arguments.push(c);
            }
            (Slot::Arguments, event) => {
                self.arguments.push(c);
                if event == Event::ValueEnds {
                    self.slot = Slot::Nothing;
                }
            }
            (Slot::Key | Slot::Name, _) => self.string.push(c),
            _ => {}
        }
        true
    }
}
