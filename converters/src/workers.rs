//! Runs a list of work items on a few threads, in the order of the list, and reports on the caller's thread.
//!
//! Items are taken one by one (not split in halves as parallel iterators do), so reading and writing stay nearly sequential.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use crate::Error;

/// What a worker tells.
pub(crate) enum Event<R> {
    /// So many more bytes are done.
    Bytes(u64),
    /// Item number `.0` is finished.
    Done(usize, R),
}

/// Reports waiting for the caller: enough that a worker never waits while the caller syncs a batch to disk.
const QUEUE: usize = 4096;

/// Calls `work(item, report)` for every item and `on(event)` on this thread. The first error, of either, stops everything.
pub(crate) fn run<T: Sync, R: Send, S: Default + Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T, &mut S, &dyn Fn(u64)) -> Result<R, Error> + Sync,
    mut on: impl FnMut(Event<R>) -> Result<(), Error>,
) -> Result<(), Error> {
    let threads = threads.clamp(1, items.len().max(1));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|n| format!("convert-{n}")).build();
    let pool = pool.map_err(|error| Error::Choice(format!("cannot start {threads} threads: {error}")))?;
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut outcome = Ok(());
    pool.in_place_scope(|scope| {
        let (sender, receiver) = sync_channel(QUEUE);
        for _ in 0..threads {
            let sender = sender.clone();
            let (next, stop, work) = (&next, &stop, &work);
            scope.spawn(move |_| {
                let mut scratch = S::default();
                // A closed channel means that the caller has stopped; the result no longer matters then.
                let report = |bytes| drop(sender.send(Ok(Event::Bytes(bytes))));
                while !stop.load(Ordering::Relaxed) {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    let result = work(item, &mut scratch, &report).map(|done| Event::Done(index, done));
                    let failed = result.is_err();
                    if sender.send(result).is_err() || failed {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for event in receiver {
            if outcome.is_ok()
                && let Err(error) = event.and_then(&mut on)
            {
                stop.store(true, Ordering::Relaxed);
                outcome = Err(error);
            }
        }
    });
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_and_bytes_add_up() {
        let items: Vec<u64> = (0..1000).collect();
        let (mut bytes, mut seen) = (0, vec![0; items.len()]);
        run::<_, _, ()>(
            3,
            &items,
            |item, _, report| {
                report(*item);
                Ok(item * 2)
            },
            |event| {
                match event {
                    Event::Bytes(n) => bytes += n,
                    Event::Done(index, double) => {
                        assert_eq!(double, 2 * index as u64);
                        seen[index] += 1;
                    }
                }
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(bytes, 499_500);
        assert!(seen.iter().all(|count| *count == 1));
    }

    #[test]
    fn an_error_stops_the_rest() {
        let items: Vec<usize> = (0..100_000).collect();
        let started = AtomicUsize::new(0);
        let result = run::<_, (), ()>(
            2,
            &items,
            |item, _, _| {
                started.fetch_add(1, Ordering::Relaxed);
                if *item == 10 { Err(Error::Cancelled) } else { Ok(()) }
            },
            |_| Ok(()),
        );
        assert!(matches!(result, Err(Error::Cancelled)));
        assert!(started.into_inner() < items.len(), "the list was not worked to its end");
    }

    #[test]
    fn an_error_of_the_caller_stops_the_workers() {
        let items = vec![(); 100_000];
        let result = run::<_, (), ()>(2, &items, |(), _, _| Ok(()), |_| Err(Error::Cancelled));
        assert!(matches!(result, Err(Error::Cancelled)));
    }
}
