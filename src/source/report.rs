//! The work that a run left undone, and why. A single pass reports it at its end.

/// Why a `--once` pass did not read everything of a stream.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Left {
    /// For the operator.
    pub why: String,
    /// What kind of fault it was.
    pub kind: LeftKind,
}

/// The kind decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LeftKind {
    /// Could not be read now; a later run may.
    Passing,
    /// Microsoft could not be reached.
    Network,
    /// A permission or subscription is missing.
    Permission,
    /// Routine reads are on hold for the next run: reported, but not an error.
    Held,
    /// `DLP.All` without `ActivityFeed.ReadDlp`: reported, but not an error.
    Optional,
    /// Sign-in failed.
    Authentication,
}

/// How a run ended.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// The content that a single pass did not read, and why.
    pub left: Vec<Left>,
}

impl Report {
    /// The worst kind among `left`, without notices.
    pub fn worst(&self) -> Option<LeftKind> {
        self.left.iter().map(|l| l.kind).filter(|k| !matches!(k, LeftKind::Optional | LeftKind::Held)).max()
    }
}
