//! Where calls that are up take commands, by their ids.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::call::Command;

/// Commands that may wait for one call.
const WAITING: usize = 16;

type Calls = HashMap<String, mpsc::Sender<Command>>;

#[derive(Clone, Default)]
pub struct Controls(Arc<Mutex<Calls>>);

impl Controls {
    /// A panic elsewhere does not make the table wrong.
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins: what is asked of it comes out here.
    pub fn add(&self, call: &str) -> mpsc::Receiver<Command> {
        let (to_call, commands) = mpsc::channel(WAITING);
        self.lock().insert(call.to_owned(), to_call);
        commands
    }

    pub fn remove(&self, call: &str) {
        self.lock().remove(call);
    }

    /// Ids of the calls that are up.
    pub fn ids(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// False when there is no such call, or it has too much to do.
    pub fn send(&self, call: &str, command: Command) -> bool {
        self.lock().get(call).is_some_and(|to| to.try_send(command).is_ok())
    }
}
