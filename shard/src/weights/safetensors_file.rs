//! One mapped safetensors file, with every claim of its header checked before a byte of data is touched.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{Error, Result};
use crate::limits::{MAX_SAFETENSORS_HEADER_BYTES, MAX_TENSORS};

/// A mapped file and the directory of its tensors.
pub(super) struct SafetensorsFile {
    path: PathBuf,
    map: Mmap,
    /// Where the data begins.
    data_start: usize,
    tensors: HashMap<String, TensorInfo>,
}

/// What is about to happen to some bytes of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    /// They are read now or soon, all of them: page by page the kernel would be asked a thousand times.
    Now,
    /// They are not read again: they need not count as memory of this process.
    Done,
}

/// The JSON header.
#[derive(serde::Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    _metadata: Option<serde::de::IgnoredAny>,
    #[serde(flatten)]
    tensors: HashMap<String, TensorInfo>,
}

impl SafetensorsFile {
    /// Maps the file and checks its header.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Truncated`], [`Error::Safetensors`], [`Error::TensorInfo`].
    pub(super) fn open(path: &Path) -> Result<SafetensorsFile> {
        let fail = |source| Error::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(fail)?;
        // SAFETY: the map is only read. A file that another process shortens while it is mapped would raise SIGBUS, and one
        // that it rewrites would change weights; model directories are written once, by an atomic rename.
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        let (data_start, tensors) = read_header(path, &map)?;
        Ok(SafetensorsFile { path: path.to_owned(), map, data_start, tensors })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The header, with its length.
    pub(super) fn header(&self) -> &[u8] {
        &self.map[..self.data_start]
    }

    /// Whether these bytes lie in this map.
    pub(super) fn contains(&self, bytes: &[u8]) -> bool {
        let (map, bytes) = (self.map.as_ptr_range(), bytes.as_ptr_range());
        map.start <= bytes.start && bytes.end <= map.end
    }

    /// Tells the kernel what is about to happen to bytes of this map. A hint: what it refuses costs time only.
    pub(super) fn advise(&self, bytes: &[u8], advice: Usage) {
        let offset = bytes.as_ptr().addr() - self.map.as_ptr().addr();
        let _ = match advice {
            // Waits for the disk, at almost its full speed with one caller: the kernel reads ahead of faults in large pieces, but
            // what it is only told of (WILLNEED) in small ones, which took nearly twice as long. Linux before 5.14 knows no other.
            Usage::Now => self
                .map
                .advise_range(Advice::PopulateRead, offset, bytes.len())
                .or_else(|_| self.map.advise_range(Advice::WillNeed, offset, bytes.len())),
            // SAFETY: of a shared map of a file that nobody writes to, the kernel drops the pages of this process only: who
            // reads them again, finds the file's bytes again.
            Usage::Done => unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, bytes.len()) },
        };
    }

    /// A tensor's description and bytes.
    pub(super) fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let info = self.tensors.get(name)?;
        let (start, end) = info.data_offsets;
        Some((info, &self.map[self.data_start + start..self.data_start + end]))
    }
}

/// Where the data begins, and what lies in it. Layout: header length (u64), header (JSON), data.
fn read_header(path: &Path, file: &[u8]) -> Result<(usize, HashMap<String, TensorInfo>)> {
    let invalid = |reason: String| Error::Safetensors { path: path.to_owned(), reason };
    let truncated = |what: String, expected: u64| Error::Truncated {
        path: path.to_owned(),
        what,
        expected,
        actual: file.len() as u64,
    };

    let (length, rest) = file.split_first_chunk::<8>().ok_or_else(|| truncated("the header's length".into(), 8))?;
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > MAX_SAFETENSORS_HEADER_BYTES {
        let limit = MAX_SAFETENSORS_HEADER_BYTES;
        return Err(invalid(format!("the header claims {header_bytes} bytes, the limit is {limit}")));
    }
    let header_bytes = header_bytes as usize;
    let header = rest.get(..header_bytes).ok_or_else(|| truncated("the header".into(), 8 + header_bytes as u64))?;
    let header: Header =
        serde_json::from_slice(header).map_err(|error| invalid(format!("the header is not as specified: {error}")))?;
    let count = header.tensors.len();
    if count > MAX_TENSORS {
        return Err(invalid(format!("the header names {count} tensors, the limit is {MAX_TENSORS}")));
    }

    let data_start = 8 + header_bytes;
    let data_bytes = file.len() - data_start;
    for (name, info) in &header.tensors {
        let bad = |reason: String| Error::TensorInfo { path: path.to_owned(), tensor: name.clone(), reason };
        let (start, end) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, extent| bits.checked_mul(*extent));
        let claimed = end.checked_sub(start).and_then(|bytes| bytes.checked_mul(8));
        if bits.is_none() || bits != claimed {
            let (dtype, shape) = (info.dtype, &info.shape);
            return Err(bad(format!("shape {shape:?} of {dtype} does not fill the bytes {start}..{end}")));
        }
        if end > data_bytes {
            return Err(truncated(format!("tensor `{name}`"), (data_start as u64).saturating_add(end as u64)));
        }
    }
    // What concerns all tensors together (no overlap, no gap, nothing behind the last) is the format library's to judge.
    let mut by_offset: Vec<(String, TensorInfo)> =
        header.tensors.iter().map(|(name, info)| (name.clone(), info.clone())).collect();
    by_offset.sort_by_key(|(_, info)| info.data_offsets);
    let metadata = Metadata::new(None, by_offset).map_err(|error| invalid(error.to_string()))?;
    if metadata.data_len() != data_bytes {
        return Err(invalid(format!("{} bytes follow the last tensor", data_bytes - metadata.data_len())));
    }
    Ok((data_start, header.tensors))
}
