//! A panic costs the mail that caused it, never the daemon.
//!
//! Parsers have panicked on odd input; what is wrapped here ends without an answer instead. The words of a panic may hold
//! what the mail said, so only the place is told.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures_util::FutureExt;

/// Does the work; `None` if it panicked.
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Awaits the work; `None` if it panicked.
pub async fn catch_panic_async<T>(work: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(work).catch_unwind().await.ok()
}

/// From now on a panic is told by its place in the program alone.
pub fn report_location_only(tell: impl Fn(&str) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        tell(&place);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic)]
    fn a_panic_is_no_answer_and_not_the_end() {
        assert_eq!(catch_panic(|| 1), Some(1));
        assert_eq!(catch_panic(|| -> u8 { panic!("odd input") }), None);
        let work = catch_panic_async(async { if true { panic!("odd input") } else { 1 } });
        assert_eq!(futures_util::FutureExt::now_or_never(work), Some(None::<u8>));
    }
}
