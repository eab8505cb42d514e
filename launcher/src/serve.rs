//! The launcher's life: check, start, watch, stop. Decisions are the supervisor's; this carries them out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};

use crate::child::{Child, Obituary};
use crate::error::LauncherError;
use crate::limits::{FAILURE_WINDOW, MAX_FAILURES, WAITING_NOTICE};
use crate::log_line::Level;
use crate::logs::{Format, Logs};
use crate::model::{self, Model};
use crate::ready::{self, ShardState};
use crate::runtime_dir::Sockets;
use crate::supervisor::{Action, End, Event, Member, Supervisor};
use crate::validation::{self, Settings};
use crate::{args, child_argv, environment, signals};

/// Runs the launcher with `argv` until it is stopped.
///
/// # Errors
/// [`LauncherError`], after everything it started has ended. A command line that does not parse ends the process here,
/// with clap's text and exit code 2.
pub(crate) fn launch(argv: impl IntoIterator<Item = OsString>) -> Result<(), LauncherError> {
    let started = Instant::now();
    let parsed = args::parse(argv).unwrap_or_else(|error| error.exit());
    // Before any other thread exists: all of them must inherit the blocked signals.
    let (events, inbox) = mpsc::channel();
    let on_signal = events.clone();
    signals::forward(move |signal| drop(on_signal.send(Message::Signal(signal))))
        .map_err(|source| LauncherError::System { action: "wait for signals", source })?;

    let json_output = parsed.args.operation.json_output;
    let logs = Logs::to_stdout(Format::of_stdout(json_output));
    let result = prepare(parsed, &logs).and_then(|(settings, model)| {
        let mut fleet = Fleet::new(settings, model, started, logs.clone(), events)?;
        fleet.run(&inbox)
    });
    if let Err(error) = &result
        && json_output
    {
        // For whoever collects the log; `main` prints it on stderr for whoever typed the command.
        logs.log(Level::Error, error.to_string(), Map::new());
    }
    logs.flush();
    result
}

/// Everything that can be found wrong before a process is started.
fn prepare(parsed: args::Parsed, logs: &Logs) -> Result<(Settings, Model), LauncherError> {
    if parsed.args.operation.print_environment {
        logs.info(environment::report());
    }
    if let Some(knob) = parsed.not_supported.first() {
        return Err(LauncherError::NotSupported {
            flag: format!("--{}", knob.flag),
            env: knob.env,
            reason: knob.reason,
        });
    }
    for knob in &parsed.no_effect {
        logs.warn(format!("`--{}` has no effect: {}", knob.flag, knob.reason));
    }
    let mut warnings = Vec::new();
    let settings = validation::settings(parsed.args, &mut warnings)?;
    warnings.into_iter().for_each(|warning| logs.warn(warning));
    check_address(SocketAddr::new(settings.hostname, settings.port))?;
    let model = model::locate(settings.model_id.as_deref())?;
    Ok((settings, model))
}

/// Finds a taken port now rather than after the weights are loaded. The router binds it for good and has the last word.
fn check_address(address: SocketAddr) -> Result<(), LauncherError> {
    TcpListener::bind(address).map(drop).map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another process is listening there".to_owned(),
            _ => error.to_string(),
        };
        LauncherError::Address { address: address.to_string(), reason }
    })
}

/// What the main thread is woken by.
enum Message {
    Signal(Signal),
    Ready(ChildId),
    Unresponsive(ChildId, String),
    Exited(ChildId),
    NotStarted(Member),
}

/// A member and which life of it: news of an earlier life must not reach a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ChildId {
    member: Member,
    life: u64,
}

/// The children, and everything needed to start them.
struct Fleet {
    settings: Settings,
    model: Model,
    sockets: Sockets,
    executable: PathBuf,
    started: Instant,
    logs: Logs,
    events: Sender<Message>,
    children: BTreeMap<Member, (ChildId, Child)>,
    ready: Vec<Member>,
    lives: u64,
    comm_name: Option<String>,
    group_failed: Instant,
    obituaries: BTreeMap<Member, Obituary>,
}

impl Fleet {
    fn new(
        settings: Settings,
        model: Model,
        started: Instant,
        logs: Logs,
        events: Sender<Message>,
    ) -> Result<Fleet, LauncherError> {
        let executable = std::env::current_exe()
            .map_err(|source| LauncherError::System { action: "find this executable to start the children", source })?;
        Ok(Fleet {
            sockets: Sockets::prepare(settings.shard_uds_path.as_deref(), settings.num_shard)?,
            settings,
            model,
            executable,
            started,
            logs,
            events,
            children: BTreeMap::new(),
            ready: Vec::new(),
            lives: 0,
            comm_name: None,
            group_failed: started,
            obituaries: BTreeMap::new(),
        })
    }

    /// Starts everything and returns when everything has ended. Runs on the main thread, which lives as long as the
    /// process: see [`Child::start`].
    fn run(&mut self, inbox: &mpsc::Receiver<Message>) -> Result<(), LauncherError> {
        self.logs.info(format!(
            "Starting {} shard{} and the router for \"{}\" ({})",
            self.settings.num_shard,
            if self.settings.num_shard == 1 { "" } else { "s" },
            self.model.id,
            self.model.dir.display()
        ));
        let (mut supervisor, first) = Supervisor::start(self.settings.num_shard, self.settings.grace);
        let mut actions = first;
        let mut notice = WAITING_NOTICE;
        loop {
            for action in actions {
                if let Some(end) = self.perform(action) {
                    return self.result(end);
                }
            }
            let now = self.started.elapsed();
            let is_starting = self.ready.len() <= self.settings.num_shard as usize && !supervisor.is_stopping();
            let wake = supervisor.deadline().into_iter().chain(is_starting.then_some(notice)).min();
            let message = match wake {
                Some(wake) => inbox.recv_timeout(wake.saturating_sub(now)),
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let event = match message {
                Ok(message) => self.event(message, &supervisor),
                Err(RecvTimeoutError::Timeout) => Some(Event::Tick),
                Err(RecvTimeoutError::Disconnected) => unreachable!("the fleet holds a sender"),
            };
            let now = self.started.elapsed();
            if is_starting && now >= notice {
                notice = now + WAITING_NOTICE;
                self.announce_waiting();
            }
            actions = event.map_or_else(Vec::new, |event| supervisor.handle(now, event));
        }
    }

    /// What a message means to the supervisor; `None` if it is old news.
    fn event(&mut self, message: Message, supervisor: &Supervisor) -> Option<Event> {
        match message {
            Message::Signal(Signal::SIGINT) if supervisor.is_stopping() => Some(Event::ForceStop),
            Message::Signal(signal) => {
                if supervisor.is_stopping() {
                    self.logs.info(format!("{signal} received, already stopping; Ctrl-C stops at once"));
                } else {
                    self.logs.info(format!("{signal} received, stopping"));
                }
                Some(Event::Stop)
            }
            Message::Ready(id) if self.is_current(id) => {
                self.ready.push(id.member);
                Some(Event::Ready(id.member))
            }
            Message::Unresponsive(id, reason) if self.is_current(id) => {
                self.logs.error(format!("{} does not respond ({reason}), killing it", id.member));
                Some(Event::Unresponsive(id.member))
            }
            Message::Exited(id) if self.is_current(id) => {
                let (_, child) = self.children.remove(&id.member).expect("a current child is in the map");
                self.ready.retain(|&member| member != id.member);
                let obituary = child.reap();
                if supervisor.is_stopping() {
                    self.logs.info(format!("{} ended ({})", id.member, obituary.status));
                }
                self.obituaries.insert(id.member, obituary);
                Some(Event::Exited(id.member))
            }
            Message::NotStarted(member) => Some(Event::Exited(member)),
            Message::Ready(_) | Message::Unresponsive(..) | Message::Exited(_) => None,
        }
    }

    fn is_current(&self, id: ChildId) -> bool {
        self.children.get(&id.member).is_some_and(|(current, _)| *current == id)
    }

    /// Carries out one decision; the last one returns why everything ended.
    fn perform(&mut self, action: Action) -> Option<End> {
        match action {
            Action::StartShards => self.start_shards(),
            Action::StartRouter => {
                let argv = child_argv::router(&self.settings, &self.model, self.sockets.prefix());
                self.start(Member::Router, &argv);
            }
            Action::Terminate(member) => self.signal(member, Signal::SIGTERM),
            Action::Kill(member) => self.signal(member, Signal::SIGKILL),
            Action::AnnounceReady => self.announce_ready(),
            Action::AnnounceRecovered => self.logs.info(format!(
                "The shards are back after {:.1} s; requests in flight go on",
                self.group_failed.elapsed().as_secs_f32()
            )),
            Action::AnnounceRestart { member, pause, failures } => {
                self.group_failed = Instant::now();
                let status = self.obituaries.get(&member).map_or("ended", |obituary| &obituary.status);
                let when = if pause.is_zero() { "now".to_owned() } else { format!("in {} s", pause.as_secs()) };
                self.logs.error(format!(
                    "{member} died ({status}); restarting all shards {when} (failure {failures} of {MAX_FAILURES} within {} s)",
                    FAILURE_WINDOW.as_secs()
                ));
            }
            Action::AnnounceDraining => self.logs.info(format!(
                "Finishing requests in flight, for at most {} s (Ctrl-C again stops at once)",
                self.settings.grace.as_secs()
            )),
            Action::Finish(end) => return Some(end),
        }
        None
    }

    fn start_shards(&mut self) {
        self.unlink_segment();
        // A segment name per life: ranks that meet in it are of the same life, whatever became of the last one's.
        // Process ids repeat between containers that share /dev/shm; the time of the start makes the name theirs alone.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let comm_name = format!("/text-generation-{}-{since_epoch:x}", std::process::id());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / self.settings.num_shard as usize).max(1);
        for rank in 0..self.settings.num_shard {
            let prefix = self.sockets.prefix();
            let argv = child_argv::shard(&self.settings, &self.model, prefix, rank, threads, &comm_name);
            self.start(Member::Shard(rank), &argv);
        }
        self.comm_name = Some(comm_name);
    }

    /// The ranks remove their segment's name once all have attached; a group that died earlier leaves it behind.
    fn unlink_segment(&mut self) {
        if let Some(name) = self.comm_name.take() {
            let _ = nix::sys::mman::shm_unlink(name.as_str());
        }
    }

    fn start(&mut self, member: Member, argv: &[OsString]) {
        let id = ChildId { member, life: self.lives };
        self.lives += 1;
        if let Err(error) = self.try_start(id, argv) {
            // A child that cannot even be started is a child that ended at once: one path for both.
            self.logs.error(format!("cannot start {member}: {error}"));
            self.obituaries.insert(member, Obituary { status: error.to_string(), lines: Vec::new() });
            let _ = self.events.send(Message::NotStarted(member));
        }
    }

    fn try_start(&mut self, id: ChildId, argv: &[OsString]) -> std::io::Result<()> {
        let report = |message: Message| {
            let events = self.events.clone();
            move || drop(events.send(message))
        };
        let api_keys = match id.member {
            Member::Router => child_argv::api_keys(&self.settings),
            Member::Shard(_) => None,
        };
        let on_exit = report(Message::Exited(id));
        let child = Child::start(id.member, &self.executable, argv, api_keys, &self.logs, on_exit)?;
        let alive = child.alive();
        match id.member {
            Member::Shard(rank) => {
                let events = self.events.clone();
                ready::watch_shard(self.sockets.path(rank), alive, move |state| {
                    let _ = events.send(match state {
                        ShardState::Ready => Message::Ready(id),
                        ShardState::Unresponsive { reason } => Message::Unresponsive(id, reason),
                    });
                })?;
            }
            Member::Router => ready::watch_router(self.address(), alive, report(Message::Ready(id)))?,
        }
        self.children.insert(id.member, (id, child));
        Ok(())
    }

    fn signal(&self, member: Member, signal: Signal) {
        if let Some((_, child)) = self.children.get(&member) {
            child.signal(signal);
        }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.settings.hostname, self.settings.port)
    }

    fn announce_waiting(&self) {
        let all = (0..self.settings.num_shard).map(Member::Shard).chain([Member::Router]);
        let missing: Vec<String> =
            all.filter(|member| !self.ready.contains(member)).map(|member| member.to_string()).collect();
        self.logs.info(format!("Waiting for {} ({} s so far)", missing.join(", "), self.started.elapsed().as_secs()));
    }

    fn announce_ready(&self) {
        let elapsed = self.started.elapsed();
        let (id, shards) = (&self.model.id, self.settings.num_shard);
        let (address, reach) = (self.address(), ready::reachable(self.address()));
        let plural = if shards == 1 { "" } else { "s" };
        let (route, body) = if self.model.is_chat {
            (
                "/v1/chat/completions",
                r#"{"messages": [{"role": "user", "content": "What is two plus three?"}], "temperature": 0}"#,
            )
        } else {
            ("/generate", r#"{"inputs": "Once upon a time", "parameters": {"max_new_tokens": 40}}"#)
        };
        // The name of the variable, not the key: this line goes into logs.
        let key = if self.settings.router.api_key.is_empty() { "" } else { r#" -H "Authorization: Bearer $API_KEY""# };
        let curl = format!("curl http://{reach}{route}{key} -H 'Content-Type: application/json' -d '{body}'");
        let seconds = elapsed.as_secs_f32();
        let message = format!("Ready: \"{id}\" on http://{address} with {shards} shard{plural} after {seconds:.2} s");
        let fields = json!({
            "address": address.to_string(),
            "model_id": id,
            "num_shard": shards,
            "startup_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        });
        let Value::Object(fields) = fields else { unreachable!("json! made an object") };
        self.logs.log(Level::Info, message, fields);
        self.logs.info(format!("Try: {curl}"));
    }

    /// The end, in the words of whoever caused it.
    fn result(&mut self, end: End) -> Result<(), LauncherError> {
        self.unlink_segment();
        let mut obituary = |member| {
            let unknown = Obituary { status: "ended".to_owned(), lines: Vec::new() };
            let Obituary { status, lines } = self.obituaries.remove(&member).unwrap_or(unknown);
            (status, lines)
        };
        match end {
            End::Stopped => {
                self.logs.info("Stopped");
                Ok(())
            }
            End::Forced => Err(LauncherError::Forced),
            End::StartupFailed(member) => {
                let (status, lines) = obituary(member);
                Err(LauncherError::ChildCannotStart { member, status, lines })
            }
            End::RouterFailed => {
                let (status, lines) = obituary(Member::Router);
                Err(LauncherError::RouterFailed { status, lines })
            }
            End::ShardsKeepFailing(member) => {
                let (status, lines) = obituary(member);
                Err(LauncherError::ShardsKeepFailing {
                    failures: MAX_FAILURES,
                    window: FAILURE_WINDOW,
                    member,
                    status,
                    lines,
                })
            }
        }
    }
}
