//! Decisions of the outbox that a real store and a real disk do not bring about.

use std::fs;

use serde_json::json;
use wiremock::matchers::method;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::record::disk::sha256;
use crate::record::layout::INCOMPLETE;
use crate::record::sidecar::CallInfo;
use crate::record::upload::UploadSettings;

/// A recordings' directory with one recording at `d/ID`, a folder to upload to, and an outbox.
struct Lab {
    directory: tempfile::TempDir,
    there: tempfile::TempDir,
    outbox: Outbox,
}

const ID: &str = "17-ab";
const AUDIO: &[u8] = b"as it was heard";

impl Lab {
    fn new() -> Lab {
        let (directory, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let url = format!("file://{}", there.path().display());
        let settings = UploadSettings { url, ..UploadSettings::default() };
        let outbox = Outbox {
            root: Root::new(directory.path().to_owned()),
            uploader: Some(Uploader::new(&settings).unwrap()),
            webhook: None,
            delete_after: false,
            added: Arc::default(),
        };
        let lab = Lab { directory, there, outbox };
        fs::create_dir(lab.here("d")).unwrap();
        fs::write(lab.here("d/17-ab.wav"), AUDIO).unwrap();
        let sidecar = json!({
            "version": 1, "id": ID, "state": "complete", "call": CallInfo::default(),
            "started_at": "", "start_ms": 0, "duration_ms": 20, "end_reason": "", "path": "d/17-ab",
            "audio": {"file": "17-ab.wav", "format": "mulaw", "channels": [], "samples": 1,
                "bytes": AUDIO.len(), "sha256": sha256(AUDIO).unwrap()},
            "alignment": {"steps": 0, "offset_ms": 0.0}, "pauses": [], "gaps": [], "events": [],
        });
        fs::write(lab.here("d/17-ab.json"), sidecar.to_string()).unwrap();
        put(&lab.outbox.root, ID, Path::new("d/17-ab"), false).unwrap();
        lab
    }

    fn here(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn arrived(&self) -> bool {
        fs::read(self.there.path().join("d/17-ab.wav")).is_ok_and(|audio| audio == AUDIO)
    }

    fn waits(&self) -> bool {
        !ids(&self.outbox.root).is_empty()
    }

    async fn store(&self, kept: &mut Option<Entry>) -> Result<Sent, SendError> {
        self.outbox.send(ID, Target::Store, kept, 0).await
    }

    async fn hook(&self, kept: &mut Option<Entry>, failures: u32) -> Result<Sent, SendError> {
        self.outbox.send(ID, Target::Webhook, kept, failures).await
    }

    fn hooked(&mut self, url: &str) {
        self.outbox.webhook = Some(Webhook::new(url, None, None).unwrap());
    }

    /// Makes it impossible to rewrite the entry.
    fn full(&self) {
        fs::create_dir(self.here("outbox/.17-ab.json.new")).unwrap();
    }
}

#[tokio::test]
async fn an_unreadable_entry_is_rewritten() {
    for text in ["", "\0\0\0\0", "{\"path\":", "[]", r#"{"path":"../../etc/x","since":1}"#] {
        let lab = Lab::new();
        fs::write(lab.here("outbox/17-ab.json"), text).unwrap();
        let sent = lab.store(&mut None).await.unwrap();
        assert_eq!(sent.next, Some(Target::Store), "{text}");
        assert_eq!(load(&lab.outbox.root, ID).unwrap().path, Path::new("d/17-ab"));
        assert!(lab.store(&mut None).await.is_ok() && lab.arrived() && !lab.waits(), "{text}");
        // without a recording there is nothing to be sent
        fs::write(lab.here("outbox/other.json"), text).unwrap();
        let sent = lab.outbox.send("other", Target::Store, &mut None, 0).await.unwrap();
        assert_eq!((sent.next, lab.waits()), (None, false), "{text}");
    }
}

/// A recording that is still being moved is not given up, whatever the clock says.
#[tokio::test]
async fn a_recording_that_is_being_moved_is_kept_and_a_deleted_one_is_not() {
    let lab = Lab::new();
    let old = Entry { path: "d/17-ab".into(), ..Entry::default() };
    save(&lab.outbox.root, ID, &old, false).unwrap();
    fs::create_dir(lab.here(INCOMPLETE)).unwrap();
    fs::rename(lab.here("d/17-ab.json"), lab.here("incomplete/17-ab.json")).unwrap();
    assert!(lab.store(&mut None).await.is_err() && lab.waits());
    fs::rename(lab.here("incomplete/17-ab.json"), lab.here("d/17-ab.json")).unwrap();
    // its audio is gone
    fs::remove_file(lab.here("d/17-ab.wav")).unwrap();
    assert!(lab.store(&mut None).await.is_ok() && !lab.waits());
    // all of it is
    save(&lab.outbox.root, ID, &old, false).unwrap();
    fs::remove_file(lab.here("d/17-ab.json")).unwrap();
    assert!(lab.store(&mut None).await.is_ok() && !lab.waits());
}

#[tokio::test]
async fn a_file_that_has_changed_is_not_sent() {
    let lab = Lab::new();
    for text in ["as it was hearD", "shorter", "as it was heard, and more"] {
        fs::write(lab.here("d/17-ab.wav"), text).unwrap();
        let error = lab.store(&mut None).await.unwrap_err();
        assert!(matches!(error, SendError::Upload(UploadError::Changed)), "{error}");
        assert!(error.at().is_none(), "the store is not to blame");
        assert!(lab.waits() && fs::read_dir(lab.there.path()).unwrap().next().is_none());
    }
}

/// On a full disk a recording is still uploaded, once, and deleted if configured.
#[tokio::test]
async fn a_full_disk_causes_no_second_upload() {
    let lab = Lab::new();
    lab.full();
    let mut kept = None;
    assert!(lab.store(&mut kept).await.is_err());
    assert!(lab.arrived() && lab.waits());
    fs::remove_dir_all(lab.there.path().join("d")).unwrap();
    assert!(lab.store(&mut kept).await.is_err());
    assert!(!lab.arrived(), "it was not sent again");
    fs::remove_dir(lab.here("outbox/.17-ab.json.new")).unwrap();
    assert!(lab.store(&mut kept).await.is_ok() && !lab.waits());

    let mut lab = Lab::new();
    lab.outbox.delete_after = true;
    lab.full();
    assert!(lab.store(&mut None).await.is_ok() && lab.arrived() && !lab.waits());
    assert!(!lab.here("d").exists());
}

/// The step after the webhook fails; the webhook is not sent again.
#[tokio::test]
async fn an_accepted_webhook_is_not_sent_again() {
    let server = MockServer::start().await;
    let once = Mock::given(method("POST")).respond_with(ResponseTemplate::new(204)).expect(1);
    once.mount(&server).await;
    let mut lab = Lab::new();
    lab.hooked(&server.uri());
    lab.outbox.delete_after = true;
    let mut kept = None;
    assert_eq!(lab.store(&mut kept).await.unwrap().next, Some(Target::Webhook));
    // it cannot be deleted
    fs::remove_file(lab.here("d/17-ab.wav")).unwrap();
    fs::create_dir(lab.here("d/17-ab.wav")).unwrap();
    for _ in 0..3 {
        assert!(lab.hook(&mut kept, 0).await.is_err() && lab.waits());
    }
    fs::remove_dir(lab.here("d/17-ab.wav")).unwrap();
    assert!(lab.hook(&mut kept, 0).await.is_ok() && !lab.waits());
    server.verify().await;
}

/// After three days, but not because a clock was set.
#[tokio::test]
async fn a_webhook_is_given_up_after_three_days_and_ten_tries() {
    let mut lab = Lab::new();
    lab.hooked("http://127.0.0.1:9/");
    for since in [0, u64::MAX] {
        let entry = Entry { path: "d/17-ab".into(), since, ..Entry::default() };
        save(&lab.outbox.root, ID, &entry, false).unwrap();
        assert_eq!(lab.hook(&mut None, 0).await.unwrap_err().at(), Some(Target::Webhook));
        let given_up = lab.hook(&mut None, WEBHOOK_TRIES).await.is_ok();
        assert_eq!(given_up, since == 0);
        assert_eq!(lab.waits(), !given_up);
    }
}

/// The folder may have become the recordings' own after the start, by a symbolic link.
#[tokio::test]
async fn an_upload_into_the_recordings_directory_deletes_nothing() {
    for inside in ["", "archive"] {
        let mut lab = Lab::new();
        let folder = lab.there.path().join("link");
        fs::create_dir_all(lab.here(inside)).unwrap();
        std::os::unix::fs::symlink(lab.here(inside), &folder).unwrap();
        let url = format!("file://{}/", folder.display());
        let settings = UploadSettings { url, ..UploadSettings::default() };
        (lab.outbox.uploader, lab.outbox.delete_after) =
            (Some(Uploader::new(&settings).unwrap()), true);
        let error = lab.store(&mut None).await.unwrap_err();
        assert!(error.to_string().contains("recordings' own directory"), "{error}");
        assert!(lab.waits());
        assert_eq!(fs::read(lab.here("d/17-ab.wav")).unwrap(), AUDIO);
    }
    // the entry of an earlier version, which did upload it
    for way in ["", "d/../"] {
        let mut lab = Lab::new();
        lab.outbox.delete_after = true;
        let folder = lab.here(way).display().to_string();
        let mut entry = load(&lab.outbox.root, ID).unwrap();
        entry.uploaded = Some(format!("file://{folder}/d/17-ab.wav"));
        save(&lab.outbox.root, ID, &entry, false).unwrap();
        lab.store(&mut None).await.unwrap();
        assert!(!lab.waits());
        assert_eq!(fs::read(lab.here("d/17-ab.wav")).unwrap(), AUDIO);
    }
}
