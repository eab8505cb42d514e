//! All weights of a model directory under their names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kernels::{DType, MatrixView};
use safetensors::Dtype;

use super::packed_cache::{CheckpointIdentity, PackedCache};
use super::safetensors_file::{SafetensorsFile, Usage};
use crate::comm::Comm;
use crate::config::ConfigFile;
use crate::error::{Error, Result};
use crate::limits::MAX_WEIGHT_FILES;

/// A checkpoint of one or several files. Opening it reads headers only.
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Tensor name to index in `files`.
    owners: HashMap<String, usize>,
}

/// A tensor where it lies in its mapped file.
#[derive(Clone, Copy)]
pub struct CheckpointTensor<'a> {
    data: &'a [u8],
    dtype: DType,
    rows: usize,
    cols: usize,
}

impl Checkpoint {
    /// Opens the weights of `dir`: model.safetensors, else the files that model.safetensors.index.json names, else
    /// every *.safetensors file.
    ///
    /// # Errors
    /// [`Error::NoWeights`], [`Error::DuplicateTensor`], [`Error::MissingTensor`] if the index promises a tensor that its file
    /// does not have, and whatever is wrong with a single file.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        if single.exists() {
            Checkpoint::of_files(dir, [single])
        } else if index.exists() {
            Checkpoint::indexed(dir, &index)
        } else {
            let entries = std::fs::read_dir(dir).map_err(|source| Error::File { path: dir.to_owned(), source })?;
            let paths = entries.flatten().map(|entry| entry.path());
            // Sorted, so that errors do not depend on the file system's order.
            let files: BTreeSet<PathBuf> =
                paths.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).collect();
            if files.is_empty() {
                return Err(Error::NoWeights { dir: dir.to_owned() });
            }
            Checkpoint::of_files(dir, files)
        }
    }

    fn indexed(dir: &Path, index: &Path) -> Result<Checkpoint> {
        let index = ConfigFile::read(index)?;
        let map = index.object("weight_map")?.ok_or_else(|| index.wrong("weight_map", "an object"))?;
        let mut owners: BTreeMap<String, String> = BTreeMap::new();
        for name in map.fields() {
            let file = map.text(name)?.ok_or_else(|| map.wrong(name, "a file name"))?;
            // A name, not a path: an index from elsewhere must not make the server map arbitrary files.
            if Path::new(file).file_name().is_none_or(|plain| plain != file) {
                return Err(map.wrong(name, "a file name without directories"));
            }
            owners.insert(name.to_owned(), file.to_owned());
        }
        let files: BTreeSet<PathBuf> = owners.values().map(|file| dir.join(file)).collect();
        let checkpoint = Checkpoint::of_files(dir, files)?;
        match owners.keys().find(|name| !checkpoint.owners.contains_key(*name)) {
            Some(tensor) => Err(Error::MissingTensor { tensor: tensor.clone(), dir: dir.to_owned() }),
            None => Ok(checkpoint),
        }
    }

    fn of_files(dir: &Path, paths: impl IntoIterator<Item = PathBuf>) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint { dir: dir.to_owned(), files: Vec::new(), owners: HashMap::new() };
        for path in paths {
            if checkpoint.files.len() == MAX_WEIGHT_FILES {
                let reason = format!("the checkpoint has more than {MAX_WEIGHT_FILES} files");
                return Err(Error::Safetensors { path, reason });
            }
            let file = SafetensorsFile::open(&path)?;
            for name in file.names() {
                if let Some(first) = checkpoint.owners.insert(name.to_owned(), checkpoint.files.len()) {
                    return Err(Error::DuplicateTensor {
                        tensor: name.to_owned(),
                        first: checkpoint.files[first].path().to_owned(),
                        second: path,
                    });
                }
            }
            checkpoint.files.push(file);
        }
        Ok(checkpoint)
    }

    /// Where a rank keeps these weights packed in `layout` (element type and quantisation); `None`, with a warning, if it cannot.
    pub fn packed_cache(&self, folder: &Path, comm: &Arc<dyn Comm>, layout: String) -> Option<PackedCache> {
        let config = self.dir.join("config.json");
        let cache = || {
            let headers = self.files.iter().map(|file| (file.path().to_owned(), file.header().to_owned()));
            let files = std::iter::once((config.clone(), std::fs::read(&config)?)).chain(headers).collect();
            let rank = format!("{}-of-{}", comm.rank(), comm.world_size());
            let identity = CheckpointIdentity { dir: self.dir.clone(), files, layout: layout.clone(), rank };
            PackedCache::new(folder, identity)
        };
        let warn =
            |error: &std::io::Error| tracing::warn!("packed weights cannot be kept in {}: {error}", folder.display());
        cache().inspect_err(warn).ok()
    }

    /// Tells the kernel how bytes of these files are about to be used; of others, nothing.
    pub(super) fn advise(&self, bytes: &[u8], usage: Usage) {
        if let Some(file) = self.files.iter().find(|file| file.contains(bytes)) {
            file.advise(bytes, usage);
        }
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.owners.contains_key(name)
    }

    /// The matrix `name`, which must be `[rows, cols]`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::TensorDtype`].
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<CheckpointTensor<'_>> {
        self.floats(name, Some(&[rows, cols])).map(|(data, dtype)| CheckpointTensor { data, dtype, rows, cols })
    }

    /// The vector `name` of `len` elements, as one column: what is cut from it then are rows.
    ///
    /// # Errors
    /// As [`Checkpoint::matrix`].
    pub fn vector(&self, name: &str, len: usize) -> Result<CheckpointTensor<'_>> {
        self.floats(name, Some(&[len])).map(|(data, dtype)| CheckpointTensor { data, dtype, rows: len, cols: 1 })
    }

    /// The 32-bit integers `name`, dense in `shape`.
    ///
    /// # Errors
    /// As [`Checkpoint::matrix`].
    pub fn int32(&self, name: &str, shape: &[usize]) -> Result<&[[u8; 4]]> {
        let (file, data, dtype) = self.tensor(name, Some(shape))?;
        match dtype {
            Dtype::I32 => Ok(data.as_chunks().0),
            other => Err(wrong_dtype(file, name, other, "I32")),
        }
    }

    /// Whether there is a tensor of that name, of FP8 E4M3 numbers.
    pub fn is_e4m3(&self, name: &str) -> bool {
        let tensor = self.owners.get(name).and_then(|file| self.files[*file].tensor(name));
        tensor.is_some_and(|(info, _)| info.dtype == Dtype::F8_E4M3)
    }

    /// The FP8 E4M3 numbers `name`, dense in `shape`.
    ///
    /// # Errors
    /// As [`Checkpoint::matrix`].
    pub fn e4m3(&self, name: &str, shape: &[usize]) -> Result<&[u8]> {
        let (file, data, dtype) = self.tensor(name, Some(shape))?;
        match dtype {
            Dtype::F8_E4M3 => Ok(data),
            other => Err(wrong_dtype(file, name, other, "F8_E4M3")),
        }
    }

    /// The floats `name` as one column, and the shape that the file gives them.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorDtype`].
    pub fn floats_of_any_shape(&self, name: &str) -> Result<(MatrixView<'_>, &[usize])> {
        let (data, dtype) = self.floats(name, None)?;
        let shape = self.owners.get(name).and_then(|file| self.files[*file].tensor(name)).map(|(info, _)| &*info.shape);
        let view = MatrixView::dense(data, dtype, data.len() / dtype.size_bytes(), 1);
        Ok((view, shape.unwrap_or_default()))
    }

    /// The error that the contents of the tensor `name` contradict each other.
    pub fn wrong(&self, name: &str, reason: String) -> Error {
        let path = self.owners.get(name).map_or(&*self.dir, |file| self.files[*file].path());
        Error::TensorInfo { path: path.to_owned(), tensor: name.to_owned(), reason }
    }

    fn floats(&self, name: &str, expected: Option<&[usize]>) -> Result<(&[u8], DType)> {
        let (file, data, dtype) = self.tensor(name, expected)?;
        match dtype {
            Dtype::F32 => Ok((data, DType::F32)),
            Dtype::F16 => Ok((data, DType::F16)),
            Dtype::BF16 => Ok((data, DType::Bf16)),
            other => Err(wrong_dtype(file, name, other, "F32, F16, BF16")),
        }
    }

    /// A tensor of this shape, or of any, of whatever type, and its file.
    fn tensor(&self, name: &str, expected: Option<&[usize]>) -> Result<(&SafetensorsFile, &[u8], Dtype)> {
        let file = self.owners.get(name).map(|file| &self.files[*file]);
        let Some((file, (info, data))) = file.and_then(|file| Some((file, file.tensor(name)?))) else {
            return Err(Error::MissingTensor { tensor: name.to_owned(), dir: self.dir.clone() });
        };
        if let Some(expected) = expected.filter(|expected| info.shape != **expected) {
            let (path, tensor) = (file.path().to_owned(), name.to_owned());
            let (expected, actual) = (expected.to_vec(), info.shape.clone());
            return Err(Error::TensorShape { path, tensor, expected, actual });
        }
        Ok((file, data, info.dtype))
    }
}

fn wrong_dtype(file: &SafetensorsFile, name: &str, dtype: Dtype, supported: &'static str) -> Error {
    let (path, tensor) = (file.path().to_owned(), name.to_owned());
    Error::TensorDtype { path, tensor, dtype: dtype.to_string(), supported }
}

impl<'a> CheckpointTensor<'a> {
    /// The element type in the file.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Some of its rows: what a column-parallel layer's rank needs (PyTorch stores `[out, in]`).
    pub fn row_slice(&self, rows: std::ops::Range<usize>) -> MatrixView<'a> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let row_bytes = self.cols * self.dtype.size_bytes();
        let data = &self.data[rows.start * row_bytes..rows.end * row_bytes];
        MatrixView::dense(data, self.dtype, rows.len(), self.cols)
    }

    /// Some of the columns of some of its rows: what a row-parallel layer's rank needs are columns.
    pub fn slice(&self, rows: std::ops::Range<usize>, cols: std::ops::Range<usize>) -> MatrixView<'a> {
        assert!(cols.start <= cols.end && cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        MatrixView { cols: cols.len(), first_col: cols.start, ..self.row_slice(rows) }
    }

    /// All of it.
    pub fn whole(&self) -> MatrixView<'a> {
        self.row_slice(0..self.rows)
    }
}
