//! Tokens for the feed.
