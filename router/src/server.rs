//! The server: what all routes share, and its life from start to drained.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::http::HeaderValue;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::args::Args;
use crate::engine::{EngineConfig, EngineHandle, ShardFacts};
use crate::error::Error;
use crate::generation::Generation;
use crate::grammar::GrammarEngine;
use crate::limits::CONNECT_TIMEOUT;
use crate::memory::return_freed_memory;
use crate::priority::give_way;
use crate::routes::ChatFormat;
use crate::template::{ChatTemplate, RenderRequest, TemplateSource};
use crate::text::{Pool, StopText, TextTokenizer};
use crate::validation::{Validated, Validation};
use crate::{listener, logging, metrics, routes};

/// What all routes share.
pub(crate) struct Server {
    pub(crate) args: Args,
    pub(crate) engine: EngineHandle,
    pub(crate) validation: Validation,
    template: Option<Arc<ChatTemplate>>,
    pub(crate) chat_format: ChatFormat,
    /// When the server started, in seconds of the Unix epoch.
    pub(crate) started: u64,
    eos_token_ids: Arc<[u32]>,
    /// The `x-compute-type` header.
    pub(crate) compute_type: HeaderValue,
    pub(crate) metrics: PrometheusHandle,
}

/// Serves until SIGTERM or SIGINT, then finishes what runs and returns.
///
/// # Errors
/// If arguments contradict each other, a model file cannot be read, the shards cannot be reached or the port is taken.
pub fn run(args: Args) -> anyhow::Result<()> {
    let _flush = logging::init(if args.json_output { logging::Format::Json } else { logging::Format::Text });
    args.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().on_thread_start(give_way).build();
    let runtime = runtime.context("Tokio runtime failed to start")?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<()> {
    // Installed first: a signal during start-up ends the process by these rules too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, mut stopped) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("signal received, starting graceful shutdown");
        stop.send_replace(true);
    });

    let address = args.address();
    let grace = Duration::from_secs(args.graceful_termination_timeout);
    let server = tokio::select! {
        server = Server::start(args) => Arc::new(server?),
        _ = stopped.wait_for(|stop| *stop) => return Ok(()),
    };
    let engine = server.engine.clone();
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("WebServer error: cannot listen on {address}"))?;
    // Tools wait for this word; from here on connections are taken.
    tracing::info!(address = %listener.local_addr()?, "Connected");
    let serving = tokio::spawn(listener::serve(listener, routes::router(server), stopped.clone()));
    let _ = stopped.wait_for(|stop| *stop).await;
    // One deadline for both: what the handlers left to the engine is only what nobody waits for.
    let deadline = tokio::time::Instant::now() + grace;
    match tokio::time::timeout_at(deadline, serving).await {
        Ok(result) => result?,
        Err(_) => tracing::warn!("requests still run after {} s; they are dropped", grace.as_secs()),
    }
    if tokio::time::timeout_at(deadline, engine.drain()).await.is_err() {
        tracing::warn!("the engine did not drain within {} s", grace.as_secs());
    }
    tracing::info!("drained");
    Ok(())
}

impl Server {
    /// Loads the model's text side and connects to the shards.
    async fn start(args: Args) -> anyhow::Result<Self> {
        let tokenizer = TextTokenizer::load(&args.model_dir.join("tokenizer.json"))
            .context("Tokenizer error: Unable to load tokenizer.")?;
        let template = TemplateSource::find(&args.model_dir, args.tokenizer_config_path.as_deref())?
            .map(ChatTemplate::new)
            .transpose()?;
        let engine = EngineHandle::start(EngineConfig {
            shard_uds_prefix: args.shard_uds_path.clone(),
            world_size: args.num_shard,
            connect_timeout: CONNECT_TIMEOUT,
            max_concurrent_requests: args.max_concurrent_requests,
            max_step_tokens: args.max_batch_prefill_tokens,
            max_batch_size: args.max_batch_size,
            max_draft_tokens: args.speculate,
            max_batch_total_tokens: args.max_batch_total_tokens,
        })
        .await
        .context("Backend failed")?;
        let limits = args.param_limits(engine.facts())?;
        let recorder = metrics::install(&limits)?;
        tokio::spawn(metrics::keep_up(recorder.clone()));
        return_freed_memory();
        Self::new(args, engine, tokenizer, template, limits, recorder)
    }

    pub(crate) fn new(
        args: Args,
        engine: EngineHandle,
        tokenizer: TextTokenizer,
        template: Option<ChatTemplate>,
        limits: crate::params::ParamLimits,
        metrics: PrometheusHandle,
    ) -> anyhow::Result<Self> {
        let facts = engine.facts();
        let chat_format = ChatFormat::new(template.as_ref(), &tokenizer);
        tracing::info!(
            device = facts.device,
            dtype = facts.dtype,
            max_input_tokens = limits.max_input_tokens,
            max_total_tokens = limits.max_total_tokens,
            cache_tokens = facts.capacity_tokens(),
            has_chat_template = template.is_some(),
            "model is ready"
        );
        // Limits are at most the context of the model, which the shard gives as u32.
        let request_limits = facts.request_limits(u32::try_from(limits.max_total_tokens)?);
        let tokenizer = Arc::new(tokenizer);
        let grammars = limits.has_grammars.then(|| grammars(&tokenizer, facts)).flatten();
        Ok(Self {
            eos_token_ids: facts.eos_token_ids.clone().into(),
            compute_type: compute_type(&facts.device),
            validation: Validation {
                tokenizer,
                pool: Pool::new(args.validation_workers, args.max_concurrent_requests)?,
                limits,
                request_limits,
                grammars,
            },
            chat_format,
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            template: template.map(Arc::new),
            engine,
            args,
            metrics,
        })
    }

    /// Queues a request that came in at `arrived`.
    ///
    /// # Errors
    /// [`Error::Overloaded`], or [`Error::Stopping`] while the server drains.
    pub(crate) fn submit(&self, valid: &Validated, stop_text: StopText, arrived: Instant) -> Result<Generation, Error> {
        let events = self.engine.submit(valid.request.clone())?;
        let (tokenizer, eos) = (self.validation.tokenizer.clone(), self.eos_token_ids.clone());
        Ok(Generation::new(events, valid, tokenizer, eos, stop_text, arrived))
    }

    /// Queues `count` generations of one request, each with a seed of its own.
    ///
    /// # Errors
    /// As [`Server::submit`]; those already queued are cancelled.
    pub(crate) fn submit_siblings(
        &self,
        valid: &Validated,
        count: usize,
        stop_text: StopText,
        arrived: Instant,
    ) -> Result<Vec<Generation>, Error> {
        let limits = &self.validation.request_limits;
        let sibling = |index| self.submit(&valid.sibling(index, limits), stop_text, arrived);
        (0..count).map(sibling).collect()
    }

    /// The prompt of a chat request, rendered off the async threads: messages, tools, documents and the client's own
    /// variables.
    ///
    /// # Errors
    /// [`Error::Template`] if there is no template or it refuses the messages.
    pub(crate) async fn render_prompt(&self, request: RenderRequest) -> Result<String, Error> {
        let template = self.chat_template()?.clone();
        Ok(self.validation.pool.run(move || template.render(&request)).await??)
    }

    /// The model's chat template.
    ///
    /// # Errors
    /// [`Error::Template`] if it has none.
    pub(crate) fn chat_template(&self) -> Result<&Arc<ChatTemplate>, Error> {
        self.template.as_ref().ok_or_else(|| Error::Template { reason: "template not found".to_owned() })
    }
}

/// The compiler of grammars, if replies of this model can be constrained; everything else works without.
fn grammars(tokenizer: &Arc<TextTokenizer>, facts: &ShardFacts) -> Option<GrammarEngine> {
    GrammarEngine::new(tokenizer, facts.vocab_size as usize, &facts.eos_token_ids)
        .inspect_err(|reason| tracing::warn!(reason, "requests with a grammar will be refused"))
        .ok()
}

/// COMPUTE_TYPE, or TGI's word for the kind of device.
fn compute_type(device: &str) -> HeaderValue {
    let given = std::env::var("COMPUTE_TYPE").ok().and_then(|text| HeaderValue::try_from(text).ok());
    let kind = if device.starts_with("cpu") { "cpu+optimized" } else { "gpu+optimized" };
    given.unwrap_or(HeaderValue::from_static(kind))
}
