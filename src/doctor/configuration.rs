//! The mistakes and doubtful values of the configuration, as findings.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::config::check::Findings;
use crate::config::{ConfigError, Source};
use crate::doctor::finding::Finding;
use crate::faults;

const STEP: &str = "configuration";
/// Warnings with these words keep calls from working.
const GRAVE: [&str; 2] = [faults::PLACEHOLDER, faults::RTP_RANGES_OVERLAP];

/// Returns one finding per mistake, or that there is none.
pub fn judge(source: &Source, found: &Findings) -> Vec<Finding> {
    let errors = found.errors.iter().map(|error| finding(error, true));
    let warnings = found.warnings.iter().map(|warning| {
        let is_grave = GRAVE.iter().any(|words| warning.message.contains(words));
        finding(warning, is_grave)
    });
    let all: Vec<Finding> = errors.chain(warnings).collect();
    match all.is_empty() {
        true => vec![Finding::ok(STEP, format!("{} is valid", source.name))],
        false => all,
    }
}

fn finding(error: &ConfigError, is_fault: bool) -> Finding {
    let ConfigError { place, key, message } = error;
    // the remedy is behind the first semicolon, except where values are quoted
    let (what, remedy) = message.rsplit_once("; ").unwrap_or((message, "correct this key"));
    let what = match key.is_empty() {
        true => format!("{place}: {what}"),
        false => format!("{place}: {key} {what}"),
    };
    match is_fault {
        true => Finding::fault(STEP, what, remedy),
        false => Finding::warning(STEP, what, remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::State;

    fn error(message: &str) -> ConfigError {
        ConfigError { place: "x.toml:3".into(), key: "pbx.main".into(), message: message.into() }
    }

    #[test]
    fn errors_and_grave_warnings_are_faults() {
        let source = Source { name: "x.toml".into(), text: String::new() };
        let found = Findings {
            errors: vec![error("is missing; set it")],
            warnings: vec![error(faults::PLACEHOLDER), error("is odd; look")],
        };
        let findings = judge(&source, &found);
        let states: Vec<State> = findings.iter().map(|finding| finding.state).collect();
        assert_eq!(states, [State::Fault, State::Fault, State::Warning]);
        assert_eq!(findings[0].what, "x.toml:3: pbx.main is missing");
        assert_eq!(judge(&source, &Findings::default())[0].state, State::Ok);
    }
}
