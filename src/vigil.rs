//! Notices that the machine has slept: whoever it was connected to has long forgotten it, and its deadlines stood still.
//!
//! The clock on the wall goes on meanwhile, and the clock of timers does not. That the one has jumped the kernel tells by
//! itself, when the machine wakes and when somebody sets it; so nobody is woken only to look. Where it does not tell,
//! one looks from time to time for all.

use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

/// By how much the two clocks must part before it counts as sleep. That somebody set the clock costs a renewal.
const SLEPT: Duration = Duration::from_secs(60);

/// How often to look where the kernel does not tell.
const LOOK: Duration = Duration::from_secs(30);

/// Of so many that hear of a sleep one does something at once: each has a watcher at a server, and all wake together.
const EACH: Duration = Duration::from_millis(5);

/// How long the last of them waits at the most.
const ALL: Duration = Duration::from_secs(30);

/// Watches the clocks.
#[derive(Debug)]
pub struct Vigil {
    jumps: Jumps,
    clocks: Clocks,
    tell: watch::Sender<Duration>,
}

/// Tells of each time that the machine has slept.
#[derive(Debug, Clone)]
pub struct Sleeps(watch::Receiver<Duration>);

impl Vigil {
    /// Has the kernel tell, if it does. Must be made inside a tokio runtime.
    #[must_use]
    pub fn new() -> (Vigil, Sleeps) {
        Vigil::of(Jumps::of_the_clock(), SystemTime::now)
    }

    /// Looks every so often at `clock`.
    #[must_use]
    pub fn looking(every: Duration, clock: fn() -> SystemTime) -> (Vigil, Sleeps) {
        Vigil::of(Jumps::Asked(every), clock)
    }

    fn of(jumps: Jumps, clock: fn() -> SystemTime) -> (Vigil, Sleeps) {
        let (tell, told) = watch::channel(Duration::ZERO);
        (Vigil { jumps, clocks: Clocks::of(clock), tell }, Sleeps(told))
    }

    /// Watches until nobody wants to hear of it any more.
    pub async fn keep(mut self) {
        loop {
            tokio::select! {
                () = self.jumps.next() => {}
                () = self.tell.closed() => return,
            }
            if self.clocks.have_parted() {
                let those = u32::try_from(self.tell.receiver_count()).unwrap_or(u32::MAX);
                tracing::info!("the machine has slept, or its clock was set: connections are looked after");
                self.tell.send_replace(EACH.saturating_mul(those).min(ALL));
            }
        }
    }
}

impl Sleeps {
    /// Of a machine that never sleeps.
    #[must_use]
    pub fn none() -> Self {
        Sleeps(watch::channel(Duration::ZERO).1)
    }

    /// Returns when the machine has slept: within what time all who hear of it should act, each at a moment of its own.
    pub async fn next(&mut self) -> Duration {
        match self.0.changed().await {
            Ok(()) => *self.0.borrow_and_update(),
            // Whoever watched has ended.
            Err(_) => std::future::pending().await,
        }
    }

    /// What was told so far is of no interest any more.
    pub fn forget(&mut self) {
        self.0.mark_unchanged();
    }
}

/// The clock on the wall beside that of timers.
#[derive(Debug)]
struct Clocks {
    clock: fn() -> SystemTime,
    wall: SystemTime,
    timers: Instant,
}

impl Clocks {
    fn of(clock: fn() -> SystemTime) -> Self {
        Clocks { clock, wall: clock(), timers: Instant::now() }
    }

    /// Whether the clock on the wall has run ahead since this last was so. Small steps add up.
    fn have_parted(&mut self) -> bool {
        let (wall, timers) = ((self.clock)(), Instant::now());
        let by_timers = self.wall.checked_add(timers.duration_since(self.timers)).unwrap_or(wall);
        let ahead = wall.duration_since(by_timers);
        if ahead.as_ref().is_ok_and(|ahead| *ahead <= SLEPT) {
            return false;
        }
        // One that was set back tells nothing; what it loses by sleep after that counts.
        (self.wall, self.timers) = (wall, timers);
        ahead.is_ok()
    }
}

/// Word that the clock on the wall may have jumped.
#[derive(Debug)]
enum Jumps {
    #[cfg(target_os = "linux")]
    Told(kernel::Timer),
    Asked(Duration),
}

impl Jumps {
    fn of_the_clock() -> Self {
        #[cfg(target_os = "linux")]
        match kernel::Timer::new() {
            Ok(timer) => return Jumps::Told(timer),
            // gVisor, or a filter of system calls.
            Err(error) => tracing::debug!(%error, "the kernel does not tell that a clock was set; looking instead"),
        }
        Jumps::Asked(LOOK)
    }

    /// Returns when it is time to look.
    async fn next(&mut self) {
        match self {
            #[cfg(target_os = "linux")]
            Jumps::Told(timer) => {
                if let Err(error) = timer.cancelled().await {
                    tracing::warn!(%error, "the kernel has ceased to tell that a clock was set; looking instead");
                    *self = Jumps::Asked(LOOK);
                }
            }
            Jumps::Asked(every) => tokio::time::sleep(*every).await,
        }
    }
}

#[cfg(target_os = "linux")]
mod kernel {
    use std::io;
    use std::os::fd::OwnedFd;

    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
    use rustix::time::{timerfd_create, timerfd_settime};
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    /// A timer of the clock on the wall that goes off at the end of time, and that is cancelled whenever that clock jumps:
    /// timerfd_create(2). systemd's manager watches it in the same way.
    #[derive(Debug)]
    pub(super) struct Timer(AsyncFd<OwnedFd>);

    impl Timer {
        pub(super) fn new() -> io::Result<Self> {
            let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
            let never = Itimerspec {
                it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
                it_value: Timespec { tv_sec: i64::MAX, tv_nsec: 0 },
            };
            timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &never)?;
            // What tokio wants in its place is unsafe, because of descriptors that others may close. This one is owned.
            #[allow(deprecated)]
            let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
            Ok(Timer(timer))
        }

        /// Returns when it was cancelled; it is set for the next time by that.
        pub(super) async fn cancelled(&mut self) -> io::Result<()> {
            let read = |timer: &OwnedFd| match rustix::io::read(timer, &mut [0; 8]) {
                Ok(_) | Err(rustix::io::Errno::CANCELED) => Ok(()),
                Err(error) => Err(error.into()),
            };
            self.0.async_io(Interest::READABLE, read).await
        }

        #[cfg(test)]
        pub(super) fn descriptor(&self) -> &OwnedFd {
            self.0.get_ref()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// What the clock of this test's thread says, in seconds. Tests run on threads of their own.
    fn set(wall: u64) {
        WALL.with(|clock| clock.store(wall, Ordering::SeqCst));
    }

    fn wall() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(WALL.with(|clock| clock.load(Ordering::SeqCst)))
    }

    thread_local! {
        static WALL: AtomicU64 = const { AtomicU64::new(1_000_000) };
    }

    #[test]
    fn a_jump_ahead_is_a_sleep_and_a_step_is_none() {
        let mut clocks = Clocks::of(wall);
        let mut parted_at = |wall| {
            set(wall);
            clocks.have_parted()
        };
        assert!(!parted_at(1_000_050), "an NTP client's step");
        assert!(parted_at(1_007_200));
        assert!(!parted_at(1_007_200), "once for each sleep");
        assert!(!parted_at(1_000_000), "set back");
        assert!(parted_at(1_003_600), "and then asleep");
        assert!(!parted_at(1_003_640));
        assert!(parted_at(1_003_680), "steps add up");
    }

    #[tokio::test]
    async fn all_that_hear_of_a_sleep_have_time_for_it() {
        let (vigil, mut sleeps) = Vigil::looking(Duration::from_millis(1), wall);
        let many = vec![sleeps.clone(); 999];
        let keeping = vigil.keep();
        let hearing = async {
            set(2_000_000);
            assert_eq!(sleeps.next().await, EACH * 1_000);
            drop(many);
            set(3_000_000);
            assert_eq!(sleeps.next().await, EACH);
            let mut other = sleeps.clone();
            set(4_000_000);
            other.next().await;
            assert!(sleeps.0.has_changed().unwrap());
            sleeps.forget();
            assert!(!sleeps.0.has_changed().unwrap());
            drop(other);
            drop(sleeps);
        };
        tokio::join!(keeping, hearing);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_kernel_is_asked_to_tell_of_each_jump_of_the_clock() {
        use std::os::fd::AsRawFd;
        let timer = kernel::Timer::new().unwrap();
        // proc(5): TFD_TIMER_ABSTIME is 1, TFD_TIMER_CANCEL_ON_SET is 2; clock 0 is CLOCK_REALTIME.
        let info = format!("/proc/self/fdinfo/{}", timer.descriptor().as_raw_fd());
        let info = std::fs::read_to_string(info).unwrap();
        assert!(info.contains("clockid: 0\n") && info.contains("settime flags: 03\n"), "{info}");
    }

    /// Nobody may set this machine's clock for a test: the timer goes off instead.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_clocks_are_looked_at_when_the_kernel_tells() {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let timer = kernel::Timer::new().unwrap();
        let descriptor = timer.descriptor().try_clone().unwrap();
        let jump = move || {
            let at = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
            let soon = Itimerspec { it_interval: at(0), it_value: at(1) };
            timerfd_settime(&descriptor, TimerfdTimerFlags::empty(), &soon).unwrap();
        };
        let (vigil, mut sleeps) = Vigil::of(Jumps::Told(timer), wall);
        let hearing = async {
            for n in 1..4 {
                set(1_000_000 + n * 3_600);
                jump();
                sleeps.next().await;
            }
            drop(sleeps);
        };
        tokio::join!(vigil.keep(), hearing);
    }
}
