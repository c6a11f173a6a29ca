//! The commands.

pub mod normalize;
