//! What benches of kernels share: numbers, the clock, and rows of a table with the roof beside each.

use std::time::{Duration, Instant};

use fathom::kernels::{Isa, Roof};

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    pub fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.below(2001) as f32 / 1000.0 - 1.0).collect()
    }
}

/// Best of at least ten runs and two seconds; `prepare` is not timed.
pub fn best<T>(mut prepare: impl FnMut() -> T, mut run: impl FnMut(&T)) -> Duration {
    let start = Instant::now();
    let mut best = Duration::MAX;
    for i in 0.. {
        let input = prepare();
        let one = Instant::now();
        run(&input);
        best = best.min(one.elapsed());
        if i >= 9 && start.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
    best
}

/// Number of threads, then whatever else the command line says.
pub fn words() -> (usize, Vec<String>) {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let nth = words.first().map_or(cores, |word| word.parse().expect("a number of threads"));
    (nth, words)
}

/// The set of this name, or the fastest one.
pub fn isa(name: Option<&String>) -> Isa {
    let named = |isa: &Isa| name.is_none_or(|name| *name == format!("{isa:?}"));
    Isa::available().filter(named).last().expect("an instruction set of this processor")
}

/// Measures the roof and prints it above the head of the table.
pub fn roof(isa: Isa, nth: usize) -> Roof {
    let roof = Roof::measure(isa, nth);
    println!(
        "{isa:?}, {nth} threads: {:.1} GFLOP/s in float32, {:.1} Gop/s in bytes, {:.1} GB/s read\n",
        1e-9 * roof.flops,
        1e-9 * roof.byte_ops,
        1e-9 * roof.read_bytes
    );
    println!("| op | tokens | us | Gop/s | of the roof | GB/s | of the roof |\n|---|---|---|---|---|---|---|");
    roof
}

/// One row. `floats`: the operations are on floats, not on bytes.
pub fn row(name: &str, n_tokens: usize, time: Duration, ops: f64, bytes: f64, roof: &Roof, floats: bool) {
    let seconds = time.as_secs_f64();
    let most = if floats { roof.flops } else { roof.byte_ops };
    println!(
        "| {name} | {n_tokens} | {:.0} | {:.1} | {:.0} % | {:.1} | {:.0} % |",
        1e6 * seconds,
        1e-9 * ops / seconds,
        100.0 * ops / seconds / most,
        1e-9 * bytes / seconds,
        100.0 * bytes / seconds / roof.read_bytes
    );
}
