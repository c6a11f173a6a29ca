//! Notifies the service manager: ready, reloading, stopping, and that the loop of `run` is alive.
//!
//! The protocol is sd_notify(3). Without `NOTIFY_SOCKET` nothing is sent. A process that is not the service's main one
//! sends nothing, either: otherwise an agent that runs this program as a child would seem to stop when this program
//! does.

use std::time::Duration;

use sd_notify::NotifyState;

/// The watchdog is fed this many times in its period, so that one late turn of the loop does not kill the process.
const BEATS_PER_PERIOD: u32 = 4;

/// The service manager's socket, if there is one.
#[derive(Debug)]
pub(super) struct Service {
    listens: bool,
    beat: Option<Duration>,
}

impl Service {
    /// Finds the socket in the environment.
    pub(super) fn find() -> Self {
        // Set by systemd for the main process, and inherited by its child processes.
        let main = std::env::var("SYSTEMD_EXEC_PID").ok().and_then(|pid| pid.parse::<u32>().ok());
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some() && main.is_none_or(|main| main == std::process::id());
        let beat = sd_notify::watchdog_enabled().filter(|_| listens).map(|period| period / BEATS_PER_PERIOD);
        Self { listens, beat }
    }

    /// How often [`Service::alive`] is to be called.
    pub(super) fn beat(&self) -> Option<Duration> {
        self.beat
    }

    /// Everything is started, or a reload is over.
    pub(super) fn ready(&self, status: &str) {
        self.notify_manager(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The configuration is being read again.
    pub(super) fn reloading(&self) {
        // `Type=notify-reload` waits for the time of the reload; `Type=notify` does not read it.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.notify_manager(&[NotifyState::Reloading, now]),
            Err(_) => self.notify_manager(&[NotifyState::Reloading]),
        }
    }

    /// Sources and sinks are being stopped.
    pub(super) fn stopping(&self) {
        self.notify_manager(&[NotifyState::Stopping]);
    }

    /// The loop has turned.
    pub(super) fn alive(&self) {
        if self.beat.is_some() {
            self.notify_manager(&[NotifyState::Watchdog]);
        }
    }

    fn notify_manager(&self, states: &[NotifyState<'_>]) {
        if self.listens
            && let Err(error) = sd_notify::notify(states)
        {
            tracing::warn!("the service manager cannot be told `{}`: {error}", states[0]);
        }
    }
}
