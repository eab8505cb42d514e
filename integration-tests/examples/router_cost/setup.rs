//! The processes under measurement: a fake shard, and the router in front of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use integration_tests::{FakeShard, LargeTokenizer, Logprobs, PATIENCE, Process, executable, workspace_root};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The first argument of this program when it is the shard.
pub(crate) const FAKE_SHARD: &str = "fake-shard";

/// The text side of a model.
pub(crate) struct Tokenizer {
    pub(crate) name: String,
    dir: PathBuf,
    vocab_size: u32,
    eos_token_id: u32,
    /// Ids of words, none of them special or a part of a character.
    words: Vec<u32>,
    /// Of `dir`, if it is written for this run.
    _folder: Option<TempDir>,
}

impl Tokenizer {
    /// The demo model's.
    pub(crate) fn demo() -> Tokenizer {
        let dir = workspace_root().join("launcher/demo-model");
        let config: Value = read_json(&dir.join("config.json"));
        let number = |name: &str| config[name].as_u64().expect("the demo model is complete") as u32;
        let (vocab_size, eos_token_id) = (number("vocab_size"), number("eos_token_id"));
        let name = format!("demo model's, {vocab_size} tokens");
        Tokenizer { name, words: words(&dir), dir, vocab_size, eos_token_id, _folder: None }
    }

    /// A made one with `vocab_size` tokens.
    pub(crate) fn large(vocab_size: usize) -> Tokenizer {
        let made = LargeTokenizer { vocab_size, seed: 1 };
        let folder = made.write();
        Tokenizer {
            name: format!("made, {vocab_size} tokens"),
            dir: folder.path().to_owned(),
            vocab_size: vocab_size as u32,
            eos_token_id: made.eos_token_id(),
            words: words(folder.path()),
            _folder: Some(folder),
        }
    }
}

fn read_json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A thousand words of the tokenizer in `dir`, spread over its vocabulary.
fn words(dir: &Path) -> Vec<u32> {
    let definition = read_json(&dir.join("tokenizer.json"));
    let vocab = definition["model"]["vocab"].as_object().expect("a BPE tokenizer has a vocabulary");
    let is_word = |token: &str| {
        let letters = token.trim_start_matches('Ġ');
        letters.len() > 1 && letters.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    // Sorted by something that has nothing to do with the ids' order, so that neighbours differ.
    let all = vocab.iter().filter(|(token, _)| is_word(token)).filter_map(|(_, id)| id.as_u64());
    let shuffled: BTreeMap<u64, u32> =
        all.map(|id| (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16, id as u32)).collect();
    shuffled.into_values().take(1000).collect()
}

/// A router in front of a fake shard. Dropping it ends both.
pub(crate) struct Router {
    shard: Child,
    router: Child,
    pub(crate) port: u16,
    _sockets: TempDir,
}

impl Router {
    /// Starts both and waits until connections are taken.
    pub(crate) fn start(tokenizer: &Tokenizer, (step, logprobs): (Duration, Logprobs)) -> Router {
        let sockets = TempDir::new().expect("a folder for temporary files can be made");
        let prefix = sockets.path().join("shard").into_os_string().into_string().expect("temporary folders are UTF-8");
        let script = json!({
            "vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.eos_token_id, "reply": tokenizer.words,
            "step_micros": step.as_micros() as u64, "stamps": logprobs == Logprobs::Stamps,
        });
        let shard = Command::new(std::env::current_exe().expect("this program has a path"))
            .args([FAKE_SHARD, &format!("{prefix}-0"), &script.to_string()])
            .spawn()
            .expect("this program can be started");
        let mut router = Command::new(executable())
            .args(["router", "--hostname", "127.0.0.1", "--port", "0", "--max-concurrent-requests", "1024"])
            .args(["--json-output", "--shard-uds-path", &prefix, "--model-id", "bench", "--model-dir"])
            .arg(&tokenizer.dir)
            .env_remove("LOG_LEVEL")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the executable can be started");
        let log = BufReader::new(router.stdout.take().expect("stdout is piped"));
        // Whatever happens from here on, both end with the returned value.
        let mut running = Router { shard, router, port: 0, _sockets: sockets };
        running.port = follow(log);
        running
    }

    pub(crate) fn process(&self) -> Process {
        Process::of(self.router.id()).expect("the router runs")
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for child in [&mut self.router, &mut self.shard] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads the router's log as the launcher does, to its end; returns the port as soon as it is known.
fn follow(log: impl BufRead + Send + 'static) -> u16 {
    let (found, port) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(port) = event["address"].as_str().and_then(|address| address.rsplit(':').next()?.parse().ok()) {
                let _ = found.send(port);
            }
        }
    });
    let start = Instant::now();
    port.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("no router after {:?}: {error}", start.elapsed()))
}

/// This program as the shard: a socket and a script.
pub(crate) fn serve_fake_shard(words: &[String]) {
    let [socket, script] = words else { panic!("a fake shard needs a socket and a script") };
    let script: Value = serde_json::from_str(script).expect("the script is JSON");
    let number = |name: &str| script[name].as_u64().unwrap_or_else(|| panic!("the script says no {name}"));
    let reply = script["reply"].as_array().expect("the script has a reply").iter();
    let shard = FakeShard {
        vocab_size: number("vocab_size") as u32,
        eos_token_id: number("eos_token_id") as u32,
        reply: reply.filter_map(|id| Some(id.as_u64()? as u32)).collect(),
        step: Duration::from_micros(number("step_micros")),
        logprobs: if script["stamps"] == true { Logprobs::Stamps } else { Logprobs::Plausible },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    if let Err(error) = runtime.block_on(shard.serve(Path::new(socket))) {
        panic!("the fake shard ends: {error}");
    }
}
