//! Copies finished recordings to an S3-compatible store or another folder, and makes sure that what
//! arrived is what was recorded. Owns I/O.
//!
//! Each request carries a SHA-256 that the store checks. Then its ETag is compared, which is the
//! MD5 of the object (of its parts' MD5s after a multipart upload); where a store has other ETags,
//! the object is read back and hashed.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use md5::Md5;
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum};
use object_store::client::{HttpClient, HttpConnector};
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, RetryConfig,
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use crate::record::disk::{Root, with_ending};
use crate::record::outbox::{self, Entry};
use crate::record::sidecar::Sidecar;
use crate::record::webhook::chain;

/// Larger files go in parts of this size; S3 wants at least 5 MiB.
const PART: u64 = 8 << 20;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// No byte for so long.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// One request with its body.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("{0}")]
    Setup(String),
    #[error("{0}")]
    Store(String),
    #[error("{0}")]
    Disk(#[from] std::io::Error),
    #[error("the file here is not what was recorded: its SHA-256 differs from its sidecar's")]
    Changed,
    #[error("what arrived is not what was sent: {0}")]
    Damaged(&'static str),
}

impl From<object_store::Error> for UploadError {
    fn from(error: object_store::Error) -> Self {
        UploadError::Store(chain(&error))
    }
}

/// Where to.
#[derive(Debug, Clone, Default)]
pub struct UploadSettings {
    /// `s3://bucket/prefix` or `file:///folder`.
    pub url: String,
    /// Of a store that is not Amazon's: `http://minio:9000`.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<SecretString>,
    /// For https.
    pub tls: Option<rustls::ClientConfig>,
}

#[derive(Debug)]
enum Store {
    S3(Box<AmazonS3>),
    Folder(LocalFileSystem),
}

impl Store {
    fn all(&self) -> &dyn ObjectStore {
        match self {
            Store::S3(s3) => &**s3,
            Store::Folder(folder) => folder,
        }
    }
}

#[derive(Debug)]
pub struct Uploader {
    store: Store,
    prefix: String,
    url: String,
}

/// Hands our own HTTP client to the store's.
#[derive(Debug)]
struct Ours(reqwest::Client);

impl HttpConnector for Ours {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

fn setup(error: impl std::fmt::Display) -> UploadError {
    UploadError::Setup(error.to_string())
}

impl Uploader {
    /// # Errors
    /// [`UploadError::Setup`] with what is wrong.
    pub fn new(settings: &UploadSettings) -> Result<Uploader, UploadError> {
        let url = settings.url.trim_end_matches('/').to_owned();
        if let Some(folder) = url.strip_prefix("file://").filter(|f| f.starts_with('/')) {
            std::fs::create_dir_all(folder).map_err(|e| setup(format!("{folder}: {e}")))?;
            let store = LocalFileSystem::new_with_prefix(folder).map_err(setup)?.with_fsync(true);
            return Ok(Uploader { store: Store::Folder(store), prefix: String::new(), url });
        }
        let Some(place) = url.strip_prefix("s3://").filter(|p| !p.is_empty()) else {
            let why = "write \"s3://bucket/prefix\" or \"file:///folder\"";
            return Err(setup(format!("\"{url}\" is no place to upload to: {why}")));
        };
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let store = s3(settings, bucket)?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Uploader { store: Store::S3(Box::new(store)), prefix, url })
    }

    fn key(&self, path: &Path, ending: &str) -> Key {
        let path = with_ending(path, ending);
        Key::from(format!("{}{}", self.prefix, path.to_string_lossy()))
    }

    /// Uploads a recording's audio; where it is then.
    ///
    /// # Errors
    /// What the store, the network or the disk says; to be tried again.
    pub async fn audio(
        &self,
        root: &Root,
        id: &str,
        entry: &mut Entry,
        sidecar: &Sidecar,
    ) -> Result<String, UploadError> {
        let key = self.key(&entry.path, "wav");
        let (of, path) = (root.clone(), with_ending(&entry.path, "wav"));
        let file = spawn_blocking(move || of.open(&path)).await.map_err(setup)??;
        let mut file = Reading { file: Arc::new(file), sha256: Sha256::new(), md5s: Vec::new() };
        let length = sidecar.audio.bytes;
        let parts = length.div_ceil(PART).max(1);
        match (&self.store, parts) {
            (store, 1) => {
                let piece = file.piece(0, length).await?;
                file.check(&sidecar.audio.sha256)?;
                store.all().put_opts(&key, piece.into(), self.options("audio/wav")).await?;
            }
            (Store::Folder(folder), _) => {
                let mut upload = folder.put_multipart(&key).await?;
                for n in 0..parts {
                    upload.put_part(file.part(n, length).await?.into()).await?;
                }
                file.check(&sidecar.audio.sha256)?;
                upload.complete().await?;
            }
            (Store::S3(s3), _) => {
                if let Some(old) = entry.multipart.take() {
                    // it may have been finished, or be gone
                    let _ = s3.abort_multipart(&key, &old).await;
                }
                let attributes = self.options("audio/wav").attributes;
                let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
                let upload = s3.create_multipart_opts(&key, options).await?;
                entry.multipart = Some(upload.clone());
                outbox::save(root, id, entry, true)?;
                let mut done = Vec::new();
                for n in 0..parts {
                    let part = file.part(n, length).await?;
                    done.push(s3.put_part(&key, &upload, n as usize, part.into()).await?);
                }
                file.check(&sidecar.audio.sha256)?;
                s3.complete_multipart(&key, &upload, done).await?;
            }
        }
        self.verify(&key, length, &sidecar.audio.sha256, &file.e_tag()).await?;
        Ok(format!("{}/{}", self.url, with_ending(&entry.path, "wav").to_string_lossy()))
    }

    /// Uploads a recording's sidecar.
    ///
    /// # Errors
    /// As for the audio.
    pub async fn sidecar(&self, path: &Path, text: String) -> Result<(), UploadError> {
        let payload = PutPayload::from(Bytes::from(text));
        let options = self.options("application/json");
        self.store.all().put_opts(&self.key(path, "json"), payload, options).await?;
        Ok(())
    }

    fn options(&self, kind: &'static str) -> PutOptions {
        let attributes = match self.store {
            Store::S3(_) => Attributes::from_iter([(Attribute::ContentType, kind)]),
            Store::Folder(_) => Attributes::new(),
        };
        PutOptions { attributes, ..PutOptions::default() }
    }

    async fn verify(
        &self,
        key: &Key,
        length: u64,
        sha256: &str,
        e_tag: &str,
    ) -> Result<(), UploadError> {
        let found = self.store.all().head(key).await?;
        if found.size != length {
            return Err(UploadError::Damaged("its length differs"));
        }
        if found.e_tag.is_some_and(|tag| tag.trim_matches('"').eq_ignore_ascii_case(e_tag)) {
            return Ok(());
        }
        let mut stream = self.store.all().get(key).await?.into_stream();
        let mut hash = Sha256::new();
        while let Some(piece) = stream.next().await {
            hash.update(&piece?);
        }
        match hex(&hash.finalize()) == sha256 {
            true => Ok(()),
            false => Err(UploadError::Damaged("its SHA-256 differs")),
        }
    }
}

fn s3(settings: &UploadSettings, bucket: &str) -> Result<AmazonS3, UploadError> {
    // reqwest comes without one; a second call changes nothing
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(READ_LIMIT)
        .timeout(LIMIT)
        .redirect(reqwest::redirect::Policy::none());
    let client = match &settings.tls {
        Some(tls) => client.tls_backend_preconfigured(tls.clone()),
        None => client.tls_certs_only([]),
    };
    // without keys: AWS_… variables, or the role of the machine
    let base = match settings.access_key_id {
        Some(_) => AmazonS3Builder::new(),
        None => AmazonS3Builder::from_env(),
    };
    let mut builder = base
        .with_http_connector(Ours(client.build().map_err(setup)?))
        .with_bucket_name(bucket)
        .with_region(settings.region.clone().unwrap_or_else(|| "us-east-1".to_owned()))
        .with_checksum_algorithm(Checksum::SHA256)
        // the outbox tries again, and for longer
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: 2,
            retry_timeout: Duration::from_secs(20),
        });
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

/// A file that is read in order and hashed on the way.
struct Reading {
    file: Arc<std::fs::File>,
    sha256: Sha256,
    md5s: Vec<[u8; 16]>,
}

impl Reading {
    async fn part(&mut self, n: u64, length: u64) -> Result<Bytes, UploadError> {
        self.piece(n * PART, PART.min(length - n * PART)).await
    }

    async fn piece(&mut self, at: u64, length: u64) -> Result<Bytes, UploadError> {
        let file = self.file.clone();
        let read = move || {
            let mut piece = vec![0; length as usize];
            file.read_exact_at(&mut piece, at).map(|()| piece)
        };
        let piece = spawn_blocking(read).await.map_err(setup)??;
        self.sha256.update(&piece);
        self.md5s.push(Md5::digest(&piece).into());
        Ok(piece.into())
    }

    fn check(&self, sha256: &str) -> Result<(), UploadError> {
        match hex(&self.sha256.clone().finalize()) == sha256 {
            true => Ok(()),
            false => Err(UploadError::Changed),
        }
    }

    /// As S3 makes it: the MD5, or that of the parts' MD5s and their number.
    fn e_tag(&self) -> String {
        match &self.md5s[..] {
            [one] => hex(one),
            many => format!("{}-{}", hex(&Md5::digest(many.concat())), many.len()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
