//! Sentinel's table `OfficeActivity`: its columns and the members they came from.
