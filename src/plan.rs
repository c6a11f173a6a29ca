//! Which windows to list.
