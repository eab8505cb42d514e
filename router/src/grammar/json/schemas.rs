//! Where schemas are: every subschema by its place, and what `$ref`, `$id` and `$anchor` point at.

use std::collections::HashMap;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::super::error::GrammarError;
use crate::limits::{MAX_SCHEMA_DEPTH, MAX_SCHEMA_PLACES};

/// A place in the schema document: the identity of a subschema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place(usize);

/// What stands at a place.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    Schema(&'a Value),
    /// A value that an instance must equal.
    Constant(&'a Value),
}

struct Entry<'a> {
    content: Content<'a>,
    /// JSON pointer from the root of the document.
    path: String,
    /// URI of the schema resource it belongs to, without fragment.
    base: Rc<str>,
}

/// The places of one schema document.
pub(super) struct Schemas<'a> {
    entries: Vec<Entry<'a>>,
    by_address: HashMap<(usize, bool), Place>,
    /// Schema resources and anchors, by absolute URI.
    targets: HashMap<String, Place>,
    /// Draft 7 or earlier: a `$ref` hides its siblings.
    pub(super) legacy: bool,
}

impl<'a> Schemas<'a> {
    /// Indexes `root` (whose depth is within [`MAX_SCHEMA_DEPTH`], see [`check_depth`]).
    pub(super) fn new(root: &'a Value) -> Result<Self, GrammarError> {
        let dialect = root.get("$schema").and_then(Value::as_str).unwrap_or_default();
        let legacy = ["draft-03", "draft-04", "draft-06", "draft-07"].iter().any(|draft| dialect.contains(draft));
        let mut schemas = Self { entries: Vec::new(), by_address: HashMap::new(), targets: HashMap::new(), legacy };
        let place = schemas.add(Content::Schema(root), String::new(), Rc::from(""))?;
        schemas.targets.insert(String::new(), place);
        schemas.index(root, String::new(), Rc::from(""))?;
        Ok(schemas)
    }

    /// The root schema.
    pub(super) fn root(&self) -> Place {
        Place(0)
    }

    pub(super) fn content(&self, place: Place) -> Content<'a> {
        self.entries[place.0].content
    }

    pub(super) fn path(&self, place: Place) -> &str {
        &self.entries[place.0].path
    }

    /// The place of a subschema of `parent`, under `key` (a keyword, or keyword and further steps).
    pub(super) fn child(&mut self, parent: Place, steps: &[&str], value: &'a Value) -> Result<Place, GrammarError> {
        self.add_below(parent, steps, Content::Schema(value))
    }

    /// The place of a constant below `parent`.
    pub(super) fn constant(&mut self, parent: Place, steps: &[&str], value: &'a Value) -> Result<Place, GrammarError> {
        self.add_below(parent, steps, Content::Constant(value))
    }

    fn add_below(&mut self, parent: Place, steps: &[&str], content: Content<'a>) -> Result<Place, GrammarError> {
        let parent = &self.entries[parent.0];
        let (mut path, base) = (parent.path.clone(), parent.base.clone());
        for step in steps {
            push_step(&mut path, step);
        }
        self.add(content, path, base)
    }

    fn add(&mut self, content: Content<'a>, path: String, base: Rc<str>) -> Result<Place, GrammarError> {
        let (value, constant, base) = match content {
            Content::Schema(value) => (value, false, self.base_of(value, base)),
            Content::Constant(value) => (value, true, base),
        };
        // The document outlives the index and does not move, so an address is an identity.
        let key = (std::ptr::from_ref(value) as usize, constant);
        if let Some(&place) = self.by_address.get(&key) {
            return Ok(place);
        }
        if self.entries.len() == MAX_SCHEMA_PLACES {
            return Err(GrammarError::TooLarge {
                what: "JSON schema's number of subschemas",
                value: self.entries.len() + 1,
                limit: MAX_SCHEMA_PLACES,
            });
        }
        let place = Place(self.entries.len());
        self.entries.push(Entry { content, path, base });
        self.by_address.insert(key, place);
        Ok(place)
    }

    fn base_of(&self, value: &Value, base: Rc<str>) -> Rc<str> {
        let Some(object) = value.as_object() else { return base };
        if self.legacy && object.contains_key("$ref") {
            return base;
        }
        match object.get("$id").or_else(|| object.get("id")).and_then(Value::as_str) {
            Some(id) if !id.starts_with('#') => Rc::from(without_fragment(&resolve(&base, id))),
            _ => base,
        }
    }

    /// Registers every `$id` and `$anchor` in positions where a schema stands.
    fn index(&mut self, root: &'a Value, path: String, base: Rc<str>) -> Result<(), GrammarError> {
        let mut open = vec![(root, path, base)];
        while let Some((value, path, base)) = open.pop() {
            let place = self.add(Content::Schema(value), path.clone(), base)?;
            let base = self.entries[place.0].base.clone();
            let Some(object) = value.as_object() else { continue };
            if !(self.legacy && object.contains_key("$ref")) {
                if object.get("$id").or_else(|| object.get("id")).is_some_and(Value::is_string) {
                    self.targets.entry(base.to_string()).or_insert(place);
                }
                let plain_name = object.get("$id").and_then(Value::as_str).and_then(|id| id.strip_prefix('#'));
                for name in ["$anchor", "$dynamicAnchor"]
                    .iter()
                    .filter_map(|keyword| object.get(*keyword)?.as_str())
                    .chain(plain_name)
                {
                    self.targets.entry(format!("{base}#{name}")).or_insert(place);
                }
            }
            open.extend(subschemas(object, &path).into_iter().map(|(path, value)| (value, path, base.clone())));
        }
        Ok(())
    }

    /// The schema that `reference`, written at `place`, points at.
    pub(super) fn resolve(&mut self, place: Place, reference: &str) -> Result<Place, GrammarError> {
        let base = self.entries[place.0].base.clone();
        let absolute = resolve(&base, reference);
        let (resource, fragment) = absolute.split_once('#').unwrap_or((&absolute, ""));
        let unsupported = |reason: String| GrammarError::Unsupported {
            keyword: "$ref".to_owned(),
            path: format!("#{}", self.entries[place.0].path),
            reason,
        };
        if let Some(&target) = self.targets.get(&absolute) {
            return Ok(target);
        }
        let Some(&target) = self.targets.get(resource) else {
            return Err(unsupported(format!("`{reference}` is not in this document, and nothing is fetched")));
        };
        if fragment.is_empty() {
            return Ok(target);
        }
        let (Some(pointer), Content::Schema(mut value)) =
            (percent_decode(fragment).filter(|pointer| pointer.starts_with('/')), self.content(target))
        else {
            return Err(unsupported(format!("nothing in this document has the anchor `{reference}`")));
        };
        let (mut path, mut base) = (self.path(target).to_owned(), self.entries[target.0].base.clone());
        for step in pointer[1..].split('/') {
            let step = step.replace("~1", "/").replace("~0", "~");
            let next = match value {
                Value::Object(map) => map.get(&step),
                Value::Array(list) => step.parse::<usize>().ok().and_then(|index| list.get(index)),
                _ => None,
            };
            let Some(next) = next else {
                return Err(unsupported(format!("`{reference}` points at nothing in this document")));
            };
            push_step(&mut path, &step);
            base = self.base_of(next, base);
            value = next;
        }
        self.add(Content::Schema(value), path, base)
    }
}

/// The schemas that stand directly in a schema at `path`, each with its own path.
pub(in super::super) fn subschemas<'a>(object: &'a Map<String, Value>, path: &str) -> Vec<(String, &'a Value)> {
    let below = |steps: &[&str]| {
        let mut path = path.to_owned();
        steps.iter().for_each(|step| push_step(&mut path, step));
        path
    };
    let mut found = Vec::new();
    for (keyword, value) in object {
        match (keyword.as_str(), value) {
            (
                "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas" | "dependencies",
                Value::Object(map),
            ) => found.extend(map.iter().map(|(name, value)| (below(&[keyword, name]), value))),
            ("allOf" | "anyOf" | "oneOf" | "prefixItems" | "items", Value::Array(list)) => {
                let indexed = list.iter().enumerate();
                found.extend(indexed.map(|(index, value)| (below(&[keyword, &index.to_string()]), value)));
            }
            (
                "items"
                | "additionalItems"
                | "contains"
                | "additionalProperties"
                | "propertyNames"
                | "not"
                | "if"
                | "then"
                | "else"
                | "unevaluatedItems"
                | "unevaluatedProperties",
                Value::Object(_) | Value::Bool(_),
            ) => found.push((below(&[keyword]), value)),
            _ => {}
        }
    }
    found
}

/// Refuses documents that are nested too deeply, before anything recurses into them.
pub(in super::super) fn check_depth(root: &Value) -> Result<(), GrammarError> {
    let mut open = vec![(root, 0)];
    while let Some((value, depth)) = open.pop() {
        if depth > MAX_SCHEMA_DEPTH {
            return Err(GrammarError::TooLarge {
                what: "JSON schema's nesting",
                value: depth,
                limit: MAX_SCHEMA_DEPTH,
            });
        }
        match value {
            Value::Array(list) => open.extend(list.iter().map(|value| (value, depth + 1))),
            Value::Object(map) => open.extend(map.values().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}

/// The keywords that validate an instance in place, beside those of the object itself.
pub(super) fn has_in_place_applicator(object: &Map<String, Value>) -> bool {
    ["$ref", "allOf", "anyOf", "oneOf", "not", "if", "dependentSchemas", "dependencies"]
        .iter()
        .any(|keyword| object.contains_key(*keyword))
}

fn push_step(path: &mut String, step: &str) {
    path.push('/');
    path.push_str(&step.replace('~', "~0").replace('/', "~1"));
}

/// RFC 3986 §5.2, as far as references inside one document need it.
fn resolve(base: &str, reference: &str) -> String {
    let scheme = |text: &str| {
        text.find(':').filter(|&at| {
            at > 0 && text[..at].chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter))
        })
    };
    if scheme(reference).is_some() {
        return reference.to_owned();
    }
    let base = without_fragment(base);
    if reference.is_empty() || reference.starts_with('#') {
        return format!("{base}{reference}");
    }
    let authority_end = match base.find("://") {
        Some(at) => base[at + 3..].find('/').map_or(base.len(), |slash| at + 3 + slash),
        None => scheme(base).map_or(0, |at| at + 1),
    };
    if reference.starts_with('/') {
        return format!("{}{reference}", &base[..authority_end]);
    }
    let folder = match base[authority_end..].rfind('/') {
        Some(slash) => &base[..=authority_end + slash],
        None => &base[..authority_end],
    };
    let slash = if folder.len() == authority_end && base.contains("://") { "/" } else { "" };
    format!("{folder}{slash}{reference}")
}

fn without_fragment(uri: &str) -> &str {
    uri.split_once('#').map_or(uri, |(resource, _)| resource)
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            let code = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(code, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}
