//! From calls to the writer: a queue whose audio is bounded. A call never waits: what does not fit
//! is left out, and the file has silence of the same length there.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};

use crate::media::g711::Law;
use crate::record::sidecar::Sidecar;
use crate::telemetry::COUNTERS;

/// What the writer is told; `key` is the recording's number.
pub enum Job {
    Begin {
        key: u64,
        begin: Box<Begin>,
    },
    Block {
        key: u64,
        block: Block,
    },
    End {
        key: u64,
        end: Box<End>,
    },
    /// Answered when all that was told before is on the disk, or cannot be.
    Flush(SyncSender<()>),
}

pub struct Begin {
    /// As it is so far: who, when, and the file's name.
    pub sidecar: Sidecar,
    /// Where it is to go, without ending, below the recordings' directory.
    pub path: PathBuf,
    pub law: Law,
}

/// Some frames of both tracks.
pub struct Block {
    /// Frames before it.
    pub first: u64,
    pub frames: u64,
    /// Interleaved, in the recording's law; none: silence.
    pub samples: Vec<u8>,
}

pub struct End {
    pub sidecar: Sidecar,
    /// The file's length in frames.
    pub frames: u64,
}

/// The calls' end of the queue.
#[derive(Clone)]
pub struct Queue {
    jobs: Sender<Job>,
    load: Arc<Load>,
}

/// How full it is.
#[derive(Debug)]
pub struct Load {
    pending: AtomicUsize,
    limit: usize,
    overflows: AtomicU64,
    unsynced: AtomicBool,
}

impl Load {
    /// Something was written that the disk has not been asked to keep.
    pub fn wrote(&self) {
        self.unsynced.store(true, Ordering::Relaxed);
    }

    /// Whether there was any; from now on there is none.
    pub fn take_unsynced(&self) -> bool {
        self.unsynced.swap(false, Ordering::Relaxed)
    }

    /// A block is written, or given up.
    pub fn done(&self) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
    }

    /// Blocks that were left out so far.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// So full that a disk that hangs is the likely cause.
    pub fn is_high(&self) -> bool {
        self.pending.load(Ordering::Relaxed) * 2 > self.limit
    }
}

impl Queue {
    /// `limit`: blocks that may wait.
    pub fn new(limit: usize) -> (Queue, Receiver<Job>) {
        let (jobs, receiver) = channel();
        let load = Load {
            pending: AtomicUsize::new(0),
            limit,
            overflows: AtomicU64::new(0),
            unsynced: AtomicBool::new(false),
        };
        (Queue { jobs, load: Arc::new(load) }, receiver)
    }

    pub fn load(&self) -> Arc<Load> {
        self.load.clone()
    }

    /// False when there was no room.
    pub fn block(&self, key: u64, block: Block) -> bool {
        let load = &self.load;
        if load.pending.fetch_add(1, Ordering::Relaxed) >= load.limit {
            load.pending.fetch_sub(1, Ordering::Relaxed);
            load.overflows.fetch_add(1, Ordering::Relaxed);
            COUNTERS.recording_lost_ms.fetch_add(block.frames * 20, Ordering::Relaxed);
            return false;
        }
        self.send(Job::Block { key, block });
        true
    }

    /// Never refused: there are few of these for each call.
    pub fn send(&self, job: Job) {
        // the writer ends after its senders
        let _ = self.jobs.send(job);
    }
}
