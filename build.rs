//! Passes the name of the build profile to the program, for `trunkless bench`.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // target/PROFILE/build/trunkless-HASH/out; PROFILE itself is only "debug" or "release"
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    let folder = out.ancestors().nth(3).and_then(|folder| folder.file_name());
    let profile = folder.map_or("unknown".into(), |name| name.to_string_lossy());
    println!("cargo::rustc-env=BUILD_PROFILE={profile}");
}
