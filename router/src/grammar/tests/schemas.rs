//! JSON schemas: what they accept, what is refused, what is hostile.

use super::*;

#[test]
fn schemas_accept_what_they_say() {
    let walker = Walker::new();
    let person = json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name"], "additionalProperties": false});
    let cases: &[(Value, &[&str], &[&str])] = &[
        (
            person,
            &[r#"{"name":"x"}"#, r#"{"name": "x", "age": 3}"#, "{\n  \"name\": \"x\\u0007\"\n}"],
            &[
                r#"{"age":3}"#,
                r#"{"name":"x","b":1}"#,
                r#"{"name":  "x"}"#,
                r#"{"name":"x"}}"#,
                r#" {"name":"x"}"#,
                "{\"name\":\"\n\"}",
            ],
        ),
        (json!(true), &["1", "null", r#"{"a":[{}]}"#, "-0.5", "1e10"], &["-0", "01", "nul", "1e999", ".5", "1."]),
        (
            json!({"properties": {"foo": {"$ref": "#"}}, "additionalProperties": false, "type": "object"}),
            &["{}", r#"{"foo":{"foo":{"foo":{}}}}"#],
            &[r#"{"foo":1}"#, r#"{"foo":{"bar":{}}}"#],
        ),
        (
            json!({"minimum": -2, "maximum": 1.5, "type": "number"}),
            &["-2", "-1.99", "0", "1.50", "1.5"],
            &["-2.01", "1.51", "-3", "2", "10", "-0"],
        ),
        (
            json!({"type": "integer", "minimum": 10, "exclusiveMaximum": 1000, "multipleOf": 5}),
            &["10", "995"],
            &["5", "11", "1000", "10.0", "1e2"],
        ),
        // Draft 4.
        (
            json!({"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 1, "exclusiveMinimum": true}),
            &["2"],
            &["1", "0"],
        ),
        (
            json!({"type": "string", "minLength": 2, "maxLength": 3}),
            &[r#""ab""#, r#""é\né""#],
            &[r#""a""#, r#""abcd""#, "\"a\nb\""],
        ),
        (
            json!({"type": "string", "pattern": "^a+$", "not": {"enum": ["aa"]}}),
            &[r#""a""#, r#""aaa""#],
            &[r#""aa""#, r#""ba""#],
        ),
        (
            json!({"type": "string", "format": "date"}),
            &[r#""2024-02-29""#, r#""2000-02-29""#],
            &[r#""2023-02-29""#, r#""1900-02-29""#, r#""2024-13-01""#, r#""0000-01-01""#],
        ),
        (
            json!({"type": "string", "format": "ipv6"}),
            &[r#""::1""#, r#""fe80::1:2""#],
            &[r#""1::2::3""#, r#""12345::""#],
        ),
        (
            json!({"type": "string", "format": "json-pointer"}),
            &[r#""""#, r#""/""#, r#""/a~1b/~0/\"/c""#],
            &[r#""a""#, r#""/~""#, r#""/a~2""#],
        ),
        (
            json!({"type": "string", "format": "relative-json-pointer"}),
            &[r#""0""#, r#""12#""#, r#""1/a""#],
            &[r#""01""#, r#""/a""#, r#""1a""#],
        ),
        (
            json!({"type": "string", "format": "uri"}),
            &[r#""https://a.example/b?c=d#e""#, r#""urn:x:y""#],
            &[r#""a b""#, r#""/path""#],
        ),
        (
            json!({"type": "string", "format": "date-time"}),
            &[r#""2024-05-06T07:08:09Z""#],
            &[r#""2024-05-06 07:08:09Z""#],
        ),
        (json!({"type": "string", "format": "no-such-format"}), &[r#""anything""#], &["1"]),
        (
            json!({"enum": ["a", 1, null, {"b": [true]}]}),
            &[r#""a""#, "1", "null", r#"{"b":[true]}"#],
            &[r#""b""#, "2", r#"{"b":[]}"#],
        ),
        (json!({"type": ["integer", "string"], "enum": ["x", 1, 1.5, null]}), &[r#""x""#, "1"], &["null", "1.5"]),
        (
            json!({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 2}]}),
            &["1", "2.5"],
            &["3", "1.5", "3.0"],
        ),
        (
            json!({"oneOf": [
            {"type": "object", "properties": {"kind": {"const": "a"}, "n": {"type": "integer"}}, "required": ["kind"]},
            {"type": "object", "properties": {"kind": {"const": "b"}, "s": {"type": "string"}}, "required": ["kind"]}]}),
            &[r#"{"kind":"a","n":1}"#, r#"{"kind":"b","s":""}"#],
            &[r#"{"kind":"a","n":""}"#, r#"{"kind":"c"}"#, "{}"],
        ),
        (
            json!({"if": {"properties": {"a": {"const": 1}}, "required": ["a"]}, "then": {"required": ["b"]}, "type": "object",
            "properties": {"a": {}, "b": {}}, "additionalProperties": false}),
            &["{}", r#"{"a":2}"#, r#"{"a":1,"b":0}"#],
            &[r#"{"a":1}"#],
        ),
        (
            json!({"type": "array", "uniqueItems": true, "items": {"enum": ["a", "b", true]}}),
            &["[]", r#"["b","a"]"#, r#"[true,"a","b"]"#],
            &[r#"["a","a"]"#, r#"["b","a","b"]"#],
        ),
        (
            json!({"type": "array", "contains": {"const": 1}, "maxContains": 2, "items": {"type": "integer"}}),
            &["[1]", "[0,1,2,1]"],
            &["[]", "[0]", "[1,1,1]"],
        ),
        (
            json!({"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 5}),
            &["[1,2,3]", "[1,2,3,4,5]"],
            &["[1,2]", "[1,2,3,4,5,6]", "[1,2,3,]"],
        ),
        (
            json!({"type": "object", "minProperties": 1, "maxProperties": 2, "properties": {"a": {}, "b": {}, "c": {}}}),
            &[r#"{"b":1}"#, r#"{"a":1,"c":1}"#, r#"{"a":1,"z":1}"#],
            &["{}", r#"{"a":1,"b":1,"c":1}"#, r#"{"a":1,"b":1,"y":1}"#],
        ),
        (
            json!({"type": "object", "patternProperties": {"^x": {"type": "integer"}, "y$": {"minimum": 5}}, "additionalProperties": false}),
            &["{}", r#"{"xa":1}"#, r#"{"xy":5}"#, r#"{"ay":"s"}"#],
            &[r#"{"xa":""}"#, r#"{"xy":4}"#, r#"{"a":1}"#],
        ),
        (json!({"type": "object", "propertyNames": {"maxLength": 2}}), &[r#"{"ab":1}"#], &[r#"{"abc":1}"#]),
        (
            json!({"type": "object", "dependentRequired": {"a": ["b"]}, "properties": {"a": {}, "b": {}}, "additionalProperties": false}),
            &["{}", r#"{"b":1}"#, r#"{"a":1,"b":1}"#],
            &[r#"{"a":1}"#],
        ),
        (
            json!({"$defs": {"node": {"$anchor": "n", "type": "object", "properties": {"next": {"anyOf": [{"$ref": "#n"}, {"type": "null"}]}},
            "required": ["next"], "additionalProperties": false}}, "$ref": "#/$defs/node"}),
            &[r#"{"next":null}"#, r#"{"next":{"next":null}}"#],
            &[r#"{"next":{}}"#, r#"{"next":{"next":1}}"#],
        ),
        (
            json!({"allOf": [{"properties": {"a": {"minimum": 1}}}, {"properties": {"a": {"type": "integer"}}, "required": ["a"]}], "type": "object"}),
            &[r#"{"a":1}"#],
            &["{}", r#"{"a":0}"#, r#"{"a":1.5}"#],
        ),
    ];
    let mut random = 0;
    for (seed, (document, accepted, rejected)) in cases.iter().enumerate() {
        walker.check(&schema(document), accepted, rejected);
        let compiled = compile(&walker.engine, &schema(document)).unwrap();
        let (ended, wrong) = walker.random_replies(&compiled, document, seed);
        assert!(wrong.is_empty(), "{document}: {wrong:?}");
        random += ended;
    }
    assert!(random > 50, "random replies end");
    walker.check(&GrammarSpec::JsonObject, &["{}", r#"{"a":{"b":[1,"x"]}}"#], &["[]", "1", "{", r#"{"a"}"#]);
}

#[test]
fn what_cannot_be_enforced_is_refused_with_keyword_and_path() {
    let walker = Walker::new();
    let refused = |document: Value, expected: &str| walker.refuses(&schema(&document), expected);
    refused(
        json!({"properties": {"a/b": {"type": "array", "uniqueItems": true}}}),
        "`uniqueItems` at `#/properties/a~1b`",
    );
    refused(json!({"items": {"pattern": "(?=a)b"}}), "`pattern` at `#/items`");
    refused(json!({"items": {"pattern": r"(a)\1"}}), "`pattern` at `#/items`");
    refused(json!({"$ref": "https://example.com/schema"}), "`$ref` at `#`");
    refused(json!({"$ref": "#/nowhere"}), "points at nothing");
    refused(json!({"$ref": "#"}), "`$ref` at `#`");
    refused(
        json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}),
        "refers to itself",
    );
    refused(json!({"$dynamicRef": "#x"}), "`$dynamicRef`");
    refused(json!({"type": "object", "minProperties": 2}), "`minProperties` at `#`");
    refused(json!({"allOf": [{}, {"type": "integer"}], "unevaluatedProperties": false}), "`unevaluatedProperties`");
    refused(json!({"type": "strnig"}), "no type of JSON");
    refused(json!({"properties": 3}), "`properties` at `#` is invalid");
    refused(json!({"items": {"minLength": -1}}), "`minLength` at `#/items` is invalid");
    refused(json!([]), "a schema is an object or a Boolean");
    refused(json!(false), "no JSON document");
    refused(json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}), "no JSON document");
    refused(json!({"type": "integer", "minimum": 3, "maximum": 2}), "no JSON document");
    refused(json!({"type": "string", "minLength": 9_999_999}), "is more than");
}

/// Schemas built to hurt end with an answer or a typed error, soon, and leave the engine working.
#[test]
fn hostile_grammars_are_bounded() {
    let walker = Walker::new();
    let mut deep = json!({"type": "integer"});
    for _ in 0..100 {
        deep = json!({"items": deep});
    }
    let mut chain: serde_json::Map<String, Value> =
        (0..2000).map(|index| (format!("d{index}"), json!({"$ref": format!("#/$defs/d{}", index + 1)}))).collect();
    chain.insert("d2000".to_owned(), json!({"type": "integer"}));
    let product = json!({"allOf": (0..12).map(|index| json!({"anyOf": (0..4).map(|option|
        json!({"properties": {format!("p{index}_{option}"): {"type": "integer"}}, "required": [format!("p{index}_{option}")]})).collect::<Vec<_>>()})).collect::<Vec<_>>()});
    let optional: serde_json::Map<String, Value> = (0..500)
        .map(|index| (format!("property_{index}"), json!({"type": ["string", "null"], "maxLength": 100})))
        .collect();
    let nots = (1..30)
        .map(|index| json!({"not": {"properties": {format!("a{index}"): {"minLength": index}}}}))
        .collect::<Vec<_>>();
    let cases = [
        ("deep", schema(&deep)),
        ("chain of references", schema(&json!({"$ref": "#/$defs/d0", "$defs": chain}))),
        ("product", schema(&product)),
        (
            "500 optional properties",
            schema(&json!({"type": "object", "properties": optional, "additionalProperties": false})),
        ),
        ("nots", schema(&json!({"allOf": nots}))),
        (
            "long strings",
            schema(
                &json!({"type": "array", "items": {"type": "string", "pattern": "^(a|b|c)*d(a|b|c){200}$", "minLength": 1000}}),
            ),
        ),
        (
            "counted",
            schema(
                &json!({"type": "array", "items": {"maxItems": 100_000, "items": {"maxLength": 1_000_000}}, "minItems": 30_000}),
            ),
        ),
        (
            "email",
            schema(
                &json!({"format": "email", "minLength": 6, "pattern": r"^\w+([\.-]?\w+)*@\w+([\.-]?\w+)*(\.\w{2,})+$"}),
            ),
        ),
        ("regex", GrammarSpec::Regex("(?:(?:(?:a{0,100}){0,100}){0,100}){0,100}".into())),
        ("regex of classes", GrammarSpec::Regex(r"(\w{1,50}\s){1,500}x(.*y.{100}){20}".into())),
    ];
    for (name, spec) in cases {
        let started = Instant::now();
        let outcome = match compile(&walker.engine, &spec) {
            Ok(compiled) => format!("{} bytes", compiled.bytes()),
            Err(GrammarError::Internal { reason }) => panic!("{name}: {reason}"),
            Err(error) => error.to_string().chars().take(160).collect(),
        };
        println!("{name}: {:?}: {outcome}", started.elapsed());
    }
    walker.check(&GrammarSpec::JsonObject, &["{}"], &["["]);
    let too_deep = (0..500).fold(json!(true), |inner, _| Value::Array(vec![inner]));
    walker.refuses(&GrammarSpec::JsonSchema(Arc::new(too_deep)), "nesting");
}
