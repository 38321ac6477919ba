//! Mails that arrive while the servers fail.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use testkit::dovecot::Dovecot;
use testkit::payments::payment;

/// The pause between two mails.
const PAUSE: Duration = Duration::from_millis(50);

/// The mails that arrive.
pub(crate) struct Load {
    pub(crate) dovecot: Dovecot,
    /// How many have arrived: the payments 1 to this number.
    pub(crate) sent: AtomicUsize,
    is_over: AtomicBool,
}

impl Load {
    pub(crate) fn new(dovecot: Dovecot) -> Load {
        Load { dovecot, sent: AtomicUsize::new(0), is_over: AtomicBool::new(false) }
    }

    /// Delivers mails until the end.
    pub(crate) fn deliver(&self) {
        while !self.is_over.load(Ordering::SeqCst) {
            let n = self.sent.load(Ordering::SeqCst) + 1;
            self.dovecot.deliver("payments@shop.example", &payment(n));
            self.sent.store(n, Ordering::SeqCst);
            std::thread::sleep(PAUSE);
        }
    }
}

/// Ends the delivery when it is dropped, so that the thread also ends if an assertion fails.
pub(crate) struct EndOnDrop<'a>(pub(crate) &'a Load);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}
