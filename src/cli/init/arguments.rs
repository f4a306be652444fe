//! The flags of `trunkless init`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

/// The end of `--help`.
const MORE: &str = "On a terminal, init asks for what is missing. Without
one, everything that has no default must be given: --pbx and --humans, and on plain Asterisk
--phones-context; on VICIdial --pbx, --in-group and --vicidial-url.

Exit codes:
  0  written, or printed
  1  the files cannot be written, or were not to be replaced
  2  something is missing or wrong, or a file exists already; nothing was written";

#[derive(Debug, Args)]
#[command(after_help = MORE)]
pub struct InitArguments {
    /// The PBX: plain Asterisk, FreePBX or VICIdial. By default the one on this host, or asterisk.
    #[arg(long, value_parser = ["asterisk", "freepbx", "vicidial"])]
    pub flavour: Option<String>,
    /// How calls reach trunkless: as an extension (sip) or from the dialplan (ari). By default ari
    /// on FreePBX, otherwise sip.
    #[arg(long, value_parser = ["sip", "ari"])]
    pub mode: Option<String>,
    /// The PBX: where it takes SIP, or in ARI mode its HTTP server (port 8088).
    #[arg(long, value_name = "HOST[:PORT]")]
    pub pbx: Option<String>,
    /// The channel driver to register with, in SIP mode. By default the one that answers.
    #[arg(long, value_name = "DRIVER", value_parser = ["pjsip", "chan_sip"])]
    pub registrar_driver: Option<String>,
    /// The number that reaches the AI [default: 8010; on VICIdial in SIP mode 8011 or 8012].
    #[arg(long, value_name = "NUMBER")]
    pub extension: Option<String>,
    /// The extension to register as [default: ai; on VICIdial the phone 8001 or 8002], or the ARI
    /// user [default: trunkless].
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// The variable with the password of that extension or user, if it exists already. Without it,
    /// init makes a password.
    #[arg(long, value_name = "NAME")]
    pub password_env: Option<String>,
    /// Where callers go when there is no AI: phones (PJSIP/1001&PJSIP/1002) or
    /// context,extension,priority; on FreePBX also a number that phones dial.
    #[arg(long, value_name = "DESTINATION")]
    pub humans: Option<String>,
    /// Plain Asterisk: the context of the phones that may dial the AI.
    #[arg(long, value_name = "CONTEXT")]
    pub phones_context: Option<String>,
    /// The WebSocket of your AI [default: ws://127.0.0.1:8080, for the bundled stand-in].
    #[arg(long, value_name = "URL")]
    pub ai_url: Option<String>,
    /// Most calls at once [default: 200; on VICIdial 10, the lines of the remote agent].
    #[arg(long, value_name = "NUMBER")]
    pub calls: Option<String>,
    /// The Stasis application, in ARI mode.
    #[arg(long, value_name = "NAME", default_value = "trunkless")]
    pub app: String,
    /// VICIdial: its web server.
    #[arg(long, value_name = "URL")]
    pub vicidial_url: Option<String>,
    /// VICIdial: the API user.
    #[arg(long, value_name = "USER", default_value = "aibridge")]
    pub vicidial_user: String,
    /// VICIdial: the variable with the API user's password, if the user exists already.
    #[arg(long, value_name = "NAME")]
    pub vicidial_password_env: Option<String>,
    /// VICIdial: the in-group of humans, for customers whom the AI cannot take.
    #[arg(long, value_name = "IN-GROUP")]
    pub in_group: Option<String>,
    /// VICIdial: User Start of the remote agent [default: 7001].
    #[arg(long, value_name = "USER")]
    pub remote_agent: Option<String>,
    /// Where trunkless takes SIP [default: 0.0.0.0:5070, or the next free port].
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// The UDP ports for audio [default: 20002-32767, or others outside Asterisk's].
    #[arg(long, value_name = "FIRST-LAST")]
    pub ports: Option<String>,
    /// Where health and metrics are served [default: 127.0.0.1:8071, or the next free port].
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Option<SocketAddr>,
    /// Our address as the PBX sees it, behind NAT. By default, what the PBX says.
    #[arg(long, value_name = "ADDRESS")]
    pub advertised: Option<IpAddr>,
    /// The folder to write to; for the installed service /etc/trunkless.
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    pub directory: PathBuf,
    /// Asterisk's folder on the PBX.
    #[arg(long, value_name = "DIRECTORY", default_value = "/etc/asterisk")]
    pub asterisk_directory: PathBuf,
    /// Do not ask the network: neither the PBX nor the AI.
    #[arg(long)]
    pub offline: bool,
    /// Replace files of an earlier run. Its passwords are kept, and its configuration as
    /// trunkless.toml.old.
    #[arg(long)]
    pub force: bool,
    /// Make new passwords although an earlier run left some.
    #[arg(long)]
    pub new_passwords: bool,
    /// Print everything, passwords included, and write nothing.
    #[arg(long)]
    pub print: bool,
}
