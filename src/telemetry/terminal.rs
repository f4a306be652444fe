//! Log lines for a person at a terminal: the message first, its fields after it, wrapped at
//! [`COLUMNS`]. Owns a reading of the clock.

use std::fmt::{self, Write as _};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The width of a line. A single word that is longer is not broken.
const COLUMNS: usize = 100;
/// Further lines are indented by this, so that they begin below the message.
const INDENT: usize = 20;

/// Writes events for a terminal.
pub(super) struct Terminal;

impl<S, N> FormatEvent<S, N> for Terminal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = Text::default();
        event.record(&mut text);
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let time = now.get(11..23).unwrap_or_default();
        let level = *event.metadata().level();
        let colour = if writer.has_ansi_escapes() { colour(level) } else { ("", "") };
        write!(writer, "{time} {}{level:>5}{}", colour.0, colour.1)?;
        writer.write_str(&wrapped(&text))?;
        writer.write_char('\n')
    }
}

/// The escape sequences around a level.
fn colour(level: Level) -> (&'static str, &'static str) {
    let on = match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        _ => "\u{1b}[2m",
    };
    (on, "\u{1b}[0m")
}

/// The message of an event, and its fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: Vec<String>,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.fields.push(format!("{}={value:?}", field.name()));
        }
    }
}

/// Returns the text behind the level: words of the message, and whole fields, as many in each line
/// as fit.
fn wrapped(text: &Text) -> String {
    let (mut out, mut column) = (String::new(), INDENT - 2);
    let message = text.message.split(' ').filter(|word| !word.is_empty());
    for part in message.chain(text.fields.iter().map(String::as_str)) {
        // a line break or an escape sequence from outside would forge lines
        let part: String = part.chars().flat_map(shown).collect();
        let width = part.chars().count();
        if column + 1 + width > COLUMNS && column > INDENT {
            let _ = write!(out, "\n{:INDENT$}{part}", "");
            column = INDENT + width;
        } else {
            let _ = write!(out, " {part}");
            column += 1 + width;
        }
    }
    out
}

/// A character as it can be printed.
fn shown(c: char) -> impl Iterator<Item = char> {
    let (as_is, escaped) = match c.is_control() {
        false => (Some(c), None),
        true => (None, Some(c.escape_default())),
    };
    as_is.into_iter().chain(escaped.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(ansi: bool, log: impl FnOnce()) -> Vec<String> {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(ansi)
            .event_format(Terminal)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_are_wrapped_between_words_and_fields() {
        let all = lines(false, || {
            tracing::info!(
                call = "1795938795-bf7c349d2c",
                pbx = "main",
                reason = "caller_hangup",
                answered = true,
                setup_ms = 12.345,
                talk_s = 61.2,
                packets_in = 3060,
                packets_out = 3061,
                "call ended"
            );
            tracing::warn!("{}", "a long sentence with many words ".repeat(8));
        });
        assert!(all.iter().all(|line| line.chars().count() <= COLUMNS), "{all:#?}");
        assert!(
            all[0][12..].starts_with("  INFO call ended call=\"1795938795-bf7c349d2c\""),
            "{all:?}"
        );
        assert!(
            all[1].starts_with(&" ".repeat(INDENT)) && !all[1].trim().contains("  "),
            "{all:?}"
        );
        assert!(all.iter().any(|line| line.contains(" packets_out=3061")));
        assert!(all.iter().any(|line| line[12..].starts_with("  WARN a long sentence")));
    }

    #[test]
    fn colours_are_for_terminals_and_nothing_forges_a_line() {
        let all = lines(true, || tracing::error!(error = %"a\nb\u{1b}[2J", "it failed"));
        assert_eq!(all.len(), 1, "{all:?}");
        assert!(
            all[0].contains("\u{1b}[31mERROR\u{1b}[0m it failed error=a\\nb\\u{1b}[2J"),
            "{all:?}"
        );
    }
}
