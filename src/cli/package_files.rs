//! `trunkless package-files`: man pages and shell completions for packages, from the definition of
//! the commands. Hidden from `--help`, because only `packaging/build.sh` needs it. Owns files.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::VERSION;

/// The files of a package, for the page of the program itself.
const FILES: &[(&str, &str)] = &[
    ("/etc/trunkless/trunkless.toml", "The configuration of the service."),
    (
        "/etc/trunkless/secrets.env",
        "Passwords of the service, one VARIABLE=value per line. Readable for root only: systemd \
         passes them on.",
    ),
    ("/etc/trunkless/secrets/", "Passwords in files of their own, readable for the service."),
    (
        "/var/lib/trunkless/",
        "Recordings, and what must survive a restart. The only directory to which the service may \
         write.",
    ),
    ("/usr/share/doc/trunkless/", "The documentation, and in examples/ a sample configuration."),
];

#[derive(Debug, Args)]
pub struct PackageFilesArguments {
    /// Where to write man1/, bash/, zsh/ and fish/.
    directory: PathBuf,
}

pub fn main(arguments: &PackageFilesArguments) -> ExitCode {
    match write(&arguments.directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            errln!("{}: cannot write there: {error}", arguments.directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path) -> std::io::Result<()> {
    let mut command = super::command().disable_help_subcommand(true);
    command.build();
    let pages = directory.join("man1");
    fs::create_dir_all(&pages)?;
    write_pages(&command, &pages)?;
    for (shell, folder, name) in [
        (Shell::Bash, "bash", "trunkless"),
        (Shell::Zsh, "zsh", "_trunkless"),
        (Shell::Fish, "fish", "trunkless.fish"),
    ] {
        let folder = directory.join(folder);
        fs::create_dir_all(&folder)?;
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), "trunkless", &mut text);
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

/// Writes the page of a command and those of its subcommands.
fn write_pages(command: &clap::Command, folder: &Path) -> std::io::Result<()> {
    for subcommand in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        write_pages(subcommand, folder)?;
    }
    let source = format!("trunkless {VERSION}");
    let page = Man::new(command.clone()).source(source).manual("trunkless");
    let mut text = Vec::new();
    page.render(&mut text)?;
    if command.get_name() == "trunkless" {
        write!(text, "{}", files().to_roff())?;
    }
    fs::write(folder.join(page.get_filename()), text)
}

/// The last sections of the program's own page.
fn files() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["FILES"]);
    for (path, about) in FILES {
        roff.control("TP", []);
        roff.text([bold(*path)]);
        roff.text([roman(*about)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold("systemctl"), roman("(1), "), bold("journalctl"), roman("(1), ")]);
    roff.text([bold("asterisk"), roman("(8)")]);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path()).expect("the files");
        folder
    }

    /// The names of all commands that are not hidden, with their parents: `trunkless-calls-ls`.
    fn names(command: &clap::Command, all: &mut Vec<String>) {
        all.push(command.get_display_name().unwrap_or(command.get_name()).to_owned());
        command.get_subcommands().filter(|c| !c.is_hide_set()).for_each(|c| names(c, all));
    }

    #[test]
    fn each_command_has_a_page_and_a_completion() {
        let folder = written();
        let mut command = super::super::command().disable_help_subcommand(true);
        command.build();
        let mut all = Vec::new();
        names(&command, &mut all);
        assert!(all.iter().any(|name| name == "trunkless-calls-ls"), "{all:?}");
        for name in &all {
            let page = fs::read_to_string(folder.path().join(format!("man1/{name}.1")));
            let page = page.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(page.contains(".SH NAME"), "{name}: {page}");
        }
        let pages = fs::read_dir(folder.path().join("man1")).expect("pages").count();
        assert_eq!(pages, all.len(), "pages of commands that are not shown");
        for file in ["bash/trunkless", "zsh/_trunkless", "fish/trunkless.fish"] {
            let text = fs::read_to_string(folder.path().join(file)).expect(file);
            for subcommand in command.get_subcommands().filter(|c| !c.is_hide_set()) {
                assert!(text.contains(subcommand.get_name()), "{file}: {}", subcommand.get_name());
            }
        }
    }

    #[test]
    fn the_page_of_the_program_names_its_files() {
        let folder = written();
        let page = fs::read_to_string(folder.path().join("man1/trunkless.1")).expect("the page");
        for (path, _) in FILES {
            assert!(page.contains(path), "{path} is missing");
        }
        assert!(!page.contains("package\\-files"), "a hidden command is shown");
    }
}
