//! How an answer appears on the terminal while it arrives: thinking set apart, words wrapped, numbers at the end.

use std::io::{self, Write};

use super::{human, width};
use crate::client::{Stats, ToolCall};

/// Below this width wrapping makes things worse.
const MIN_WRAP_COLUMNS: usize = 10;

/// Columns left free at the right edge, as in Ollama.
const WRAP_MARGIN: usize = 5;

/// Writes one answer, piece by piece.
pub(super) struct Answer<W> {
    out: W,
    style: Style,
    wrap: Wrap,
    thinking: Thinking,
    /// Whether the last character written ended a line.
    at_line_start: bool,
}

/// How answers look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Width of the terminal; `None` = long lines stay long.
    pub columns: Option<usize>,
    pub color: bool,
    pub hide_thinking: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thinking {
    NotYet,
    Open,
    Closed,
}

const GREY: &str = "\x1b[38;5;245m";
const GREY_BOLD: &str = "\x1b[1;38;5;245m";
const RESET: &str = "\x1b[0m";

impl<W: Write> Answer<W> {
    pub(super) fn new(out: W, style: Style) -> Answer<W> {
        Answer { out, style, wrap: Wrap::new(style.columns), thinking: Thinking::NotYet, at_line_start: true }
    }

    /// Text of the model's reasoning.
    pub(super) fn thinking(&mut self, text: &str) -> io::Result<()> {
        if self.style.hide_thinking || text.is_empty() {
            return Ok(());
        }
        if self.thinking != Thinking::Open {
            self.thinking = Thinking::Open;
            if self.style.color {
                write!(self.out, "{GREY_BOLD}Thinking...\n{RESET}{GREY}")?;
            } else {
                writeln!(self.out, "Thinking...")?;
            }
            self.wrap = Wrap::new(self.style.columns);
        }
        self.text(text)
    }

    /// Text of the answer itself.
    pub(super) fn content(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.close_thinking()?;
        self.text(text)
    }

    /// A tool that the model wants to be called; the command line has none, so it is shown.
    pub(super) fn tool_call(&mut self, call: &ToolCall) -> io::Result<()> {
        self.close_thinking()?;
        self.text(&format!("\n{}({})\n", call.function.name, call.function.arguments))
    }

    /// Ends the answer: colours off, then an empty line, as Ollama does.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.thinking == Thinking::Open && self.style.color {
            write!(self.out, "{RESET}")?;
        }
        write!(self.out, "\n\n")?;
        self.out.flush()
    }

    /// Ends an answer that failed: an error message can follow on a line of its own.
    pub(super) fn abandon(&mut self) -> io::Result<()> {
        if self.thinking == Thinking::Open && self.style.color {
            write!(self.out, "{RESET}")?;
        }
        if !self.at_line_start {
            writeln!(self.out)?;
        }
        self.out.flush()
    }

    fn close_thinking(&mut self) -> io::Result<()> {
        if self.thinking != Thinking::Open {
            return Ok(());
        }
        self.thinking = Thinking::Closed;
        if !self.at_line_start {
            writeln!(self.out)?;
        }
        if self.style.color {
            write!(self.out, "{RESET}{GREY_BOLD}...done thinking.{RESET}\n\n")?;
        } else {
            write!(self.out, "...done thinking.\n\n")?;
        }
        self.wrap = Wrap::new(self.style.columns);
        self.at_line_start = true;
        Ok(())
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        self.at_line_start = text.ends_with('\n');
        self.wrap.write(text, &mut self.out)?;
        self.out.flush()
    }
}

/// Breaks lines between words although the words arrive in pieces: what is written stays, and a word that turns out to be too
/// long for its line is taken back and written again on the next one.
struct Wrap {
    /// Columns that may be used; `None` = no wrapping.
    limit: Option<usize>,
    column: usize,
    word: String,
}

impl Wrap {
    fn new(columns: Option<usize>) -> Wrap {
        Wrap {
            limit: columns.filter(|c| *c >= MIN_WRAP_COLUMNS).map(|c| c - WRAP_MARGIN),
            column: 0,
            word: String::new(),
        }
    }

    fn write(&mut self, text: &str, out: &mut impl Write) -> io::Result<()> {
        let Some(limit) = self.limit else {
            return out.write_all(text.as_bytes());
        };
        let mut line = String::with_capacity(text.len());
        for c in text.chars() {
            let cells = width::of_char(c);
            if c == '\n' || c == '\r' {
                self.column = 0;
                self.word.clear();
                line.push(c);
                continue;
            }
            if self.column + cells > limit {
                let word = width::of(&self.word);
                if c.is_whitespace() {
                    // The line is full exactly where a word ends: the blank becomes the line end.
                    line.push('\n');
                    self.column = 0;
                    self.word.clear();
                    continue;
                }
                if word + cells > limit {
                    // Longer than a line: cut it where it is.
                    line.push('\n');
                    self.word.clear();
                    self.column = 0;
                } else {
                    if word > 0 {
                        line.push_str(&format!("\x1b[{word}D"));
                    }
                    line.push_str("\x1b[K\n");
                    line.push_str(&self.word);
                    self.column = word;
                }
            }
            line.push(c);
            self.column += cells;
            // Scripts without blanks may break after any character.
            if c.is_whitespace() || cells > 1 {
                self.word.clear();
            } else {
                self.word.push(c);
            }
        }
        out.write_all(line.as_bytes())
    }
}

/// The statistics of `--verbose`, one per line; what is zero is left out.
pub(super) fn write_stats(stats: &Stats, out: &mut impl Write) -> io::Result<()> {
    let mut line = |name: &str, value: Option<String>| match value {
        Some(value) => writeln!(out, "{name:<22}{value}"),
        None => Ok(()),
    };
    let time = |d: std::time::Duration| (!d.is_zero()).then(|| human::duration(d));
    let tokens = |n: u64| (n > 0).then(|| format!("{n} token(s)"));
    let rate = |n: u64, d: std::time::Duration| {
        (n > 0 && !d.is_zero()).then(|| format!("{:.2} tokens/s", n as f64 / d.as_secs_f64()))
    };
    line("total duration:", time(stats.total_duration))?;
    line("load duration:", time(stats.load_duration))?;
    line("prompt eval count:", tokens(stats.prompt_eval_count))?;
    line("prompt eval duration:", time(stats.prompt_eval_duration))?;
    line("prompt eval rate:", rate(stats.prompt_eval_count, stats.prompt_eval_duration))?;
    line("eval count:", tokens(stats.eval_count))?;
    line("eval duration:", time(stats.eval_duration))?;
    line("eval rate:", rate(stats.eval_count, stats.eval_duration))?;
    line("cached rows:", (!stats.kv.is_empty()).then(|| stats.kv.clone()))?;
    let Some(routing) = &stats.routing else { return Ok(()) };
    let mean = |mean: Option<f64>| mean.map_or("-".to_owned(), |mean| format!("{mean:.2}"));
    let experts = format!("{} of {} a token", mean(routing.mean_experts), routing.experts_used);
    line("routing policy:", Some(routing.policy.clone()))?;
    line("experts computed:", Some(experts))?;
    line("by layer:", Some(routing.layers.iter().map(|layer| mean(*layer)).collect::<Vec<_>>().join(" ")))?;
    line("weights not read:", Some(human::bytes(routing.bytes_saved)))?;
    line("operations saved:", Some(format!("{:.3} GFLOP", routing.flops_saved as f64 / 1e9)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client;

    /// What a terminal of `columns` shows after `pieces` were written, as lines.
    fn screen(columns: usize, pieces: &[&str]) -> Vec<String> {
        let mut out = Vec::new();
        let mut wrap = Wrap::new(Some(columns));
        for piece in pieces {
            wrap.write(piece, &mut out).unwrap();
        }
        // A terminal that knows `CSI n D` and `CSI K`.
        let text = String::from_utf8(out).unwrap();
        let mut lines = vec![Vec::new()];
        let mut rest = text.as_str();
        while let Some(c) = rest.chars().next() {
            let line = lines.last_mut().unwrap();
            if let Some(after) = rest.strip_prefix("\x1b[K") {
                rest = after;
            } else if let Some(after) = rest.strip_prefix("\x1b[") {
                let (n, after) = after.split_once('D').unwrap();
                line.truncate(line.len() - n.parse::<usize>().unwrap());
                rest = after;
            } else {
                if c == '\n' {
                    lines.push(Vec::new())
                } else {
                    line.push(c)
                }
                rest = &rest[c.len_utf8()..];
            }
        }
        lines.iter().map(|line| line.iter().collect::<String>().trim_end().to_string()).collect()
    }

    #[test]
    fn words_wrap_the_same_however_they_arrive() {
        let text = "the quick brown fox jumps over the lazy dog";
        let expected = ["the quick brown", "fox jumps over", "the lazy dog"];
        assert_eq!(screen(20, &[text]), expected);
        for n in 1..6 {
            let chars: Vec<char> = text.chars().collect();
            let pieces: Vec<String> = chars.chunks(n).map(|c| c.iter().collect()).collect();
            assert_eq!(screen(20, &pieces.iter().map(String::as_str).collect::<Vec<_>>()), expected, "{n}");
        }
    }

    #[test]
    fn long_words_are_cut_and_wide_characters_count_twice() {
        assert_eq!(screen(15, &["abcdefghijklmnopqrstuvwxyz"]), ["abcdefghij", "klmnopqrst", "uvwxyz"]);
        assert_eq!(screen(15, &["深度求索深度求索"]), ["深度求索深", "度求索"]);
        assert_eq!(screen(15, &["a\nb\n"]), ["a", "b", ""]);
    }

    fn written(hide_thinking: bool, color: bool) -> String {
        let mut out = Vec::new();
        let mut answer = Answer::new(&mut out, Style { columns: None, color, hide_thinking });
        for text in ["let me", " see"] {
            answer.thinking(text).unwrap();
        }
        answer.content("it is").unwrap();
        answer.content(" 4").unwrap();
        answer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn thinking_is_set_apart_or_hidden() {
        assert_eq!(written(false, false), "Thinking...\nlet me see\n...done thinking.\n\nit is 4\n\n");
        assert_eq!(written(true, false), "it is 4\n\n");
        assert_eq!(
            written(false, true),
            "\x1b[1;38;5;245mThinking...\n\x1b[0m\x1b[38;5;245mlet me see\n\x1b[0m\x1b[1;38;5;245m...done thinking.\x1b[0m\n\nit is 4\n\n"
        );
    }

    #[test]
    fn statistics_say_what_a_routing_policy_did() {
        let routing = client::Routing {
            policy: "topk:4".into(),
            experts_used: 6,
            mean_experts: Some(4.5),
            layers: vec![Some(6.0), Some(4.0), None],
            bytes_saved: 12_000_000,
            flops_saved: 2_500_000_000,
        };
        let mut out = Vec::new();
        write_stats(&Stats { routing: Some(routing), ..Stats::default() }, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "routing policy:       topk:4\n\
             experts computed:     4.50 of 6 a token\n\
             by layer:             6.00 4.00 -\n\
             weights not read:     12 MB\n\
             operations saved:     2.500 GFLOP\n"
        );
    }

    #[test]
    fn statistics_leave_out_what_is_zero() {
        let stats = Stats {
            total_duration: Duration::from_millis(2500),
            eval_count: 50,
            eval_duration: Duration::from_secs(2),
            kv: "fp8".to_owned(),
            ..Stats::default()
        };
        let mut out = Vec::new();
        write_stats(&stats, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "total duration:       2.500s\n\
             eval count:           50 token(s)\n\
             eval duration:        2.000s\n\
             eval rate:            25.00 tokens/s\n\
             cached rows:          fp8\n"
        );
    }
}
