//! Schemas of tools.

use super::*;

#[test]
fn a_tool_whose_schema_cannot_be_enforced_is_refused_by_keyword_and_place() {
    let walker = Walker::new();
    let refuses = |schema: Value, expected: &str| {
        // Below a property, and in a draft that knows few keywords.
        let nested = json!({"$schema": "http://json-schema.org/draft-04/schema#", "type": "object",
            "properties": {"a/b": schema}});
        walker.refuses(&calls("f", schema), &format!("{expected} at `#` of the parameters of `f`"));
        walker.refuses(&calls("f", nested), &format!("{expected} at `#/properties/a~1b` of the parameters of `f`"));
    };
    refuses(json!({"not": {"type": "string"}}), "`not`");
    refuses(json!({"type": "array", "uniqueItems": true}), "`uniqueItems`");
    refuses(json!({"type": "array", "contains": {"type": "integer"}}), "`contains`");
    refuses(json!({"type": "object", "propertyNames": {"maxLength": 3}}), "`propertyNames`");
    refuses(json!({"type": "object", "dependentRequired": {"a": ["b"]}}), "`dependentRequired`");
    refuses(json!({"type": "object", "dependencies": {"a": ["b"]}}), "`dependencies`");
    refuses(json!({"type": "object", "unevaluatedProperties": false}), "`unevaluatedProperties`");
    refuses(json!({"if": {"type": "string"}, "then": {"maxLength": 3}}), "`if`");
    refuses(json!({"type": "string", "format": "regex"}), "`format`");
    let defined = json!({"type": "object", "$defs": {"x": {"anyOf": [{"not": {}}]}}});
    walker.refuses(&calls("f", defined), "`not` at `#/$defs/x/anyOf/0` of the parameters of `f`");
    // What is left to llguidance has the tool's name at least.
    walker.refuses(&calls("f", json!({"type": "string", "minLength": "3"})), "the parameters of `f`: ");
    walker.refuses(&calls("f", json!({"$ref": "https://example.com/x"})), "the parameters of `f`: ");
}

#[test]
fn the_formats_of_tools_are_enforced() {
    let walker = Walker::new();
    for (format, right, wrong) in [
        ("date-time", "2024-02-29T10:00:00Z", "2024-02-30T10:00:00Z"),
        ("time", "10:00:00Z", "24:00:00Z"),
        ("date", "2024-02-29", "2024-13-01"),
        ("duration", "P1Y", "1Y"),
        ("email", "a@b.c", "a.b.c"),
        ("hostname", "a-b.c", "-a"),
        ("ipv4", "1.2.3.4", "1.2.3.256"),
        ("ipv6", "1::2", "1:2"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
        ("uri", "https://a.b/c", "a b"),
    ] {
        let spec = calls("f", json!({"type": "string", "format": format}));
        walker.check(&spec, &[&format!("\"{right}\"")], &[&format!("\"{wrong}\"")]);
    }
    walker.check(&calls("f", json!({"type": "integer", "format": "int32"})), &["7"], &["\"7\""]);
}
