//! Finds labels with their values in the views of a mail.
//!
//! `label_table` has the spellings of labels. `label_values` finds values in lines and rows. `object_values` finds values in the
//! objects that `object` parses. `line_wrap` finds values that continue on the next line, and `link_text` removes link text after
//! a value. `resmic_template` searches the HTML for the list in Resmic's payment mail.

mod label_table;
mod label_values;
mod line_wrap;
mod link_text;
mod object;
mod object_values;
mod resmic_template;

pub use label_table::LabelSettings;
pub(crate) use label_table::LabelTable;
pub(crate) use label_values::find_values;
pub(crate) use resmic_template::{TemplateList, find_template_list, template_items};
