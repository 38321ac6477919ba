//! Catches panics in parsers, so that a panic affects one mail and not the daemon.
//!
//! Parsers have panicked on unusual input. The message of a panic may contain text of the mail, so only its location in the
//! source is reported.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::FutureExt;

/// Calls `work`; `None` if it panics.
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Awaits `work`; `None` if it panics.
pub async fn catch_panic_async<T>(work: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(work).catch_unwind().await.ok()
}

/// Installs a panic hook that passes only the location in the source to `report`.
pub fn report_location_only(report: impl Fn(&str) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        let location = panic.location().map_or_else(|| "an unknown location".to_owned(), ToString::to_string);
        report(&location);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic)]
    fn panics_are_caught() {
        assert_eq!(catch_panic(|| 1), Some(1));
        assert_eq!(catch_panic(|| -> u8 { panic!("odd input") }), None);
        let work = catch_panic_async(async { if true { panic!("odd input") } else { 1 } });
        assert_eq!(futures_util::FutureExt::now_or_never(work), Some(None::<u8>));
    }
}
