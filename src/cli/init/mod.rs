//! `trunkless init`: asks, looks around, and writes the configuration, the secrets and the files
//! for the PBX, with a list of what remains to be done. Owns the random bytes of passwords.

mod arguments;
mod interview;
mod look;
mod questions;

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;

use crate::cli::{EXIT_CONFIG, block_on};
use crate::config::{Source, inspect};
use crate::setup::answers::{Answers, PBX_PASSWORD, Secrets, VICIDIAL_PASSWORD};
use crate::setup::{NewFile, READABLE, SECRET, password, pieces, probe, settings, steps, write};

pub use arguments::InitArguments;
use questions::Questions;

pub fn main(arguments: &InitArguments) -> ExitCode {
    block_on(async { Ok(init(arguments).await) })
}

async fn init(arguments: &InitArguments) -> ExitCode {
    let mut questions = Questions::new();
    let directory = match std::path::absolute(&arguments.directory) {
        Ok(path) if path.to_str().is_some_and(|path| !path.contains(char::is_control)) => path,
        _ => {
            errln!("--directory: the path has characters that a configuration cannot hold");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let mut replace = arguments.force || arguments.print;
    let config = directory.join(settings::NAME);
    if !replace && config.exists() {
        replace = match consent(&mut questions, &config, "exists already. Replace it?") {
            Ok(()) => true,
            Err(code) => return code,
        };
    }
    let answers = interview::answers(arguments, directory.clone(), &mut questions).await;
    let answers = match answers.filter(|_| questions.mistakes.is_empty()) {
        Some(answers) => answers,
        None => {
            questions.mistakes.iter().for_each(|mistake| errln!("{mistake}"));
            errln!("Nothing was written.");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let built = secrets(arguments, &answers).and_then(|secrets| files(&answers, &secrets));
    let (files, steps) = match built {
        Ok(built) => built,
        Err(why) => {
            errln!("{why}\nNothing was written.");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if arguments.print {
        for file in &files {
            let path = directory.join(&file.path);
            outln!("==> {} (mode {:o})\n{}", path.display(), file.mode, file.text);
        }
        return ExitCode::SUCCESS;
    }
    let differing = write::differing(&directory, &files);
    if !replace && let Some(path) = differing.first() {
        let text = "exists already, and has other contents. Replace it, and others like it?";
        if let Err(code) = consent(&mut questions, path, text) {
            return code;
        }
    }
    if let Err(why) = write::write(&directory, &files) {
        errln!("{why}");
        return ExitCode::FAILURE;
    }
    outln!("\nWritten below {}:", directory.display());
    for file in &files {
        let secret = if file.mode == SECRET { "  (secret)" } else { "" };
        outln!("    {}{secret}", file.path);
    }
    if differing.contains(&config) {
        outln!("The configuration that was there is trunkless.toml.old.");
    }
    outln!("\nNext, also in {}:\n\n{steps}", directory.join(steps::FILE).display());
    ExitCode::SUCCESS
}

/// Asks whether a file may be replaced. Otherwise returns the exit code, after the explanation.
fn consent(questions: &mut Questions, path: &Path, text: &str) -> Result<(), ExitCode> {
    let shown = path.display();
    match questions.consent(&format!("{shown} {text}")) {
        Some(true) => Ok(()),
        answer => {
            let config = path.with_file_name(settings::NAME);
            errln!(
                "{shown} exists already; nothing was written.\n\
                 To check a configuration:  trunkless run --config {} --check\n\
                 To replace the files:      add --force; passwords are kept, and the old \
                 configuration as trunkless.toml.old\n\
                 To write elsewhere:        add --directory DIRECTORY\n\
                 To see what would be new:  add --print",
                config.display()
            );
            let code = if answer.is_some() { 1 } else { EXIT_CONFIG };
            Err(ExitCode::from(code))
        }
    }
}

/// Returns the passwords: those of the variables, those of an earlier run, or new ones.
fn secrets(arguments: &InitArguments, answers: &Answers) -> Result<Secrets, String> {
    let one = |variable: &Option<String>, flag: &str, file: &str| {
        if let Some(name) = variable {
            let secret = std::env::var(name);
            let secret = secret.map_err(|_| format!("{flag}: the variable {name} is not set"))?;
            let checked = password::check(&secret);
            return checked.map(|()| secret).map_err(|why| format!("{flag}: the password {why}"));
        }
        let earlier = write::secret(&answers.directory.join(file));
        let earlier = earlier.filter(|secret| password::check(secret).is_ok());
        if let Some(earlier) = earlier.filter(|_| !arguments.new_passwords) {
            errln!("  found: the password in {file}, which is kept");
            return Ok(earlier);
        }
        password::password(getrandom::fill).map_err(|why| format!("cannot get random bytes: {why}"))
    };
    let vicidial = answers.vicidial.as_ref().map(|_| {
        one(&arguments.vicidial_password_env, "--vicidial-password-env", VICIDIAL_PASSWORD)
    });
    let pbx = one(&arguments.password_env, "--password-env", PBX_PASSWORD)?;
    Ok(Secrets { pbx, vicidial: vicidial.transpose()? })
}

/// Returns all files, and the steps that remain.
fn files(answers: &Answers, secrets: &Secrets) -> Result<(Vec<NewFile>, String), String> {
    let toml = settings::toml(answers)?;
    check(answers, &toml)?;
    let pieces = pieces::pieces(answers, secrets);
    let steps = steps::print(&steps::steps(answers, &pieces, probe::service_known()));
    let file = |path: &str, text: String, mode| NewFile {
        path: path.to_owned(),
        text,
        mode,
        for_service: mode == SECRET,
    };
    let mut all = vec![
        file(settings::NAME, toml, READABLE),
        file(PBX_PASSWORD, format!("{}\n", secrets.pbx), SECRET),
    ];
    if let Some(secret) = &secrets.vicidial {
        all.push(file(VICIDIAL_PASSWORD, format!("{secret}\n"), SECRET));
    }
    all.extend(pieces::files(answers, &pieces));
    all.push(file(steps::FILE, steps.clone(), READABLE));
    Ok((all, steps))
}

/// Holds the new configuration against the program's own rules, before anything is written. The
/// secrets are not on disk yet.
fn check(answers: &Answers, toml: &str) -> Result<(), String> {
    let line = |line: &str| match line.starts_with("password_file = ") {
        true => "password = \"on-its-way-to-a-file\"\n".to_owned(),
        false => format!("{line}\n"),
    };
    let source =
        Source { name: answers.path(settings::NAME), text: toml.lines().map(line).collect() };
    let (_, report) = inspect(&source, &HashMap::new());
    for warning in &report.findings.warnings {
        errln!("  note: {warning}");
    }
    let errors: Vec<String> = report.findings.errors.iter().map(ToString::to_string).collect();
    match errors.is_empty() {
        true => Ok(()),
        false => Err(errors.join("\n")),
    }
}
