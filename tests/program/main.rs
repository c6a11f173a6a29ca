//! The program as an operator runs it: each test starts the real binary.

mod beneath;
mod book;
mod check;
mod cluster;
mod container;
mod kill;
mod network;
mod operator;
mod packages;
mod pictures;
mod readme;
mod receipts;
mod reconcile;
mod report;
mod tenant;
mod tenants;
mod terminal;
mod threats;
mod validate;
mod watched;
mod wrong;
