//! What minijinja's lexer reads differently from Jinja2 as transformers sets it up, rewritten in the template's text.
//!
//! - Jinja2 reads `\r\n` and `\r` as `\n`.
//! - `{% generation %}` marks text for training and is a scope of its own: `{% with %}` is the same without the mark.
//! - Jinja2 does not trim the line break after `{% raw %}`: `{% raw +%}` says so to minijinja.
//! - Inside expressions: see [`expression`].

use std::borrow::Cow;

use super::expression;

/// The template as minijinja must read it. Lines keep their numbers.
pub(in crate::template) fn rewrite(template: &str) -> String {
    let template = if template.contains('\r') {
        Cow::Owned(template.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        Cow::Borrowed(template)
    };
    let has_safe_text = expression::marks_safe_text(&template);
    let mut rest = &*template;
    let mut out = String::with_capacity(rest.len());
    while let Some(start) = find_tag(rest) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let tag = &rest[..tag_len(rest)];
        rest = &rest[tag.len()..];
        let Some(statement) = Statement::parse(tag) else {
            out.push_str(&tag_with_calls(tag, has_safe_text));
            continue;
        };
        match statement.name.trim() {
            "generation" => out.push_str(&statement.renamed("with")),
            "endgeneration" => out.push_str(&statement.renamed("endwith")),
            "raw" => {
                let end = if statement.end.is_empty() { "+" } else { statement.end };
                out.push_str(&Statement { end, ..statement }.renamed("raw"));
                // Everything up to the end mark is text, also what looks like a tag.
                let text = raw_len(rest);
                out.push_str(&rest[..text]);
                rest = &rest[text..];
            }
            _ => {
                let iterated = expression::with_iterated(statement.name);
                let name = iterated.as_deref().unwrap_or(statement.name);
                let tag = format!("{{%{}{name}{}%}}", statement.start, statement.end);
                out.push_str(&tag_with_calls(&tag, has_safe_text));
            }
        }
    }
    out.push_str(rest);
    out
}

/// A tag with its expressions rewritten. Comments and tags without end stay as they are.
fn tag_with_calls(tag: &str, has_safe_text: bool) -> Cow<'_, str> {
    let has_expression =
        (tag.starts_with("{{") && tag.ends_with("}}")) || (tag.starts_with("{%") && tag.ends_with("%}"));
    if !has_expression || tag.len() < 4 {
        return Cow::Borrowed(tag);
    }
    let (start, inner) = split_sign(&tag[2..tag.len() - 2]);
    let (inner, end) = split_end_sign(inner);
    Cow::Owned(format!(
        "{}{start}{}{end}{}",
        &tag[..2],
        expression::with_calls(inner, has_safe_text),
        &tag[tag.len() - 2..]
    ))
}

/// A statement tag: `{%- raw %}`.
struct Statement<'a> {
    start: &'a str,
    /// What stands between the signs: a name, or more.
    name: &'a str,
    end: &'a str,
    /// Line breaks inside the tag.
    lines: usize,
}

impl<'a> Statement<'a> {
    fn parse(tag: &'a str) -> Option<Self> {
        let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
        let (start, inner) = split_sign(inner);
        let (name, end) = split_end_sign(inner);
        Some(Self { start, name, end, lines: tag.matches('\n').count() })
    }

    fn renamed(&self, name: &str) -> String {
        format!("{{%{} {name}{} {}%}}", self.start, "\n".repeat(self.lines), self.end)
    }
}

fn split_sign(inner: &str) -> (&str, &str) {
    match inner.as_bytes().first() {
        Some(b'-' | b'+') => inner.split_at(1),
        _ => ("", inner),
    }
}

fn split_end_sign(inner: &str) -> (&str, &str) {
    match inner.as_bytes().last() {
        Some(b'-' | b'+') => inner.split_at(inner.len() - 1),
        _ => (inner, ""),
    }
}

fn find_tag(text: &str) -> Option<usize> {
    text.match_indices('{')
        .map(|(at, _)| at)
        .find(|&at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))
}

/// Bytes of the tag that `text` begins with; the whole text if it does not end, which minijinja will report.
fn tag_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let end: &[u8] = match bytes[1] {
        b'#' => return text.find("#}").map_or(text.len(), |at| at + 2),
        b'%' => b"%}",
        _ => b"}}",
    };
    let (mut at, mut braces) = (2, 0_usize);
    while at < bytes.len() {
        match bytes[at] {
            b'"' | b'\'' => {
                at += expression::string_len(&text[at..]);
                continue;
            }
            _ if braces == 0 && bytes[at..].starts_with(end) => return at + 2,
            b'{' => braces += 1,
            b'}' => braces = braces.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    text.len()
}

/// Bytes up to and with the `{% endraw %}`.
fn raw_len(text: &str) -> usize {
    for (at, _) in text.match_indices("{%") {
        let Some(end) = text[at..].find("%}") else { break };
        if Statement::parse(&text[at..at + end + 2]).is_some_and(|statement| statement.name.trim() == "endraw") {
            return at + end + 2;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_scopes_and_raw_keeps_its_line_break() {
        let cases = [
            ("a\r\nb\rc", "a\nb\nc"),
            ("{%- generation -%}x{% endgeneration %}", "{%- with -%}x{% endwith %}"),
            ("{%generation%}x{%\nendgeneration%}", "{% with %}x{% endwith\n %}"),
            ("{% raw %}\n{% generation %}{% endraw %}", "{% raw +%}\n{% generation %}{% endraw %}"),
            ("{%- raw -%} {% endraw -%}", "{%- raw -%} {% endraw -%}"),
            ("{# {% generation %} #}{{ '{% raw %}' }}", "{# {% generation %} #}{{ '{% raw %}' }}"),
            ("{{ {'a': {'b': '}}'}} }}{% raw", "{{ {'a': {'b': '}}'}} }}{% raw"),
            ("{{ 'é\\", "{{ 'é\\"),
            ("{%- for a in b -%}{{- a|e + b -}}", "{%- for a in ( b )|__iterated__ -%}{{- __add__( a|e , b ) -}}"),
        ];
        for (template, expected) in cases {
            let squeeze = |text: &str| text.replace(" )", ")").replace("  ", " ");
            assert_eq!(squeeze(&rewrite(template)), squeeze(expected));
        }
    }

    #[test]
    fn every_broken_template_is_read_to_its_end() {
        let template = "é{%- for é in ('é\\'' + \"日\")[::-1] if x|safe -%}{{+ a['b'][1:] + {'é': (1)}}}{# é #}{% raw %}{{{% endraw %}{%}{{}";
        let characters: Vec<char> = template.chars().collect();
        for start in 0..characters.len() {
            for end in start..characters.len() {
                rewrite(&characters[start..end].iter().collect::<String>());
            }
        }
        let deep = format!("{{{{ {} }}}}", "([".repeat(100_000));
        assert_eq!(rewrite(&deep), deep);
    }
}
