//! Tasks that have a name and an owner. A task is spawned here and nowhere else, and is always joined.

use std::any::Any;
use std::collections::HashMap;
use tokio::task::{Id, JoinSet};
use tracing::Instrument;

/// The tasks of one owner. Dropping the group aborts what still runs.
#[derive(Debug, Default)]
pub struct TaskGroup {
    tasks: JoinSet<()>,
    names: HashMap<Id, String>,
}

/// How a task ended.
#[derive(Debug)]
pub enum Ended {
    /// It returned.
    Returned(String),
    /// It panicked: a bug. The payload is what `std::panic::resume_unwind` takes.
    Panicked(String, Box<dyn Any + Send>),
    /// It was aborted.
    Aborted(String),
}

impl TaskGroup {
    /// Starts a task; its name is also its span.
    pub fn spawn(&mut self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        let name = name.into();
        let span = tracing::debug_span!("task", name); // entered at every poll: at `info` it costs nothing
        let handle = self.tasks.spawn(task.instrument(span));
        self.names.insert(handle.id(), name);
    }

    /// Waits for the next task to end; `None` when all have. Cancel-safe.
    pub async fn next_ended(&mut self) -> Option<Ended> {
        let ended = self.tasks.join_next_with_id().await?;
        Some(match ended {
            Ok((id, ())) => Ended::Returned(self.name(id)),
            Err(error) => {
                let name = self.name(error.id());
                match error.try_into_panic() {
                    Ok(payload) => Ended::Panicked(name, payload),
                    Err(_) => Ended::Aborted(name),
                }
            }
        })
    }

    /// Aborts what still runs and joins it, passing a panic on. For tasks that hold nothing worth finishing.
    pub async fn abort_all(mut self) {
        self.tasks.abort_all();
        while let Some(ended) = self.next_ended().await {
            if let Ended::Panicked(_, payload) = ended {
                std::panic::resume_unwind(payload);
            }
        }
    }

    /// The names of the tasks that still run.
    pub fn running(&self) -> Vec<&str> {
        self.names.values().map(String::as_str).collect()
    }

    fn name(&mut self, id: Id) -> String {
        self.names.remove(&id).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_who_ended_and_who_did_not() {
        let mut group = TaskGroup::default();
        group.spawn("quick", async {});
        group.spawn("endless", std::future::pending());
        assert!(matches!(group.next_ended().await, Some(Ended::Returned(name)) if name == "quick"));
        assert_eq!(group.running(), ["endless"]);
        group.abort_all().await;
    }

    #[tokio::test]
    async fn a_panic_is_not_lost() {
        let mut group = TaskGroup::default();
        group.spawn("broken", async { panic!("a bug") });
        assert!(matches!(group.next_ended().await, Some(Ended::Panicked(name, _)) if name == "broken"));
        assert!(group.next_ended().await.is_none());
    }

    #[tokio::test]
    #[should_panic(expected = "a bug")]
    async fn a_panic_of_a_task_that_is_aborted_is_passed_on() {
        let mut group = TaskGroup::default();
        group.spawn("broken", async { panic!("a bug") });
        tokio::task::yield_now().await;
        group.abort_all().await;
    }
}
