//! Who is let in: every route of the table, with and without a key.

use super::*;

const KEYS: &[&str] = &["--api-key", "sk-One,sk-Two"];

/// What needs no key, written down a second time on purpose: opening a route takes two edits.
const OPEN: &[(&str, &str)] = &[
    ("GET", "/"),
    ("GET", "/api-doc/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/docs/"),
    ("GET", "/docs/{*file}"),
    ("GET", "/health"),
    ("GET", "/info"),
    ("GET", "/metrics"),
    ("GET", "/ping"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", "/v2/models/{name}/ready"),
    ("GET", "/v2/models/{name}/versions/{version}/ready"),
];

impl Fixture {
    /// The answer to an empty call of `path`, with a header or without.
    async fn call(&self, method: Method, path: &str, header: Option<(&str, &str)>) -> Answer {
        let path = path.replace("{*file}", "index.html").replace("{*model}", "demo").replace(['{', '}'], "");
        let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        Answer::of(self.request(request.body(Body::from("{}")).unwrap()).await).await
    }
}

#[test]
fn the_open_routes_are_these() {
    let mut open: Vec<(String, String)> = table()
        .into_iter()
        .filter(|route| route.access == Access::Open)
        .map(|route| (route.method.to_string(), route.path))
        .collect();
    open.sort();
    let open: Vec<(&str, &str)> = open.iter().map(|(method, path)| (method.as_str(), path.as_str())).collect();
    assert_eq!(open, OPEN);
}

#[tokio::test]
async fn every_route_has_its_class() {
    let fixture = Fixture::with_flags("a", KEYS).await;
    for Route { method, path, access, .. } in table() {
        let without = fixture.call(method.clone(), &path, None).await;
        assert_eq!(without.status == 401, access == Access::Key, "{method} {path}: {}", without.status);
        if without.status == 401 {
            assert_eq!(without.header("www-authenticate"), "Bearer");
            let body = without.json();
            let (code, expected) = match Dialect::of(&path) {
                Dialect::Native => (&body["error_type"], "invalid_api_key"),
                Dialect::OpenAi => (&body["error"]["code"], "invalid_api_key"),
                Dialect::Anthropic => (&body["error"]["type"], "authentication_error"),
            };
            assert_eq!(code, expected, "{path}");
        }
        for header in [("authorization", "Bearer sk-One"), ("authorization", "bearer sk-Two"), ("x-api-key", "sk-One")]
        {
            let with = fixture.call(method.clone(), &path, Some(header)).await;
            assert!(![401, 404, 405].contains(&with.status.as_u16()), "{method} {path}: {}", with.status);
        }
        for header in [("authorization", "Bearer sk-one"), ("x-api-key", "sk-OneX"), ("authorization", "sk-One")] {
            let wrong = fixture.call(method.clone(), &path, Some(header)).await;
            assert_eq!(wrong.status == 401, access == Access::Key, "{method} {path} {header:?}");
        }
    }
}

#[tokio::test]
async fn what_is_no_route_is_closed_too() {
    let fixture = Fixture::with_flags("a", KEYS).await;
    for (method, path) in [(Method::GET, "/nowhere"), (Method::POST, "/health"), (Method::DELETE, "/generate")] {
        assert_eq!(fixture.call(method.clone(), path, None).await.status, 401, "{method} {path}");
        let with = fixture.call(method.clone(), path, Some(("x-api-key", "sk-One"))).await;
        assert!([404, 405].contains(&with.status.as_u16()), "{method} {path}");
    }
    assert_eq!(fixture.call(Method::HEAD, "/health", None).await.status, 200);
    assert_eq!(fixture.call(Method::HEAD, "/v1/models", None).await.status, 401);
    let preflight = fixture.call(Method::OPTIONS, "/generate", Some(("origin", "https://example.com"))).await;
    assert_eq!(preflight.status, 200, "a browser asks before it sends its key");
}

#[tokio::test]
async fn without_keys_everybody_is_served() {
    let fixture = Fixture::new("a").await;
    for Route { method, path, .. } in table() {
        let answer = fixture.call(method.clone(), &path, None).await;
        assert!(![401, 404, 405].contains(&answer.status.as_u16()), "{method} {path}: {}", answer.status);
    }
}

#[tokio::test]
async fn pages_can_send_keys_and_read_headers() {
    let fixture = Fixture::with_flags("a", &["--cors-allow-origin", "https://a.example", "--api-key", "k"]).await;
    let request = |origin: &'static str| {
        Request::options("/v1/messages")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "x-api-key,x-stainless-lang")
            .body(Body::empty())
            .unwrap()
    };
    let answer = Answer::of(fixture.request(request("https://a.example")).await).await;
    assert_eq!(answer.header("access-control-allow-origin"), "https://a.example");
    assert_eq!(answer.header("access-control-allow-headers"), "x-api-key,x-stainless-lang");
    let answer = Answer::of(fixture.request(request("https://b.example")).await).await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
    let refused = fixture.call(Method::GET, "/v1/models", Some(("origin", "https://a.example"))).await;
    assert_eq!((refused.status.as_u16(), refused.header("access-control-expose-headers")), (401, "*"));
    assert_eq!(refused.header("access-control-allow-origin"), "https://a.example", "the page may read the refusal");
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let fixture = Fixture::new("a").await;
    for path in ["/info", "/v1/models", "/docs/"] {
        let head = fixture.call(Method::HEAD, path, None).await;
        let get = fixture.get(path).await;
        assert_eq!((head.status, head.body.as_str()), (get.status, ""), "{path}");
        assert_eq!(head.header("content-length"), get.body.len().to_string(), "{path}");
    }
}
