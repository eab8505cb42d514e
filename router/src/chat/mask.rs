//! The mask of a reply with tools or thoughts: the formats' descriptions as a grammar in llguidance's dialect of Lark.
//!
//! Special tokens are written by their ids (`<[7]>`): a grammar's text never matches a special token's.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::format::{Begin, More, Piece, ToolFormat};
use super::parameters::{Kind, kind};
use super::reasoning::{ReasoningFormat, ReplyStart};
use super::{Tool, ToolChoice};
use crate::grammar::GrammarSpec;
use crate::limits::MAX_TOOL_CALLS;

/// Any text.
const ANY: &str = r"(.|\n)";
/// White space between a thought and a call. Bounded: a model must not rest there.
const SPACE: &str = r"[ \n]{0,4}";
/// A string of Python on one line, in either quotes.
const PYTHON_STRING: &str =
    r#""([^"\\\x00-\x1F]|\\(["'\\nrtbf]|u[0-9a-fA-F]{4}))*"|'([^'\\\x00-\x1F]|\\(["'\\nrtbf]|u[0-9a-fA-F]{4}))*'"#;
/// Keywords of schemas that restrict nothing.
const ANNOTATIONS: [&str; 8] =
    ["title", "description", "default", "examples", "example", "deprecated", "$comment", "nullable"];

impl ToolFormat {
    /// What a reply must match: calls alone if the client requires them, otherwise text in which every call that begins is
    /// a valid one. Names are known, arguments follow their tool's schema. `None` if nothing is to be enforced.
    pub(crate) fn grammar(
        &self,
        tools: &[Tool],
        choice: &ToolChoice,
        parallel: bool,
        reasoning: Option<(&ReasoningFormat, ReplyStart)>,
    ) -> Option<GrammarSpec> {
        let tools: Vec<&Tool> = match choice {
            ToolChoice::None => return None,
            ToolChoice::Named(name) => tools.iter().filter(|tool| tool.name == *name).collect(),
            ToolChoice::Auto | ToolChoice::Required => tools.iter().collect(),
        };
        if tools.is_empty() {
            return None;
        }
        let most = if parallel && !matches!(choice, ToolChoice::Named(_)) { MAX_TOOL_CALLS } else { 1 };
        let mut lark = Lark::new(self, reasoning.map(|(format, _)| format));
        let calls: Vec<String> = tools.iter().map(|tool| lark.call(tool, Sequence::default())).collect();
        lark.rule("call", &calls.join(" | "));
        if self.description.begin == Begin::Start {
            // Text and a call part where they differ, in the middle of one terminal: the longest terminal wins.
            let calls: Vec<String> = tools.iter().map(|tool| lark.call(tool, lark.opening())).collect();
            lark.rule("first_call", &calls.join(" | "));
        }
        let start = reasoning.map(|(_, start)| start);
        let alternatives = match choice {
            ToolChoice::Auto => lark.auto(most, start),
            _ => lark.required(most, start),
        };
        lark.rule("start", &alternatives.join("\n    | "));
        let schemas = tools.iter().map(|tool| (tool.name.clone(), tool.parameters.clone())).collect();
        Some(GrammarSpec::ToolCalls { lark: lark.rules.into(), schemas })
    }

    /// A reply that is `answer`, with what may come before it: a thought, and what opens content. A thought that the prompt
    /// opened must end. White space behind it belongs to nobody if the answer is JSON; any other may begin with some.
    pub(crate) fn after_thought(
        &self,
        answer: GrammarSpec,
        (reasoning, start): (&ReasoningFormat, ReplyStart),
    ) -> GrammarSpec {
        let mut lark = Lark::new(self, Some(reasoning));
        let has_opening = !reasoning.marks.content_open.is_empty();
        let mut opening = lark.literal(reasoning.marks.content_open);
        if answer.is_json() {
            opening.regex(SPACE);
        }
        let opening = opening.render();
        let body = match start {
            ReplyStart::Reasoning => format!("{} {opening}", lark.thought_end()),
            ReplyStart::Content if has_opening => format!("(({})? {opening})?", lark.thought()),
            ReplyStart::Content => format!("({} {opening})?", lark.thought()),
        };
        lark.rule("start", &body);
        GrammarSpec::AfterThought { thought: lark.rules.into(), answer: Arc::new(answer) }
    }
}

/// A grammar that is being written.
struct Lark<'a> {
    format: &'a ToolFormat,
    reasoning: Option<&'a ReasoningFormat>,
    rules: String,
    next: usize,
}

/// A part of a rule.
#[derive(Debug)]
enum Atom {
    Regex(String),
    /// Anything else, as Lark text.
    Other(String),
}

/// Parts in order; regular expressions that follow each other are one.
#[derive(Debug, Default)]
struct Sequence(Vec<Atom>);

impl<'a> Lark<'a> {
    fn new(format: &'a ToolFormat, reasoning: Option<&'a ReasoningFormat>) -> Self {
        Self { format, reasoning, rules: String::new(), next: 0 }
    }

    fn rule(&mut self, name: &str, body: &str) {
        writeln!(self.rules, "{name}: {body}").expect("a string takes everything");
    }

    /// Writes a rule and returns its name.
    fn new_rule(&mut self, prefix: &str, attributes: &str, body: &str) -> String {
        let name = format!("{prefix}{}", self.next);
        self.next += 1;
        self.rule(&format!("{name}{attributes}"), body);
        name
    }

    /// A reply that is calls, perhaps after a thought.
    fn required(&mut self, most: usize, start: Option<ReplyStart>) -> Vec<String> {
        let calls = self.sections(most);
        match start {
            None => vec![calls],
            Some(ReplyStart::Reasoning) => vec![format!("{} {calls}", self.thought_end())],
            Some(ReplyStart::Content) => {
                let thought = self.thought();
                vec![calls.clone(), format!("{thought} {calls}")]
            }
        }
    }

    /// A reply that is text with calls in it, perhaps after a thought.
    fn auto(&mut self, most: usize, start: Option<ReplyStart>) -> Vec<String> {
        let mut alternatives = Vec::new();
        if start != Some(ReplyStart::Reasoning) {
            let excluded = (start == Some(ReplyStart::Content)).then(|| self.thought_begin()).flatten();
            alternatives.extend(self.text_with_calls(most, excluded.as_deref()));
        }
        let Some(start) = start else { return alternatives };
        let (thought, cut) = match start {
            ReplyStart::Reasoning => (self.thought_end(), self.thought_cut("")),
            ReplyStart::Content => {
                let begin = self.thought_begin();
                let cut = match begin {
                    Some(begin) => self.thought_cut(&begin),
                    None => format!("{} {}", self.literal(self.marks().open).render(), self.thought_cut("")),
                };
                (self.thought(), cut)
            }
        };
        alternatives.push(cut);
        let bodies = self.text_with_calls(most, None);
        alternatives.push(format!("{thought} ({})", bodies.join(" | ")));
        alternatives
    }

    /// The alternatives of a reply without thought. `excluded` is a regular expression that the text must not match.
    fn text_with_calls(&mut self, most: usize, excluded: Option<&str>) -> Vec<String> {
        let description = self.format.description;
        let mut alternatives = vec!["\"\"".to_owned()];
        if let Some(reasoning) = self.reasoning.filter(|reasoning| !reasoning.marks.content_open.is_empty()) {
            let open = self.literal(reasoning.marks.content_open).render();
            let close = self.literal(reasoning.marks.content_close).render();
            let close = if close.is_empty() { close } else { format!("({close})?") };
            alternatives.push(format!("{open} /{ANY}+/? {close}"));
        }
        let not_excluded = excluded.map(|excluded| format!(" & ~/{excluded}/")).unwrap_or_default();
        let Begin::Marker(begin) = description.begin else {
            let calls = self.sections(most);
            let open: Vec<String> = description.open.iter().map(|text| escape(text.trim())).collect();
            let call = match description.call {
                [Piece::Name { .. }, ..] => r"[^ \t\n\[\](){},]+[ \t\n]*\(",
                _ => r#"\{[ \t\n]*"name""#,
            };
            let looks_like_call = format!("[ \\t\\n]*{}[ \\t\\n]*{call}{ANY}*", open.concat());
            let prose = self.new_terminal(&format!("/{ANY}+/ & ~/{looks_like_call}/{not_excluded}"));
            alternatives.extend([calls, prose]);
            return alternatives;
        };
        let marker = self.literal(begin);
        let (lead, first_lead, tail, first_tail) = if let Some(Atom::Other(_)) = marker.0.first() {
            // A special token: text cannot be mistaken for it.
            let marker = marker.render();
            let first = self.new_terminal(&format!("/{ANY}+/{not_excluded}"));
            let text = self.new_terminal(&format!("/{ANY}+/"));
            (format!("{text}? {marker}"), format!("{first}? {marker}"), text, first)
        } else {
            let suffix = format!("[suffix={}]", Value::from(begin));
            let lead = self.new_rule("lead", &suffix, &format!("/{ANY}*/"));
            let first_text = self.new_terminal(&format!("/{ANY}*/{not_excluded}"));
            let first_lead = self.new_rule("lead", &suffix, &first_text);
            let no_call = format!("/{ANY}+/ & ~/{ANY}*{}{ANY}*/", escape(begin));
            let tail = self.new_terminal(&no_call);
            let first_tail = self.new_terminal(&format!("{no_call}{not_excluded}"));
            (lead, first_lead, tail, first_tail)
        };
        let (within, sections) = if description.more == More::Section { (1, most) } else { (most, 1) };
        let section = self.section_behind_begin(Sequence::default(), within);
        let repeated = if sections > 1 { format!("({lead} {section}){{0,{}}}", sections - 1) } else { String::new() };
        alternatives.push(format!("{first_lead} {section} {repeated} {tail}?"));
        alternatives.push(first_tail);
        alternatives
    }

    /// Calls and nothing else.
    fn sections(&mut self, most: usize) -> String {
        let description = self.format.description;
        let Begin::Marker(begin) = description.begin else {
            return self.section_behind_begin(Sequence::default(), most);
        };
        let (within, sections) = if description.more == More::Section { (1, most) } else { (most, 1) };
        let mut first = Sequence::default();
        first.regex(SPACE);
        first.append(self.literal(begin));
        let first = self.section_behind_begin(first, within);
        if sections == 1 {
            return first;
        }
        let mut again = Sequence::default();
        again.regex(r"\n?");
        again.append(self.literal(begin));
        let again = self.section_behind_begin(again, within);
        format!("{first} ({again}){{0,{}}}", sections - 1)
    }

    /// What stands before the first call of a section without begin mark.
    fn opening(&self) -> Sequence {
        let mut sequence = Sequence::default();
        sequence.regex(SPACE);
        self.format.description.open.iter().for_each(|text| sequence.append(self.literal(text)));
        sequence
    }

    /// `before`, the opening literals, up to `most` calls, the closing literals.
    fn section_behind_begin(&mut self, before: Sequence, most: usize) -> String {
        let description = self.format.description;
        let mut sequence = before;
        if description.begin == Begin::Start {
            sequence.other("first_call".to_owned());
        } else {
            description.open.iter().for_each(|text| sequence.append(self.literal(text)));
            sequence.other("call".to_owned());
        }
        let separator = match description.more {
            More::Section => "",
            More::Separated(text) | More::Following(text) => text,
        };
        if most > 1 {
            sequence.other(format!("({} call){{0,{}}}", self.literal(separator).render(), most - 1));
        }
        for text in description.close {
            sequence.append(self.literal(text));
        }
        sequence.render()
    }

    /// A rule for the call of `tool` after `opening`.
    fn call(&mut self, tool: &Tool, opening: Sequence) -> String {
        let mut sequence = opening;
        for piece in self.format.description.call {
            match piece {
                Piece::Text(text) => sequence.append(self.literal(text)),
                Piece::Name { tail } => {
                    sequence.regex(&escape(&tool.name));
                    let Some(tail) = tail else { continue };
                    let mut decoration = self.literal(tail.texts[0]);
                    decoration.regex(tail.pattern);
                    if tail.is_required {
                        sequence.append(decoration);
                    } else {
                        sequence.other(format!("({})?", decoration.render()));
                    }
                }
                Piece::Arguments => sequence.other(arguments(&tool.parameters)),
                Piece::Object { name, arguments: key } => {
                    let tool_name = escape(&Value::from(tool.name.as_str()).to_string());
                    sequence.regex(&format!("\\{{ ?\"{name}\": ?{tool_name}, ?\"{key}\": ?"));
                    sequence.other(arguments(&tool.parameters));
                    sequence.regex("\\}");
                }
                Piece::Keywords => {
                    let keywords = self.keywords(&tool.parameters);
                    if !keywords.is_empty() {
                        sequence.other(keywords);
                    }
                }
                Piece::Parameters { open, key_end, close } => {
                    let properties = tool.parameters.get("properties").and_then(Value::as_object);
                    for (key, property) in properties.into_iter().flatten() {
                        let mut parameter = self.literal(open);
                        parameter.regex(&escape(key));
                        key_end.iter().for_each(|text| parameter.append(self.literal(text)));
                        self.parameter(&mut parameter, &tool.parameters, key, property, close);
                        let rule = self.new_rule("parameter", "", &parameter.render());
                        sequence.other(if is_required(&tool.parameters, key) { rule } else { format!("{rule}?") });
                    }
                }
            }
        }
        self.new_rule("call", "", &sequence.render())
    }

    /// The value of a parameter and its closing mark.
    fn parameter(&mut self, out: &mut Sequence, schema: &Value, key: &str, property: &Value, close: &str) {
        let strings = || property.get("enum")?.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<_>>>();
        match (kind(schema, key), strings()) {
            (Kind::Text, Some(strings)) => {
                let list: Vec<String> = strings.into_iter().map(escape).collect();
                out.regex(&format!("({})", list.join("|")));
                out.append(self.literal(close));
            }
            (Kind::Json, _) => {
                out.other(json_text(with_definitions(property, schema)));
                out.append(self.literal(close));
            }
            (Kind::Text | Kind::TextOrNull | Kind::Any, _) => {
                let until = self.until(close);
                out.other(until);
            }
        }
    }

    /// The properties of `schema` as keywords, in its order; the name of a rule, or nothing if there are none.
    fn keywords(&mut self, schema: &Value) -> String {
        self.members(schema, schema, |key| format!("/{}=/", escape(key)))
    }

    /// The properties of `schema`, each introduced by what `begin` makes of its name, in its order and with commas between
    /// them; the name of a rule, or nothing if there are none.
    fn members(&mut self, root: &Value, schema: &Value, begin: impl Fn(&str) -> String) -> String {
        let properties = schema.get("properties").and_then(Value::as_object);
        // From the last to the first: what may follow if nothing stands before it, and if something does.
        let (mut first, mut further) = (String::new(), String::new());
        for (key, property) in properties.into_iter().flatten().rev() {
            let value = self.python(root, property);
            let member = self.new_rule("member", "", &format!("{} {value}", begin(key)));
            let or = |rest: &str| match (is_required(schema, key), rest) {
                (true, _) => String::new(),
                (false, "") => " | \"\"".to_owned(),
                (false, rest) => format!(" | {rest}"),
            };
            first = self.new_rule("members", "", &format!("{member} {further}{}", or(&first)));
            further = self.new_rule("further", "", &format!("/, ?/ {member} {further}{}", or(&further)));
        }
        first
    }

    /// A value as a literal of Python. What Python writes as JSON does is JSON, and so is what only `%json` can enforce. Of
    /// JSON's words too: several published templates print arguments as JSON.
    fn python(&mut self, root: &Value, schema: &Value) -> String {
        let json = || json_text(with_definitions(schema, root));
        let Some(object) = schema.as_object() else { return json() };
        let has_only = |keywords: &[&str]| {
            object.keys().all(|key| keywords.contains(&key.as_str()) || ANNOTATIONS.contains(&key.as_str()))
        };
        let strings = || object.get("enum")?.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<_>>>();
        match object.get("type") {
            Some(Value::String(name)) => match name.as_str() {
                "boolean" if has_only(&["type"]) => "/True|False|true|false/".to_owned(),
                "null" if has_only(&["type"]) => "/None|null/".to_owned(),
                "string" if has_only(&["type"]) => format!("/{PYTHON_STRING}/"),
                "string" if has_only(&["type", "enum"]) => strings().map_or_else(json, |strings| {
                    let literals = strings.iter().flat_map(|text| {
                        let plain = !text.contains(['\'', '\\']) && !text.contains(char::is_control);
                        [Some(Value::from(*text).to_string()), plain.then(|| format!("'{text}'"))]
                    });
                    format!("/{}/", literals.flatten().map(|text| escape(&text)).collect::<Vec<_>>().join("|"))
                }),
                "array" if has_only(&["type", "items"]) && object.contains_key("items") => {
                    let item = self.python(root, &object["items"]);
                    self.new_rule("list", "", &format!(r"/\[/ ({item} (/, ?/ {item})*)? /\]/"))
                }
                "object"
                    if has_only(&["type", "properties", "required", "additionalProperties"])
                        && object.get("additionalProperties") == Some(&Value::Bool(false)) =>
                {
                    let members =
                        self.members(root, schema, |key| format!("/{}: ?/", escape(&Value::from(key).to_string())));
                    self.new_rule("dictionary", "", &format!(r"/\{{/ {members} /\}}/"))
                }
                _ => json(),
            },
            Some(Value::Array(names)) if has_only(&["type"]) => {
                let alternatives = names.iter().map(|name| self.python(root, &json!({"type": name})));
                let alternatives = alternatives.collect::<Vec<_>>().join(" | ");
                self.new_rule("value", "", &alternatives)
            }
            None if has_only(&["anyOf"]) && object.contains_key("anyOf") => {
                let alternatives = object["anyOf"].as_array().into_iter().flatten();
                let alternatives = alternatives.map(|schema| self.python(root, schema)).collect::<Vec<_>>().join(" | ");
                self.new_rule("value", "", &alternatives)
            }
            None if has_only(&[]) => {
                self.new_rule("value", "", &format!("{} | /True|False|None/ | /{PYTHON_STRING}/", json()))
            }
            _ => json(),
        }
    }

    /// Any text up to and with `end`.
    fn until(&mut self, end: &str) -> String {
        let literal = self.literal(end);
        if literal.0.iter().any(|atom| matches!(atom, Atom::Other(_))) {
            format!("/{ANY}+/? {}", literal.render())
        } else {
            self.new_rule("text", &format!("[suffix={}]", Value::from(end)), &format!("/{ANY}*/"))
        }
    }

    fn marks(&self) -> &'static super::reasoning::Marks {
        self.reasoning.expect("only asked for if there is a thought").marks
    }

    /// A whole thought.
    fn thought(&mut self) -> String {
        let Some(begin) = self.thought_begin() else {
            return format!("{} {}", self.literal(self.marks().open).render(), self.thought_end());
        };
        let suffix = format!("[suffix={}]", Value::from(self.marks().close));
        let thought = self.new_rule("thought", &suffix, &format!("/{begin}/"));
        self.behind_thought(thought)
    }

    /// What a thought that is open ends with.
    fn thought_end(&mut self) -> String {
        let end = self.until(self.marks().close);
        self.behind_thought(end)
    }

    /// A thought with what stands between it and what follows.
    fn behind_thought(&self, thought: String) -> String {
        let between = self.literal(self.marks().between).render();
        if between.is_empty() { thought } else { format!("{thought} {between}") }
    }

    /// A regular expression for the text of a thought with its opening mark; `None` if that is a special token.
    fn thought_begin(&self) -> Option<String> {
        let open = self.literal(self.marks().open);
        let is_text = open.0.iter().all(|atom| matches!(atom, Atom::Regex(_)));
        is_text.then(|| format!("[ \\t\\n]*{}{ANY}*", escape(self.marks().open)))
    }

    /// A thought, after what `begin` says, in which the reply ends.
    fn thought_cut(&mut self, begin: &str) -> String {
        let text = if begin.is_empty() { format!("/{ANY}+/") } else { format!("/{begin}/") };
        let cut = self.new_terminal(&format!("{text} & ~/{ANY}*{}{ANY}*/", escape(self.marks().close)));
        format!("{cut}?")
    }

    /// Writes a terminal and returns its name.
    fn new_terminal(&mut self, body: &str) -> String {
        self.new_rule("TEXT", "", body)
    }

    /// A literal, its special tokens by their ids.
    fn literal(&self, text: &str) -> Sequence {
        let mut sequence = Sequence::default();
        let mut rest = text;
        let special = || {
            let reasoning = self.reasoning.map_or(&[] as &[_], |reasoning| &reasoning.special_tokens);
            self.format.special_tokens.iter().chain(reasoning)
        };
        while let Some((at, token, id)) =
            special().filter_map(|(token, id)| Some((rest.find(token)?, *token, *id))).min_by_key(|(at, ..)| *at)
        {
            sequence.regex(&escape(&rest[..at]));
            sequence.other(format!("<[{id}]>"));
            rest = &rest[at + token.len()..];
        }
        sequence.regex(&escape(rest));
        sequence
    }
}

impl Sequence {
    fn regex(&mut self, text: &str) {
        match self.0.last_mut() {
            Some(Atom::Regex(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.0.push(Atom::Regex(text.to_owned())),
        }
    }

    fn other(&mut self, text: String) {
        self.0.push(Atom::Other(text));
    }

    fn append(&mut self, sequence: Self) {
        for atom in sequence.0 {
            match atom {
                Atom::Regex(text) => self.regex(&text),
                Atom::Other(text) => self.other(text),
            }
        }
    }

    fn render(&self) -> String {
        let atoms = self.0.iter().map(|atom| match atom {
            // A terminal must not match the empty text.
            Atom::Regex(text) if text == SPACE => r"/[ \n]{1,4}/?".to_owned(),
            Atom::Regex(text) if text == r"\n?" => r"/\n/?".to_owned(),
            Atom::Regex(text) => format!("/{text}/"),
            Atom::Other(text) => text.clone(),
        });
        atoms.collect::<Vec<_>>().join(" ")
    }
}

fn is_required(schema: &Value, key: &str) -> bool {
    let required = schema.get("required").and_then(Value::as_array);
    required.is_some_and(|list| list.iter().any(|name| name == key))
}

/// A part of the schema `root`, with what its references may point to.
fn with_definitions(part: &Value, root: &Value) -> Value {
    let mut part = part.clone();
    if let (Some(part), Some(root)) = (part.as_object_mut(), root.as_object()) {
        for definitions in ["$defs", "definitions"] {
            part.extend(root.get(definitions).map(|found| (definitions.to_owned(), found.clone())));
        }
    }
    part
}

/// The arguments as JSON. A schema that says nothing of further properties allows none: a function cannot take them.
fn arguments(schema: &Value) -> String {
    let mut object = match schema {
        Value::Object(object) => object.clone(),
        _ => Map::new(),
    };
    object.insert("type".to_owned(), json!("object"));
    let is_open =
        ["additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref", "unevaluatedProperties", "if"]
            .iter()
            .any(|keyword| object.contains_key(*keyword));
    if !is_open {
        object.insert("additionalProperties".to_owned(), json!(false));
    }
    json_text(Value::Object(object))
}

/// A JSON text without white space that a model could rest in.
fn json_text(mut schema: Value) -> String {
    if let Value::Object(object) = &mut schema {
        let layout = json!({"whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?"});
        object.insert("x-guidance".to_owned(), layout);
    }
    format!("%json {schema}")
}

/// A text as a regular expression between slashes.
fn escape(text: &str) -> String {
    regex_syntax::escape(text).replace('/', r"\x2F").replace('\n', r"\n").replace('\t', r"\t").replace('\r', r"\r")
}
