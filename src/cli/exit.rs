//! Every exit code, and which error has which.

use std::process::ExitCode;

use crate::api::GraphFault;
use crate::checkpoint::moving::MoveError;
use crate::source::backfill::BackfillError;
use crate::source::heal::requests::HealError;
use crate::source::report::LeftKind;
use crate::source::{FaultKind, SourceError, fault_kind};

/// Why the process ends. The numbers follow sysexits(3) and are part of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Wrong command line.
    Usage = 64,
    /// Part of the input could not be read.
    Data = 65,
    /// An input file cannot be opened.
    NoInput = 66,
    /// Microsoft could not be reached.
    Network = 69,
    /// A bug in this program.
    Internal = 70,
    /// The state store cannot be used.
    State = 73,
    /// `--once` left content unread, which was printed; `reconcile` found events missing.
    Left = 75,
    /// A permission, subscription or audit setting is missing in the tenant.
    Permission = 76,
    /// Sign-in failed.
    Authentication = 77,
    /// The configuration.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl From<LeftKind> for Exit {
    fn from(kind: LeftKind) -> Exit {
        match kind {
            LeftKind::Passing => Exit::Left,
            LeftKind::Network => Exit::Network,
            LeftKind::Permission => Exit::Permission,
            LeftKind::Authentication => Exit::Authentication,
            LeftKind::Optional | LeftKind::Held => Exit::Done,
        }
    }
}

impl From<FaultKind> for Exit {
    fn from(kind: FaultKind) -> Exit {
        match kind {
            FaultKind::Notice => Exit::Done,
            FaultKind::Network => Exit::Network,
            FaultKind::Permission => Exit::Permission,
            FaultKind::Authentication => Exit::Authentication,
            FaultKind::State => Exit::State,
        }
    }
}

impl From<&BackfillError> for Exit {
    fn from(error: &BackfillError) -> Exit {
        match error {
            BackfillError::Range { .. }
            | BackfillError::TooOld { .. }
            | BackfillError::TypeNotRead(_)
            | BackfillError::Unfinished { .. }
            | BackfillError::Nothing => Exit::Usage,
            BackfillError::Busy | BackfillError::SourceEnded => Exit::Left,
            BackfillError::Source(error) => error.into(),
        }
    }
}

impl From<&HealError> for Exit {
    fn from(error: &HealError) -> Exit {
        match error {
            HealError::Range { .. } | HealError::TypeNotRead(_) | HealError::NotKnown { .. } => Exit::Usage,
            HealError::Cloud(_) => Exit::Config,
            HealError::Busy | HealError::SourceEnded => Exit::Left,
            HealError::Graph(error) if error.is_sign_in() => Exit::Authentication,
            HealError::Graph(error) if error.fault() == GraphFault::Denied => Exit::Permission,
            HealError::Graph(_) => Exit::Network,
            HealError::Source(error) => error.into(),
        }
    }
}

impl From<&MoveError> for Exit {
    fn from(error: &MoveError) -> Exit {
        match error {
            MoveError::PassesOver { .. } | MoveError::TooOld { .. } | MoveError::Future { .. } => Exit::Usage,
            MoveError::State(_) => Exit::State,
        }
    }
}

impl Exit {
    /// The exit code of this number; an unknown number counts as a bug.
    pub fn of_number(number: u8) -> Exit {
        const ALL: [Exit; 11] = [
            Exit::Done,
            Exit::Usage,
            Exit::Data,
            Exit::NoInput,
            Exit::Network,
            Exit::Internal,
            Exit::State,
            Exit::Left,
            Exit::Permission,
            Exit::Authentication,
            Exit::Config,
        ];
        ALL.into_iter().find(|exit| *exit as u8 == number).unwrap_or(Exit::Internal)
    }
}

impl From<&SourceError> for Exit {
    fn from(error: &SourceError) -> Exit {
        match error {
            SourceError::State { .. } => Exit::State,
            SourceError::Api { source } => fault_kind(source).into(),
            SourceError::Rules { .. } | SourceError::File { .. } => Exit::Config,
            SourceError::Internal(_) => Exit::Internal,
        }
    }
}
