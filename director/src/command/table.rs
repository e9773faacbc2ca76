//! Columns of text, as wide as their widest cell.

/// Renders `rows` under `titles`; columns whose title starts with `>` are right-aligned. Lines have no
/// trailing blanks.
pub(super) fn render<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let right = titles.map(|title| title.starts_with('>'));
    let titles = titles.map(|title| title.trim_start_matches('>').to_owned());
    let mut widths = [0; N];
    for row in std::iter::once(&titles).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for ((cell, width), right) in row.iter().zip(widths).zip(right) {
            match right {
                true => line.push_str(&format!("{cell:>width$}  ")),
                false => line.push_str(&format!("{cell:<width$}  ")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_align_and_lines_have_no_trailing_blanks() {
        let rows = [["a".to_owned(), "10".to_owned()], ["long".to_owned(), "5".to_owned()]];
        assert_eq!(super::render(["name", ">n"], &rows), "name   n\na     10\nlong   5\n");
    }
}
