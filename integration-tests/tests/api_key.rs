//! API keys through the whole process tree: who needs one, and who never sees one.

use integration_tests::Setup;
use serde_json::json;

const KEY: &str = "sk-One.of_several";

#[tokio::test]
async fn keys_guard_the_server_and_stay_off_command_lines_and_logs() {
    let server = Setup::new().env("API_KEY", format!("{KEY},sk-Two")).start();
    let body = json!({ "inputs": "What is two plus three?", "parameters": { "max_new_tokens": 2 } });
    let (status, error) = server.post("/generate", &body).await;
    assert_eq!((status.as_u16(), &error["error_type"]), (401, &json!("invalid_api_key")));
    assert_eq!(server.post("/v1/nowhere", &body).await.1["error"]["code"], "invalid_api_key");
    for key in [KEY, "sk-Two"] {
        let request = server.client().post(server.url("/generate")).json(&body).bearer_auth(key);
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    for path in ["/health", "/info", "/metrics"] {
        assert_eq!(server.client().get(server.url(path)).send().await.unwrap().status(), 200, "{path}");
    }

    for child in server.children() {
        assert!(!child.argv.iter().any(|word| word.contains("sk-")), "{child:?}");
        let environment = std::fs::read(format!("/proc/{}/environ", child.pid)).unwrap();
        let has_key = String::from_utf8_lossy(&environment).contains("sk-");
        assert_eq!(has_key, child.role() == "router", "{child:?}");
    }
    let exit = server.stop();
    assert!(!exit.log.contains("sk-"), "{}", exit.log);
    assert!(exit.log.contains("Authorization: Bearer $API_KEY"), "{}", exit.log);
}

#[tokio::test]
async fn a_flag_overrules_the_variable() {
    let server = Setup::new().env("API_KEY", "sk-Old").args(&["--api-key", KEY]).start();
    for (key, status) in [("sk-Old", 401), (KEY, 200)] {
        let request = server.client().get(server.url("/v1/models")).header("x-api-key", key);
        assert_eq!(request.send().await.unwrap().status(), status, "{key}");
    }
}
