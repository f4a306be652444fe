//! The program's log lines, captured on the test's own thread, where all of a test's tasks run.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Once};

use crate::log::Log;

thread_local! {
    static HERE: RefCell<Option<Arc<Log<String>>>> = const { RefCell::new(None) };
}

static SET_UP: Once = Once::new();

pub struct Lines(Arc<Log<String>>);

impl Lines {
    /// Captures the lines from now on. All threads share one subscriber: whether a log statement is
    /// enabled is decided on its first use, so with one subscriber per thread the first thread
    /// would decide for all.
    pub fn new() -> Lines {
        SET_UP.call_once(|| {
            let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO);
            let lines = lines.with_ansi(false).without_time().with_target(false);
            lines.with_writer(|| Writer).init();
        });
        let lines = Arc::new(Log::new());
        HERE.set(Some(lines.clone()));
        Lines(lines)
    }

    /// Waits for a line that contains `part`.
    pub async fn until(&self, part: &str) -> String {
        let has = |lines: &mut Vec<String>| lines.iter().find(|l| l.contains(part)).cloned();
        self.0.wait(part, has).await
    }

    /// The lines so far that contain `part`.
    pub fn with(&self, part: &str) -> Vec<String> {
        self.0.look(|lines| lines.iter().filter(|l| l.contains(part)).cloned().collect())
    }
}

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        HERE.with_borrow(|here| {
            if let Some(lines) = here {
                lines.push(String::from_utf8_lossy(line).trim().to_owned());
            }
        });
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
