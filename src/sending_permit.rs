//! Whether an attempt to deliver may begin. A daemon that shares its database with other hosts may send only while its lease
//! lasts.

use tokio::sync::watch;

use crate::boot_clock::BootInstant;

/// The error of an attempt that was not permitted.
pub const NO_PERMIT: &str = "not sent: the lease of this host has ended, or is about to end";

/// The permission to begin attempts. The permission ends at a point in time, and no message announces its end. So the permission
/// also ends for a process that is stopped (SIGSTOP) at that time.
#[derive(Debug, Clone, Default)]
pub struct SendingPermit {
    /// `None`: the permission never ends.
    until: Option<watch::Receiver<BootInstant>>,
}

impl SendingPermit {
    /// A permission that ends at the time in `until`.
    #[must_use]
    pub fn until(until: watch::Receiver<BootInstant>) -> Self {
        SendingPermit { until: Some(until) }
    }

    /// Whether an attempt may begin now.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.until.as_ref().is_none_or(|until| BootInstant::now() < *until.borrow())
    }

    /// Waits until the end of the permission is set again. If the end was set since the previous call of this function, the
    /// function returns at once. If the permission never ends, this function never returns.
    pub async fn changed(&mut self) {
        let changed = match &mut self.until {
            Some(until) => until.changed().await,
            None => std::future::pending().await,
        };
        if changed.is_err() {
            // The lease is not renewed any longer, so no later change can follow.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_permit_ends_without_an_event() {
        assert!(SendingPermit::default().is_valid());
        let (until, permit) = watch::channel(BootInstant::now().plus(Duration::from_secs(60)));
        let mut permit = SendingPermit::until(permit);
        assert!(permit.is_valid());
        until.send(BootInstant::now()).unwrap();
        permit.changed().await;
        assert!(!permit.is_valid());
    }
}
