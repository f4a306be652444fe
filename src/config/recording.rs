//! `[recording]`, its tables and `[pbx.NAME.recording]`: the keys, and the settings made from them.
//! Owns the check that the directory can be written to.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::call::RecordPlan;
use crate::config::ConfigError;
use crate::config::resolve::Resolver;
use crate::config::schema::Settings;
use crate::config::values::Span;
use crate::outbox::webhook::Webhook;
use crate::record::layout::Layout;
use crate::record::settings::RecordSettings;
use crate::record::upload::{self, INSIDE, UploadSettings, Uploader};
use crate::record::wav::Encoding;
use crate::record::{When, notice};
use crate::tls;

/// How long the start waits for the folder of an upload.
const FOLDER_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recording {
    /// Directory for the recordings; without it, no call is recorded.
    pub directory: Option<String>,
    /// The directory must be on a mounted disk, apart from the filesystem of `/`.
    pub require_mount: bool,
    pub layout: LayoutWord,
    pub format: FormatWord,
    pub when: WhenWord,
    /// `beep`, or a WAV file to play to the caller when a recording begins.
    pub announce: Option<String>,
    /// Refuse new calls while recordings cannot be written.
    pub require: bool,
    /// Interval between syncs of the written audio to disk; zero: never.
    pub fsync: Span,
    /// Record only while at least this percentage of the disk is free.
    pub keep_free_percent: u8,
    /// Delete recordings older than this.
    pub keep: Option<Age>,
    /// Delete the oldest recordings when the total exceeds this.
    pub keep_gb: Option<f64>,
    pub upload: UploadKeys,
    pub webhook: WebhookKeys,
}

impl Default for Recording {
    fn default() -> Self {
        Recording {
            directory: None,
            require_mount: false,
            layout: LayoutWord(Layout::default()),
            format: FormatWord::G711,
            when: WhenWord::Always,
            announce: None,
            require: false,
            fsync: Span(Duration::from_millis(500)),
            keep_free_percent: 2,
            keep: None,
            keep_gb: None,
            upload: UploadKeys::default(),
            webhook: WebhookKeys::default(),
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UploadKeys {
    /// `s3://bucket/prefix` or `file:///folder`.
    pub url: Option<String>,
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<SecretString>,
    pub secret_access_key_env: Option<String>,
    pub secret_access_key_file: Option<String>,
    pub ca_file: Option<String>,
    /// Delete the local copy after the upload.
    pub delete_after: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebhookKeys {
    pub url: Option<String>,
    /// Base64, optionally after `whsec_`.
    pub secret: Option<SecretString>,
    pub secret_env: Option<String>,
    pub secret_file: Option<String>,
    pub ca_file: Option<String>,
}

/// One PBX's settings, which override those of `[recording]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PbxRecording {
    pub when: Option<WhenWord>,
    /// As in `[recording]`, or `none` for no announcement.
    pub announce: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutWord(pub Layout);

impl FromStr for LayoutWord {
    type Err = String;

    fn from_str(text: &str) -> Result<LayoutWord, String> {
        text.parse().map(LayoutWord)
    }
}

/// A duration of up to many years, such as `90d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(pub Duration);

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Age, String> {
        match humantime::parse_duration(text) {
            Ok(age) if !age.is_zero() => Ok(Age(age)),
            _ => Err(format!("\"{text}\" is not a valid age; write \"12h\", \"90d\" or \"2y\"")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormatWord {
    /// The law of the call, without transcoding.
    G711,
    Ulaw,
    Alaw,
    Pcm16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenWord {
    Always,
    OnCommand,
    Never,
}

/// The checked settings of recording, upload and webhook.
pub struct RecordingPlan {
    pub settings: RecordSettings,
    pub upload: Option<UploadSettings>,
    pub delete_after: bool,
    pub webhook: Option<Webhook>,
}

impl Recording {
    /// Returns the directory. An empty string, as from an empty variable, counts as not set.
    pub(super) fn directory(&self) -> Option<&str> {
        self.directory.as_deref().filter(|directory| !directory.is_empty())
    }
}

/// Why a store's address cannot be used.
fn endpoint_problem(endpoint: &str) -> Option<&'static str> {
    let valid = reqwest::Url::parse(endpoint).ok().filter(|url| {
        ["http", "https"].contains(&url.scheme()) && url.has_host() && url.port() != Some(0)
    });
    match valid {
        None => Some("must be an http or https URL, such as \"http://host:9000\""),
        Some(url) if !url.username().is_empty() || url.password().is_some() => {
            Some("must not contain a user or password; set access_key_id and secret_access_key")
        }
        Some(_) => None,
    }
}

impl Resolver<'_> {
    pub(super) fn recording(
        &self,
        settings: &Settings,
    ) -> Result<Option<RecordingPlan>, ConfigError> {
        let recording = &settings.recording;
        let error = |key: &str, why: String| self.source.error(&format!("recording.{key}"), why);
        let Some(directory) = recording.directory() else {
            if recording.require
                || recording.upload.url.is_some()
                || recording.webhook.url.is_some()
            {
                let why = "is missing; set it to the directory for recordings".to_owned();
                return Err(error("directory", why));
            }
            return Ok(None);
        };
        if recording.upload.delete_after && recording.upload.url.is_none() {
            return Err(error(
                "upload.delete_after",
                "needs an upload; set [recording.upload] url".to_owned(),
            ));
        }
        let upload = self.upload(&recording.upload)?;
        if let Some(Err(why)) = upload.as_ref().map(Uploader::new) {
            return Err(error("upload.url", why.to_string()));
        }
        let sample = recording.layout.0.path(Duration::ZERO, "pbx", "id");
        let inside = |u: &UploadSettings| {
            let (result, answer) = std::sync::mpsc::channel();
            let (url, own, sample) = (u.url.clone(), PathBuf::from(directory), sample.clone());
            std::thread::spawn(move || result.send(upload::is_inside(&url, &own, &sample)));
            // a folder on a disk that hangs must not hold up the start; each upload checks it again
            answer.recv_timeout(FOLDER_WAIT).unwrap_or(false)
        };
        if let Some(upload) = upload.as_ref().filter(|upload| inside(upload)) {
            return Err(error("upload.url", format!("\"{}\" {INSIDE}", upload.url)));
        }
        let webhook = self.webhook(&recording.webhook)?;
        let plan = RecordSettings {
            directory: PathBuf::from(directory),
            require_mount: recording.require_mount,
            layout: recording.layout.0.clone(),
            encoding: match recording.format {
                FormatWord::G711 => None,
                FormatWord::Ulaw => Some(Encoding::Mu),
                FormatWord::Alaw => Some(Encoding::A),
                FormatWord::Pcm16 => Some(Encoding::Pcm16),
            },
            fsync: recording.fsync.0,
            keep_free_percent: recording.keep_free_percent.into(),
            keep: recording.keep.map(|age| age.0),
            keep_bytes: recording.keep_gb.map(|gb| (gb * 1e9) as u64),
            require: recording.require,
            outbox: upload.is_some() || webhook.is_some(),
            max_calls: settings.calls.max,
        };
        let delete_after = recording.upload.delete_after;
        Ok(Some(RecordingPlan { settings: plan, upload, delete_after, webhook }))
    }

    fn upload(&self, keys: &UploadKeys) -> Result<Option<UploadSettings>, ConfigError> {
        let error =
            |key: &str, why: String| self.source.error(&format!("recording.upload.{key}"), why);
        let Some(url) = keys.url.clone().filter(|url| !url.is_empty()) else {
            return Ok(None);
        };
        if !url.starts_with("s3://") && !url.starts_with("file:///") {
            let why = format!(
                "\"{url}\" is not valid; write \"s3://bucket/prefix\" or \"file:///folder\""
            );
            return Err(error("url", why));
        }
        let endpoint = keys.endpoint.clone().filter(|e| !e.is_empty());
        if let Some(why) = endpoint.as_deref().and_then(endpoint_problem) {
            return Err(error("endpoint", why.to_owned()));
        }
        let secret = self.secret(
            "recording.upload.secret_access_key",
            [
                &keys.secret_access_key.as_ref().map(|p| p.expose_secret().to_owned()),
                &keys.secret_access_key_env,
                &keys.secret_access_key_file,
            ],
        )?;
        if keys.access_key_id.is_some() != secret.is_some() {
            let why = "must be set together with secret_access_key; without both, the \
                       variables AWS_ACCESS_KEY_ID … or the instance's role are used";
            return Err(error("access_key_id", why.to_owned()));
        }
        let secure =
            url.starts_with("s3://") && endpoint.as_ref().is_none_or(|e| e.starts_with("https://"));
        Ok(Some(UploadSettings {
            url,
            endpoint,
            region: keys.region.clone(),
            access_key_id: keys.access_key_id.clone(),
            secret_access_key: secret,
            tls: self.recording_tls("upload", secure, keys.ca_file.as_deref())?,
        }))
    }

    fn webhook(&self, keys: &WebhookKeys) -> Result<Option<Webhook>, ConfigError> {
        let secret = [
            &keys.secret.as_ref().map(|p| p.expose_secret().to_owned()),
            &keys.secret_env,
            &keys.secret_file,
        ];
        self.a_webhook("recording.webhook", &keys.url, secret, keys.ca_file.as_deref())
    }

    /// Returns the webhook of a table.
    pub(super) fn a_webhook(
        &self,
        table: &str,
        url: &Option<String>,
        secret: [&Option<String>; 3],
        ca_file: Option<&str>,
    ) -> Result<Option<Webhook>, ConfigError> {
        let Some(url) = url.as_deref().filter(|url| !url.is_empty()) else { return Ok(None) };
        let secret = self.secret(&format!("{table}.secret"), secret)?;
        let tls = match url.starts_with("https://") {
            false => None,
            true => {
                let key = format!("{table}.ca_file");
                let error = |e: tls::TlsError| self.source.error(&key, e.to_string());
                Some(tls::client_config(ca_file).map_err(error)?)
            }
        };
        Webhook::new(url, secret.as_ref(), tls).map(Some).map_err(|why| {
            let secret = matches!(why, crate::outbox::webhook::WebhookError::Secret);
            let key = if secret { "secret" } else { "url" };
            self.source.error(&format!("{table}.{key}"), why.to_string())
        })
    }

    fn recording_tls(
        &self,
        table: &str,
        secure: bool,
        ca_file: Option<&str>,
    ) -> Result<Option<rustls::ClientConfig>, ConfigError> {
        if !secure {
            return Ok(None);
        }
        let key = format!("recording.{table}.ca_file");
        tls::client_config(ca_file).map(Some).map_err(|e| self.source.error(&key, e.to_string()))
    }

    /// Decides how the calls of one PBX are recorded. `None`: not at all.
    pub(super) fn record_plan(
        &self,
        name: &str,
        common: &Recording,
        own: &PbxRecording,
    ) -> Result<Option<RecordPlan>, ConfigError> {
        let own_key = format!("pbx.{name}.recording");
        if own.when.is_some_and(|w| w != WhenWord::Never) && common.directory().is_none() {
            let why = "needs a directory for recordings; set [recording] directory";
            return Err(self.source.error(&format!("{own_key}.when"), why));
        }
        let when = match own.when.unwrap_or(common.when) {
            WhenWord::Always => When::Always,
            WhenWord::OnCommand => When::OnCommand,
            WhenWord::Never => return Ok(None),
        };
        if common.directory().is_none() {
            return Ok(None);
        }
        let (word, key) = match (&own.announce, &common.announce) {
            (Some(own), _) => (Some(own), format!("{own_key}.announce")),
            (None, common) => (common.as_ref(), "recording.announce".to_owned()),
        };
        let notice = match word.map(String::as_str) {
            None | Some("none" | "") => Bytes::new(),
            Some("beep") => notice::beep(),
            Some(path) => self.audio(&key, path)?,
        };
        Ok(Some(RecordPlan { when, notice }))
    }
}

/// Checks the paths of recordings, as far as that is possible without creating anything. Returns
/// why the directory cannot be used, and why nothing can be uploaded yet.
pub fn try_paths(plan: &RecordingPlan) -> (Option<String>, Option<String>) {
    let directory = try_directory(&plan.settings.directory, plan.settings.require_mount).err();
    let url = plan.upload.as_ref().map(|upload| upload.url.as_str());
    let folder = url.and_then(|url| url.strip_prefix("file://")).map(Path::new);
    let folder = folder.filter(|folder| !folder.is_dir());
    let upload = folder.map(|folder| format!("{}: no such folder; create it", folder.display()));
    (directory, upload)
}

/// Checks that this user could write recordings to the directory, or create it in its parent.
fn try_directory(directory: &Path, require_mount: bool) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;

    use rustix::fs::{Access, access};
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let there = if directory.exists() { directory } else { parent };
    let name = there.display();
    if !there.exists() {
        return Err(format!("{name} does not exist; create it, or mount its disk"));
    }
    if !there.is_dir() {
        return Err(format!("{name} is not a directory"));
    }
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev());
    if require_mount && device(there).ok() == device(Path::new("/")).ok() {
        return Err(format!("{name} is on the filesystem of /; mount its disk (require_mount)"));
    }
    access(there, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|e| format!("cannot write to {name}: {e}; change its owner"))
}
