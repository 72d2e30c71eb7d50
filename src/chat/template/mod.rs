//! Models that bring a template of their own.

pub mod answer;
pub mod go;
pub mod jinja;

/// Bytes that both begin with, up to a character boundary.
fn common_prefix(a: &str, b: &str) -> usize {
    let mut at = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    while !a.is_char_boundary(at) {
        at -= 1;
    }
    at
}
