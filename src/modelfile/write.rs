//! Instructions to text that [`parse`](super::parse()) reads back as the same instructions.

use std::fmt::Write;

use serde_json::{Number, Value};

use super::{Instruction, Modelfile};

/// A value that no way of quoting can carry: the format has no escapes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value of {instruction} cannot be written: {reason}")]
pub struct Unwritable {
    pub instruction: &'static str,
    pub reason: &'static str,
}

/// Writes one instruction per line (values with line ends take several).
///
/// # Errors
/// [`Unwritable`] for the rare text that contains lines ending in both kinds of quotes, and for values that have no text form.
pub fn write(modelfile: &Modelfile) -> Result<String, Unwritable> {
    let mut text = String::new();
    for instruction in &modelfile.instructions {
        match instruction {
            Instruction::From(value) => line(&mut text, "FROM", value)?,
            Instruction::Adapter(value) => line(&mut text, "ADAPTER", value)?,
            Instruction::Draft(value) => line(&mut text, "DRAFT", value)?,
            Instruction::Template(value) => line(&mut text, "TEMPLATE", value)?,
            Instruction::System(value) => line(&mut text, "SYSTEM", value)?,
            Instruction::License(value) => line(&mut text, "LICENSE", value)?,
            Instruction::Renderer(value) => line(&mut text, "RENDERER", value)?,
            Instruction::Parser(value) => line(&mut text, "PARSER", value)?,
            Instruction::Requires(value) => line(&mut text, "REQUIRES", value)?,
            Instruction::Message { role, content } => {
                write!(text, "MESSAGE {} ", role.word()).expect("writing to a string does not fail");
                text.push_str(&quote("MESSAGE", content)?);
                text.push('\n');
            }
            Instruction::Parameter { name, value } => {
                write!(text, "PARAMETER {name} ").expect("writing to a string does not fail");
                text.push_str(&parameter(value)?);
                text.push('\n');
            }
        }
    }
    Ok(text)
}

fn line(text: &mut String, instruction: &'static str, value: &str) -> Result<(), Unwritable> {
    text.push_str(instruction);
    text.push(' ');
    text.push_str(&quote(instruction, value)?);
    text.push('\n');
    Ok(())
}

fn parameter(value: &Value) -> Result<String, Unwritable> {
    match value {
        Value::String(text) => quote("PARAMETER", text),
        Value::Number(value) => Ok(number(value)),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            Err(Unwritable { instruction: "PARAMETER", reason: "it is neither a text nor a number nor a truth value" })
        }
    }
}

/// As Go prints it, which reads every number as a float: whole ones have no point.
pub fn number(value: &Number) -> String {
    match value.as_f64() {
        Some(float) if value.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => format!("{float:.0}"),
        _ => value.to_string(),
    }
}

/// Bare where that is enough, otherwise in `"`, or in `"""` when there are quotes inside.
fn quote(instruction: &'static str, value: &str) -> Result<String, Unwritable> {
    let bare = !value.is_empty()
        && !value.starts_with('"')
        && !value.contains(['\n', '\r'])
        && value.trim_matches([' ', '\t']).len() == value.len();
    if bare {
        return Ok(value.to_string());
    }
    let order = if value.contains('"') { ["\"\"\"", "\""] } else { ["\"", "\"\"\""] };
    match order.into_iter().find(|quotes| survives(value, quotes)) {
        Some(quotes) => Ok(format!("{quotes}{value}{quotes}")),
        None => Err(Unwritable { instruction, reason: "lines in it end with both kinds of quotes" }),
    }
}

/// Whether `value` between `quotes` is read back whole: a line that ends with the quotes ends the value.
fn survives(value: &str, quotes: &str) -> bool {
    let line_ends = value.match_indices(['\n', '\r']).map(|(at, _)| at);
    let closes_early =
        line_ends.map(|end| value[..end].trim_end_matches(char::is_whitespace)).any(|lines| lines.ends_with(quotes));
    // A single quote followed by two more would open a triple one.
    let opens_triple = quotes == "\"" && format!("{value}\"").starts_with("\"\"");
    !closes_early && !opens_triple
}
