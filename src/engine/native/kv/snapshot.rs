//! A sequence's cache at some moment, in memory.

use super::Cache;
use crate::ggml::cache::{Pending, RowsSnapshot, Window};

/// Copies of windows and open states, and shares of rows. May go to other threads: nobody writes what is in it.
pub struct Snapshot {
    layers: Vec<LayerSnapshot>,
}

struct LayerSnapshot {
    window: Window,
    compressed: Option<(RowsSnapshot, Pending)>,
    index: Option<(RowsSnapshot, Pending)>,
}

impl Cache {
    pub fn snapshot(&self) -> Snapshot {
        let side =
            |side: &Option<super::Compressed>| side.as_ref().map(|side| (side.rows.snapshot(), side.pending.clone()));
        let layers = self.layers.iter().map(|layer| LayerSnapshot {
            window: layer.window.clone(),
            compressed: side(&layer.compressed),
            index: side(&layer.index),
        });
        Snapshot { layers: layers.collect() }
    }

    /// Becomes what was taken from a cache of the same layout.
    pub fn restore(&mut self, from: &Snapshot) {
        for (layer, from) in self.layers.iter_mut().zip(&from.layers) {
            layer.window.clone_from(&from.window);
            for (side, from) in [(&mut layer.compressed, &from.compressed), (&mut layer.index, &from.index)] {
                if let (Some(side), Some((rows, pending))) = (side, from) {
                    side.rows.restore(rows);
                    side.pending.clone_from(pending);
                }
            }
        }
    }
}
