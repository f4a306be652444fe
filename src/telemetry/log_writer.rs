//! Writes the log on a thread of its own, through a bounded queue. If standard error is not read,
//! because a log driver or a pipe stands still, lines are dropped and counted, and no
//! call is delayed.
//! Owns standard error and a thread.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use tracing::warn;

use crate::telemetry::LINES_DROPPED;

/// At most this many lines wait to be written.
const MAX_LINES: usize = 16_384;
/// At most this many bytes wait to be written.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// When to try again if a non-blocking pipe is full.
const RETRY: Duration = Duration::from_millis(10);

enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it has been written.
    Flush(SyncSender<()>),
}

/// The queue of the process, once logging has started.
static QUEUE: OnceLock<SyncSender<Message>> = OnceLock::new();
/// Bytes in the queue.
static QUEUED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Queues what is written to it as one line.
pub struct LogWriter;

impl LogWriter {
    /// Starts the thread. Only the first call has an effect.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub fn start() -> io::Result<()> {
        let (sender, lines) = sync_channel(MAX_LINES);
        if QUEUE.set(sender).is_ok() {
            thread::Builder::new().name("log".into()).spawn(move || write_lines(&lines))?;
        }
        Ok(())
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(queue) = QUEUE.get() else { return io::stderr().write(line) };
        let before = QUEUED_BYTES.fetch_add(line.len(), Ordering::Relaxed);
        let room = before + line.len() <= MAX_BYTES;
        if !room || queue.try_send(Message::Line(line.to_vec())).is_err() {
            QUEUED_BYTES.fetch_sub(line.len(), Ordering::Relaxed);
            LINES_DROPPED.add(1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until all lines so far have been written, but no longer than `limit`. Returns false if
/// some were not, because nothing reads standard error: writing to it would block.
pub fn flush(limit: Duration) -> bool {
    let (done, written) = sync_channel(1);
    let Some(queue) = QUEUE.get() else { return true };
    queue.try_send(Message::Flush(done)).is_ok() && written.recv_timeout(limit).is_ok()
}

fn write_lines(lines: &Receiver<Message>) {
    let mut output = Output::default();
    let mut reported = 0;
    loop {
        let message = match lines.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                // reported once lines can be written again, and have room in the queue
                let dropped = LINES_DROPPED.get();
                if dropped > reported && !output.fails {
                    let lines = dropped - reported;
                    warn!(lines, "log lines dropped: standard error could not be written");
                    reported = dropped;
                }
                let Ok(message) = lines.recv() else { return };
                message
            }
        };
        match message {
            Message::Line(line) => {
                if output.write(&line).is_err() {
                    LINES_DROPPED.add(1);
                }
                QUEUED_BYTES.fetch_sub(line.len(), Ordering::Relaxed);
            }
            Message::Flush(done) => drop(done.send(())),
        }
    }
}

/// Standard error.
#[derive(Default)]
struct Output {
    /// True if the last line was not written: the disk of a file is full, or a pipe is closed.
    fails: bool,
    /// True if the last line was written only in part.
    mid_line: bool,
}

impl Output {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.mid_line {
            write_all(b"\n", &mut false)?;
            self.mid_line = false;
        }
        let result = write_all(line, &mut self.mid_line);
        self.fails = result.is_err();
        result
    }
}

/// Writes `bytes` to standard error. `partly` is true afterwards if an error cut them off.
fn write_all(mut bytes: &[u8], partly: &mut bool) -> io::Result<()> {
    while !bytes.is_empty() {
        match io::stderr().write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // another program made the pipe non-blocking
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
        *partly = !bytes.is_empty();
    }
    Ok(())
}
