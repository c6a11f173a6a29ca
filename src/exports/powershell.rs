//! What PowerShell makes of objects in text, read back.
