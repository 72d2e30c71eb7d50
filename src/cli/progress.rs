//! Bars and spinners: one look for all verbs, on stderr, and nothing at all when stderr is not a terminal.

use std::borrow::Cow;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::eval::Watch;

/// Bars that are drawn together.
pub fn group() -> MultiProgress {
    MultiProgress::new()
}

/// A bar over `total` bytes, with rate and time left.
pub fn bytes(total: u64, message: impl Into<Cow<'static, str>>) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg:<28!} {percent:>3}% [{bar:24}] {decimal_bytes:>9}/{decimal_total_bytes:<9} {decimal_bytes_per_sec:>10} {eta:>4}",
    )
    .expect("the template is a constant")
    .progress_chars("=> ");
    ProgressBar::new(total).with_style(style).with_message(message)
}

/// A bar over `total` tokens, with rate and time left.
pub fn steps(total: u64, message: impl Into<Cow<'static, str>>) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg:<28!} {percent:>3}% [{bar:24}] {human_pos:>9}/{human_len:<9} {per_sec:>10} {eta:>4}",
    )
    .expect("the template is a constant")
    .progress_chars("=> ");
    ProgressBar::new(total).with_style(style).with_message(message)
}

/// Something that takes an unknown time.
pub fn spinner(message: impl Into<Cow<'static, str>>) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg}").expect("the template is a constant");
    let bar = ProgressBar::new_spinner().with_style(style).with_message(message);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// A bar for each part of a measurement, one after the other.
#[derive(Default)]
pub struct Bar(Option<ProgressBar>);

impl Bar {
    /// Takes it away.
    pub fn clear(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

impl Watch for Bar {
    fn begin(&mut self, what: &str, tokens: u64) {
        self.clear();
        self.0 = Some(steps(tokens, what.to_owned()));
    }

    fn advance(&mut self, tokens: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(tokens);
        }
    }

    fn note(&mut self, text: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }
}
