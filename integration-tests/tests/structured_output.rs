//! Masks keep their word: 100 JSON schemas and 60 regular expressions at temperature 1.5, judged by `jsonschema` and `re`.
//!
//! Schemas, expressions and judge are in `python/structured`.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use integration_tests::{Python, Setup};

#[tokio::test]
async fn completed_answers_are_valid() {
    let Some(python) = Python::with("requirements.txt") else { return };
    let server = Setup::new().start();
    let output = python.command(&["-m", "structured.run", &server.url("")]).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    println!("{stdout}");
    // The judge's last line: it has come to its end.
    assert!(stdout.lines().last().is_some_and(|line| line.starts_with("STRUCTURED 960 answers")), "{stdout}");
}
