//! Values inside every layer against those of a golden file: finds the first that is wrong.
//!
//! Golden files are what `make_tiny_v4.py` writes: tensors `prompt_N.layer_L.attn_out` and so on, where `prompt_N.tokens` are the tokens. Most hold the
//! last rows only, which are compared with ours.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use safetensors::{Dtype, SafeTensors};

use super::table::Table;
use crate::engine::{Batch, BatchToken, Engine, Inspect, Output, Outputs, Probe, Probed, Value};
use crate::ids::{Pos, SeqId, TokenId};

/// Of f32 values. Exact arithmetic was seen to be within 5e-5; choices are integers and must be equal.
const TOLERANCE: f64 = 1e-3;

/// Computes `tokens` in one step and compares each value that `golden` has for them, in the order of computation. Prints one line for
/// each.
///
/// # Errors
/// The file cannot be read, has no such prompt, or a value differs: the first one is named.
pub(super) fn compare(engine: &mut dyn Engine, tokens: &[TokenId], golden: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(golden).with_context(|| format!("cannot read `{}`", golden.display()))?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| format!("`{}` is no golden file", golden.display()))?;
    let prompt =
        prompt(&file, tokens).with_context(|| format!("`{}` has no prompt of these tokens", golden.display()))?;

    let batch = tokens.iter().enumerate().map(|(pos, &token)| {
        let output = (pos + 1 == tokens.len()).then_some(Output::Logits);
        BatchToken { token, seq: SeqId(0), pos: Pos(pos as u32), output }
    });
    let mut probe = Probe::default();
    let batch = Batch { tokens: batch.collect() };
    engine.inspect(&batch, &mut Outputs::default(), Inspect::Values(&mut probe))?;

    let mut table = Table::with_header(&["VALUE", "ROWS", "LARGEST DIFFERENCE"]);
    let mut first = None;
    for probed in &probe.values {
        let Ok(expected) = file.tensor(&format!("{prompt}.{}", probed.name)) else { continue };
        ensure!(matches!(expected.dtype(), Dtype::F32 | Dtype::I32), "`{}` is {:?}", probed.name, expected.dtype());
        let words = expected.data().as_chunks::<4>().0.iter();
        let expected_values: Vec<f64> = match expected.dtype() {
            Dtype::F32 => words.map(|word| f32::from_le_bytes(*word).into()).collect(),
            _ => words.map(|word| i32::from_le_bytes(*word).into()).collect(),
        };
        let rows = expected.shape().first().copied().unwrap_or(0);
        let worst = largest_difference(probed, &expected_values, rows)?;
        table.row([probed.name.clone(), rows.to_string(), format!("{worst:.1e}")]);
        let limit = if matches!(probed.value, Value::I32(_)) { 0.0 } else { TOLERANCE };
        if worst.is_nan() || worst > limit {
            first.get_or_insert((probed.name.clone(), worst));
        }
    }
    let mut out = std::io::stdout().lock();
    table.write(0, &mut out)?;
    out.flush()?;
    match first {
        None => Ok(()),
        Some((name, worst)) => bail!("`{name}` is the first value that differs: by {worst:.1e}"),
    }
}

/// The name of the prompt whose tokens these are.
fn prompt(file: &SafeTensors, tokens: &[TokenId]) -> Option<String> {
    let names = file.names();
    let prompts = names.iter().filter_map(|name| name.strip_suffix(".tokens"));
    let ids = |prompt: &str| -> Option<Vec<TokenId>> {
        let tensor = file.tensor(&format!("{prompt}.tokens")).ok()?;
        Some(tensor.data().as_chunks::<4>().0.iter().map(|word| TokenId(u32::from_le_bytes(*word))).collect())
    };
    prompts.into_iter().find(|prompt| ids(prompt).as_deref() == Some(tokens)).map(str::to_owned)
}

/// Between the last `rows` rows of ours and theirs. Experts are compared as sets; of chosen rows we have as many places as could be chosen,
/// they have as many as were.
fn largest_difference(ours: &Probed, theirs: &[f64], rows: usize) -> anyhow::Result<f64> {
    let width: usize = ours.shape.iter().skip(1).product();
    let ours_rows = ours.shape.first().copied().unwrap_or(0);
    ensure!(rows <= ours_rows, "`{}` has {ours_rows} rows, the golden file {rows}", ours.name);
    if rows == 0 {
        return Ok(if ours_rows == 0 { 0.0 } else { f64::INFINITY });
    }
    let their_width = theirs.len() / rows;
    ensure!(their_width <= width, "`{}` has {width} values a row, the golden file {their_width}", ours.name);
    let values: Vec<f64> = match &ours.value {
        Value::F32(values) => values[(ours_rows - rows) * width..].iter().map(|&value| value.into()).collect(),
        Value::I32(values) => values[(ours_rows - rows) * width..].iter().map(|&value| value.into()).collect(),
    };
    let is_set = ours.name.ends_with(".experts") || ours.name.ends_with(".expert_weights");
    let mut worst = 0.0_f64;
    for (mine, theirs) in values.chunks(width).zip(theirs.chunks(their_width)) {
        let (mut mine, mut theirs) = (mine[..their_width].to_vec(), theirs.to_vec());
        if is_set {
            mine.sort_unstable_by(f64::total_cmp);
            theirs.sort_unstable_by(f64::total_cmp);
        }
        for (a, b) in mine.iter().zip(&theirs) {
            let difference = (a - b).abs();
            worst = if difference.is_nan() { f64::NAN } else { worst.max(difference) };
            if worst.is_nan() {
                return Ok(worst);
            }
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probed(name: &str, shape: &[usize], value: Value) -> Probed {
        Probed { name: name.to_owned(), shape: shape.to_vec(), value }
    }

    #[test]
    fn the_last_rows_are_compared_and_sets_have_no_order() {
        let ours = probed("layer_0.attn_out", &[3, 2], Value::F32(vec![9.0, 9.0, 1.0, 2.0, 3.0, 4.0]));
        assert_eq!(largest_difference(&ours, &[1.0, 2.0, 3.0, 4.5], 2).unwrap(), 0.5);
        assert!(largest_difference(&ours, &[1.0, f64::NAN, 3.0, 4.5], 2).unwrap().is_nan());
        assert!(largest_difference(&ours, &[0.0; 8], 4).is_err(), "more rows than there are");
        let ours = probed("layer_0.experts", &[1, 3], Value::I32(vec![5, 1, 3]));
        assert_eq!(largest_difference(&ours, &[1.0, 3.0, 5.0], 1).unwrap(), 0.0);
        let ours = probed("layer_1.index_selected", &[1, 3], Value::I32(vec![0, 2, -1]));
        assert_eq!(largest_difference(&ours, &[0.0, 2.0], 1).unwrap(), 0.0);
        assert_eq!(largest_difference(&ours, &[0.0, 1.0], 1).unwrap(), 1.0);
    }
}
