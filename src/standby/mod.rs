//! `[standby]`: several daemons share one database, and one of them at a time has the lease on it.
//!
//! `machine` decides when this host reads and writes the lease, and is pure. `bucket` reads and writes the key in the NATS
//! server. `lease_value` is the content of the key. `driver` is the task that carries out the decisions, and `agent` has the
//! handles of this task. `announcements` notices that the server refuses the subscription to the key. `standby_file` is the
//! file from which the commands on this host read the state of the daemon. `restore` runs the program that fetches a copy of
//! the database. `probe` reads the lease for commands, and can ask the holder to release the lease.

mod agent;
mod announcements;
mod bucket;
mod connection;
mod driver;
mod hashes;
mod lease_value;
mod machine;
mod probe;
mod restore;
mod settings;
mod standby_file;
mod view;

pub use agent::{AGENT_HEARTBEAT, LeaseAgent};
pub use connection::LeasePlace;
pub use hashes::ConfigurationHashes;
pub use lease_value::{DataOwner, LeaseStage, LeaseValue};
pub use machine::{KnownData, Member};
pub use probe::{Handover, LeaseHolder, check_bucket, find_holder, request_release};
pub use restore::{RestoreError, restore_problem, run_restore};
pub use settings::{RestoreSettings, StandbySettings};
pub use standby_file::{Report, StandbyFile, StandbyFileError};
pub use view::{LeaseState, LeaseView, Takeover};
