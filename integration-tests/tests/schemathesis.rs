//! schemathesis, which makes up requests from our own OpenAPI file, finds nothing: no 5xx, no status, content type or body
//! that the file does not describe.
//!
//! Seeded and bounded in time: `SCHEMATHESIS_SECONDS` gives it longer. Its report names the request that broke a rule.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use integration_tests::{Python, Setup};

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";

#[tokio::test]
async fn schemathesis_finds_nothing() {
    let Some(python) = Python::with("requirements.txt") else { return };
    // Replies that last as long as the context allows would leave little time for requests.
    let server = Setup::new().args(&["--max-input-tokens", "192", "--max-total-tokens", "256"]).start();
    let seconds = std::env::var("SCHEMATHESIS_SECONDS").unwrap_or_else(|_| "60".to_owned());
    let mut command = python.command(&["-c", "import schemathesis.cli; schemathesis.cli.schemathesis()", "run"]);
    command
        .arg(server.url("/api-doc/openapi.json"))
        // Examples of the file, then every limit of every field, then random requests until the time is up.
        .args(["--phases", "examples,coverage,fuzzing", "--max-time", &seconds, "--seed", "1"])
        .args(["--checks", CHECKS, "--request-timeout", "30", "--generation-database", "none"])
        // Two would share Python's parser, which CPython 3.11 forgets to protect.
        .args(["--workers", "1", "--warnings", "off"])
        .env("PYTHONPATH", Python::dir())
        .env("SCHEMATHESIS_HOOKS", "openapi_hooks");
    let output = command.current_dir(server.dir()).output().unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}:\n{report}{errors}");
    println!("{}", report.split_once("SUMMARY").map_or("", |(_, summary)| summary));

    let after = |label: &str| {
        let line = report.lines().find_map(|line| line.trim().strip_prefix(label));
        line.unwrap_or_else(|| panic!("the report has no {label:?}:\n{report}")).trim().to_owned()
    };
    let (selected, all) = after("Selected:").split_once('/').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert_eq!((&selected, &all), (&after("Tested:"), &selected), "every route is tested");
    assert!(all.parse::<u32>().unwrap() >= 12, "the file describes at least TGI's routes, not {all}");
    let cases = report.lines().find_map(|line| line.trim().split_once(" generated")?.0.parse::<u32>().ok());
    assert!(cases.is_some_and(|cases| cases >= 500), "too few requests to prove anything: {cases:?}");
    let (status, health) = server.post("/generate", &serde_json::json!({ "inputs": "Still there?" })).await;
    assert_eq!(status, 200, "{health}");
}
