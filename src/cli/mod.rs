//! The commands.

pub mod plugin;
pub mod schema;
pub mod validate;
