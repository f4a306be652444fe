//! The program's log lines, captured on the test's own thread, where all of a test's tasks run.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, LazyLock, Once};

use crate::log::Log;

thread_local! {
    static HERE: RefCell<Option<Arc<Log<String>>>> = const { RefCell::new(None) };
}

static SET_UP: Once = Once::new();

/// The lines of all threads without lines of their own, such as those that run the calls.
static ELSEWHERE: LazyLock<Arc<Log<String>>> = LazyLock::new(|| Arc::new(Log::new()));

pub struct Lines(Arc<Log<String>>);

impl Lines {
    /// Captures the lines from now on. All threads share one subscriber: whether a log statement is
    /// enabled is decided on its first use, so with one subscriber per thread the first thread
    /// would decide for all.
    pub fn new() -> Lines {
        set_up();
        let lines = Arc::new(Log::new());
        HERE.set(Some(lines.clone()));
        Lines(lines)
    }

    /// The lines of the threads that run the calls of all tests.
    pub fn of_calls() -> Lines {
        set_up();
        Lines(ELSEWHERE.clone())
    }

    /// Waits for a line that contains all `parts`.
    pub async fn until_all(&self, parts: &[&str]) -> String {
        let has = |line: &&String| parts.iter().all(|part| line.contains(part));
        self.0.wait(&parts.join(" and "), |lines| lines.iter().find(has).cloned()).await
    }

    /// Waits for a line that contains `part`.
    pub async fn until(&self, part: &str) -> String {
        let has = |lines: &mut Vec<String>| lines.iter().find(|l| l.contains(part)).cloned();
        self.0.wait(part, has).await
    }

    /// Waits until this many lines contain `part`.
    pub async fn until_count(&self, part: &str, count: usize) {
        let enough = |lines: &mut Vec<String>| {
            (lines.iter().filter(|line| line.contains(part)).count() >= count).then_some(())
        };
        self.0.wait(part, enough).await;
    }

    /// The lines so far that contain `part`.
    pub fn with(&self, part: &str) -> Vec<String> {
        self.0.look(|lines| lines.iter().filter(|l| l.contains(part)).cloned().collect())
    }
}

fn set_up() {
    SET_UP.call_once(|| {
        let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO);
        let lines = lines.with_ansi(false).without_time().with_target(false);
        lines.with_writer(|| Writer).init();
    });
}

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        HERE.with_borrow(|here| {
            let lines = here.as_ref().unwrap_or(&ELSEWHERE);
            lines.push(String::from_utf8_lossy(line).trim().to_owned());
        });
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
