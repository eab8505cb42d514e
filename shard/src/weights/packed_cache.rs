//! Packed weights on disk, so that a restart need not pack (and quantise) them again. Off unless a folder is given.
//!
//! One file per model folder, rank and number of ranks, which is overwritten when anything changes: so the folder is bounded. It
//! holds panels in the order of loading, then a table of them with checksums, then a trailer; a file without its trailer is
//! none. It is written beside its place and renamed, so no reader meets half of one.
//!
//! **When a file is used.** Its key is a BLAKE3 hash over everything that decides its bytes: config.json, every weight
//! file's header (names, shapes, types, offsets) and identity (device, inode, length, times of the last change of contents and
//! of status), the ranks and the element type. Hashing all the contents would read as much as packing does. What stands for
//! them is the status-change time: the kernel sets it at every write and no call sets it back. Two changes within one tick of its
//! clock could look alike; so a checkpoint that changed less than [`PACKED_CACHE_MIN_AGE`] ago is not cached, and one that
//! changed while it was packed neither. A copied or touched model misses, and is packed.
//!
//! **Contents are copied, not mapped**: into huge pages, by all threads, each piece against its checksum. A mapped file would
//! have small pages, and end the process if it were shortened.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kernels::{Device, PanelShape};
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_PACKED_CACHE_TABLE_BYTES, PACKED_CACHE_MIN_AGE, PACKED_CACHE_PIECE};

const MAGIC: [u8; 8] = *b"TGIPACK1";
/// Offset and length of the table, its hash, and [`MAGIC`].
const TRAILER_BYTES: usize = 8 + 8 + 32 + 8;

/// Where packed weights are kept, and for what.
#[derive(Clone, Debug)]
pub struct PackedCache {
    path: PathBuf,
    key: String,
    /// What the key was made of, for a second look: [`PackedCache::key_of`].
    checkpoint: CheckpointIdentity,
}

/// What a key is made of.
#[derive(Clone, Debug)]
pub struct CheckpointIdentity {
    /// The model folder.
    pub dir: PathBuf,
    /// config.json and the weight files with their headers.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// Everything else that decides the packed bytes: ranks, element type.
    pub layout: String,
    /// Which of the ranks' files this is: `rank-of-world_size`.
    pub rank: String,
}

/// The table of a file.
#[derive(Serialize, Deserialize)]
struct Table {
    key: String,
    weights: Vec<Entry>,
}

/// One weight of a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Entry {
    format: String,
    n: usize,
    k: usize,
    offset: u64,
    bytes: usize,
    /// Hashes of its pieces of [`PACKED_CACHE_PIECE`] bytes.
    pieces: Vec<[u8; 32]>,
}

/// What a loader does about packed weights.
pub enum PackedWeights {
    /// It packs.
    Off,
    /// It takes them from a file.
    Read(PackedReader),
    /// It packs and keeps them.
    Write(PackedWriter),
}

impl PackedWeights {
    /// What `cache` allows.
    pub fn of(cache: Option<&PackedCache>) -> PackedWeights {
        let read = |cache: &PackedCache| cache.open().map(PackedWeights::Read);
        let write = |cache: &PackedCache| cache.create().map(PackedWeights::Write);
        cache.and_then(|cache| read(cache).or_else(|| write(cache))).unwrap_or(PackedWeights::Off)
    }
}

impl PackedCache {
    /// The place of `checkpoint`'s packed weights in `folder`, which is made if it does not exist.
    ///
    /// # Errors
    /// If the folder cannot be made, or a file of the checkpoint has no status.
    pub fn new(folder: &Path, checkpoint: CheckpointIdentity) -> io::Result<PackedCache> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let dir = fs::canonicalize(&checkpoint.dir)?;
        let model = blake3::hash(dir.as_os_str().as_encoded_bytes()).to_hex();
        let path = folder.join(format!("{}-{}.packed", &model[..32], checkpoint.rank));
        Ok(PackedCache { path, key: checkpoint.key()?.0, checkpoint })
    }

    /// Opens what is kept, if it is of this very checkpoint. A damaged file is reported and treated as none.
    pub fn open(&self) -> Option<PackedReader> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!("cannot open the packed weights {}: {error}", self.path.display());
                return None;
            }
        };
        match read_table(&file) {
            Ok(table) if table.key == self.key => {
                tracing::info!("packed weights are read from {}", self.path.display());
                Some(PackedReader { path: self.path.clone(), file, weights: table.weights.into_iter() })
            }
            Ok(_) => {
                tracing::info!("the checkpoint changed: {} is packed anew", self.path.display());
                None
            }
            Err(reason) => {
                tracing::warn!(
                    "the packed weights {} are damaged ({reason}); they are packed anew",
                    self.path.display()
                );
                None
            }
        }
    }

    /// Begins a file. `None`, with a warning, if there cannot be one; nothing if the checkpoint is too young.
    pub fn create(&self) -> Option<PackedWriter> {
        let age = self.checkpoint.key().ok().and_then(|(_, changed)| SystemTime::now().duration_since(changed).ok());
        if age.is_none_or(|age| age < PACKED_CACHE_MIN_AGE) {
            tracing::info!("the checkpoint changed just now: its packed weights are not kept this time");
            return None;
        }
        let temporary = self.path.with_extension("writing");
        let begin = || {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&temporary)?;
            // Another server of the same model may be at it.
            file.try_lock().map_err(io::Error::other)?;
            file.set_len(0)?;
            Ok(file)
        };
        begin().inspect_err(|error: &io::Error| self.warn_not_kept(error)).ok().map(|file| PackedWriter {
            cache: self.clone(),
            file: Some(file),
            temporary: Some(temporary),
            end: 0,
            weights: Vec::new(),
        })
    }

    fn warn_not_kept(&self, error: &io::Error) {
        tracing::warn!("packed weights cannot be kept in {}: {error}", self.path.display());
    }
}

impl CheckpointIdentity {
    /// The key, and when any of the files changed last.
    fn key(&self) -> io::Result<(String, SystemTime)> {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(&MAGIC);
        part(env!("CARGO_PKG_VERSION").as_bytes());
        part(self.layout.as_bytes());
        part(self.rank.as_bytes());
        let mut changed = SystemTime::UNIX_EPOCH;
        for (path, header) in &self.files {
            let status = fs::metadata(path)?;
            part(path.file_name().unwrap_or_default().as_encoded_bytes());
            part(header);
            for number in [status.dev(), status.ino(), status.len()] {
                part(&number.to_le_bytes());
            }
            for number in [status.mtime(), status.mtime_nsec(), status.ctime(), status.ctime_nsec()] {
                part(&number.to_le_bytes());
            }
            let ctime = Duration::new(status.ctime().max(0) as u64, status.ctime_nsec() as u32);
            changed = changed.max(SystemTime::UNIX_EPOCH + ctime);
        }
        Ok((hasher.finalize().to_hex().to_string(), changed))
    }
}

/// The trailer, then the table: every claim is checked before it is used.
fn read_table(file: &File) -> Result<Table, String> {
    let system = |error: io::Error| error.to_string();
    let len = file.metadata().map_err(system)?.len();
    let trailer_at = len.checked_sub(TRAILER_BYTES as u64).ok_or("it has no trailer")?;
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut trailer, trailer_at).map_err(system)?;
    let (numbers, rest) = trailer.split_at(16);
    let (hash, magic) = rest.split_at(32);
    let number = |at: usize| u64::from_le_bytes(numbers[at..at + 8].try_into().expect("eight bytes"));
    let (offset, table_bytes) = (number(0), number(8));
    if magic != MAGIC
        || table_bytes > MAX_PACKED_CACHE_TABLE_BYTES
        || offset.checked_add(table_bytes) != Some(trailer_at)
    {
        return Err("its trailer is not as specified".to_owned());
    }
    let mut table = vec![0; table_bytes as usize];
    file.read_exact_at(&mut table, offset).map_err(system)?;
    if blake3::hash(&table) != *<&[u8; 32]>::try_from(hash).expect("32 bytes") {
        return Err("its table does not have the hash it should".to_owned());
    }
    let table: Table = serde_json::from_slice(&table).map_err(|error| error.to_string())?;
    let is_inside = |entry: &Entry| {
        entry.offset.checked_add(entry.bytes as u64).is_some_and(|end| end <= offset)
            && entry.pieces.len() == entry.bytes.div_ceil(PACKED_CACHE_PIECE)
    };
    if !table.weights.iter().all(is_inside) {
        return Err("its table names bytes that it does not have".to_owned());
    }
    Ok(table)
}

/// A file whose table is of this checkpoint.
pub struct PackedReader {
    path: PathBuf,
    file: File,
    weights: std::vec::IntoIter<Entry>,
}

impl PackedReader {
    /// Reads the next weight into `panels`, with the threads of `device`.
    ///
    /// # Errors
    /// A sentence for the log, if the next weight is another one, cannot be read or does not have its hashes. The file is removed
    /// then, and whatever was written to `panels` is worthless.
    pub fn next(&mut self, device: &Device, shape: PanelShape, panels: &mut [u8]) -> Result<(), String> {
        let result = self.try_next(device, shape, panels);
        if result.is_err() {
            // Best effort: if it stays, the next start finds the same.
            let _ = fs::remove_file(&self.path);
        }
        result
    }

    fn try_next(&mut self, device: &Device, shape: PanelShape, panels: &mut [u8]) -> Result<(), String> {
        let entry = self.weights.next().ok_or("it has too few weights")?;
        let actual = (entry.format.as_str(), entry.n, entry.k, entry.bytes);
        let expected = (shape.format, shape.n, shape.k, panels.len());
        if actual != expected {
            return Err(format!("it has {actual:?} where {expected:?} is needed"));
        }
        let failure = std::sync::Mutex::new(None);
        device.for_each_part(panels, PACKED_CACHE_PIECE, |piece, part| {
            let at = entry.offset + (piece * PACKED_CACHE_PIECE) as u64;
            let result = match self.file.read_exact_at(part, at) {
                Ok(()) if *blake3::hash(part).as_bytes() == entry.pieces[piece] => return,
                Ok(()) => format!("the bytes from {at} on do not have the hash they should"),
                Err(error) => error.to_string(),
            };
            *failure.lock().expect("nobody panics with it") = Some(result);
        });
        match failure.into_inner().expect("nobody panics with it") {
            Some(reason) => Err(reason),
            None => Ok(()),
        }
    }

    /// For messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A file that is being written. Dropping it removes what there is.
pub struct PackedWriter {
    cache: PackedCache,
    /// None after a failure.
    file: Option<File>,
    /// None when it has its name.
    temporary: Option<PathBuf>,
    end: u64,
    weights: Vec<Entry>,
}

impl PackedWriter {
    /// Appends a weight. A failure (a full disk) is reported once and ends the writing.
    pub fn push(&mut self, device: &Device, shape: PanelShape, panels: &[u8]) {
        let Some(file) = &self.file else { return };
        let mut pieces = vec![[0; 32]; panels.len().div_ceil(PACKED_CACHE_PIECE)];
        let failure = std::sync::Mutex::new(None);
        device.for_each_part(&mut pieces, 1, |piece, hash| {
            let at = piece * PACKED_CACHE_PIECE;
            let part = &panels[at..panels.len().min(at + PACKED_CACHE_PIECE)];
            hash[0] = *blake3::hash(part).as_bytes();
            if let Err(error) = file.write_all_at(part, self.end + at as u64) {
                *failure.lock().expect("nobody panics with it") = Some(error);
            }
        });
        if let Some(error) = failure.into_inner().expect("nobody panics with it") {
            self.cache.warn_not_kept(&error);
            self.file = None;
            return;
        }
        let PanelShape { format, n, k } = shape;
        self.weights.push(Entry { format: format.to_owned(), n, k, offset: self.end, bytes: panels.len(), pieces });
        self.end += panels.len() as u64;
    }

    /// Writes the table and puts the file into its place, on a thread of its own: the disk takes seconds for it, for which
    /// nobody waits. A process that ends before leaves a file that the next one overwrites.
    pub fn finish(mut self) -> Option<std::thread::JoinHandle<()>> {
        let file = self.file.take()?;
        let finish = move || {
            let result = (|| {
                // Changed while it was packed: nobody knows which of its bytes were seen.
                if self.cache.checkpoint.key()?.0 != self.cache.key {
                    return Err(io::Error::other("the checkpoint changed while it was loaded"));
                }
                let table = Table { key: self.cache.key.clone(), weights: std::mem::take(&mut self.weights) };
                let table = serde_json::to_vec(&table)?;
                let hash = blake3::hash(&table);
                let (offset, len) = (self.end.to_le_bytes(), (table.len() as u64).to_le_bytes());
                let trailer = [&offset[..], &len, hash.as_bytes(), &MAGIC];
                file.write_all_at(&[&table[..], &trailer.concat()].concat(), self.end)?;
                // Before the name: a crash of the machine must not leave a name without contents.
                file.sync_all()?;
                let temporary = self.temporary.take().expect("only this takes it");
                fs::rename(temporary, &self.cache.path)
            })();
            match result {
                Ok(()) => tracing::info!("packed weights are kept in {}", self.cache.path.display()),
                Err(error) => self.cache.warn_not_kept(&error),
            }
        };
        std::thread::Builder::new().name("packed-cache".to_owned()).spawn(finish).ok()
    }
}

impl Drop for PackedWriter {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Best effort: the next one to write overwrites it.
            let _ = fs::remove_file(temporary);
        }
    }
}
