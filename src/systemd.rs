//! What systemd is told: sd_notify(3). Outside of systemd all of it is silence.

/// Everything is started.
pub fn ready() {
    notify(&[sd_notify::NotifyState::Ready]);
}

/// The end has begun.
pub fn stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    // Without a supervisor there is nobody to tell, and telling it failed is no reason to stop.
    let _ = sd_notify::notify(states);
}
