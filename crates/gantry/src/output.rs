//! Writing data to stdout. A reader that went away (`gantry ps | head -1`) ends the program quietly, not with a panic.

use std::io::Write;

/// Writes `text` as it is.
pub fn print(text: impl AsRef<[u8]>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes one line.
pub fn line(text: impl AsRef<str>) -> std::io::Result<()> {
    print(format!("{}\n", text.as_ref()))
}

/// Writes a document, indented.
pub fn json(value: &serde_json::Value) -> std::io::Result<()> {
    line(serde_json::to_string_pretty(value).expect("a JSON value serialises"))
}

/// Rows under a heading, columns as wide as their widest cell, three spaces between.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .chain([heading[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let mut text = String::new();
    let heading: Vec<String> = heading.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".to_owned(), "long cell".to_owned()],
            vec!["bcde".to_owned(), "x".to_owned()],
        ];
        assert_eq!(
            super::table(&["ID", "NAME"], &rows),
            "ID     NAME\na      long cell\nbcde   x\n"
        );
    }
}
