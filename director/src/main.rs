//! The `director` command.
fn main() {}
