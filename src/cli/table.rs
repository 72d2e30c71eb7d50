//! Aligned columns as Ollama prints them: left aligned, four blanks between columns, no lines.

use std::io::{self, Write};

use super::width;

/// Blanks between two columns.
const GAP: usize = 4;

/// Rows of cells, aligned when written.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose first row are the names of its columns.
    pub fn with_header(header: &[&str]) -> Table {
        let mut table = Table::default();
        table.row(header.iter().map(|s| s.to_string()));
        table
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes every row with `indent` blanks in front. Lines carry no trailing blanks.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, indent: usize, out: &mut dyn Write) -> io::Result<()> {
        let n_columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..n_columns)
            .map(|c| self.rows.iter().filter_map(|row| row.get(c)).map(|cell| width::of(cell)).max().unwrap_or(0))
            .collect();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (cell, column) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', column + GAP - width::of(cell)));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_display_width() {
        let mut table = Table::with_header(&["NAME", "SIZE"]);
        table.row(["a".into(), "1 B".into()]);
        table.row(["模型:latest".into(), "4.7 GB".into()]);
        let mut out = Vec::new();
        table.write(0, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "NAME           SIZE\na              1 B\n模型:latest    4.7 GB\n");
    }
}
