//! The queue from the calls to the writer, with a limit on queued audio. A call never waits: a
//! block that does not fit is dropped, and the file has silence of the same length there.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};

use crate::media::g711::Law;
use crate::record::counters;
use crate::record::sidecar::Sidecar;
use crate::record::wav::Encoding;

/// A message to the writer; `key` is the recording's number.
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
    /// Answered once everything sent before is on disk, or has failed to be written. At the
    /// program's end (`last`), audio that still waits for the disk counts as lost.
    Flush {
        done: SyncSender<()>,
        last: bool,
    },
}

/// Start of a recording.
pub struct Begin {
    /// The sidecar as far as it is known at the start.
    pub sidecar: Sidecar,
    /// Final path below the recordings' directory, without extension.
    pub path: PathBuf,
    pub law: Law,
    /// The encoding of the file.
    pub encoding: Encoding,
    /// Milliseconds of audio that the writer has dropped, or cannot write at the moment.
    pub unwritten_ms: Arc<AtomicU64>,
}

/// Consecutive frames of both tracks.
pub struct Block {
    /// Frames in the file before this block.
    pub first: u64,
    pub frames: u64,
    /// Interleaved, in the recording's law; empty for silence.
    pub samples: Vec<u8>,
}

/// End of a recording.
pub struct End {
    pub sidecar: Sidecar,
    /// The file's length in frames.
    pub frames: u64,
}

/// The sending end of the queue, for calls.
#[derive(Clone)]
pub struct Queue {
    jobs: Sender<Job>,
    load: Arc<Load>,
}

/// Fill level of the queue, shared by both ends and the closer.
#[derive(Debug)]
pub struct Load {
    /// Blocks sent, and neither written nor given up yet.
    pending: AtomicUsize,
    /// Maximum of `pending`.
    limit: usize,
    /// Blocks dropped so far because the queue was full.
    overflows: AtomicU64,
    /// True if data was written since the disk was last synced.
    unsynced: AtomicBool,
}

impl Load {
    /// Notes that there is written data to be synced.
    pub fn wrote(&self) {
        self.unsynced.store(true, Ordering::Relaxed);
    }

    /// Returns true if there is written data to be synced, and clears that note.
    pub fn take_unsynced(&self) -> bool {
        self.unsynced.swap(false, Ordering::Relaxed)
    }

    /// Takes one block off the count: it was written or given up.
    pub fn done(&self) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number of blocks dropped so far because the queue was full.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// Returns the number of blocks that are neither written nor given up.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed) as u64
    }

    /// Returns true if the queue is more than half full: most likely the disk hangs.
    pub fn is_high(&self) -> bool {
        self.pending.load(Ordering::Relaxed) * 2 > self.limit
    }
}

impl Queue {
    /// Creates a queue that holds at most `limit` blocks.
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

    /// Queues a block; returns false, and drops it, if the queue is full or the writer is gone.
    pub fn block(&self, key: u64, block: Block) -> bool {
        let load = &self.load;
        if load.pending.fetch_add(1, Ordering::Relaxed) >= load.limit {
            load.pending.fetch_sub(1, Ordering::Relaxed);
            load.overflows.fetch_add(1, Ordering::Relaxed);
            counters::LOST_MS.add(block.frames * 20);
            return false;
        }
        let ms = block.frames * 20;
        let sent = self.jobs.send(Job::Block { key, block }).is_ok();
        if !sent {
            load.done();
            counters::LOST_MS.add(ms);
        }
        sent
    }

    /// Queues a job without checking the limit: apart from blocks, there are few per call.
    pub fn send(&self, job: Job) {
        // without a writer, the blocks are counted as lost
        let _ = self.jobs.send(job);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_lost_and_counted_when_the_writer_is_gone() {
        let (queue, jobs) = Queue::new(10);
        drop(jobs);
        let before = counters::LOST_MS.get();
        for n in 0..20 {
            assert!(!queue.block(1, Block { first: n * 10, frames: 10, samples: Vec::new() }));
        }
        // other tests may count as well
        assert!(counters::LOST_MS.get() - before >= 4000);
        assert_eq!((queue.load().pending(), queue.load().overflows()), (0, 0));
    }
}
