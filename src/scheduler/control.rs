//! What other threads may tell a running worker without a message: wake up, end, give up this step.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

/// How a worker is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    NotYet,
    /// Nobody uses the model: as soon as nothing runs, also in the middle of loading.
    Idle,
    /// At once; running requests fail.
    Now,
}

/// No request: none has this number.
const NOBODY: u64 = 0;
/// The request that had the step to itself has left, and whoever noticed is about to raise the abort flag ...
const LEFT: u64 = u64::MAX;
/// ... and has raised it.
const RAISED: u64 = u64::MAX - 1;

/// Shared by a worker's thread and everybody who holds one of its requests.
#[derive(Debug)]
pub(super) struct Control {
    thread: OnceLock<Thread>,
    end: AtomicU8,
    /// The engine's abort flag ([`crate::engine::Settings::abort`]).
    abort: Arc<AtomicBool>,
    /// The request that has the running step to itself.
    alone: AtomicU64,
}

impl Control {
    pub(super) fn new(abort: Arc<AtomicBool>) -> Self {
        Control { thread: OnceLock::new(), end: AtomicU8::new(0), abort, alone: AtomicU64::new(NOBODY) }
    }

    /// Called by the worker's thread: it is the one to wake.
    pub(super) fn adopt(&self) {
        let _ = self.thread.set(std::thread::current());
    }

    /// Makes the worker look around. Costs next to nothing while it is busy.
    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Ends the worker; a stronger end overrides a weaker one.
    pub(super) fn end(&self, end: End) {
        self.end.fetch_max(end as u8, Ordering::AcqRel);
        if end == End::Now {
            // Stays raised: there is no step after this one.
            self.abort.store(true, Ordering::Release);
        }
        self.wake();
    }

    pub(super) fn ending(&self) -> End {
        match self.end.load(Ordering::Acquire) {
            0 => End::NotYet,
            1 => End::Idle,
            _ => End::Now,
        }
    }

    /// A step begins, of this request alone or (`None`) of several.
    pub(super) fn begin_step(&self, alone: Option<u64>) {
        self.alone.store(alone.unwrap_or(NOBODY), Ordering::Release);
    }

    /// The step has ended, by itself or not; the abort flag is ready for the next one.
    pub(super) fn end_step(&self) {
        loop {
            let state = self.alone.load(Ordering::Acquire);
            if state == LEFT {
                // A moment: the flag that is about to be raised must not hit the next step.
                std::hint::spin_loop();
            } else if self.alone.compare_exchange(state, NOBODY, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                if state == RAISED && self.ending() != End::Now {
                    self.abort.store(false, Ordering::Release);
                }
                return;
            }
        }
    }

    /// The client of this request has left. Ends the running step if it computes for nobody else.
    pub(super) fn left(&self, request: u64) {
        let alone = self.alone.compare_exchange(request, LEFT, Ordering::AcqRel, Ordering::Relaxed);
        if alone.is_ok() {
            self.abort.store(true, Ordering::Release);
            self.alone.store(RAISED, Ordering::Release);
        }
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_step_of_the_leaving_request_alone_is_aborted() {
        let abort = Arc::new(AtomicBool::new(false));
        let control = Control::new(abort.clone());
        control.begin_step(Some(7));
        control.left(8);
        assert!(!abort.load(Ordering::Acquire), "somebody else's step");
        control.left(7);
        assert!(abort.load(Ordering::Acquire));
        control.end_step();
        assert!(!abort.load(Ordering::Acquire), "ready for the next step");
        control.left(7);
        control.begin_step(None);
        control.left(7);
        assert!(!abort.load(Ordering::Acquire), "a step of several");
    }

    #[test]
    fn a_stronger_end_overrides_a_weaker_one_only() {
        let control = Control::new(Arc::default());
        control.end(End::Now);
        control.end(End::Idle);
        assert_eq!(control.ending(), End::Now);
    }
}
