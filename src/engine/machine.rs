//! What this machine offers an engine: memory that is free, cores that are real, instructions that the build needs.
//!
//! Containers lie by default: `/proc` shows the host. So memory is the smaller of `MemAvailable` and what the control group
//! still allows, and cores are physical ones within affinity mask and CPU quota that no other program keeps busy: ggml's threads
//! wait for each other by spinning, and a thread too many costs a scheduler slice at every node of the graph.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Memory that can be taken without swapping, in bytes; `u64::MAX` where the system does not tell.
pub fn available_bytes() -> u64 {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let group = own_cgroups().iter().filter_map(|dir| cgroup_memory_left(dir)).min();
    system.unwrap_or(u64::MAX).min(group.unwrap_or(u64::MAX))
}

/// Bytes that can be written into `dir`; `u64::MAX` where the system does not tell.
pub fn free_disk_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).ok().and_then(|stat| stat.f_bavail.checked_mul(stat.f_frsize)).unwrap_or(u64::MAX)
}

/// Most memory that this process has had resident so far, in bytes.
pub fn peak_resident_bytes() -> Option<u64> {
    kib_line(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// What the processor calls itself.
pub fn cpu_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Threads that can run at the same time in this process.
pub fn logical_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Threads to compute with, and why they are not more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComputeThreads {
    /// Physical cores that this process may use: within its affinity mask, at most the CPU quota rounded down, at least one.
    pub cores: usize,
    /// Threads of other programs that computed all the time while we looked.
    pub others: usize,
}

impl ComputeThreads {
    /// The cores that nobody else keeps busy, at least one.
    pub fn count(self) -> usize {
        self.cores.saturating_sub(self.others).max(1)
    }
}

/// How often, and in which distance, is looked for what other programs compute.
const LOOKS: u32 = 8;
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// Looks at the machine as it is now, which takes some 20 ms when there is more than one core.
pub fn compute_threads() -> ComputeThreads {
    let logical = logical_cores();
    let allowed = fs::read_to_string("/proc/self/status").ok().and_then(|status| allowed_cpus(&status));
    let physical = physical_cores(Path::new("/sys/devices/system/cpu"), allowed.as_ref()).unwrap_or(logical);
    let quota = own_cgroups().iter().filter_map(|dir| cgroup_cpu_quota(dir)).min();
    let cores = logical.min(physical).min(quota.unwrap_or(usize::MAX)).max(1);
    let others = if cores == 1 { 0 } else { others_computing() };
    ComputeThreads { cores, others }
}

/// Threads of other programs that want a core whenever one looks: short work does not count, and neither do our own threads,
/// which will not compute while this model does, or share its cores with it by the user's choice.
fn others_computing() -> usize {
    let look = |index: u32| {
        if index > 0 {
            std::thread::sleep(LOOK_EVERY);
        }
        let all = runnable(&fs::read_to_string("/proc/loadavg").ok()?)?;
        Some(all.saturating_sub(own_runnable()))
    };
    (0..LOOKS).map_while(look).min().unwrap_or(0)
}

/// Threads that run or could run now, of the whole machine: `0.52 0.58 0.59 3/611 1234` has 3.
fn runnable(loadavg: &str) -> Option<usize> {
    loadavg.split(' ').nth(3)?.split_once('/')?.0.parse().ok()
}

/// Threads of this process that run or could run now.
fn own_runnable() -> usize {
    let runs = |stat: &str| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('R'));
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.filter(|task| fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| runs(&stat))).count()
}

/// Numbers of the CPUs that the scheduler may give to this process.
fn allowed_cpus(status: &str) -> Option<BTreeSet<usize>> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cpus = BTreeSet::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(cpus)
}

/// Bytes for people: `1.5 GiB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// How this program was built and what the processor can do; for `fathom --version --verbose`.
#[derive(Clone, Debug)]
pub struct BuildInfo {
    /// Engines in this program.
    pub engines: Vec<&'static str>,
    /// Version and commit of ggml, when an engine with ggml is in it.
    pub ggml: Option<String>,
    /// Instruction sets that the compiled kernels need.
    pub cpu_needed: Vec<&'static str>,
    /// Those of the known instruction sets that this processor has.
    pub cpu_present: Vec<&'static str>,
}

/// See [`BuildInfo`]. Safe to call on any processor.
pub fn build_info() -> BuildInfo {
    let mut engines = Vec::new();
    if cfg!(feature = "native") {
        engines.push("native");
    }
    if cfg!(feature = "llama") {
        engines.push("llama");
    }
    engines.push("scripted");
    #[cfg(feature = "llama")]
    let ggml = Some(super::llama::ggml_version());
    #[cfg(all(feature = "native", not(feature = "llama")))]
    let ggml = Some(crate::ggml::version());
    #[cfg(not(any(feature = "native", feature = "llama")))]
    let ggml = None;
    BuildInfo {
        engines,
        ggml,
        cpu_needed: needed_features().collect(),
        cpu_present: KNOWN_FEATURES.iter().copied().filter(|name| has_feature(name)).collect(),
    }
}

/// This build needs instructions that the processor does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this build of fathom needs a processor with {}; this one lacks {}", .needed.join(", "), .missing.join(", "))]
pub struct CpuError {
    pub needed: Vec<&'static str>,
    pub missing: Vec<&'static str>,
}

/// To be called first thing in `main`: without it, a processor that is too old ends the process with an illegal
/// instruction somewhere inside the first matrix product.
///
/// # Errors
/// [`CpuError`] with what is missing.
pub fn check_cpu() -> Result<(), CpuError> {
    let missing: Vec<_> = needed_features().filter(|name| !has_feature(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(CpuError { needed: needed_features().collect(), missing })
}

/// Instruction sets that ggml's CPU kernels were compiled for: `build.rs` reads them from the CMake cache of the ggml that is linked.
fn needed_features() -> impl Iterator<Item = &'static str> {
    option_env!("FATHOM_GGML_CPU").unwrap_or("").split(',').filter(|name| !name.is_empty())
}

/// What a build of ggml may ask for, by the names that Linux and rustc use.
const KNOWN_FEATURES: [&str; 12] = [
    "sse4.2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "bmi2",
    "avxvnni",
    "avx512f",
    "avx512vbmi",
    "avx512vnni",
    "avx512bf16",
    "neon",
];

fn has_feature(name: &str) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        match name {
            "sse4.2" => is_x86_feature_detected!("sse4.2"),
            "avx" => is_x86_feature_detected!("avx"),
            "avx2" => is_x86_feature_detected!("avx2"),
            "fma" => is_x86_feature_detected!("fma"),
            "f16c" => is_x86_feature_detected!("f16c"),
            "bmi2" => is_x86_feature_detected!("bmi2"),
            "avxvnni" => is_x86_feature_detected!("avxvnni"),
            "avx512f" => is_x86_feature_detected!("avx512f"),
            "avx512vbmi" => is_x86_feature_detected!("avx512vbmi"),
            "avx512vnni" => is_x86_feature_detected!("avx512vnni"),
            "avx512bf16" => is_x86_feature_detected!("avx512bf16"),
            _ => false,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        name == "neon" && cfg!(target_feature = "neon")
    }
}

fn mem_available(meminfo: &str) -> Option<u64> {
    kib_line(meminfo, "MemAvailable:")
}

/// The bytes of a line `NAME  123 kB`, as several files of `/proc` have it.
fn kib_line(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The control group of this process and all above it, as directories; v2 and the v1 controllers that matter.
fn own_cgroups() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for line in fs::read_to_string("/proc/self/cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let mounts: &[&str] = match controllers {
            "" => &["/sys/fs/cgroup"],
            "memory" => &["/sys/fs/cgroup/memory"],
            c if c.split(',').any(|c| c == "cpu") => &["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu"],
            _ => continue,
        };
        for mount in mounts {
            // Inside a container the path is often that of the host and does not exist; its root is then what counts.
            let mut dir = PathBuf::from(format!("{mount}/{}", path.trim_start_matches('/')));
            while dir.starts_with(mount) {
                dirs.push(dir.clone());
                if !dir.pop() {
                    break;
                }
            }
        }
    }
    dirs
}

/// What a control group still allows: limit minus use, where file cache that can be dropped is not use.
fn cgroup_memory_left(dir: &Path) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let droppable = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file ").or_else(|| line.strip_prefix("total_inactive_file ")))
        .and_then(|n| n.trim().parse::<u64>().ok())
        .unwrap_or(0);
    // v1 writes a number near 2^63 for "no limit".
    (limit < 1 << 62).then(|| limit.saturating_sub(used.saturating_sub(droppable)))
}

/// Whole CPUs that a control group may use.
fn cgroup_cpu_quota(dir: &Path) -> Option<usize> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let (quota, period) = match read("cpu.max") {
        Some(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?)
        }
        None => (
            read("cpu.cfs_quota_us")?.trim().parse::<u64>().ok()?, // -1 = none, which does not parse
            read("cpu.cfs_period_us")?.trim().parse::<u64>().ok()?,
        ),
    };
    Some(usize::try_from(quota.checked_div(period)?).ok()?.max(1))
}

/// Cores among the online CPUs that are `allowed` (`None` = all): hardware threads of one core share its arithmetic units.
fn physical_cores(cpus: &Path, allowed: Option<&BTreeSet<usize>>) -> Option<usize> {
    let mut cores = BTreeSet::new();
    for entry in fs::read_dir(cpus).ok()?.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|n| n.strip_prefix("cpu")) else { continue };
        let Ok(number) = number.parse::<usize>() else { continue };
        if allowed.is_some_and(|allowed| !allowed.contains(&number)) {
            continue;
        }
        if let Ok(siblings) = fs::read_to_string(entry.path().join("topology/thread_siblings_list")) {
            cores.insert(siblings.trim().to_owned());
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn memory_is_what_the_kernel_calls_available() {
        let text = "MemTotal:       24576 kB\nMemFree:          100 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(mem_available(text), Some(2 * 1024 * 1024));
        assert_eq!(mem_available("MemTotal: 3 kB\n"), None);
        assert_eq!(mem_available("MemAvailable: 18446744073709551615 kB\n"), None);
    }

    #[test]
    fn a_control_group_limits_memory_but_not_by_its_file_cache() {
        let group = dir_with(&[
            ("memory.max", "1000\n"),
            ("memory.current", "700\n"),
            ("memory.stat", "anon 300\ninactive_file 400\n"),
        ]);
        assert_eq!(cgroup_memory_left(group.path()), Some(700));
        assert_eq!(cgroup_memory_left(dir_with(&[("memory.max", "max\n")]).path()), None);
        let v1 = dir_with(&[("memory.limit_in_bytes", "9223372036854771712\n"), ("memory.usage_in_bytes", "5\n")]);
        assert_eq!(cgroup_memory_left(v1.path()), None);
    }

    #[test]
    fn a_cpu_quota_is_whole_cores_and_at_least_one() {
        let quota = |text: &str| cgroup_cpu_quota(dir_with(&[("cpu.max", text)]).path());
        assert_eq!(quota("350000 100000\n"), Some(3));
        assert_eq!(quota("50000 100000\n"), Some(1));
        assert_eq!(quota("max 100000\n"), None);
        assert_eq!(quota("100 0\n"), None);
        let v1 = dir_with(&[("cpu.cfs_quota_us", "-1\n"), ("cpu.cfs_period_us", "100000\n")]);
        assert_eq!(cgroup_cpu_quota(v1.path()), None);
    }

    #[test]
    fn hardware_threads_of_one_core_count_once() {
        let cpus = dir_with(&[
            ("cpu0/topology/thread_siblings_list", "0,2\n"),
            ("cpu1/topology/thread_siblings_list", "1,3\n"),
            ("cpu2/topology/thread_siblings_list", "0,2\n"),
            ("cpu3/topology/thread_siblings_list", "1,3\n"),
            ("cpufreq/x", ""),
        ]);
        assert_eq!(physical_cores(cpus.path(), None), Some(2));
        assert_eq!(physical_cores(Path::new("/nowhere"), None), None);
        for (list, cores) in [("0", 1), ("0,2", 1), ("0-1", 2), ("0-3", 2), ("2,3-64", 2)] {
            let allowed = allowed_cpus(&format!("Name:\tx\nCpus_allowed_list:\t{list}\n")).unwrap();
            assert_eq!(physical_cores(cpus.path(), Some(&allowed)), Some(cores), "{list}");
        }
        assert_eq!(allowed_cpus("Cpus_allowed_list:\tall\n"), None);
        assert_eq!(allowed_cpus("Name:\tx\n"), None);
    }

    #[test]
    fn cores_that_others_keep_busy_are_left_to_them() {
        let count = |cores, others| ComputeThreads { cores, others }.count();
        assert_eq!([count(8, 0), count(8, 3), count(2, 1), count(2, 40), count(1, 0)], [8, 5, 1, 1, 1]);
        assert_eq!(runnable("13.89 9.58 5.60 11/168 42\n"), Some(11));
        assert_eq!(runnable("0.00 0.01"), None);
        if cfg!(target_os = "linux") {
            assert!(own_runnable() >= 1, "whoever asks runs");
            let now = compute_threads();
            assert!(now.count() >= 1 && now.count() <= now.cores, "{now:?}");
        }
    }

    #[test]
    fn bytes_are_rounded_with_a_unit() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(human(150 << 30), "150.0 GiB");
        assert_eq!(human(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn a_missing_instruction_set_is_named() {
        let error = CpuError { needed: vec!["avx2", "fma"], missing: vec!["avx2"] };
        assert_eq!(error.to_string(), "this build of fathom needs a processor with avx2, fma; this one lacks avx2");
        assert!(needed_features().all(|name| KNOWN_FEATURES.contains(&name)));
        assert_eq!(check_cpu(), Ok(()), "tests run on the machine that built them");
    }
}
