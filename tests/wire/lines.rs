//! The log lines of the program, as far as they come from the test's own thread. All tasks of a
//! test run there.

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
    /// Those from now on. One subscriber for all threads: with one for each, what a line's first
    /// use decides on one thread would hold for the others too.
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

    /// Waits for a line with this in it.
    pub async fn until(&self, part: &str) -> String {
        let has = |lines: &mut Vec<String>| lines.iter().find(|l| l.contains(part)).cloned();
        self.0.wait(part, has).await
    }

    /// Those so far with this in them.
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
