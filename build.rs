//! Passes the build profile and the commit to the program, for `trunkless bench` and `--version`.
//!
//! The commit comes from the first of these that has one: the variable `TRUNKLESS_COMMIT`; git, with
//! `-modified` if files that end up in the program differ from it; the file `packaging/commit`, into
//! which `git archive` writes it. Debug builds do not look for it: they would be rebuilt after each
//! commit. Neither dates nor paths are passed on, so equal sources give equal programs.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Files that end up in the program.
const SOURCES: &[&str] =
    &["Cargo.toml", "Cargo.lock", "build.rs", "src", "asterisk", "dialplan", "trunkless.toml"];
/// Digits of the commit that are shown.
const DIGITS: usize = 12;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=TRUNKLESS_COMMIT");
    // target/PROFILE/build/trunkless-HASH/out; PROFILE itself is only "debug" or "release"
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    let folder = out.ancestors().nth(3).and_then(|folder| folder.file_name());
    let profile = folder.map_or("unknown".into(), |name| name.to_string_lossy());
    println!("cargo::rustc-env=BUILD_PROFILE={profile}");

    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let debug = std::env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    let commit = given().or_else(|| if debug { None } else { git().or_else(archived) });
    let version = match commit {
        Some(commit) => format!("{version} ({commit})"),
        None if debug => format!("{version} (debug build)"),
        None => version,
    };
    println!("cargo::rustc-env=BUILD_VERSION={version}");
}

/// Returns the commit from the environment.
fn given() -> Option<String> {
    let commit = std::env::var("TRUNKLESS_COMMIT").ok()?;
    let (hash, rest) = commit.split_at(commit.find('-').unwrap_or(commit.len()));
    Some(shortened(hash)? + rest)
}

/// Returns the commit that is checked out. Not that of a repository which merely contains this
/// folder, as that of a distribution's package may.
fn git() -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    for path in ["HEAD", "logs/HEAD"] {
        let path = output(&["rev-parse", "--git-path", path])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    for path in SOURCES.iter().filter(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
    let commit = shortened(&output(&["rev-parse", "HEAD"])?)?;
    let changes = output(&[&["status", "--porcelain", "--"], SOURCES].concat())?;
    Some(if changes.is_empty() { commit } else { commit + "-modified" })
}

/// Returns what git prints, or `None` if it fails or is not installed.
fn output(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Returns the commit of a source archive.
fn archived() -> Option<String> {
    println!("cargo::rerun-if-changed=packaging/commit");
    shortened(std::fs::read_to_string("packaging/commit").ok()?.trim())
}

/// Returns the first digits of a hash, or `None` if it is not one.
fn shortened(hash: &str) -> Option<String> {
    let is_hash = hash.len() >= DIGITS && hash.bytes().all(|b| b.is_ascii_hexdigit());
    is_hash.then(|| hash[..DIGITS].to_owned())
}
