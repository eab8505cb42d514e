//! The one gate before all routes: without a key only what is listed as open answers.
//!
//! It stands at the root of the router and denies by default, so a route that somebody adds is closed until the table in
//! [`super`] says otherwise; so are unknown paths and methods, which tell nothing to whoever has no key.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, Response};
use axum::middleware::Next;

use super::{Access, Route};
use crate::api_key::KeyRing;
use crate::error::{Dialect, Error};

/// The keys, of which there is at least one, and the routes that need none.
pub(super) struct Gate {
    keys: KeyRing,
    open: Vec<(Method, String)>,
}

impl Gate {
    pub(super) fn new(keys: KeyRing, routes: &[Route]) -> Self {
        let open = routes.iter().filter(|route| route.access == Access::Open);
        Self { keys, open: open.map(|route| (route.method.clone(), route.path.clone())).collect() }
    }

    fn lets_in(&self, request: &Request) -> bool {
        self.is_open(request) || self.keys.opens(request.headers())
    }

    /// Preflights (OPTIONS) carry no key; the CORS layer answers them before they come here.
    fn is_open(&self, request: &Request) -> bool {
        let Some(path) = request.extensions().get::<MatchedPath>() else { return false };
        // HEAD is GET without the body.
        let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        self.open.iter().any(|(open_method, open_path)| open_method == method && open_path == path.as_str())
    }
}

/// The layer.
pub(super) async fn check(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response<Body> {
    if gate.lets_in(&request) {
        return next.run(request).await;
    }
    Dialect::of(request.uri().path()).response(&Error::Unauthorized)
}
