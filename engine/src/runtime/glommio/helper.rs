//! The core's helper thread: what would block the core, such as changing names, is done there.

use std::{
    cell::Cell,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// Runs `operation` on the core's helper thread. If it panics, the caller gets an error: glommio would let it wait for
/// ever. Once the core ends ([`settle`]) nothing is begun any more, and the caller waits until it is gone.
pub(super) async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if ENDING.get() {
        return std::future::pending().await;
    }
    let guarded = move || {
        catch_unwind(AssertUnwindSafe(operation))
            .unwrap_or_else(|_| Err(io::Error::other("the blocking operation panicked")))
    };
    // A task of its own waits for the answer, so that it is waited for though the caller may be gone.
    let (answer, answered) = async_channel::bounded(1);
    UNDER_WAY.set(UNDER_WAY.get() + 1);
    super::spawn_into(super::SERVING, async move {
        let outcome = glommio::executor().spawn_blocking(guarded).await;
        UNDER_WAY.set(UNDER_WAY.get() - 1);
        // Fails if nobody waits.
        let _ = answer.try_send(outcome);
    });
    answered.recv().await.unwrap_or_else(|_| Err(io::Error::other("the core ended")))
}

thread_local! {
    /// Operations that this core's helper thread has not answered.
    static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
    /// The core ends.
    static ENDING: Cell<bool> = const { Cell::new(false) };
}

/// Ends the helper's work: none is begun any more, and what is under way is waited for. The helper panics when it has
/// an answer for an executor that is gone, and a panic ends the process: a clean stop would look like a crash.
pub(super) async fn settle() {
    ENDING.set(true);
    while UNDER_WAY.get() > 0 {
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
}
