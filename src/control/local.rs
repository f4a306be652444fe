//! The socket through which `trunkless reload` reaches the running program on the same host. It
//! needs no setting and no token: its name follows from the configuration file, and only root and
//! the program's own user are served. Owns sockets.

use std::io;
use std::os::linux::fs::MetadataExt as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Clients that are served at once; others wait.
const MAX_CLIENTS: usize = 8;
/// Time limit for a client to read the response.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// Pause after an error of the socket, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest response.
const MAX_RESPONSE: u64 = 1 << 20;

/// The socket of the program that runs with this file: a name in Linux's abstract namespace, which
/// leaves no file. It is made of the directory and the file's name, because an editor replaces the
/// file itself.
fn name(file: &Path) -> io::Result<SocketAddr> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = std::fs::metadata(parent.unwrap_or(Path::new(".")))?;
    let own = file.file_name().unwrap_or_default();
    let text = format!("{}:{}/{}", folder.st_dev(), folder.st_ino(), own.display());
    let hash: String = Sha256::digest(text).iter().take(16).map(|b| format!("{b:02x}")).collect();
    SocketAddr::from_abstract_name(format!("trunkless reload {hash}"))
}

/// Opens the socket for the program that runs with this file.
///
/// # Errors
/// Returns an error if another program with the same file is running, or sockets of this kind are
/// not available.
pub fn listen(file: &Path) -> io::Result<UnixListener> {
    let listener = StdListener::bind_addr(&name(file)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Answers each client with the text that `respond` returns. Runs forever.
pub async fn serve<F, R>(listener: UnixListener, respond: F)
where
    F: Fn() -> R + Clone + Send + 'static,
    R: Future<Output = String> + Send,
{
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let mut client = match listener.accept().await {
            Ok((client, _)) if is_allowed(&client) => client,
            Ok(_) => continue,
            Err(_) => {
                sleep(PAUSE).await;
                continue;
            }
        };
        let respond = respond.clone();
        tokio::spawn(async move {
            let text = respond().await;
            let _ = timeout(READ_LIMIT, client.write_all(text.as_bytes())).await;
            drop(place);
        });
    }
}

/// True for root and the user of this program.
fn is_allowed(client: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    client.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

/// Asks the program that runs with this file. The response is empty if this user may not.
///
/// # Errors
/// Returns an error if there is no such program, or it does not answer within `limit`.
pub async fn ask(file: &Path, limit: Duration) -> io::Result<String> {
    let stream = StdStream::connect_addr(&name(file)?)?;
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    let mut text = String::new();
    let read = timeout(limit, stream.take(MAX_RESPONSE).read_to_string(&mut text)).await;
    read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_program_with_the_same_file_answers() {
        let folder = tempfile::tempdir().expect("a directory");
        let (file, other) = (folder.path().join("a.toml"), folder.path().join("b.toml"));
        let limit = Duration::from_secs(5);
        assert!(ask(&file, limit).await.is_err());
        let listener = listen(&file).expect("a socket");
        assert!(listen(&file).is_err(), "another program has the name");
        let server = tokio::spawn(serve(listener, || async { "done".to_owned() }));
        assert_eq!(ask(&file, limit).await.expect("an answer"), "done");
        // the file itself may be replaced
        std::fs::write(&file, "").expect("written");
        assert_eq!(ask(&file, limit).await.expect("an answer"), "done");
        assert!(ask(&other, limit).await.is_err());
        server.abort();
    }
}
