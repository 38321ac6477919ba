//! Notifies systemd with sd_notify(3). Without systemd, these functions do nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// Reports that the start or a reload is complete.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Reports that the program is stopping.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// Reports that a reload begins. [`ready`] must follow, also after a failure.
pub fn reloading() {
    // For a unit with Type=notify-reload (systemd 253), systemd compares `now` with the time at which it sent SIGHUP.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Sets the status line of `systemctl status`.
pub fn status(text: &str) {
    // A line break would start another assignment in the notification.
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
    notify(&[NotifyState::Status(&line)]);
}

/// Resets the watchdog. If loops are running, call this function only while all of them make progress.
pub fn watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// The longest time between two [`watchdog`] calls; `None` if the watchdog is off.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn notify(states: &[NotifyState<'_>]) {
    // Without systemd there is no notification socket. A failed notification is no reason to stop.
    let _ = sd_notify::notify(states);
}
