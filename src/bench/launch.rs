//! The command that starts the program under measurement. Owns its configuration files.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use crate::bench::bridge::Folder;
use crate::bench::run::{Options, Program, Source};
use crate::media::g711::Law;
use crate::stream::dialect::Dialect;

/// Credentials for SIP registration or for ARI.
pub const USERNAME: &str = "ai";
pub const PASSWORD: &str = "bench";
/// RTP ports of [`Program::Trunkless`], below the range from which the kernel gives ports to the
/// generator's sockets …
const PORTS: &str = "10000-32767";
/// … which `rtp.conf` declares to be the PBX's.
const PBX_PORTS: &str = "rtpstart = 32768\nrtpend = 60999";

/// Returns the command that starts the bridge, after writing its configuration if none was given.
///
/// # Errors
/// Returns any I/O error from writing the configuration.
pub fn command(
    options: &Options,
    [pbx, listen]: [SocketAddr; 2],
    url: &str,
    folder: &Folder,
) -> io::Result<Command> {
    let recordings = folder.path().join("recordings");
    match &options.program {
        Program::Trunkless { binary, config } => {
            let own = folder.path().join("trunkless.toml");
            if config.is_none() {
                std::fs::write(&own, own_config(options, pbx, listen, folder)?)?;
            }
            let mut command = Command::new(binary);
            let ours = |name: &OsString| name.to_string_lossy().starts_with("TRUNKLESS_");
            if config.is_none() && !options.environment {
                // environment variables must not override a generated configuration
                let names = std::env::vars_os().map(|(name, _)| name).filter(ours);
                names.for_each(|name| {
                    command.env_remove(name);
                });
            }
            command.args(["run", "--config"]).arg(config.as_ref().unwrap_or(&own));
            command.env("TRUNKLESS_AI__DIALECT", options.dialect.name());
            command.env("TRUNKLESS_AI__URL", ai_url(options.dialect, url));
            if options.tls {
                command.env("TRUNKLESS_AI__CA_FILE", ca_file(folder));
            }
            if options.record {
                command.env("TRUNKLESS_RECORDING__DIRECTORY", &recordings);
            }
            Ok(command)
        }
        Program::Other { command: text, .. } => {
            let mut command = Command::new("sh");
            command.args(["-c", text]);
            let (name, value) = match options.source {
                Source::Sip => ("BENCH_REGISTRAR", pbx.to_string()),
                Source::Ari => ("BENCH_ARI_URL", format!("http://{pbx}")),
            };
            command.env("BENCH_AI_URL", url).env(name, value);
            command.env("BENCH_AI_DIALECT", options.dialect.name());
            if options.tls {
                command.env("BENCH_AI_CA", ca_file(folder));
            }
            command.env("BENCH_USERNAME", USERNAME).env("BENCH_PASSWORD", PASSWORD);
            command
                .env("BENCH_SIP_LISTEN", listen.to_string())
                .env("BENCH_CALLS", options.calls.to_string());
            Ok(command)
        }
    }
}

/// Returns the URL of the AI with what the dialect needs in it.
fn ai_url(dialect: Dialect, url: &str) -> String {
    match dialect {
        Dialect::ElevenLabs => format!("{url}/?agent_id=bench"),
        _ => url.to_owned(),
    }
}

/// Returns the settings of the AI by which a model learns the caller's number.
fn ai_config(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::OpenAiRealtime => "[ai.session]\ninstructions = \"{from_number}\"\n",
        Dialect::Deepgram => "[ai]\ngreeting = \"{from_number}\"\n",
        _ => "",
    }
}

/// Returns the path of the certificate that the AI uses.
pub fn ca_file(folder: &Folder) -> PathBuf {
    folder.path().join("ca.pem")
}

fn own_config(
    options: &Options,
    pbx: SocketAddr,
    listen: SocketAddr,
    folder: &Folder,
) -> io::Result<String> {
    // ending calls overlap with new ones
    let max = options.calls + options.calls / 8 + 4;
    let source = match options.source {
        Source::Sip => format!(
            "mode = \"sip\"\n[pbx.bench.sip]\nregistrar = \"{pbx}\"\n\
             username = \"{USERNAME}\"\npassword = \"{PASSWORD}\"\n"
        ),
        Source::Ari => {
            let rtp_conf = folder.path().join("rtp.conf");
            let format = if options.law == Law::A { "alaw" } else { "ulaw" };
            std::fs::write(&rtp_conf, format!("[general]\n{PBX_PORTS}\n"))?;
            format!(
                "mode = \"ari\"\n[pbx.bench.ari]\nurl = \"http://{pbx}\"\n\
                 username = \"{USERNAME}\"\npassword = \"{PASSWORD}\"\nmax_media = {max}\n\
                 format = \"{format}\"\nrtp_conf = '{}'\n",
                rtp_conf.display()
            )
        }
    };
    Ok(format!(
        "[sip]\nlisten = \"{listen}\"\n[media]\nports = \"{PORTS}\"\n[calls]\nmax = {max}\n\
         [log]\nlevel = \"info\"\n{}[pbx.bench]\n{source}",
        ai_config(options.dialect)
    ))
}
