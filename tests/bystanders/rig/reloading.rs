//! Changes of the bridge's configuration while it runs.

use std::path::PathBuf;
use std::process::Command;

use toml::Table;

use super::Rig;

impl Rig {
    fn file(&self) -> PathBuf {
        self.folder().join("trunkless.toml")
    }

    /// The text of the configuration file.
    pub fn configuration(&self) -> String {
        std::fs::read_to_string(self.file()).expect("the configuration is read")
    }

    /// Replaces the configuration file, as editors do, without a reload.
    pub fn write_configuration(&self, text: &str) {
        let new = self.folder().join("trunkless.toml.new");
        std::fs::write(&new, text).expect("the configuration is written");
        std::fs::rename(new, self.file()).expect("the configuration is replaced");
    }

    /// Changes the configuration file, and has the bridge reload it. Returns the exit code and the
    /// output of `trunkless reload`.
    pub async fn reload(&self, change: impl FnOnce(&mut Table)) -> (Option<i32>, String) {
        let mut tables: Table = self.configuration().parse().expect("TOML");
        change(&mut tables);
        self.reload_text(&tables.to_string()).await
    }

    /// The same, with a file of this text.
    pub async fn reload_text(&self, text: &str) -> (Option<i32>, String) {
        self.write_configuration(text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkless"));
        command.args(["reload", "--config"]).arg(self.file());
        let output = self.attack(move || command.output().expect("trunkless runs")).await;
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }
}
