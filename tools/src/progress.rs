//! The progress bar and the output of commands.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar of `len` steps on stderr, which is invisible if stderr is no terminal.
pub fn bar(len: usize) -> ProgressBar {
    let bar = ProgressBar::new(len as u64);
    bar.set_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({elapsed}, {eta} to go)")
            .expect("a valid template"),
    );
    if !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

/// Prints to stdout. Returns false if the reader has closed the pipe, as `head` does.
///
/// # Panics
/// If stdout cannot be written for another reason.
pub fn print(text: &str) -> bool {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => false,
        Err(e) => panic!("cannot write to stdout: {e}"),
    }
}
