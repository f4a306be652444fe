//! The recorder and the outbox behind it, and what a reload does with them. Owns tasks and threads.

use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use tokio::sync::{Notify, oneshot, watch};

use crate::config::recording::RecordingPlan;
use crate::record::disk;
use crate::record::outbox::Outbox;
use crate::record::recorder::Recorder;
use crate::record::upload::Uploader;

/// Where recordings are: the directory, and whether it must be on a mounted disk.
type Place = (std::path::PathBuf, bool);

/// The parts prepared for a configuration, which cannot fail any more.
pub(super) struct Prepared {
    recorder: Option<(Place, Recorder)>,
    outbox: Option<Outbox>,
    plan: Option<RecordingPlan>,
}

impl Prepared {
    /// The recorder of new calls.
    pub(super) fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref().map(|(_, recorder)| recorder)
    }
}

/// The recorder, if calls are recorded.
pub(super) struct Recordings {
    current: Option<(Place, Recorder)>,
    /// The same, for others to follow.
    shown: watch::Sender<Option<Recorder>>,
    /// The recorders from before recording was turned off, which live calls may still use.
    former: Vec<(Place, Recorder)>,
    /// Stops the outbox thread when dropped.
    outbox: Option<oneshot::Sender<()>>,
    /// Notified when a recording is finished.
    added: Arc<Notify>,
}

impl Recordings {
    pub(super) fn new() -> Recordings {
        Recordings {
            current: None,
            shown: watch::Sender::new(None),
            former: Vec::new(),
            outbox: None,
            added: Arc::default(),
        }
    }

    /// The present recorder, for others to follow.
    pub(super) fn shown(&self) -> watch::Receiver<Option<Recorder>> {
        self.shown.subscribe()
    }

    /// Starts a recorder if the directory is new, and makes the outbox if there is an upload or a
    /// webhook.
    ///
    /// # Errors
    /// Returns an error if a thread cannot be started, or the upload not be set up. Nothing has
    /// changed then.
    pub(super) fn prepare(&self, plan: Option<RecordingPlan>) -> Result<Prepared> {
        let Some(mut plan) = plan else {
            return Ok(Prepared { recorder: None, outbox: None, plan: None });
        };
        // recordings of live calls, and those that wait to be sent, are in this directory
        if let Some(((directory, require_mount), _)) = &self.current {
            plan.settings.directory.clone_from(directory);
            plan.settings.require_mount = *require_mount;
        }
        let place = (plan.settings.directory.clone(), plan.settings.require_mount);
        let uploader = plan.upload.as_ref().map(Uploader::new).transpose();
        let uploader = uploader.context("[recording.upload] url")?;
        let outbox = plan.settings.outbox.then(|| Outbox {
            root: disk::root(&plan.settings),
            uploader,
            webhook: plan.webhook.take(),
            delete_after: plan.delete_after,
            added: self.added.clone(),
        });
        let known = self.current.iter().chain(&self.former).find(|(known, _)| *known == place);
        let recorder = match known {
            Some((_, recorder)) => recorder.clone(),
            None => {
                let added = self.added.clone();
                let new = Recorder::new(plan.settings.clone(), move || added.notify_one());
                new.context("cannot start the recording threads")?
            }
        };
        Ok(Prepared { recorder: Some((place, recorder)), outbox, plan: Some(plan) })
    }

    /// True while no directory is in use.
    pub(super) fn is_off(&self) -> bool {
        self.current.is_none()
    }

    /// Uses what has been prepared. `is_new`: the settings of the outbox may have changed.
    ///
    /// # Errors
    /// Returns an error if the outbox thread cannot be started. The rest has changed all the same.
    pub(super) fn apply(&mut self, prepared: Prepared, is_new: bool) -> Result<()> {
        let Prepared { recorder, outbox, plan } = prepared;
        if let (Some((_, recorder)), Some(plan)) = (&recorder, plan) {
            recorder.change(plan.settings);
        }
        self.former.extend(self.current.take());
        if let Some((place, _)) = &recorder {
            self.former.retain(|(former, _)| former != place);
        }
        self.shown.send_replace(recorder.as_ref().map(|(_, recorder)| recorder.clone()));
        self.current = recorder;
        if is_new {
            // the new thread waits for the lock of the one that ends
            self.outbox = None;
            self.outbox = outbox.map(Outbox::start).transpose().context("the outbox thread")?;
        }
        Ok(())
    }

    /// Stops the outbox, and writes what is left of all recordings.
    pub(super) async fn close(&mut self) {
        self.outbox = None;
        let former = self.former.drain(..).map(|(_, recorder)| recorder);
        let all = self.current.take().map(|(_, recorder)| recorder).into_iter().chain(former);
        for recorder in all.collect::<Vec<_>>() {
            close(recorder).await;
        }
    }
}

/// Closes the recorder on a thread of its own, not behind others that block.
async fn close(recorder: Recorder) {
    let (done, wait) = oneshot::channel();
    let closing = recorder.clone();
    let work = move || {
        closing.close();
        let _ = done.send(());
    };
    match thread::Builder::new().name("close".to_owned()).spawn(work) {
        Ok(_) => drop(wait.await),
        Err(_) => recorder.close(),
    }
}
