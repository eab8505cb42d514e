use super::*;

/// A template with `<s>` and `</s>`.
pub(crate) fn template(text: &str) -> Result<ChatTemplate, Error> {
    let special_tokens = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>"});
    let special_tokens = special_tokens.as_object().unwrap().clone();
    let templates = BTreeMap::from([("default".to_owned(), text.to_owned())]);
    let template = ChatTemplate::with_clock(TemplateSource { templates, special_tokens }, dialect::tests_clock)?;
    Ok(template)
}
