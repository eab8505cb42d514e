//! The unix-socket transport: one socket per rank, readable by its owner only.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// A socket that could not be bound or reached.
#[derive(Debug)]
pub struct TransportError {
    /// What was tried: "bind" or "connect".
    pub action: &'static str,
    /// The socket.
    pub path: PathBuf,
    /// Why it failed.
    pub reason: String,
}

impl std::fmt::Display for TransportError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot {} unix socket {}: {}", self.action, self.path.display(), self.reason)
    }
}

impl std::error::Error for TransportError {}

/// The socket of `rank` under TGI's naming rule: `{prefix}-{rank}`.
pub fn socket_path(prefix: &str, rank: u32) -> PathBuf {
    PathBuf::from(format!("{prefix}-{rank}"))
}

/// Binds the socket of a shard with mode 0600, replacing a stale file of a dead process.
///
/// # Errors
/// [`TransportError`] if the path is too long for a socket address, not writable, or another process still answers
/// on it.
pub fn bind(path: &Path) -> Result<UnixListenerStream, TransportError> {
    let fail = |error: io::Error| TransportError { action: "bind", path: path.to_owned(), reason: error.to_string() };
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(fail(io::Error::new(io::ErrorKind::AddrInUse, "another shard is listening on it")));
        }
        std::fs::remove_file(path).map_err(fail)?;
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(UnixListenerStream::new(listener))
}

/// Connects to the shard that listens on `path`.
///
/// # Errors
/// [`TransportError`] if nothing answers there.
pub async fn connect(path: &Path) -> Result<Channel, TransportError> {
    let target = path.to_owned();
    // The URI only fills HTTP/2's :authority; the connector below decides where to go.
    Endpoint::from_static("http://shard.local")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let target = target.clone();
            async move { UnixStream::connect(target).await.map(TokioIo::new) }
        }))
        .await
        .map_err(|error| TransportError { action: "connect", path: path.to_owned(), reason: root_cause(&error) })
}

/// The innermost error: tonic's own text is only "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sockets_are_private_and_stale_files_are_replaced() {
        let path = std::env::temp_dir().join(format!("tgi-proto-{}", std::process::id()));
        drop(bind(&path).unwrap());
        assert!(path.exists(), "a dropped listener leaves its file, as a killed process does");
        let _listener = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let taken = bind(&path).unwrap_err();
        assert!(taken.to_string().contains("another shard is listening"), "{taken}");
        std::fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn a_missing_socket_names_its_path() {
        let error = connect(Path::new("/nonexistent/socket-0")).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot connect unix socket /nonexistent/socket-0: No such file or directory (os error 2)"
        );
    }
}
