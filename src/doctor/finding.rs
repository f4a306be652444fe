//! The results of the checks, and how they are shown as text and JSON.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Write as _;

use serde::Serialize;

/// The version of the shape of [`json`].
const FORMAT: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// Calls work, but something should be looked at.
    Warning,
    Fault,
    /// Not checked; the text has the reason.
    Skipped,
}

/// The result of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A dotted name, such as `pbx.main.registration`.
    pub step: String,
    pub state: State,
    /// One sentence, without a line break.
    pub what: String,
    /// Remedy of a fault or warning.
    pub remedy: Option<String>,
}

impl Finding {
    pub fn ok(step: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding { step: step.into(), state: State::Ok, what: line(what), remedy: None }
    }

    pub fn skipped(step: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding { step: step.into(), state: State::Skipped, what: line(what), remedy: None }
    }

    pub fn fault(
        step: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding {
            step: step.into(),
            state: State::Fault,
            what: line(what),
            remedy: Some(line(remedy)),
        }
    }

    pub fn warning(
        step: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding { state: State::Warning, ..Finding::fault(step, what, remedy) }
    }

    pub fn is_fault(&self) -> bool {
        self.state == State::Fault
    }
}

/// Text that peers may have a part in, as one line without control characters.
fn line(text: impl Into<String>) -> String {
    let text: String = text.into();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// All findings, in the order in which the steps depend on each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn count(&self, state: State) -> usize {
        self.findings.iter().filter(|finding| finding.state == state).count()
    }

    /// The findings and their number, as JSON.
    pub fn value(&self) -> serde_json::Value {
        serde_json::json!({
            "result": self.result(),
            "faults": self.count(State::Fault),
            "warnings": self.count(State::Warning),
            "findings": self.findings,
        })
    }

    /// The worst state: a fault, a warning, or ok.
    pub fn result(&self) -> State {
        match (self.count(State::Fault), self.count(State::Warning)) {
            (0, 0) => State::Ok,
            (0, _) => State::Warning,
            _ => State::Fault,
        }
    }
}

fn label(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Warning => "WARN",
        State::Fault => "FAULT",
        State::Skipped => "–",
    }
}

/// The report for people: one line per step, and a remedy below what is wrong.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    for Finding { step, state, what, remedy } in &report.findings {
        // writing to a string cannot fail
        let _ = writeln!(out, "  {:<6} {step}: {what}", label(*state));
        if let Some(remedy) = remedy {
            let _ = writeln!(out, "         → {remedy}");
        }
    }
    let (faults, warnings) = (report.count(State::Fault), report.count(State::Warning));
    let plural = |n: usize| if n == 1 { "" } else { "s" };
    let _ = match (faults, warnings) {
        (0, 0) => writeln!(out, "no fault found"),
        _ => writeln!(
            out,
            "{faults} fault{}, {warnings} warning{}",
            plural(faults),
            plural(warnings)
        ),
    };
    out
}

/// The report for programs. The shape is documented in docs/doctor.md.
pub fn json(report: &Report, config: &str) -> String {
    let mut value = report.value();
    value["format"] = FORMAT.into();
    value["version"] = env!("CARGO_PKG_VERSION").into();
    value["config"] = config.into();
    format!("{value:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let findings = vec![
            Finding::ok("clock", "fine"),
            Finding::fault("ai", "AI\nunreachable", "start it"),
            Finding::warning("files", "readable by others", "chmod 600"),
        ];
        Report { findings }
    }

    #[test]
    fn the_text_has_one_line_per_step_and_the_remedies() {
        let text = text(&report());
        let wanted = "  ok     clock: fine\n  FAULT  ai: AI unreachable\n         → start it\n  \
                      WARN   files: readable by others\n         → chmod 600\n1 fault, 1 warning\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn the_json_has_the_documented_shape() {
        let value: serde_json::Value = serde_json::from_str(&json(&report(), "x.toml")).unwrap();
        assert_eq!(value["format"], 1);
        assert_eq!((&value["result"], &value["faults"]), (&"fault".into(), &1.into()));
        assert_eq!(value["findings"][0]["state"], "ok");
        assert_eq!(value["findings"][0]["remedy"], serde_json::Value::Null);
        assert_eq!(value["findings"][1]["remedy"], "start it");
    }
}
