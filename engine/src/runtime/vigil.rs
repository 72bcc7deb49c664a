//! Keeps an executor from falling asleep while its tasks wait to run.
//!
//! glommio 0.9 takes "the preempt timer was up before the first task ran" for "there was nothing to run": its
//! `run_task_queues` then returns that nothing ran, and the main loop parks, with runnable tasks in its queue, until
//! something from outside wakes it. The window is the moment between arming the timer and looking at the queue, so it
//! takes a thread that loses its CPU just there, or a wake-up by another core that comes twice. On cores of one's own
//! that is rare; where executors share one it hung one start in a hundred, and transfers between cores too.
//!
//! From outside of glommio one can keep it awake: before it parks it asks every channel between executors that some
//! task waits on whether anything has come. So each executor has a channel to itself, for each of its task queues.
//! Whoever wakes a task puts a token into it (a [`Guarded`] task's waker does that), and a watchman, who waits on it,
//! takes the token out only when all that was runnable has run. Parking with a token in the channel is thus
//! impossible: the question alone wakes the watchman and makes glommio look at its queue again. Order holds only
//! within a queue, so each queue has a watchman and a token of its own: a watchman of another queue would take the
//! token out before these tasks have run.
//!
//! Not covered are wake-ups from threads that are no executors; these are rare, and the heartbeat of the executor
//! bounds how late they come.

use std::{
    cell::{Cell, OnceCell},
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{
    StreamExt,
    future::{join, join_all},
};
use glommio::{
    TaskQueueHandle,
    channels::shared_channel::{ConnectedReceiver, ConnectedSender, new_bounded},
};

/// How often in a row glommio may try to park before the watchman gets to run. Each try uses up some of the wakers that
/// he left, at most three.
const TRIES_IN_A_ROW: usize = 16;
const WAKERS: usize = 3 * TRIES_IN_A_ROW;

thread_local! {
    static VIGILS: [OnceCell<Vigil>; CLASSES] = const { [const { OnceCell::new() }; CLASSES] };
}

/// How many queues an executor has for guarded tasks.
pub(super) const CLASSES: usize = 2;

/// What the wakers of an executor's tasks touch.
struct Vigil {
    token: ConnectedSender<()>,
    woken: Cell<bool>,
}

/// Begins the vigil over the tasks of `queues`, on this executor. Once per thread, before any [`Guarded`] task of it is
/// spawned. The place of a queue is the class of its tasks.
///
/// Must be called from another queue, whose preempt timer outlasts any pause of the thread: nobody watches until the
/// watchmen have run once, which they do in the pass over the queues in which this returns. Should the first have run
/// and the second not when that pass ends, the first one's token keeps the executor awake.
pub(super) async fn begin(queues: [TaskQueueHandle; CLASSES]) {
    let ends = join_all(queues.map(|_| {
        let (token, awaited) = new_bounded(1);
        join(token.connect(), awaited.connect())
    }));
    for (class, (queue, (token, awaited))) in queues.into_iter().zip(ends.await).enumerate() {
        let vigil = Vigil { token, woken: Cell::new(true) };
        let begun = VIGILS.with(|vigils| vigils[class].set(vigil).is_ok());
        assert!(begun, "a thread runs one executor in its life");
        let watching = glommio::spawn_local_into(watch(class, awaited), queue);
        watching.expect("the queue exists").detach(); // why: whoever calls this made it, on this executor
    }
}

/// The watchman's task. Its own wakers leave no token.
async fn watch(class: usize, mut awaited: ConnectedReceiver<()>) {
    let mut calls: Option<(Arc<Calls>, Waker)> = None;
    std::future::poll_fn(|context| {
        let (calls, waker) = calls.get_or_insert_with(|| {
            let calls = Arc::new(Calls { answer: AtomicUsize::new(WAKERS), watchman: context.waker().clone() });
            (Arc::clone(&calls), Waker::from(calls))
        });
        let mut asked = Context::from_waker(waker);
        let mut missing = calls.answer.swap(0, Relaxed);
        while missing > 0 {
            match awaited.poll_next_unpin(&mut asked) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => missing -= 1,
            }
        }
        VIGILS.with(|vigils| {
            if let Some(vigil) = vigils[class].get()
                && vigil.woken.replace(false)
            {
                // What was woken before this runs before the watchman's next turn, as tasks run in the order in which
                // they were woken.
                vigil.leave_token();
                context.waker().wake_by_ref();
            }
        });
        Poll::Pending
    })
    .await
}

impl Vigil {
    fn leave_token(&self) {
        // Refused when there is one already, which is as good.
        let _ = self.token.try_send(());
    }
}

/// A task of this executor and this class was woken.
fn note_wake(class: usize) {
    // Inaccessible while the thread ends: then nothing sleeps any more.
    let _ = VIGILS.try_with(|vigils| {
        if let Some(vigil) = vigils[class].get()
            && !vigil.woken.replace(true)
        {
            vigil.leave_token();
        }
    });
}

/// Counts how many of the watchman's wakers were used.
struct Calls {
    answer: AtomicUsize,
    watchman: Waker,
}

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.answer.fetch_add(1, Relaxed);
        self.watchman.wake_by_ref();
    }
}

/// A task whose wake-ups cannot be slept through.
pub(super) struct Guarded<F> {
    class: usize,
    task: Pin<Box<F>>,
    waker: Option<(Waker, Waker)>,
}

/// Makes `task` one whose wake-ups cannot be slept through. To be spawned at once, on the executor this is called on,
/// into the queue of `class`.
pub(super) fn guarded<F: Future>(class: usize, task: F) -> Guarded<F> {
    note_wake(class);
    Guarded { class, task: Box::pin(task), waker: None }
}

impl<F: Future> Future for Guarded<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Guarded { class, task, waker } = &mut *self;
        let inner = context.waker();
        let (_, ours) = match waker {
            Some(known) if known.0.will_wake(inner) => known,
            _ => waker
                .insert((inner.clone(), Waker::from(Arc::new(NotingWaker { class: *class, inner: inner.clone() })))),
        };
        task.as_mut().poll(&mut Context::from_waker(ours))
    }
}

struct NotingWaker {
    class: usize,
    inner: Waker,
}

impl Wake for NotingWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        note_wake(self.class);
        self.inner.wake_by_ref();
    }
}
