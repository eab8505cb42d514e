//! The official JSON Schema test suite, for replies and for tools.

use super::*;

/// The groups of the suite; `None` where it is not at hand.
fn suite() -> Option<Vec<Value>> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/json_schema/testsuite.jsonl"));
    let Ok(lines) = std::fs::read_to_string(path) else {
        println!("skipped: {} is not there", path.display());
        return None;
    };
    Some(lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn the_official_suite_has_no_invalid_instance_accepted() {
    let Some(suite) = suite() else { return };
    let walker = Walker::new();
    let (mut groups, mut refused, mut unsatisfiable) = (0, Vec::new(), 0);
    let (mut valid, mut accepted, mut respelled, mut invalid) = (0, 0, 0, 0);
    let (mut wrongly_accepted, mut wrongly_rejected) = (Vec::new(), Vec::new());
    let (mut random, mut wrongly_generated) = (0, Vec::new());
    for group in &suite {
        groups += 1;
        let name = group["name"].as_str().unwrap();
        let mut document = group["schema"].clone();
        // The suite's folders say which draft a schema is in.
        if let Value::Object(object) = &mut document
            && name.starts_with("draft7/")
        {
            object.entry("$schema").or_insert_with(|| "http://json-schema.org/draft-07/schema#".into());
        }
        let compiled = match compile(&walker.engine, &schema(&document)) {
            Ok(compiled) => Some(compiled),
            Err(GrammarError::Unsatisfiable) => {
                unsatisfiable += 1;
                None
            }
            Err(error) => {
                refused.push(format!("{name}: {error}"));
                continue;
            }
        };
        // Validators divide doubles, and find 35879.45 no multiple of 0.0001. It is one.
        if let Some(compiled) = compiled.as_ref().filter(|_| !name.ends_with("by small number")) {
            let (ended, wrong) = walker.random_replies(compiled, &document, groups);
            random += ended;
            wrongly_generated.extend(wrong.into_iter().map(|text| format!("{name}: {text}")));
        }
        for test in group["tests"].as_array().unwrap() {
            let text = test["data"].to_string();
            let passes = |text: &str| compiled.as_ref().is_some_and(|compiled| walker.accepts(compiled, text));
            if test["valid"] == false {
                invalid += 1;
                if passes(&text) {
                    wrongly_accepted.push(format!("{name}: {text}"));
                }
                continue;
            }
            valid += 1;
            if passes(&text) {
                accepted += 1;
            } else if spellings(&test["data"]).iter().any(|text| passes(text)) {
                respelled += 1;
            } else {
                wrongly_rejected.push(format!("{name}: {text}"));
            }
        }
    }
    println!("groups {groups}: refused {}, unsatisfiable {unsatisfiable}", refused.len());
    println!(
        "valid {valid}: accepted {accepted}, in another spelling {respelled}, rejected {}",
        wrongly_rejected.len()
    );
    println!("invalid {invalid}: accepted {}", wrongly_accepted.len());
    println!("random replies that ended {random}: invalid {}", wrongly_generated.len());
    for (title, list) in [
        ("WRONGLY GENERATED", &wrongly_generated),
        ("refused", &refused),
        ("wrongly rejected", &wrongly_rejected),
        ("WRONGLY ACCEPTED", &wrongly_accepted),
    ] {
        list.iter().for_each(|line| println!("{title}: {line}"));
    }
    assert_eq!(wrongly_accepted, Vec::<String>::new());
    assert_eq!(wrongly_generated, Vec::<String>::new());
    assert!(random > 1000, "random replies end");
    assert!(refused.len() * 100 <= groups * 15, "{} of {groups} groups are refused", refused.len());
}

#[test]
fn the_official_suite_as_tools_has_no_invalid_instance_accepted() {
    let Some(suite) = suite() else { return };
    let walker = Walker::new();
    let (mut compiled_groups, mut invalid) = (0, 0);
    let mut wrong = Vec::new();
    for group in &suite {
        let name = group["name"].as_str().unwrap();
        let Ok(compiled) = compile(&walker.engine, &calls("f", group["schema"].clone())) else { continue };
        compiled_groups += 1;
        for test in group["tests"].as_array().unwrap().iter().filter(|test| test["valid"] == false) {
            invalid += 1;
            let text = test["data"].to_string();
            wrong.extend(walker.accepts(&compiled, &text).then(|| format!("{name}: {text}")));
        }
    }
    println!("tools: {compiled_groups} groups, {invalid} invalid instances");
    wrong.iter().for_each(|line| println!("TOOLS {line}"));
    assert_eq!(wrong, Vec::<String>::new());
}

/// Other spellings of a value: keys in other orders, whole numbers without a fraction.
fn spellings(value: &Value) -> Vec<String> {
    let mut all = Vec::new();
    match value {
        Value::Object(map) => {
            let fields: Vec<Vec<String>> = map
                .iter()
                .map(|(name, value)| {
                    spellings(value).into_iter().map(|text| format!("{}:{text}", Value::from(name.as_str()))).collect()
                })
                .collect();
            for order in permutations(fields.len().min(5)) {
                for last in 0..2 {
                    let fields: Vec<&str> = order
                        .iter()
                        .copied()
                        .chain(5..fields.len())
                        .map(|at| fields[at].get(last).unwrap_or(&fields[at][0]).as_str())
                        .collect();
                    all.push(format!("{{{}}}", fields.join(",")));
                }
            }
        }
        Value::Array(items) => {
            for pick in 0..3 {
                let items: Vec<String> = items
                    .iter()
                    .map(|item| {
                        let mut texts = spellings(item);
                        texts.swap_remove(pick.min(texts.len() - 1))
                    })
                    .collect();
                all.push(format!("[{}]", items.join(",")));
            }
        }
        Value::Number(number) => {
            all.push(number.to_string());
            if let Some(whole) = number.as_f64().filter(|value| value.fract() == 0.0) {
                all.push(format!("{whole}"));
            }
        }
        other => all.push(other.to_string()),
    }
    all
}

fn permutations(length: usize) -> Vec<Vec<usize>> {
    if length == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for shorter in permutations(length - 1) {
        for at in 0..length {
            let mut longer = shorter.clone();
            longer.insert(at, length - 1);
            all.push(longer);
        }
    }
    all
}
