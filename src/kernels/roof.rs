//! What the processor can do at most, measured: the numbers beside which benches print theirs.

use std::time::{Duration, Instant};

use super::Isa;

/// Rates of all threads together.
#[derive(Debug, Clone, Copy)]
pub struct Roof {
    /// float32 operations per second; a multiply-add is two.
    pub flops: f64,
    /// Operations on bytes per second, summed in 32 bits; a multiply-add is two.
    pub byte_ops: f64,
    /// Bytes read from memory per second.
    pub read_bytes: f64,
}

/// Beyond every cache.
const READ_FLOATS: usize = 64 << 20;
/// Best of so many: the machine may be busy with something else.
const REPEATS: usize = 10;

impl Roof {
    /// Measures with `nth` threads of the kernels of `isa`; takes about two seconds.
    ///
    /// # Panics
    /// If the set is not available.
    pub fn measure(isa: Isa, nth: usize) -> Self {
        let table = isa.table().expect("an available set");
        let (fma, dot4, read) = (table.roof_fma, table.roof_dot4, table.roof_read);
        let (fma, dot4, read) =
            (fma.expect("a complete table"), dot4.expect("a complete table"), read.expect("a complete table"));
        let data = vec![1.0f32; READ_FLOATS / nth];
        let rate = |work: &(dyn Fn() -> f64 + Sync)| {
            let of_one = || {
                let mut best = Duration::MAX;
                let mut done = 0.0;
                for _ in 0..REPEATS {
                    let start = Instant::now();
                    done = work();
                    best = best.min(start.elapsed());
                }
                done / best.as_secs_f64()
            };
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..nth).map(|_| scope.spawn(of_one)).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<f64>()
            })
        };
        // SAFETY: `sink` holds the two numbers that are read and written; `data` is as long as it says.
        #[expect(unsafe_code, reason = "calls into csrc")]
        let [flops, byte_ops, read_bytes] = unsafe {
            [
                rate(&|| 2.0 * fma(1_000_000, [0.999, 1e-3].as_mut_ptr()) as f64),
                rate(&|| 2.0 * dot4(1_000_000, [3.0, 5.0].as_mut_ptr()) as f64),
                rate(&|| {
                    read(data.as_ptr(), data.len() as i64, [0.0, 0.0].as_mut_ptr());
                    size_of_val(&data[..]) as f64
                }),
            ]
        };
        Roof { flops, byte_ops, read_bytes }
    }
}
