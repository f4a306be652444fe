//! A proxy between the program and the S3 server: slow, and harmful on request.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PIECE: usize = 65_536;

#[derive(Default)]
pub struct Proxy {
    /// The number of bodies of audio PUTs in which to change a bit.
    pub damage: AtomicU32,
    /// The number of answers to the end of a multipart upload to lose.
    pub swallow: AtomicU32,
    /// The first line of each request.
    seen: Mutex<Vec<String>>,
}

impl Proxy {
    /// Starts a proxy at `127.0.N.4:9000`; `pace` is the time that 64 KiB take on the way to the
    /// server.
    pub async fn start(n: u8, to: String, pace: Duration) -> Arc<Proxy> {
        let listener = TcpListener::bind(Proxy::address(n)).await.expect("a port");
        let proxy = Arc::new(Proxy::default());
        let this = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // if the server is unreachable, the client's connection is closed
                if let Ok(server) = TcpStream::connect(&to).await {
                    tokio::spawn(this.clone().join(client, server, pace));
                }
            }
        });
        proxy
    }

    pub fn address(n: u8) -> String {
        format!("127.0.{n}.4:9000")
    }

    /// The number of requests whose first line contains `text`.
    pub fn count(&self, text: &str) -> usize {
        self.seen.lock().expect("no panic elsewhere").iter().filter(|l| l.contains(text)).count()
    }

    async fn join(self: Arc<Self>, mut client: TcpStream, mut server: TcpStream, pace: Duration) {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let (mut request, mut answer) = (vec![0; PIECE], vec![0; PIECE]);
        let (mut in_body, mut lose) = (false, false);
        loop {
            tokio::select! {
                read = from_client.read(&mut request) => {
                    let Ok(n @ 1..) = read else { return };
                    let piece = &mut request[..n];
                    lose |= self.look(piece, &mut in_body);
                    tokio::time::sleep(pace * n as u32 / PIECE as u32).await;
                    if to_server.write_all(piece).await.is_err() {
                        return;
                    }
                }
                read = from_server.read(&mut answer) => {
                    let Ok(n @ 1..) = read else { return };
                    if lose || to_client.write_all(&answer[..n]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Notes a request and damages it if asked to; true if its answer is to be lost. `damage_next`
    /// is set when the head of a request came without its body.
    fn look(&self, piece: &mut [u8], damage_next: &mut bool) -> bool {
        let once = |left: &AtomicU32| {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
        };
        if std::mem::take(damage_next) {
            piece[0] ^= 1;
            return false;
        }
        let starts = ["PUT ", "POST ", "GET ", "HEAD ", "DELETE "];
        if !starts.iter().any(|s| piece.starts_with(s.as_bytes())) {
            return false;
        }
        let text = String::from_utf8_lossy(piece);
        let line = text.lines().next().unwrap_or_default().to_owned();
        let audio = line.starts_with("PUT ") && line.contains(".wav");
        let ends = line.starts_with("POST ") && line.contains("uploadId=");
        self.seen.lock().expect("no panic elsewhere").push(line);
        if audio && once(&self.damage) {
            let head = piece.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
            match head.and_then(|at| piece.get_mut(at)) {
                Some(byte) => *byte ^= 1,
                None => *damage_next = true,
            }
        }
        ends && once(&self.swallow)
    }
}
