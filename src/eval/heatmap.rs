//! Needle accuracy as a picture: SVG, which is text and needs no library.

use std::fmt::Write;

use super::report::Needles;

const CELL: (usize, usize) = (64, 32);
const LEFT: usize = 84;
const TOP: usize = 64;
/// Below the cells: the name of the axis.
const BOTTOM: usize = 36;

/// Rows are lengths, columns are depths; a cell shows its share of right answers.
pub fn svg(title: &str, needles: &Needles) -> String {
    let (width, height) =
        (LEFT + needles.depths.len().max(4) * CELL.0 + 16, TOP + needles.lengths.len() * CELL.1 + BOTTOM);
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{text}");
    };
    line(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">"#
    ));
    line(format_args!(r##"<rect width="{width}" height="{height}" fill="#ffffff"/>"##));
    line(format_args!(r#"<text x="12" y="22" font-size="14">{}</text>"#, escaped(title)));
    for (column, depth) in needles.depths.iter().enumerate() {
        let x = LEFT + column * CELL.0 + CELL.0 / 2;
        line(format_args!(r#"<text x="{x}" y="{}" text-anchor="middle">{depth} %</text>"#, TOP - 8));
    }
    for (row, (length, scores)) in needles.lengths.iter().zip(&needles.cells).enumerate() {
        let y = TOP + row * CELL.1;
        let middle = y + CELL.1 / 2 + 4;
        line(format_args!(r#"<text x="{}" y="{middle}" text-anchor="end">{length}</text>"#, LEFT - 8));
        for (column, score) in scores.iter().enumerate() {
            let x = LEFT + column * CELL.0;
            let Some(share) = score.share() else { continue };
            line(format_args!(
                r##"<rect x="{x}" y="{y}" width="{}" height="{}" fill="{}" stroke="#ffffff"><title>{length} tokens, depth {depth} %: {} of {}</title></rect>"##,
                CELL.0,
                CELL.1,
                color(share),
                score.right,
                score.of,
                depth = needles.depths[column],
            ));
            line(format_args!(
                r#"<text x="{}" y="{middle}" text-anchor="middle">{:.0}</text>"#,
                x + CELL.0 / 2,
                share * 100.0
            ));
        }
    }
    line(format_args!(
        r#"<text x="{LEFT}" y="{}">needles found in %; columns: depth, rows: tokens of the prompt</text>"#,
        height - 12
    ));
    line(format_args!("</svg>"));
    out
}

/// From a light red to a light green over yellow, all bright enough for black text.
fn color(share: f64) -> String {
    const LOW: [f64; 3] = [244.0, 120.0, 104.0];
    const MIDDLE: [f64; 3] = [250.0, 224.0, 130.0];
    const HIGH: [f64; 3] = [120.0, 198.0, 128.0];
    let (from, to, part) = if share < 0.5 { (LOW, MIDDLE, share * 2.0) } else { (MIDDLE, HIGH, share * 2.0 - 1.0) };
    let channel = |i: usize| (from[i] + (to[i] - from[i]) * part.clamp(0.0, 1.0)).round() as u8;
    format!("#{:02x}{:02x}{:02x}", channel(0), channel(1), channel(2))
}

/// As text of an SVG file.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::needle::Grid;
    use crate::eval::report::Score;

    #[test]
    fn every_cell_that_was_asked_is_drawn() {
        let grid = Grid { lengths: vec![256, 512], depths: vec![0, 50, 100], samples: 1, residues: false, seed: 0 };
        let mut needles = Needles::new(&grid);
        needles.cells[0] = vec![Score { right: 1, of: 1 }; 3];
        needles.cells[1][1] = Score { right: 1, of: 4 };
        let text = svg("a <model> & more", &needles);
        assert_eq!(text.matches("<title>").count(), 4, "{text}");
        assert!(text.contains("512 tokens, depth 50 %: 1 of 4") && text.contains(">25</text>"), "{text}");
        assert!(text.contains("a &lt;model&gt; &amp; more"), "{text}");
        for name in ["svg", "text", "title"] {
            let opened = text.matches(&format!("<{name}")).count();
            assert_eq!(opened, text.matches(&format!("</{name}>")).count(), "{name}");
        }
    }

    #[test]
    fn colors_go_from_red_to_green() {
        assert_eq!((color(0.0).as_str(), color(1.0).as_str()), ("#f47868", "#78c680"));
        assert_eq!(color(0.5), "#fae082");
    }
}
