//! The core's helper thread: what would block the core, such as changing names, is done there.

use std::{
    cell::Cell,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// Runs `operation` on the core's helper thread. If it panics, the caller gets an error: glommio would let it wait for
/// ever.
pub(super) async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let guarded = move || {
        catch_unwind(AssertUnwindSafe(operation))
            .unwrap_or_else(|_| Err(io::Error::other("the blocking operation panicked")))
    };
    let _counted = UnderWay::begin();
    glommio::executor().spawn_blocking(guarded).await
}

thread_local! {
    /// Operations that this core's helper thread has not answered.
    static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
}

/// Counts an operation until its answer came, or nobody waits for it.
struct UnderWay;

impl UnderWay {
    fn begin() -> Self {
        UNDER_WAY.set(UNDER_WAY.get() + 1);
        UnderWay
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.set(UNDER_WAY.get() - 1);
    }
}

/// Waits until the helper thread owes no answer. It panics when it has one for an executor that is gone, and a panic
/// ends the process: a clean stop would look like a crash.
pub(super) async fn helper_is_idle() {
    while UNDER_WAY.get() > 0 {
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
}
