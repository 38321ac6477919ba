//! What systemd is told: sd_notify(3). Outside of systemd all of it is silence.

use std::time::Duration;

use sd_notify::NotifyState;

/// Everything is started, or the configuration is read again.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The end has begun.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("ending")]);
}

/// The configuration is being read again; [`ready`] follows in any case.
pub fn reloading() {
    // systemd 253 and newer compare the time with that of their signal; older ones do not know the field.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// How it goes, in one line: what `systemctl status` shows.
pub fn status(words: &str) {
    // A line break would begin another assignment.
    let line: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
    notify(&[NotifyState::Status(&line)]);
}

/// The work makes progress.
pub fn watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// How long systemd waits between two [`watchdog`] calls; `None`: it does not.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn notify(states: &[NotifyState<'_>]) {
    // Without a supervisor there is nobody to tell, and telling it failed is no reason to stop.
    let _ = sd_notify::notify(states);
}
