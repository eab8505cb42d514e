//! The crate against a library that only notes what it is called with (`fake_nccl.c`): arguments arrive as C declares them, and what a
//! library delays, fails or lacks becomes an error. And against the real one, where it is.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use libloading::os::unix::Library;
use nccl_rs::{Code, Communicator, DataType, Error, Nccl, ReduceOp, UniqueId};

const SOON: Duration = Duration::from_millis(20);
/// For what must not fail on a machine that does other things as well.
const LATE: Duration = Duration::from_secs(60);

/// Compiles the library into a folder of its own.
fn compile(folder: &str, defines: &[&str]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake_nccl.c");
    let file = folder.join("libnccl.so.2");
    let run = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .arg(&file)
        .arg(source)
        .args(defines)
        .output()
        .expect("the C compiler that the README asks for");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    folder
}

fn load(folder: &str, defines: &[&str]) -> (nccl_rs::Result<Nccl>, PathBuf) {
    let folder = compile(folder, defines);
    (Nccl::open(&folder.join("libnccl.so.2")), folder)
}

/// What this thread has called since it asked last.
fn notes(folder: &std::path::Path) -> String {
    // SAFETY: the library is the one compiled above, loaded already, and the function is declared there with this type. What it
    // returns is a string that lives until this thread asks again.
    unsafe {
        let library = Library::new(folder.join("libnccl.so.2")).unwrap();
        let notes = library.get::<unsafe extern "C" fn() -> *const c_char>("fakeNotes").unwrap();
        CStr::from_ptr(notes()).to_str().unwrap().to_owned()
    }
}

/// A name whose group is in progress for so many looks, then in this state.
fn id(polls: u8, state: u8) -> UniqueId {
    let mut id = [9; 128];
    (id[0], id[1]) = (polls, state);
    UniqueId(id)
}

#[test]
fn calls_arrive_as_they_are_declared() {
    let (nccl, folder) = load("calls", &["-DVERSION=22809"]);
    let nccl = nccl.unwrap();
    assert_eq!(nccl.version(), 22809);
    assert!(nccl.path().ends_with("calls/libnccl.so.2"), "{}", nccl.path());
    let made = nccl.unique_id().unwrap();
    assert!(made.0.iter().enumerate().all(|(at, byte)| at == usize::from(*byte)));

    let communicator = Communicator::join(&nccl, &id(3, 0), 1, 4, LATE).unwrap();
    assert_eq!((communicator.rank(), communicator.world_size()), (1, 4));
    assert_eq!(notes(&folder), "join 1 of 4, id ..9, config 24 cafebeef 21400 0\n");

    // SAFETY: the library does not touch buffers and streams.
    let enqueued = communicator.launch(LATE, |group| unsafe {
        group.all_reduce(0x10, 0x20, 5, DataType::Bfloat16, ReduceOp::Sum, 0x30)?;
        group.reduce_scatter(0x11, 0x21, 6, DataType::Float32, ReduceOp::Max, 0x31)?;
        group.all_gather(0x12, 0x22, 7, DataType::Float16, 0x32)?;
        group.broadcast(0x13, 0x23, 8, DataType::Uint8, 2, 0x33)?;
        group.send(0x14, 9, DataType::Int32, 3, 0x34)?;
        group.recv(0x15, 10, DataType::Int64, 0, 0x35)
    });
    assert_eq!(enqueued, Ok(()));
    assert_eq!(
        notes(&folder),
        "(all_reduce 10 20 5 9 0 30;reduce_scatter 11 21 6 7 2 31;all_gather 12 22 7 6 32;broadcast 13 23 8 1 2 33;\
         send 14 9 2 3 34;recv 15 10 4 0 35;)\n"
    );
    assert_eq!(communicator.check(), Ok(()));
    assert_eq!(communicator.close(LATE), Ok(()));
    assert_eq!(notes(&folder), "finalize\ndestroy\n");
}

#[test]
fn a_group_ends_whatever_happens_in_it() {
    let (nccl, folder) = load("groups", &["-DVERSION=23000"]);
    let communicator = Communicator::join(&nccl.unwrap(), &id(0, 0), 0, 2, LATE).unwrap();
    notes(&folder);
    // SAFETY: the library does not touch buffers and streams.
    let refused = communicator
        .launch(LATE, |group| unsafe { group.all_reduce(0, 0, 13, DataType::Int8, ReduceOp::Prod, 0) })
        .unwrap_err();
    let reason = "something else: socket closed by peer".to_owned();
    assert_eq!(refused, Error::Failed { call: "ncclAllReduce", code: Code::InvalidArgument, reason });
    // SAFETY: as above.
    let nobody = communicator.launch(LATE, |group| unsafe { group.send(0, 1, DataType::Int8, 2, 0) });
    assert_eq!(nobody, Err(Error::Rank { rank: 2, world_size: 2 }));
    let panic =
        std::panic::AssertUnwindSafe(|| communicator.launch(LATE, |_| -> nccl_rs::Result<()> { panic!("on purpose") }));
    assert!(std::panic::catch_unwind(panic).is_err());
    assert_eq!(notes(&folder), "(all_reduce 0 0 13 0 1 0;)\n()\n()\n");
    assert_eq!(communicator.launch(LATE, |_| Ok(7)), Ok(7), "the communicator is as it was");
    drop(communicator);
    assert_eq!(notes(&folder), "()\nabort\n");
}

#[test]
fn a_peer_that_never_comes_is_an_error_in_time() {
    let (nccl, folder) = load("absent", &["-DVERSION=22809"]);
    let nccl = nccl.unwrap();
    let error = Communicator::join(&nccl, &id(127, 0), 0, 2, SOON).err().unwrap();
    assert!(matches!(error, Error::Timeout { call: "ncclCommInitRankConfig", waited } if waited >= SOON), "{error}");
    assert!(notes(&folder).ends_with("\nabort\n"), "nothing is left behind");
    for (rank, world_size) in [(2, 2), (0, 0), (usize::MAX, usize::MAX)] {
        let refused = Communicator::join(&nccl, &id(0, 0), rank, world_size, SOON).err();
        assert_eq!(refused, Some(Error::Rank { rank, world_size }));
    }
    assert_eq!(notes(&folder), "");
}

#[test]
fn a_peer_that_goes_is_named_by_the_library() {
    let (nccl, folder) = load("gone", &["-DVERSION=22809"]);
    let nccl = nccl.unwrap();
    let reason = "remote process exited: socket closed by peer".to_owned();
    let error = Communicator::join(&nccl, &id(2, 6), 0, 2, LATE).err().unwrap();
    let expected = Error::Failed { call: "ncclCommInitRankConfig", code: Code::RemoteError, reason };
    assert_eq!(error, expected);
    assert_eq!(error.to_string(), "ncclCommInitRankConfig: RemoteError, remote process exited: socket closed by peer");
    assert!(notes(&folder).ends_with("abort\n"));
}

#[test]
fn what_was_aborted_refuses_and_is_not_ended_twice() {
    let (nccl, folder) = load("aborted", &["-DVERSION=22809"]);
    let communicator = Communicator::join(&nccl.unwrap(), &id(0, 0), 0, 1, LATE).unwrap();
    notes(&folder);
    // From another thread, as a watchdog does it.
    std::thread::scope(|scope| scope.spawn(|| communicator.abort()).join()).unwrap();
    assert_eq!(communicator.check(), Err(Error::Unusable { call: "ncclCommGetAsyncError" }));
    assert_eq!(communicator.launch(LATE, |_| Ok(())), Err(Error::Unusable { call: "ncclGroupStart" }));
    communicator.abort();
    assert_eq!(communicator.close(LATE), Err(Error::Unusable { call: "ncclCommFinalize" }));
    assert_eq!(notes(&folder), "", "all of it happened on the other thread");
}

#[test]
fn a_library_that_does_not_serve_is_named() {
    let (old, _) = load("old", &["-DVERSION=21602"]);
    assert!(matches!(old, Err(Error::TooOld { version: 21602, oldest: 21800, .. })));
    let (partial, folder) = load("partial", &["-DVERSION=22809", "-DWITHOUT_RECV"]);
    let path = folder.join("libnccl.so.2").to_string_lossy().into_owned();
    assert_eq!(partial.err(), Some(Error::MissingFunction { path, function: "ncclRecv" }));
    let absent = Nccl::open("/nowhere/libnccl.so.2".as_ref()).err().unwrap().to_string();
    assert!(absent.starts_with("no NCCL library: /nowhere/libnccl.so.2: ") && absent.contains("NCCL_LIB"), "{absent}");
}

#[test]
fn the_real_library_answers_where_it_is() {
    let nccl = match Nccl::load(&[]) {
        Ok(nccl) => nccl,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    assert!(nccl.version() >= 21800);
    let ids = [nccl.unique_id(), nccl.unique_id()].map(|id| id.map(|id| id.0));
    assert!(ids[0].is_ok() && ids[0] != ids[1], "a name is for one group: {ids:?}");
    // With a device a group of one rank; without, an error in NCCL's words.
    match Communicator::join(&nccl, &nccl.unique_id().unwrap(), 0, 1, LATE) {
        Ok(communicator) => assert_eq!(communicator.close(LATE), Ok(())),
        Err(error) => assert!(matches!(error, Error::Failed { .. }), "{error}"),
    }
}
