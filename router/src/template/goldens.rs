//! The measure of the dialect: published templates against transformers' renderings, byte for byte.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::dialect::tests_clock;
use super::request::with_reasoning;
use super::{ChatTemplate, TemplateSource};

#[test]
fn published_templates_render_as_in_transformers() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/chat_templates"));
    let read = |name: &str| std::fs::read_to_string(folder.join(name));
    let (Ok(goldens), Ok(conversations)) = (read("goldens.json"), read("conversations.json")) else {
        println!("skipped: {} is not there", folder.display());
        return;
    };
    let goldens: Vec<Json> = serde_json::from_str(&goldens).unwrap();
    let conversations: BTreeMap<String, Map<String, Json>> = serde_json::from_str(&conversations).unwrap();
    let special_tokens = json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"});
    let mut templates = BTreeMap::new();
    let mut different = Vec::new();
    for golden in &goldens {
        let (name, conversation) = (golden["template"].as_str().unwrap(), golden["conversation"].as_str().unwrap());
        let template = templates.entry(name).or_insert_with(|| {
            let text = read(&format!("templates/{name}.jinja")).unwrap();
            let special_tokens = special_tokens.as_object().unwrap().clone();
            let source = TemplateSource { templates: BTreeMap::from([("default".to_owned(), text)]), special_tokens };
            ChatTemplate::with_clock(source, tests_clock).unwrap()
        });
        // The goldens show what transformers does with a conversation as it is: nothing is adapted to the template.
        let mut context = conversations[conversation].clone();
        for message in context["messages"].as_array_mut().unwrap() {
            *message = Json::Object(with_reasoning(message.as_object().unwrap().clone()));
        }
        for (name, value) in [("tools", Json::Null), ("documents", Json::Null), ("add_generation_prompt", json!(true))]
        {
            context.entry(name).or_insert(value);
        }
        let outcome = template.choose(false).and_then(|(name, _)| template.render_context(name, &context));
        match (&outcome, golden["output"].as_str()) {
            (Ok(prompt), Some(expected)) if prompt == expected => {}
            (Err(_), None) => {}
            (Ok(prompt), Some(expected)) => {
                let same = prompt.chars().zip(expected.chars()).take_while(|(ours, theirs)| ours == theirs).count();
                let around = |text: &str| text.chars().skip(same.saturating_sub(40)).take(160).collect::<String>();
                let (ours, theirs) = (around(prompt), around(expected));
                different.push(format!("{name} / {conversation}:\n  ours   {ours:?}\n  theirs {theirs:?}"));
            }
            (outcome, expected) => different.push(format!(
                "{name} / {conversation}: {outcome:?}, transformers: {}",
                expected.unwrap_or(&golden["error"].to_string())
            )),
        }
    }
    println!("{} of {} renderings equal transformers'", goldens.len() - different.len(), goldens.len());
    assert!(different.is_empty(), "{} of {} differ:\n{}", different.len(), goldens.len(), different.join("\n"));
}

/// What published templates are like, by their documentation.
#[test]
fn published_templates_have_the_known_facts() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/chat_templates/templates"));
    if !folder.exists() {
        println!("skipped: {} is not there", folder.display());
        return;
    }
    // Name, content, arguments, reads tools, mark that opens reasoning, switch, begins with reasoning.
    let expected = [
        ("llama.cpp__Qwen-Qwen3-0.6B", "Text Object true <think> enable_thinking false"),
        ("llama.cpp__Qwen-QwQ-32B", "Text Object true <think> - true"),
        ("hfjs__zai-org-GLM-5.1", "Either Object true <think> enable_thinking true"),
        ("hfjs__deepseek-ai-DeepSeek-R1", "Text Text false <think> - false"),
        ("llama.cpp__deepseek-ai-DeepSeek-V3.1", "Text Text false <think> thinking false"),
        ("llama.cpp__meta-llama-Llama-3.1-8B-Instruct", "Text Object true - - false"),
        ("llama.cpp__openai-gpt-oss-120b", "Text Object true <|channel|>analysis<|message|> - false"),
        ("llama.cpp__microsoft-Phi-3.5-mini-instruct", "Text Object false - - false"),
        ("llama.cpp__ByteDance-Seed-OSS", "Text Object true <seed:think> thinking_budget false"),
        ("hfjs__Qwen-Qwen2.5-VL-7B-Instruct", "Either Object false - - false"),
        ("vllm__template_vlm2vec_qwen2vl", "Parts Object false - - false"),
    ];
    for (name, expected) in expected {
        let text = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        let source =
            TemplateSource { templates: BTreeMap::from([("default".to_owned(), text)]), special_tokens: Map::new() };
        let template = ChatTemplate::with_clock(source, tests_clock).unwrap();
        let facts = template.facts(false).unwrap();
        let reasoning = facts.reasoning.map_or("-", |marks| marks.open);
        let switch = facts.reasoning_switch().unwrap_or("-");
        let found = format!(
            "{:?} {:?} {} {reasoning} {switch} {}",
            facts.content,
            facts.arguments,
            facts.reads_tools(),
            facts.opens_reasoning
        );
        assert_eq!(found, expected, "{name}");
    }
}

/// Small templates of our own, one per feature of the dialect, with what transformers 5.23 and Jinja2 3.1.6 make of them
/// (`_compile_jinja_template(template).render(**context)`).
#[test]
fn the_dialect_is_that_of_transformers() {
    let file: Json = serde_json::from_str(include_str!("dialect/cases.json")).unwrap();
    let context = file["context"].as_object().unwrap();
    let mut different = Vec::new();
    for case in file["cases"].as_array().unwrap() {
        let text = case["template"].as_str().unwrap().to_owned();
        let source =
            TemplateSource { templates: BTreeMap::from([("default".to_owned(), text)]), special_tokens: Map::new() };
        let template = ChatTemplate::with_clock(source, tests_clock).unwrap();
        let outcome = template.choose(false).and_then(|(name, _)| template.render_context(name, context));
        match (&outcome, case["output"].as_str()) {
            (Ok(prompt), Some(expected)) if prompt == expected => {}
            (Err(_), None) => {}
            _ => different.push(format!("{}:\n  ours   {outcome:?}\n  theirs {:?}", case["name"], case["output"])),
        }
    }
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
}
