//! `trunkless recordings`: lists, shows and verifies recordings. Owns file reading.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::cli::{EXIT_CONFIG, environment, output};
use crate::config::{Source, load};
use crate::folder::Root;
use crate::record::disk::{sha256, with_ending};
use crate::record::repair::leftovers;
use crate::record::sidecar::Sidecar;
use crate::record::wav::Encoding;
use crate::record::{library, outbox};
use crate::telemetry::Masked;

/// The tracks may end at most this many milliseconds apart: one frame, plus residual jitter.
const APART_MS: f64 = 25.0;

#[derive(Debug, Args)]
pub struct RecordingsArguments {
    #[command(subcommand)]
    command: Command,
    /// Configuration file; its `[recording] directory` is used.
    #[arg(long, global = true, default_value = "trunkless.toml")]
    config: PathBuf,
    /// Directory of the recordings; no configuration file is read then.
    #[arg(long, global = true)]
    directory: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List recordings, oldest first.
    Ls {
        /// Print the sidecars themselves, one JSON object per line.
        #[arg(long)]
        json: bool,
        /// Only recordings of calls from this PBX.
        #[arg(long)]
        pbx: Option<String>,
    },
    /// Print one recording's sidecar and the path of its audio.
    Show {
        /// Its id, or its path.
        recording: String,
    },
    /// Check length, alignment and hash; exit code 1 if any recording fails.
    Verify {
        /// Ids or paths; all recordings by default.
        recordings: Vec<String>,
    },
}

pub fn main(arguments: &RecordingsArguments) -> ExitCode {
    output::exit_when_closed();
    let directory = match directory(arguments) {
        Ok(directory) => directory,
        Err(error) => {
            errln!("{error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let root = Root::new(directory);
    let result = match &arguments.command {
        Command::Ls { json, pbx } => list(&root, *json, pbx.as_deref()),
        Command::Show { recording } => show(&root, recording),
        Command::Verify { recordings } => verify(&root, recordings),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            errln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn directory(arguments: &RecordingsArguments) -> Result<PathBuf, String> {
    if let Some(directory) = &arguments.directory {
        return Ok(directory.clone());
    }
    let settings = Source::read(&arguments.config).and_then(|s| load(&s, &environment()));
    let settings = settings.map_err(|e| format!("{e}; or give the recordings' --directory"))?;
    let file = arguments.config.display();
    let directory = settings.recording.directory.map(PathBuf::from);
    directory.ok_or_else(|| format!("{file}: recording.directory: is not set: nothing is recorded"))
}

/// The paths of all recordings.
fn all(root: &Root) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    library::walk(root, &mut |path, _| paths.push(path.to_owned()))
        .with_context(|| root.path().display().to_string())?;
    Ok(paths)
}

fn list(root: &Root, json: bool, pbx: Option<&str>) -> anyhow::Result<bool> {
    let mut found = Vec::new();
    for path in all(root)? {
        // skip JSON files that are not sidecars
        if let Ok(sidecar) = library::read(root, &path) {
            found.push((sidecar, path));
        }
    }
    found.retain(|(sidecar, _)| pbx.is_none_or(|pbx| sidecar.call.pbx == pbx));
    found.sort_by(|(a, _), (b, _)| a.started_at.cmp(&b.started_at));
    if !json && !found.is_empty() {
        outln!(
            "{:24}  {:>8}  {:10}  {:16}  {:12}  {:12}  {:16}  file",
            "started",
            "seconds",
            "state",
            "ended by",
            "pbx",
            "from",
            "to"
        );
    }
    for (sidecar, path) in &found {
        if json {
            outln!("{}", serde_json::to_string(sidecar)?);
            continue;
        }
        outln!(
            "{:24}  {:>8.1}  {:10}  {:16}  {:12}  {:12}  {:16}  {}",
            sidecar.started_at,
            sidecar.duration_ms as f64 / 1000.0,
            sidecar.state.label(),
            plain(&sidecar.end_reason),
            plain(&sidecar.call.pbx),
            Masked(&sidecar.call.from_number).to_string(),
            plain(&sidecar.call.to_number),
            with_ending(path, "wav").display()
        );
    }
    if found.is_empty() && !json {
        outln!("no recordings in {}", root.path().display());
    }
    Ok(true)
}

/// `text` without control characters, which could affect the terminal.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn show(root: &Root, word: &str) -> anyhow::Result<bool> {
    let path = library::find(root, word)?;
    let sidecar = library::read(root, &path).with_context(|| path.display().to_string())?;
    outln!("{}", root.path().join(with_ending(&path, "wav")).display());
    out!("{}", sidecar.text());
    Ok(true)
}

fn verify(root: &Root, words: &[String]) -> anyhow::Result<bool> {
    let paths = match words {
        [] => all(root)?,
        words => words.iter().map(|w| library::find(root, w)).collect::<Result<_, _>>()?,
    };
    let (mut good, mut bad) = (0u64, 0u64);
    for path in paths {
        let file = with_ending(&path, "wav");
        let problems = match library::read(root, &path) {
            Ok(sidecar) => match check(root, &path, &sidecar) {
                Ok(problems) => problems,
                Err(error) => vec![error.to_string()],
            },
            // skip JSON files that are not sidecars
            Err(_) if words.is_empty() && !root.exists(&file) => continue,
            Err(error) => vec![format!("cannot read its sidecar: {error}")],
        };
        match &problems[..] {
            [] => good += 1,
            problems => {
                bad += 1;
                outln!("{}: {}", file.display(), problems.join("; "));
            }
        }
    }
    if words.is_empty() {
        library::walk_files(root, "wav", &mut |path, _| {
            if !root.exists(&with_ending(path, "json")) {
                bad += 1;
                outln!("{}: no sidecar", with_ending(path, "wav").display());
            }
        })?;
        let unfinished = leftovers(root).len();
        if unfinished > 0 {
            outln!("{unfinished} in incomplete/: in progress, or left by a crash until a restart");
        }
        let waiting = outbox::ids(root).len();
        if waiting > 0 {
            outln!("{waiting} in outbox/: waiting to be sent");
        }
    }
    outln!("{good} valid, {bad} invalid");
    Ok(bad == 0)
}

/// Returns the problems found in a recording.
fn check(root: &Root, path: &Path, sidecar: &Sidecar) -> std::io::Result<Vec<String>> {
    let mut problems = Vec::new();
    let audio = &sidecar.audio;
    let file = File::open(root.path().join(with_ending(path, "wav")))?;
    let length = file.metadata()?.len();
    let mut head = Vec::new();
    (&file).take(58).read_to_end(&mut head)?;
    let encoding = Encoding::ALL.into_iter().find(|e| e.label() == audio.format);
    let Some(encoding) = encoding else {
        return Ok(vec![format!("format \"{}\" is unknown", plain(&audio.format))]);
    };
    let data = audio.samples.saturating_mul(2 * encoding.sample_bytes());
    let header = encoding.header(2, data);
    if length != audio.bytes || length != data.saturating_add(header.len() as u64) {
        problems.push(format!("length: {length} bytes, not {}", audio.bytes));
    } else if !head.starts_with(&header) {
        problems.push("header: does not match the sidecar".to_owned());
    }
    // after a crash the length need not be a whole number of milliseconds
    if audio.samples / 8 != sidecar.duration_ms {
        let ms = audio.samples / 8;
        problems.push(format!("length: {ms} ms of audio, not {} ms", sidecar.duration_ms));
    }
    if sidecar.alignment.offset_ms.abs() > APART_MS {
        let apart = sidecar.alignment.offset_ms;
        problems.push(format!("alignment: the tracks end {apart:.0} ms apart"));
    }
    if sha256(File::open(root.path().join(with_ending(path, "wav")))?)? != audio.sha256 {
        problems.push("hash: the file is not what was recorded".to_owned());
    }
    Ok(problems)
}
