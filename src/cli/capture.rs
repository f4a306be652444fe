//! `trunkless calls capture`: saves the packet capture of a call that the control API streams, and
//! the messages in it as JSON lines. Owns files and signals.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use reqwest::{Method, Response};
use serde::de::IgnoredAny;
use serde_json::json;

use crate::capture::extract::{Extractor, Found};
use crate::cli::Stop;
use crate::cli::calls::Api;
use crate::record::sidecar::rfc3339;

/// The mode of the files: they contain what was said.
const MODE: u32 = 0o600;

#[derive(Debug, Args)]
pub struct CaptureArguments {
    /// The call's id or its callSid.
    #[arg(required_unless_present = "next")]
    call: Option<String>,
    /// Capture the next call instead, from its INVITE on: of this PBX, or of any.
    #[arg(long, value_name = "PBX", num_args = 0..=1, default_missing_value = "")]
    #[arg(conflicts_with = "call")]
    next: Option<String>,
    /// The pcapng file, CALL.pcapng by default. The messages go into a file beside it that ends in
    /// .jsonl. With -, the pcapng goes to standard output, as for `wireshark -k -i -`.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// End the capture after this many seconds, at most 3600.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// End the capture when the file has this size, at most 1000.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    megabytes: u64,
    /// Leave the keys in that are pressed. They may be a card number.
    #[arg(long)]
    keys: bool,
}

impl CaptureArguments {
    /// The request.
    fn path(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("seconds", &self.seconds.to_string());
        query.append_pair("megabytes", &self.megabytes.to_string());
        if self.keys {
            query.append_pair("keys", "true");
        }
        if let Some(pbx) = self.next.as_deref().filter(|pbx| !pbx.is_empty()) {
            query.append_pair("pbx", pbx);
        }
        let call = self.call.as_deref().unwrap_or("next");
        format!("/v1/calls/{call}/capture?{}", query.finish())
    }

    fn output(&self) -> PathBuf {
        let name = || format!("{}.pcapng", self.call.as_deref().unwrap_or("next")).into();
        self.output.clone().unwrap_or_else(name)
    }
}

/// The files of a capture.
struct Files {
    packets: Box<dyn Write + Send>,
    /// `None` if the capture goes to standard output.
    messages: Option<File>,
    /// Where they are, for people.
    shown: String,
}

impl Files {
    fn create(output: &Path) -> anyhow::Result<Files> {
        if output == Path::new("-") {
            let shown = "standard output".to_owned();
            return Ok(Files { packets: Box::new(io::stdout()), messages: None, shown });
        }
        let beside = output.with_extension("jsonl");
        if beside == output {
            bail!("{}: the messages get this name; let --output end in .pcapng", output.display());
        }
        let messages = create(&beside)?;
        let packets = create(output).inspect_err(|_| {
            let _ = std::fs::remove_file(&beside);
        })?;
        let shown = format!("{} and {}", output.display(), beside.display());
        Ok(Files { packets: Box::new(packets), messages: Some(messages), shown })
    }
}

/// Creates a file that does not exist yet.
fn create(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path);
    file.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            anyhow::anyhow!("{} exists already; choose another --output", path.display())
        }
        _ => anyhow::Error::new(error).context(format!("cannot create {}", path.display())),
    })
}

pub async fn run(
    api: &Api,
    arguments: &CaptureArguments,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::new()?;
    let output = arguments.output();
    let is_stdout = output == Path::new("-");
    if !is_stdout && output.exists() {
        bail!("{} exists already; choose another --output", output.display());
    }
    let path = arguments.path();
    let response = tokio::select! {
        response = api.send(Method::GET, &path, None, None) => response?,
        () = stop.asked() => return Ok(ExitCode::FAILURE),
    };
    let files = Files::create(&output)?;
    let what = match &arguments.call {
        Some(call) => format!("call {call}"),
        None => "the next call".to_owned(),
    };
    errln!("capturing {what} to {}; Ctrl-C ends the capture", files.shown);
    let mut saved = Saved::default();
    save(response, files, &mut saved, &mut stop).await?;
    let Saved { packets, messages, end } = saved;
    let end = end.unwrap_or_else(|| "capture ended: stopped by you".to_owned());
    match as_json {
        true if !is_stdout => outln!(
            "{}",
            json!({
                "packets": packets, "messages": messages, "end": end, "file": output,
            })
        ),
        _ => errln!("{end}; {packets} packets and {messages} messages saved"),
    }
    Ok(if packets + messages > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The numbers of packets and messages that were saved.
#[derive(Default)]
struct Saved {
    packets: u64,
    messages: u64,
    /// How the capture ended; `None` if it was stopped here.
    end: Option<String>,
}

/// Saves a capture until its end.
async fn save(
    mut response: Response,
    mut files: Files,
    saved: &mut Saved,
    stop: &mut Stop,
) -> anyhow::Result<()> {
    let mut extractor = Extractor::default();
    loop {
        let part = tokio::select! {
            part = response.chunk() => part,
            () = stop.asked() => break,
        };
        let lost = || {
            let (packets, messages) = (saved.packets, saved.messages);
            format!("connection to trunkless lost after {packets} packets and {messages} messages")
        };
        let Some(part) = part.with_context(lost)? else {
            match saved.end {
                Some(_) => break,
                None => bail!("{}", lost()),
            }
        };
        let (whole, found) = extractor.add(&part).map_err(anyhow::Error::msg)?;
        for found in found {
            match found {
                Found::Packet => saved.packets += 1,
                Found::End(end) => saved.end = Some(end),
                Found::Message { at, label, text } => {
                    saved.messages += 1;
                    if let Some(file) = &mut files.messages {
                        file.write_all(line(&rfc3339(at), &label, &text).as_bytes())?;
                    }
                }
            }
        }
        files.packets.write_all(&whole)?;
        files.packets.flush()?;
    }
    Ok(())
}

/// A message as a line. A message in JSON stays as it is, but for line breaks between its parts.
fn line(time: &str, label: &str, text: &[u8]) -> String {
    let what = label.replace(' ', "_").to_ascii_lowercase().replace("_the_", "_");
    let text = String::from_utf8_lossy(text);
    match serde_json::from_str::<IgnoredAny>(&text) {
        Ok(_) => {
            let text = text.replace(['\r', '\n'], " ");
            format!("{{\"time\":\"{time}\",\"what\":\"{what}\",\"message\":{text}}}\n")
        }
        Err(_) => format!("{}\n", json!({ "time": time, "what": what, "text": text })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_is_one_line() {
        let pretty = line("t", "from the AI", b"{\n \"b\": 1,\r\n \"a\": \"x\\ny\"}");
        assert_eq!(
            pretty,
            "{\"time\":\"t\",\"what\":\"from_ai\",\"message\":{  \"b\": 1,   \"a\": \"x\\ny\"}}\n"
        );
        let odd = line("t", "to the AI", b"no\njson");
        assert_eq!(odd, "{\"text\":\"no\\njson\",\"time\":\"t\",\"what\":\"to_ai\"}\n");
    }
}
