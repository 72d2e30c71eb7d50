//! How many terminal cells a text takes. Coarse on purpose: it serves word wrap and tables, where a rare wrong guess
//! costs a ragged line.

/// Cells of a whole text.
pub(super) fn of(text: &str) -> usize {
    text.chars().map(of_char).sum()
}

/// Cells of one character: 0 for control and combining characters, 2 for East Asian wide ones and emoji.
pub(super) fn of_char(c: char) -> usize {
    match u32::from(c) {
        0..0x20 | 0x7f..0xa0 => 0,
        0x20..0x300 => 1,
        // Combining marks, zero-width characters, variation selectors.
        0x300..0x370
        | 0x200b..=0x200f
        | 0x2060..=0x2064
        | 0x20d0..0x2100
        | 0xfe00..=0xfe0f
        | 0xfe20..=0xfe2f
        | 0xfeff => 0,
        // Unicode's East Asian Width W and F, by block.
        0x1100..0x1160
        | 0x2e80..0x303f
        | 0x3041..0xa4d0
        | 0xa960..0xa980
        | 0xac00..0xd7a4
        | 0xf900..0xfb00
        | 0xfe30..0xfe70
        | 0xff01..0xff61
        | 0xffe0..0xffe7
        | 0x1f300..0x1f650
        | 0x1f680..0x1f700
        | 0x1f900..0x1fa00
        | 0x20000..0x3fffe => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typical_texts() {
        for (text, cells) in
            [("abc", 3), ("é", 1), ("e\u{301}", 1), ("深度求索", 8), ("한국", 4), ("🙂!", 3), ("\n", 0)]
        {
            assert_eq!(of(text), cells, "{text}");
        }
    }
}
