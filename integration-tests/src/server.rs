//! A running server: the real executable with its process tree, in a world of its own.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::StatusCode;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Metrics, PATIENCE, Process, Stream, executable, wait_until};

/// How to start a server. Ports, folders and environment are its own, so that tests run side by side.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
}

impl Setup {
    /// The demo model with default settings.
    pub fn new() -> Setup {
        Setup::default()
    }

    /// Adds words to the command line.
    pub fn args(mut self, args: &[&str]) -> Setup {
        self.args.extend(args.iter().map(OsString::from));
        self
    }

    /// Serves the model in `dir`.
    pub fn model(mut self, dir: &Path) -> Setup {
        self.args.extend(["--model-id".into(), dir.into()]);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Setup {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Starts the server and waits for its ready line.
    ///
    /// # Panics
    /// If it ends, or is not ready within [`PATIENCE`]; with its log.
    #[track_caller]
    pub fn start(self) -> Server {
        let mut server = self.spawn();
        let start = Instant::now();
        while !server.log().contains("Ready: ") {
            if let Some(status) = server.process.try_wait().expect("the launcher can be waited for") {
                panic!("the server ended before it was ready ({status}); its log:\n{}", server.log());
            }
            assert!(start.elapsed() < PATIENCE, "not ready after {PATIENCE:?}; the log:\n{}", server.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// Starts the server without waiting.
    pub fn spawn(self) -> Server {
        let dir = TempDir::new().expect("a folder for temporary files can be made");
        // A process that another thread starts just now holds a copy of the listener of `free_port` until it runs its
        // own program: looking for a port and starting processes take turns.
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let port = free_port();
        let mut command = Command::new(executable());
        command
            .args(["--hostname", "127.0.0.1", "--port", &port.to_string()])
            .args(&self.args)
            // Nothing of the developer's environment reaches the server.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", dir.path())
            .env("TMPDIR", dir.path())
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn().expect("the executable can be started");
        drop(turn);
        let log = Arc::new(Mutex::new(String::new()));
        let readers = vec![
            collect(process.stdout.take().expect("stdout is piped"), log.clone()),
            collect(process.stderr.take().expect("stderr is piped"), log.clone()),
        ];
        Server { process, port, dir, log, readers, client: reqwest::Client::new() }
    }

    /// Starts a server that is expected to end by itself, and waits for its end.
    #[track_caller]
    pub fn run(self) -> Exit {
        self.spawn().wait()
    }
}

/// A started server. Dropping it kills everything, also when the test panics; its log is then printed.
#[derive(Debug)]
pub struct Server {
    process: Child,
    port: u16,
    dir: TempDir,
    log: Arc<Mutex<String>>,
    readers: Vec<std::thread::JoinHandle<()>>,
    client: reqwest::Client,
}

/// How a server ended.
#[derive(Debug)]
pub struct Exit {
    /// Exit code of the launcher; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Everything it wrote, to stdout and stderr.
    pub log: String,
    /// What was left in its folder for temporary files, besides the cached demo model.
    pub leftovers: Vec<PathBuf>,
}

impl Server {
    /// `http://127.0.0.1:{port}{path}`
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The HTTP client, with kept connections.
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// POSTs `body` and reads the whole answer; JSON if it is JSON, else a string.
    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let response = self.client.post(self.url(path)).json(body).send().await.expect("the server answers");
        let status = response.status();
        let text = response.text().await.expect("the answer is complete");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// POSTs `body` to `/generate` and expects success.
    #[track_caller]
    pub fn generate(&self, body: &Value) -> impl Future<Output = Value> {
        let answer = self.post("/generate", body);
        let body = body.clone();
        async move {
            let (status, answer) = answer.await;
            assert_eq!(status, StatusCode::OK, "{body}: {answer}");
            answer
        }
    }

    /// POSTs `body` and reads server-sent events.
    pub async fn stream(&self, path: &str, body: &Value) -> Stream {
        Stream::new(self.client.post(self.url(path)).json(body).send().await.expect("the server answers"))
    }

    /// A scrape of `/metrics`.
    pub async fn metrics(&self) -> Metrics {
        let response = self.client.get(self.url("/metrics")).send().await.expect("the server answers");
        Metrics::parse(response.text().await.expect("the answer is complete"))
    }

    /// Scrapes until `condition` holds.
    ///
    /// # Panics
    /// If it does not within [`PATIENCE`].
    pub async fn metrics_until(&self, what: &str, condition: impl Fn(&Metrics) -> bool) -> Metrics {
        let start = Instant::now();
        loop {
            let metrics = self.metrics().await;
            if condition(&metrics) {
                return metrics;
            }
            assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}; last scrape:\n{metrics:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Everything the server has written so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no reader panics").clone()
    }

    /// Its folder for temporary files, home and cache.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The launcher's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The launcher's children: shards in the order of ranks, then the router.
    pub fn children(&self) -> Vec<Process> {
        let mut children = Process::children_of(self.pid());
        children.sort_by_key(|child| (child.role() == "router", child.argv.get(3).cloned()));
        children
    }

    /// The child that is shard `rank`.
    #[track_caller]
    pub fn shard(&self, rank: u32) -> Process {
        let word = format!("--rank={rank}");
        self.children()
            .into_iter()
            .find(|child| child.role() == "shard" && child.argv.contains(&word))
            .unwrap_or_else(|| panic!("there is a shard {rank}"))
    }

    /// The router's process.
    #[track_caller]
    pub fn router(&self) -> Process {
        self.children().into_iter().find(|child| child.role() == "router").expect("there is a router")
    }

    /// Sends `signal` to the launcher.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).expect("the launcher runs");
    }

    /// Waits for the launcher's end.
    ///
    /// # Panics
    /// If it does not end within [`PATIENCE`].
    #[track_caller]
    pub fn wait(mut self) -> Exit {
        let mut status = None;
        wait_until("the launcher to end", || {
            status = self.process.try_wait().expect("the launcher can be waited for");
            status.is_some()
        });
        // The pipes close when the last process that holds them has ended: the whole log, and proof of no orphan.
        for reader in self.readers.drain(..) {
            reader.join().expect("no reader panics");
        }
        Exit { code: status.and_then(|status| status.code()), log: self.log(), leftovers: self.leftovers() }
    }

    /// SIGTERM, then [`Server::wait`].
    #[track_caller]
    pub fn stop(self) -> Exit {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    fn leftovers(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path()).expect("the folder exists").flatten();
        entries.map(|entry| entry.path()).filter(|path| !path.ends_with(".cache")).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The children die with the launcher: that is one of its promises, and tests/orphans.rs holds it to that.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the server ---\n{}--- end of the log ---", self.log());
        }
    }
}

fn collect(pipe: impl Read + Send + 'static, log: Arc<Mutex<String>>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut log = log.lock().expect("no reader panics");
            log.push_str(&line);
            log.push('\n');
        }
    })
}

/// A port that nobody listens on, outside the range from which the kernel takes ports for outgoing connections: between
/// this check and the server's own bind no connection can take it.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    let offset = (std::process::id() % u32::from(COUNT)) as u16;
    (0..COUNT)
        .map(|_| FIRST + offset.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(7)) % COUNT)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("one of 12,000 ports is free")
}
