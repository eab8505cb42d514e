//! Reads one section of tool calls: from behind its begin mark to its end, in pieces of any size.

use super::format::{Description, More, Piece, Tail};
use super::keywords::KeywordsReader;
use super::object::{Member, ObjectReader};
use super::parameters::ParametersReader;
use super::{ReplyPart, Tool};
use crate::limits::{MAX_NAME_TAIL_BYTES, TOOL_CALL_HEAD_BYTES};

/// A section that is being read. Positions are bytes of the text that [`Section::run`] is given.
#[derive(Debug)]
pub(super) struct Section {
    description: &'static Description,
    stage: Stage,
    /// What lies before is parsed.
    at: usize,
    /// What lies before is given out, or is no text for anyone. What follows is content if this turns out not to be a call.
    pub(super) done: usize,
    /// The number of the call that is being read, or the next one.
    index: usize,
    /// The function whose arguments are being given out.
    name: Option<String>,
}

#[derive(Debug)]
enum Stage {
    /// The literal `open[_]`.
    Open(usize),
    /// The piece `call[_]`, not yet begun.
    Piece(usize),
    Object(usize, ObjectReader),
    Parameters(usize, ParametersReader),
    Keywords(usize, KeywordsReader),
    /// A call is complete: another one or the end.
    After,
    /// The literal `close[_]`.
    Close(usize),
}

/// How far a section came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All text is read; more must come.
    More,
    /// The section ended; what follows `done` is no part of it.
    Over,
    /// What follows `done` is no call.
    NoCall,
    /// The arguments of this function, of which some are given out, are no JSON object.
    Broken(String),
}

/// How a text compares with a literal, white space around both apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// The literal and the space around it take that many bytes.
    Full(usize),
    /// The text is a beginning of it.
    Partial,
    No,
}

impl Section {
    /// A section whose begin mark ends at `at` and begins at `start`; its first call has the number `index`.
    pub(super) fn new(description: &'static Description, start: usize, at: usize, index: usize) -> Self {
        Self { description, stage: Stage::Open(0), at, done: start, index, name: None }
    }

    /// Reads on. `text` is what was there last time, without the first `done` bytes if the caller has
    /// [forgotten](Self::forget) them, and what has come since.
    pub(super) fn run(&mut self, text: &str, tools: &[Tool], out: &mut Vec<ReplyPart>) -> Progress {
        loop {
            let next = match &mut self.stage {
                Stage::Open(_) | Stage::Piece(_) => self.literal_or_begin(text, tools, out),
                Stage::Object(piece, reader) => {
                    let (piece, from) = (*piece, self.at);
                    let member = reader.run(&text[from..], tools);
                    self.at += reader.take_read();
                    self.member(piece, member, out)
                }
                Stage::Parameters(piece, reader) => {
                    let piece = *piece;
                    let ends = terminators(self.description, piece);
                    let (taken, fragment, outcome) = reader.run(&text[self.at..], &ends);
                    self.at += taken;
                    self.done = self.at;
                    push_arguments(out, self.index, fragment);
                    match outcome {
                        Match::Full(_) => {
                            self.stage = Stage::Piece(piece + 1);
                            None
                        }
                        Match::Partial => Some(Progress::More),
                        Match::No => Some(self.failure()),
                    }
                }
                Stage::Keywords(..) => self.keywords(text, out),
                Stage::After | Stage::Close(_) => self.after(text),
            };
            match next {
                None => {}
                Some(Progress::More) if self.name.is_none() && self.done + TOOL_CALL_HEAD_BYTES < text.len() => {
                    return Progress::NoCall;
                }
                Some(progress) => return progress,
            }
        }
    }

    /// The caller drops the first `bytes` (at most `done`) of the text.
    pub(super) fn forget(&mut self, bytes: usize) {
        self.at -= bytes;
        self.done -= bytes;
    }

    /// The number that the next call has.
    pub(super) fn next_index(&self) -> usize {
        let is_given_out = match &self.stage {
            Stage::Object(_, reader) => reader.is_given_out(),
            Stage::Parameters(..) => true,
            Stage::Keywords(_, reader) => reader.is_begun(),
            _ => self.arguments_are_complete(),
        };
        self.index + usize::from(is_given_out)
    }

    /// The reply ends here: what this means for the call that is being read.
    pub(super) fn finish(mut self) -> Progress {
        match self.stage {
            Stage::After | Stage::Close(_) => Progress::Over,
            _ if self.arguments_are_complete() => Progress::Over,
            _ => self.failure(),
        }
    }

    /// A literal, or the begin of the name or the arguments.
    fn literal_or_begin(&mut self, text: &str, tools: &[Tool], out: &mut Vec<ReplyPart>) -> Option<Progress> {
        let rest = &text[self.at..];
        let (literal, next) = match self.stage {
            Stage::Open(index) => match self.description.open.get(index) {
                Some(literal) => (*literal, Stage::Open(index + 1)),
                None => {
                    self.stage = Stage::Piece(0);
                    return None;
                }
            },
            Stage::Piece(index) => match self.description.call.get(index) {
                Some(Piece::Text(literal)) => (*literal, Stage::Piece(index + 1)),
                Some(Piece::Name { tail }) => return self.name(index, *tail, rest, tools),
                Some(Piece::Arguments) => {
                    self.stage = Stage::Object(index, ObjectReader::arguments());
                    return None;
                }
                Some(Piece::Object { name, arguments }) => {
                    self.stage = Stage::Object(index, ObjectReader::call(name, arguments));
                    return None;
                }
                Some(Piece::Keywords) => {
                    self.stage = Stage::Keywords(index, KeywordsReader::new());
                    return None;
                }
                Some(Piece::Parameters { open, key_end, close }) => {
                    let name = self.name.clone().expect("every table entry names the function before its parameters");
                    let tool = tools.iter().find(|tool| tool.name == name).expect("the name was looked up");
                    let reader = ParametersReader::new(open, key_end, close, tool.parameters.clone());
                    out.push(ReplyPart::ToolCall { index: self.index, name });
                    self.done = self.at;
                    self.stage = Stage::Parameters(index, reader);
                    return None;
                }
                None => {
                    self.call_ends();
                    return None;
                }
            },
            _ => unreachable!("only called in these stages"),
        };
        match compare(rest, literal) {
            Match::Full(bytes) => {
                self.at += bytes;
                self.stage = next;
                if self.arguments_are_complete() {
                    self.done = self.at;
                }
                None
            }
            Match::Partial => Some(Progress::More),
            // Behind the arguments only decoration can be missing: the call stands.
            Match::No if self.arguments_are_complete() => {
                self.stage = next;
                None
            }
            Match::No => Some(self.failure()),
        }
    }

    fn name(&mut self, piece: usize, tail: Option<Tail>, rest: &str, tools: &[Tool]) -> Option<Progress> {
        let ends = terminators(self.description, piece);
        let text = rest.trim_start();
        let skipped = rest.len() - text.len();
        // The longest name that fits: one may be the beginning of another.
        let fits = |tool: &&Tool| {
            let Some(behind) = text.strip_prefix(tool.name.as_str()) else { return false };
            name_ends(behind, tail, &ends) != Match::No
        };
        if let Some(tool) = tools.iter().filter(fits).max_by_key(|tool| tool.name.len()) {
            let Match::Full(behind) = name_ends(&text[tool.name.len()..], tail, &ends) else {
                return Some(Progress::More);
            };
            self.at += skipped + tool.name.len() + behind;
            self.name = Some(tool.name.clone());
            self.stage = Stage::Piece(piece + 1);
            return None;
        }
        let may_follow = tools.iter().any(|tool| tool.name.starts_with(text));
        Some(if may_follow { Progress::More } else { self.failure() })
    }

    fn member(&mut self, piece: usize, member: Member, out: &mut Vec<ReplyPart>) -> Option<Progress> {
        let Stage::Object(_, reader) = &mut self.stage else { unreachable!("an object is being read") };
        if !reader.is_given_out() && reader.is_known(self.name.as_deref()) {
            let name = reader.take_name().or(self.name.take()).expect("it is known");
            self.name = Some(name.clone());
            out.push(ReplyPart::ToolCall { index: self.index, name });
            reader.give_out();
        }
        if reader.is_given_out() {
            push_arguments(out, self.index, reader.take_arguments());
            self.done = self.at;
        }
        match member {
            Member::More => Some(Progress::More),
            Member::Complete if reader.is_given_out() => {
                self.stage = Stage::Piece(piece + 1);
                None
            }
            Member::Complete | Member::Broken => Some(self.failure()),
        }
    }

    /// Keyword arguments. Before the first of them this may be a text that has a function's name in it.
    fn keywords(&mut self, text: &str, out: &mut Vec<ReplyPart>) -> Option<Progress> {
        let Stage::Keywords(piece, reader) = &mut self.stage else { unreachable!("keywords are being read") };
        let was_begun = reader.is_begun();
        let (taken, fragment, outcome) = reader.run(&text[self.at..]);
        self.at += taken;
        if reader.is_begun() {
            if !was_begun {
                let name = self.name.clone().expect("every table entry names the function before its arguments");
                out.push(ReplyPart::ToolCall { index: self.index, name });
            }
            push_arguments(out, self.index, fragment);
            self.done = self.at;
        }
        match outcome {
            Match::Full(_) => {
                self.stage = Stage::Piece(*piece + 1);
                None
            }
            Match::Partial => Some(Progress::More),
            Match::No => Some(self.failure()),
        }
    }

    /// A second call, or the end of the section.
    fn after(&mut self, text: &str) -> Option<Progress> {
        let rest = &text[self.at..];
        if let Stage::Close(index) = self.stage {
            let Some(literal) = self.description.close.get(index) else { return Some(Progress::Over) };
            return match compare(rest, literal) {
                Match::Full(bytes) => {
                    self.at += bytes;
                    self.done = self.at;
                    self.stage = Stage::Close(index + 1);
                    None
                }
                Match::Partial => Some(Progress::More),
                Match::No => Some(Progress::Over),
            };
        }
        let (another, taken) = match self.description.more {
            More::Section => (Match::No, 0),
            More::Separated(separator) if separator.trim().is_empty() => {
                let close = self.description.close.first().expect("sections of lines have an end");
                match compare(rest, close) {
                    Match::Full(_) => (Match::No, 0),
                    Match::Partial => (Match::Partial, 0),
                    Match::No => (Match::Full(0), 0),
                }
            }
            More::Separated(separator) => match compare(rest, separator) {
                Match::Full(bytes) => (Match::Full(bytes), bytes),
                other => (other, 0),
            },
            // The call itself begins with this literal.
            More::Following(_) => (compare(rest, first_literal(self.description)), 0),
        };
        match another {
            Match::Full(_) => {
                self.at += taken;
                self.stage = Stage::Piece(0);
            }
            // An empty rest is a beginning of everything.
            Match::Partial => return Some(Progress::More),
            Match::No => self.stage = Stage::Close(0),
        }
        None
    }

    fn call_ends(&mut self) {
        self.done = self.at;
        self.index += 1;
        self.name = None;
        self.stage = Stage::After;
    }

    /// In the literals behind the arguments.
    fn arguments_are_complete(&self) -> bool {
        let is_arguments = |piece: &Piece| !matches!(piece, Piece::Text(_) | Piece::Name { .. });
        match self.stage {
            Stage::Piece(index) => self.description.call[..index].iter().any(is_arguments),
            _ => false,
        }
    }

    /// The text cannot go on like this.
    fn failure(&mut self) -> Progress {
        match self.name.take() {
            Some(name) if self.next_index() > self.index => Progress::Broken(name),
            _ => Progress::NoCall,
        }
    }
}

/// The literals that may follow the piece `index`.
fn terminators(description: &'static Description, index: usize) -> Vec<&'static str> {
    match description.call.get(index + 1) {
        Some(Piece::Text(literal)) => vec![*literal],
        Some(Piece::Parameters { open, .. }) => {
            let mut ends = terminators(description, index + 1);
            ends.push(open);
            ends
        }
        _ => description.close.first().into_iter().copied().collect(),
    }
}

/// The literal that a call begins with.
fn first_literal(description: &'static Description) -> &'static str {
    description
        .call
        .iter()
        .find_map(|piece| match piece {
            Piece::Text(literal) if !literal.trim().is_empty() => Some(*literal),
            Piece::Object { .. } => Some("{"),
            _ => None,
        })
        .expect("every table entry with calls in one section begins them with a literal")
}

/// Whether a name ends before `behind`, and how many bytes of decoration follow it.
fn name_ends(behind: &str, tail: Option<Tail>, ends: &[&str]) -> Match {
    let mut result = Match::No;
    for end in ends {
        match compare(behind, end) {
            Match::Full(bytes) => {
                // A list of parameters begins with the literal, so it stays; a text of the call is read again, too.
                let spaces = bytes - behind[..bytes].trim_start().len();
                return Match::Full(spaces);
            }
            Match::Partial => result = Match::Partial,
            Match::No => {}
        }
        for text in tail.map_or(&[] as &[&str], |tail| tail.texts) {
            match compare(behind, text) {
                Match::Full(_) => match behind.find(end) {
                    Some(at) if at + end.len() <= MAX_NAME_TAIL_BYTES => return Match::Full(at),
                    None if behind.len() < MAX_NAME_TAIL_BYTES => result = Match::Partial,
                    Some(_) | None => {}
                },
                Match::Partial => result = Match::Partial,
                Match::No => {}
            }
        }
    }
    result
}

/// Compares the beginning of `text` with `literal`, white space around both apart.
pub(super) fn compare(text: &str, literal: &str) -> Match {
    let (trimmed, literal) = (text.trim_start(), literal.trim());
    let spaces = text.len() - trimmed.len();
    if trimmed.starts_with(literal) {
        Match::Full(if literal.is_empty() { 0 } else { spaces + literal.len() })
    } else if literal.starts_with(trimmed) {
        Match::Partial
    } else {
        Match::No
    }
}

pub(super) fn push_arguments(out: &mut Vec<ReplyPart>, index: usize, fragment: String) {
    if !fragment.is_empty() {
        out.push(ReplyPart::Arguments { index, fragment });
    }
}
