//! Copies finished recordings to an S3-compatible store or another folder, and verifies the copy.
//! Owns I/O.
//!
//! A file that does not match its sidecar is not sent. Each request carries a SHA-256 that the
//! store checks. Then the ETag is compared, which is the MD5 of the object (or of its parts' MD5s
//! after a multipart upload). If the store uses other ETags, the object is read back and hashed.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use md5::Md5;
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum};
use object_store::client::{HttpClient, HttpConnector};
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, RetryConfig,
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::warn;

use crate::dns::HttpLookup;
use crate::folder::{Root, is_within};
use crate::outbox::webhook::chain;
use crate::record::disk::{sha256, with_ending};
use crate::record::outbox::{self, Entry};
use crate::record::sidecar::{Audio, Sidecar};

/// Larger files are sent in parts of this size; S3 requires at least 5 MiB.
const PART: u64 = 8 << 20;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A request fails once nothing has been received for this long.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// Time limit of a request with its body.
const LIMIT: Duration = Duration::from_secs(600);
/// Time limit of one access to a folder, which may be on a disk that hangs.
pub const FOLDER_LIMIT: Duration = Duration::from_secs(120);
/// Accesses to a folder at once, including those that hang.
const FOLDER_JOBS: usize = 4;
/// A key that no recording has, for [`Uploader::probe`].
const PROBE: &str = "trunkless-doctor";
/// Refusal of a folder to upload to.
pub const INSIDE: &str = "is in the recordings' own directory; name a folder outside of it";
/// Characters kept of a store's error text, which may be a whole page.
const MAX_ERROR: usize = 300;

#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("{0}")]
    Setup(String),
    #[error("{0}")]
    Store(String),
    #[error("{0}")]
    Disk(#[from] std::io::Error),
    #[error("the local file was changed: its length or SHA-256 is not the one in its sidecar")]
    Changed,
    #[error("the uploaded copy is damaged: {0}")]
    Damaged(&'static str),
}

impl From<object_store::Error> for UploadError {
    fn from(error: object_store::Error) -> Self {
        UploadError::Store(readable(&chain(&error)))
    }
}

/// Shortens an error to one line: the request, and the code and message of the store's XML.
fn readable(text: &str) -> String {
    let text = text.split_once("Error performing ").map_or(text, |(_, rest)| rest);
    let (request, why) = match (text.split_once(" in "), text.split_once(" - ")) {
        (Some((request, _)), Some((_, why))) => (format!("{request}: "), why),
        _ => (String::new(), text),
    };
    let why = why.trim_start_matches("Server returned non-2xx status code: ");
    let field = |name: &str| {
        let (_, rest) = why.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(value, _)| value)
    };
    let why = match (why.split_once('<'), field("Code"), field("Message")) {
        (Some((status, _)), Some(code), None) => format!("{status}{code}"),
        (Some((status, _)), Some(code), Some(message)) => format!("{status}{code}, {message}"),
        _ => why.to_owned(),
    };
    let words: Vec<&str> = why.split_whitespace().collect();
    let why: String = words.join(" ").chars().take(MAX_ERROR).collect();
    format!("{request}{why}")
}

/// Destination of uploads.
#[derive(Debug, Clone, Default)]
pub struct UploadSettings {
    /// `s3://bucket/prefix` or `file:///folder`.
    pub url: String,
    /// Address of a store other than Amazon's, such as `http://minio:9000`.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<SecretString>,
    /// TLS settings for https.
    pub tls: Option<rustls::ClientConfig>,
}

#[derive(Debug)]
enum Store {
    S3(Box<AmazonS3>),
    Folder(Folder),
}

/// A folder that may be on a disk that hangs.
#[derive(Debug)]
struct Folder {
    root: Root,
    /// Room for more accesses.
    room: Arc<Semaphore>,
}

impl Folder {
    fn new(path: PathBuf) -> Folder {
        Folder { root: Root::new(path), room: Arc::new(Semaphore::new(FOLDER_JOBS)) }
    }

    /// Runs `work` on a separate thread, so that a disk that hangs holds up nothing else. Fails
    /// after `limit`, and at once while too much of it hangs.
    async fn run<W>(&self, limit: Duration, work: W) -> Result<(), UploadError>
    where
        W: FnOnce(&Root) -> Result<(), UploadError> + Send + 'static,
    {
        let hangs = || UploadError::Store(format!("{}: no response", self.root.path().display()));
        let room = self.room.clone().try_acquire_owned().map_err(|_| hangs())?;
        let root = self.root.clone();
        let job = spawn_blocking(move || {
            let _room = room;
            work(&root)
        });
        timeout(limit, job).await.map_err(|_| hangs())?.map_err(setup)?
    }
}

/// Uploads files to one destination.
#[derive(Debug)]
pub struct Uploader {
    store: Store,
    /// Beginning of all object keys: empty, or with a slash at the end.
    prefix: String,
    /// The destination without a slash at the end.
    url: String,
}

/// Makes the store use our HTTP client.
#[derive(Debug)]
struct SharedClient(reqwest::Client);

impl HttpConnector for SharedClient {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

fn setup(error: impl std::fmt::Display) -> UploadError {
    UploadError::Setup(error.to_string())
}

impl Uploader {
    /// # Errors
    /// Returns [`UploadError::Setup`] if a setting is invalid.
    pub fn new(settings: &UploadSettings) -> Result<Uploader, UploadError> {
        let url = settings.url.trim_end_matches('/').to_owned();
        if let Some(folder) = url.strip_prefix("file://").filter(|f| f.starts_with('/')) {
            let store = Store::Folder(Folder::new(PathBuf::from(folder)));
            return Ok(Uploader { store, prefix: String::new(), url });
        }
        let Some(place) = url.strip_prefix("s3://").filter(|p| !p.is_empty()) else {
            let why = "write \"s3://bucket/prefix\" or \"file:///folder\"";
            return Err(setup(format!("\"{url}\" is not an upload destination: {why}")));
        };
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let store = s3(settings, bucket)?;
        if Key::from(prefix).as_ref() != prefix {
            let why = "the prefix has an empty folder, or a character not allowed in object keys";
            return Err(setup(format!("\"{url}\": {why}")));
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Uploader { store: Store::S3(Box::new(store)), prefix, url })
    }

    /// Checks that the destination can be reached with these keys. Stores nothing.
    ///
    /// # Errors
    /// Returns any error from the store, the network or the disk.
    pub async fn probe(&self) -> Result<(), UploadError> {
        match &self.store {
            Store::Folder(folder) => folder.run(FOLDER_LIMIT, check_folder).await,
            Store::S3(s3) => match s3.head(&Key::from(format!("{}{PROBE}", self.prefix))).await {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error.into()),
            },
        }
    }

    fn key(&self, path: &Path, ending: &str) -> Key {
        let path = with_ending(path, ending);
        Key::from(format!("{}{}", self.prefix, path.to_string_lossy()))
    }

    /// Uploads a recording's audio, and returns its URL.
    ///
    /// # Errors
    /// Returns any error from the store, the network or the disk. The upload can be repeated.
    pub async fn audio(
        &self,
        root: &Root,
        id: &str,
        entry: &mut Entry,
        sidecar: &Sidecar,
    ) -> Result<String, UploadError> {
        let key = self.key(&entry.path, "wav");
        let file = Local::open(root, with_ending(&entry.path, "wav"), &sidecar.audio).await?;
        match &self.store {
            Store::Folder(folder) => {
                let (root, path) = (root.clone(), entry.path.clone());
                let work = move |folder: &Root| {
                    check_apart(&root, folder, &path)?;
                    copy(folder, &with_ending(&path, "wav"), &file)
                };
                folder.run(FOLDER_LIMIT, work).await?;
            }
            Store::S3(s3) if file.parts() == 1 => {
                let payload = file.part(0).await?.into();
                s3.put_opts(&key, payload, options("audio/wav")).await?;
                verify(s3, &key, &file).await?;
            }
            Store::S3(s3) => in_parts(s3, &key, &file, root, id, entry).await?,
        }
        Ok(format!("{}/{}", self.url, with_ending(&entry.path, "wav").to_string_lossy()))
    }

    /// Uploads a recording's sidecar.
    ///
    /// # Errors
    /// Returns errors as [`Uploader::audio`] does.
    pub async fn sidecar(&self, path: &Path, text: String) -> Result<(), UploadError> {
        match &self.store {
            Store::Folder(folder) => {
                let path = with_ending(path, "json");
                let work = move |folder: &Root| {
                    check_folder(folder)?;
                    folder.replace(&path, &text, true).map_err(|error| store_error(&error))
                };
                folder.run(FOLDER_LIMIT, work).await
            }
            Store::S3(s3) => {
                let payload = PutPayload::from(Bytes::from(text));
                s3.put_opts(&self.key(path, "json"), payload, options("application/json")).await?;
                Ok(())
            }
        }
    }
}

/// Checks that the folder exists. It is never created, because it may be on a disk that is not
/// mounted.
fn check_folder(folder: &Root) -> Result<(), UploadError> {
    match folder.path().is_dir() {
        true => Ok(()),
        false => Err(UploadError::Store(format!("{}: no such folder", folder.path().display()))),
    }
}

/// Checks that a copy would not be in the recordings' own directory: it might replace the original,
/// or be taken for a recording.
fn check_apart(root: &Root, folder: &Root, path: &Path) -> Result<(), UploadError> {
    let target = folder.path().join(path);
    match is_within(target.parent().unwrap_or(&target), root.path()) {
        true => Err(UploadError::Store(format!("{}: {INSIDE}", target.display()))),
        false => Ok(()),
    }
}

/// Returns true if recordings at `path` below `directory` would be uploaded into that directory.
pub fn is_inside(url: &str, directory: &Path, path: &Path) -> bool {
    let folder = url.strip_prefix("file://").map(|folder| Root::new(PathBuf::from(folder)));
    let root = Root::new(directory.to_owned());
    folder.is_some_and(|folder| check_apart(&root, &folder, path).is_err())
}

/// Returns true if the uploaded copy is the local file itself, which must then not be deleted.
pub fn is_local_file(root: &Root, path: &Path, url: &str) -> bool {
    let Some(copy) = url.strip_prefix("file://") else { return false };
    let id = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let local = id(&root.path().join(with_ending(path, "wav")));
    local.is_some() && local == id(Path::new(copy))
}

fn store_error(error: &std::io::Error) -> UploadError {
    UploadError::Store(error.to_string())
}

/// Copies the file into another folder, and reads the copy back to verify it.
fn copy(folder: &Root, path: &Path, file: &Local) -> Result<(), UploadError> {
    check_folder(folder)?;
    let mut from = &*file.file;
    let copied = folder.replace_with(path, true, |to| {
        from.seek(SeekFrom::Start(0))?;
        std::io::copy(&mut from, to).map(drop)
    });
    copied.map_err(|error| store_error(&error))?;
    let hash = folder.open(path).and_then(sha256).map_err(|error| store_error(&error))?;
    match hash == file.sha256 {
        true => Ok(()),
        false => Err(UploadError::Damaged("its SHA-256 differs")),
    }
}

fn options(kind: &'static str) -> PutOptions {
    let attributes = Attributes::from_iter([(Attribute::ContentType, kind)]);
    PutOptions { attributes, ..PutOptions::default() }
}

/// Uploads a file in several parts. The entry in the outbox holds the upload's id, so that an
/// unfinished one can be aborted after a restart.
async fn in_parts(
    s3: &AmazonS3,
    key: &Key,
    file: &Local,
    root: &Root,
    id: &str,
    entry: &mut Entry,
) -> Result<(), UploadError> {
    if let Some(old) = entry.multipart.clone() {
        // it may have succeeded, with only the response lost
        if verify(s3, key, file).await.is_ok() {
            return Ok(());
        }
        // if the store refuses, start a new upload; if it was not reached, keep the id and retry
        match s3.abort_multipart(key, &old).await {
            Err(error) if !refuses(&error) => return Err(error.into()),
            _ => {}
        }
    }
    let attributes = options("audio/wav").attributes;
    let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
    let upload = s3.create_multipart_opts(key, options).await?;
    entry.multipart = Some(upload.clone());
    if let Err(error) = outbox::save(root, id, entry, true) {
        // the upload continues even on a full disk
        warn!(recording = id, %error, "outbox entry not saved; the upload continues");
    }
    let mut done = Vec::new();
    for n in 0..file.parts() {
        let part = file.part(n).await?;
        done.push(s3.put_part(key, &upload, n as usize, part.into()).await?);
    }
    match s3.complete_multipart(key, &upload, done).await {
        Ok(_) => verify(s3, key, file).await,
        Err(error) => {
            let error = error.into();
            verify(s3, key, file).await.map_err(|_| error)
        }
    }
}

/// Checks that the stored object is equal to the file.
async fn verify(s3: &AmazonS3, key: &Key, file: &Local) -> Result<(), UploadError> {
    let found = s3.head(key).await?;
    if found.size != file.length {
        return Err(UploadError::Damaged("its length differs"));
    }
    if found.e_tag.is_some_and(|tag| tag.trim_matches('"').eq_ignore_ascii_case(&file.e_tag)) {
        return Ok(());
    }
    let mut hash = Sha256::new();
    for n in 0..file.parts() {
        hash.update(&s3.get_range(key, file.range(n)).await?);
    }
    match hex(&hash.finalize()) == file.sha256 {
        true => Ok(()),
        false => Err(UploadError::Damaged("its SHA-256 differs")),
    }
}

/// Returns true if the store gave a final refusal, which a retry would not change.
fn refuses(error: &object_store::Error) -> bool {
    use object_store::Error::{Generic, NotFound, PermissionDenied, Unauthenticated};
    match error {
        NotFound { .. } | PermissionDenied { .. } | Unauthenticated { .. } => true,
        Generic { .. } => chain(error).contains("status code: 4"),
        _ => false,
    }
}

fn s3(settings: &UploadSettings, bucket: &str) -> Result<AmazonS3, UploadError> {
    // reqwest comes without a crypto provider; a second call has no effect
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(READ_LIMIT)
        .timeout(LIMIT)
        .dns_resolver(HttpLookup)
        .redirect(reqwest::redirect::Policy::none());
    let client = match &settings.tls {
        Some(tls) => client.tls_backend_preconfigured(tls.clone()),
        None => client.tls_certs_only([]),
    };
    // without keys, uses the AWS_… variables or the instance's role
    let base = match settings.access_key_id {
        Some(_) => AmazonS3Builder::new(),
        None => AmazonS3Builder::from_env(),
    };
    let mut builder = base
        .with_http_connector(SharedClient(client.build().map_err(setup)?))
        .with_bucket_name(bucket)
        .with_checksum_algorithm(Checksum::SHA256)
        // few retries here, because the outbox retries for longer
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: 2,
            retry_timeout: Duration::from_secs(20),
        });
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(false);
        builder = builder.with_allow_http(endpoint.starts_with("http://"));
    }
    if let Some(id) = &settings.access_key_id {
        builder = builder.with_access_key_id(id);
    }
    if let Some(secret) = &settings.secret_access_key {
        builder = builder.with_secret_access_key(secret.expose_secret());
    }
    builder.build().map_err(setup)
}

/// A recording's audio file that matches its sidecar.
#[derive(Clone)]
struct Local {
    file: Arc<File>,
    length: u64,
    sha256: String,
    /// ETag as S3 computes it: the MD5, or that of the parts' MD5s followed by their number.
    e_tag: String,
}

impl Local {
    /// Opens the file, and checks that it matches its sidecar.
    async fn open(root: &Root, path: PathBuf, audio: &Audio) -> Result<Local, UploadError> {
        let (root, length, sha256) = (root.clone(), audio.bytes, audio.sha256.clone());
        let read = move || {
            let file = root.open(&path)?;
            if file.metadata()?.len() != length {
                return Err(UploadError::Changed);
            }
            let mut local = Local { file: Arc::new(file), length, sha256, e_tag: String::new() };
            let (mut hash, mut md5s) = (Sha256::new(), Vec::new());
            for n in 0..local.parts() {
                let part = local.read(n)?;
                hash.update(&part);
                md5s.push(<[u8; 16]>::from(Md5::digest(&part)));
            }
            local.e_tag = match &md5s[..] {
                [one] => hex(one),
                many => format!("{}-{}", hex(&Md5::digest(many.concat())), many.len()),
            };
            match hex(&hash.finalize()) == local.sha256 {
                true => Ok(local),
                false => Err(UploadError::Changed),
            }
        };
        spawn_blocking(read).await.map_err(setup)?
    }

    fn parts(&self) -> u64 {
        self.length.div_ceil(PART).max(1)
    }

    fn range(&self, n: u64) -> std::ops::Range<u64> {
        n * PART..((n + 1) * PART).min(self.length)
    }

    fn read(&self, n: u64) -> std::io::Result<Vec<u8>> {
        let range = self.range(n);
        let mut part = vec![0; (range.end - range.start) as usize];
        self.file.read_exact_at(&mut part, range.start).map(|()| part)
    }

    async fn part(&self, n: u64) -> Result<Bytes, UploadError> {
        let local = self.clone();
        Ok(spawn_blocking(move || local.read(n)).await.map_err(setup)??.into())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_shortened_to_one_line() {
        let put = "Error performing PUT http://m:9000/rec/a.wav in 4.04ms, after 2 retries, \
                   max_retries: 2, retry_timeout: 20s  - ";
        let xml = "<?xml version=\"1.0\"?>\n<Error>\n<Code>SlowDown</Code><Message>Please reduce\n\
                   your rate.</Message><StringToSign>AWS4</StringToSign></Error>";
        let table = [
            (
                format!("Generic S3 error: {put}HTTP error: error sending request: refused"),
                "PUT http://m:9000/rec/a.wav: HTTP error: error sending request: refused",
            ),
            (
                format!("No privileges: {put}Server returned non-2xx status code: 503 Busy: {xml}"),
                "PUT http://m:9000/rec/a.wav: 503 Busy: SlowDown, Please reduce your rate.",
            ),
            ("something\n else".to_owned(), "something else"),
        ];
        for (text, wanted) in table {
            assert_eq!(readable(&text), wanted);
        }
        assert!(readable(&"long ".repeat(1000)).len() <= MAX_ERROR);
    }

    #[test]
    fn invalid_destinations_are_refused() {
        let new = |url: &str| {
            Uploader::new(&UploadSettings { url: url.to_owned(), ..UploadSettings::default() })
        };
        for good in ["s3://rec", "s3://rec/", "s3://rec/calls/2026"] {
            assert!(new(good).is_ok(), "{good}");
        }
        for bad in ["", "s3://", "http://x/", "file://x", "s3://rec/a//b", "s3://rec/a#b"] {
            assert!(new(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_folder_that_hangs_holds_up_nothing() {
        let folder = Folder::new(PathBuf::from("/nowhere"));
        let short = Duration::from_millis(20);
        let mut hanging = Vec::new();
        for _ in 0..FOLDER_JOBS {
            let (end, wait) = std::sync::mpsc::channel::<()>();
            hanging.push(end);
            let work = move |_: &Root| {
                let _ = wait.recv();
                Ok(())
            };
            assert!(folder.run(short, work).await.is_err());
        }
        let refused = folder.run(FOLDER_LIMIT, |_| Ok(())).await;
        assert!(matches!(refused, Err(UploadError::Store(_))));
        drop(hanging);
        let all = folder.room.acquire_many(FOLDER_JOBS as u32).await.unwrap();
        drop(all);
        assert!(folder.run(FOLDER_LIMIT, |_| Ok(())).await.is_ok());
    }
}
