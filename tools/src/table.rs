//! The table that every command prints, for the terminal and for Markdown.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A table with these column heads. The columns in `numbers` are right-aligned.
pub fn table(heads: &[&str], numbers: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(heads);
    for (column, head) in table.column_iter_mut().zip(heads) {
        if numbers.contains(head) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
