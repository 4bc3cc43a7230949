//! Set-up and one-command jobs.
fn main() {}
