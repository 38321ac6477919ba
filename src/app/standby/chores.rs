//! The work of a daemon while it is not active: it resets systemd's watchdog, reports its health to systemd, and serves metrics.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Listener;
#[cfg(target_os = "linux")]
use super::unmap_code::unmap_code;
use crate::boot_clock::BootInstant;
use crate::health::{Health, OwnProgram};
use crate::heartbeat::Heartbeats;
use crate::metrics::{self, MetricsEndpoint, MetricsSource};
use crate::standby::LeaseView;
use crate::systemd;
use crate::telemetry::{PushLatency, RequestCounters};

/// The longest pause between two resets of the watchdog.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The watchdog, the health report and the metrics of a daemon that is not active.
pub(super) struct Chores {
    pub(super) lease: watch::Receiver<LeaseView>,
    pub(super) heartbeats: Heartbeats,
    pub(super) own: OwnProgram,
    pub(super) latency: PushLatency,
    pub(super) requests: RequestCounters,
}

impl Chores {
    /// Resets the watchdog, reports the health to systemd and serves metrics, until this future is dropped.
    pub(super) async fn run(self, listener: Option<Listener>) -> Infallible {
        let Chores { mut lease, heartbeats, own, latency, requests } = self;
        let (_open, shutdown) = watch::channel(false);
        let mut serving = JoinSet::new();
        if let Some((_, listener)) = listener {
            let source = MetricsSource::Standby(own.clone());
            let (lease, heartbeats) = (Some(lease.clone()), heartbeats.clone());
            let endpoint = MetricsEndpoint { source, lease, heartbeats, latency, requests };
            serving.spawn(metrics::serve(listener, endpoint, shutdown));
        }
        let pause = systemd::watchdog_interval().map_or(LONGEST_PAUSE, |interval| (interval / 2).min(LONGEST_PAUSE));
        let (mut reported, mut had_changed) = (String::new(), false);
        loop {
            let health = Health::of_standby(&lease.borrow_and_update(), &own, BootInstant::now());
            let line = health.line();
            let has_changed = line != reported;
            if has_changed {
                systemd::status(&line);
                reported = line;
            }
            // After a change of the role, the code of the start, or of the time as active host, is no longer needed. The code of
            // the change itself, such as the opening of a connection, is unmapped the next time.
            #[cfg(target_os = "linux")]
            if (has_changed || had_changed)
                && let Err(error) = unmap_code()
            {
                tracing::debug!("the code of the program stays in memory: {error}");
            }
            had_changed = has_changed;
            match heartbeats.late() {
                late if late.is_empty() => systemd::watchdog(),
                late => tracing::error!("no progress: {}", late.join(", ")),
            }
            let changed = async {
                if lease.changed().await.is_err() {
                    // The agent has ended, so the view does not change again.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = changed => {}
                () = sleep(pause) => {}
            }
        }
    }
}
