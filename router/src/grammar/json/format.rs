//! The formats of JSON Schema: enforced, or refused. It calls every name that it does not define an annotation, and so do we.

/// A known format's own name and an expression for the whole string. Where a standard allows forms that validators
/// disagree on (leap seconds, quoted mailboxes), they are not generated.
pub(super) fn expression(name: &str) -> Option<(&'static str, &'static str)> {
    FORMATS.iter().find(|(known, _)| *known == name).copied()
}

/// Formats that JSON Schema defines and that have no expression here: languages of their own, and the alphabets of all
/// scripts.
pub(super) const NOT_ENFORCED: [&str; 7] =
    ["regex", "uri-reference", "uri-template", "iri", "iri-reference", "idn-email", "idn-hostname"];

macro_rules! date {
    () => {
        concat!(
            // There is no year 0.
            "(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|",
            "02-(?:0[1-9]|1[0-9]|2[0-8]))|",
            // 29 February: years that 4 divides, centuries only by 400.
            "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"
        )
    };
}
macro_rules! time {
    () => {
        "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
    };
}
macro_rules! label {
    () => {
        "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    };
}
macro_rules! octet {
    () => {
        "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    };
}
macro_rules! group {
    () => {
        "[0-9a-fA-F]{1,4}"
    };
}
macro_rules! pointer {
    () => {
        "(?:/(?:[^/~]|~[01])*)*"
    };
}
macro_rules! path {
    () => {
        "(?:[a-zA-Z0-9._~!$&'()*+,;=:@/-]|%[0-9a-fA-F]{2})*"
    };
}

const FORMATS: &[(&str, &str)] = &[
    ("date", date!()),
    ("time", time!()),
    ("date-time", concat!(date!(), "T", time!())),
    (
        "duration",
        concat!(
            "P(?:[0-9]{1,9}W|",
            "(?:[0-9]{1,9}Y(?:[0-9]{1,9}M(?:[0-9]{1,9}D)?)?|[0-9]{1,9}M(?:[0-9]{1,9}D)?|[0-9]{1,9}D)",
            "(?:T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S))?|",
            "T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S))"
        ),
    ),
    (
        "email",
        concat!(
            "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+(?:\\.[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+)*@",
            label!(),
            "(?:\\.",
            label!(),
            ")+"
        ),
    ),
    ("hostname", concat!(label!(), "(?:\\.", label!(), ")*")),
    ("ipv4", concat!("(?:", octet!(), "\\.){3}", octet!())),
    (
        "ipv6",
        concat!(
            "(?:",
            group!(),
            ":){7}",
            group!(),
            "|::|",
            "(?:",
            group!(),
            ":){1,7}:|",
            "(?:",
            group!(),
            ":){1,6}:",
            group!(),
            "|",
            "(?:",
            group!(),
            ":){1,5}(?::",
            group!(),
            "){1,2}|",
            "(?:",
            group!(),
            ":){1,4}(?::",
            group!(),
            "){1,3}|",
            "(?:",
            group!(),
            ":){1,3}(?::",
            group!(),
            "){1,4}|",
            "(?:",
            group!(),
            ":){1,2}(?::",
            group!(),
            "){1,5}|",
            group!(),
            ":(?::",
            group!(),
            "){1,6}|",
            ":(?::",
            group!(),
            "){1,7}"
        ),
    ),
    ("uuid", "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"),
    ("json-pointer", pointer!()),
    ("relative-json-pointer", concat!("(?:0|[1-9][0-9]{0,8})(?:#|", pointer!(), ")")),
    (
        "uri",
        concat!(
            "[a-zA-Z][a-zA-Z0-9+.-]*:(?://(?:",
            label!(),
            "(?:\\.",
            label!(),
            ")*|",
            octet!(),
            "(?:\\.",
            octet!(),
            "){3})",
            "(?::[0-9]{1,4})?(?:/",
            path!(),
            ")?|[a-zA-Z0-9._~-]",
            path!(),
            ")",
            "(?:\\?",
            path!(),
            ")?(?:#",
            path!(),
            ")?"
        ),
    ),
];
