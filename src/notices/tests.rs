//! Events that wait: on a disk that fails, and for a server that never accepts them.

use std::fs::{self, File};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

struct Lab {
    folder: tempfile::TempDir,
    queue: Queue,
}

impl Lab {
    fn new(bounds: Bounds) -> Lab {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join(FOLDER)).expect("the folder of the events");
        let root = Arc::new(Root::new(folder.path().to_owned()));
        let webhook = Webhook::new("http://127.0.0.1:9/", None, None).expect("a webhook");
        Lab { folder, queue: Queue::new(Arc::new(Sender { root, webhook }), bounds) }
    }

    fn add(&mut self, id: &str, now: Instant) {
        let entry = Entry { body: "{}".to_owned(), since: unix().as_secs() };
        self.queue.add(id.to_owned(), entry, now);
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.path().join(FOLDER).join(format!("{id}.json"))
    }

    /// Makes the file of an event old.
    fn age(&self, id: &str, age: Duration) {
        let file = File::options().write(true).open(self.path(id)).expect("the event");
        file.set_modified(SystemTime::now() - age).expect("a time");
    }

    /// One attempt to send the next event.
    async fn attempt(&mut self, now: Instant) -> String {
        let (id, ..) = self.queue.schedule.start(now).expect("an event");
        let unsaved = self.queue.unsaved.get(&id).cloned();
        let outcome = self.queue.sender.attempt(&id, unsaved).await;
        self.queue.note(&id, outcome, now);
        id
    }

    fn waiting(&self) -> (usize, usize) {
        let files = fs::read_dir(self.folder.path().join(FOLDER)).expect("the folder");
        (self.queue.schedule.len(), files.count())
    }
}

/// The server never answers, and most events never get an attempt of their own.
#[tokio::test]
async fn events_are_given_up_after_three_days() {
    let (mut lab, now) = (Lab::new(BOUNDS), Instant::now());
    (0..20).for_each(|n| lab.add(&format!("{n:02}"), now));
    (0..19).for_each(|n| lab.age(&format!("{n:02}"), 73 * HOUR));
    let lost = LOST.get();
    let mut lab = Lab { queue: Queue::new(lab.queue.sender.clone(), BOUNDS), ..lab };
    lab.queue.look(now, true);
    lab.attempt(now).await;
    lab.queue.look(now, true);
    assert_eq!(lab.waiting(), (20, 20), "just started");
    let later = now + HOUR;
    lab.queue.look(later, false);
    assert_eq!(lab.waiting(), (20, 20), "another process has them");
    assert_eq!(lab.attempt(later).await, "01");
    assert_eq!(lab.waiting(), (19, 19), "given up after its attempt");
    lab.queue.look(later, true);
    assert_eq!(lab.waiting(), (1, 1));
    assert!(LOST.get() >= lost + 19);
}

#[tokio::test]
async fn the_oldest_events_are_given_up_when_too_many_wait() {
    let (mut lab, now) = (Lab::new(Bounds { items: 3, ..BOUNDS }), Instant::now());
    ["a", "b", "c"].iter().for_each(|id| lab.add(id, now));
    lab.attempt(now).await;
    lab.add("d", now);
    assert_eq!(lab.waiting(), (3, 3));
    assert!(!lab.path("a").exists() && lab.path("d").exists());
    assert_eq!(lab.queue.too_many, 1);
}

/// Only an event that can never be read is deleted.
#[tokio::test]
async fn an_event_that_cannot_be_read_now_is_kept() {
    let (mut lab, now) = (Lab::new(BOUNDS), Instant::now());
    fs::create_dir(lab.path("a")).expect("a folder in the event's place");
    lab.queue.look(now, true);
    lab.attempt(now).await;
    assert_eq!(lab.waiting(), (1, 1), "kept");
    assert!(!lab.queue.schedule.is_closed(Server), "it is not the server's fault");
    lab.add("b", now);
    fs::write(lab.path("b"), "{").expect("a damaged file");
    let lost = LOST.get();
    assert_eq!(lab.attempt(now).await, "b");
    assert_eq!(lab.waiting(), (1, 1), "deleted");
    assert!(LOST.get() > lost);
}

#[tokio::test]
async fn an_event_that_cannot_be_written_is_tried_from_memory_and_written_later() {
    let (mut lab, now) = (Lab::new(BOUNDS), Instant::now());
    let (folder, aside) = (lab.folder.path().join(FOLDER), lab.folder.path().join("aside"));
    fs::rename(&folder, &aside).expect("a move");
    fs::write(&folder, "").expect("a file in the folder's place");
    lab.add("a", now);
    lab.attempt(now).await;
    lab.queue.look(now, true);
    assert!(lab.queue.schedule.len() == 1 && lab.queue.schedule.is_closed(Server), "it was tried");
    fs::remove_file(&folder).expect("removed");
    fs::rename(&aside, &folder).expect("a move");
    lab.queue.save_again();
    assert!(lab.path("a").exists() && lab.queue.unsaved.is_empty());
}
