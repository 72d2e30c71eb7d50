//! Names and keys of sharded models, as llama.cpp's `gguf-split` writes them: `NAME-00002-of-00003.gguf` with
//! `split.no` = 1 (from 0), `split.count` = 3 and `split.tensors.count` = tensors of all shards together.

use std::path::{Path, PathBuf};

pub(crate) const NO: &str = "split.no";
pub(crate) const COUNT: &str = "split.count";
pub(crate) const TENSORS: &str = "split.tensors.count";

/// The end of the file name of shard `number` (from 0) of `count`.
pub(crate) fn suffix(number: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}

/// The path of shard `to` of `count`, given the path of shard `from`. `None` when that is not named like one.
pub(crate) fn sibling(path: &Path, from: u64, to: u64, count: u64) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(&suffix(from, count))?;
    Some(path.with_file_name(format!("{stem}{}", suffix(to, count))))
}

/// The path of a shard of a model that the user asked to be written to `out`: `OUT.gguf` -> `OUT-00001-of-00002.gguf`.
pub(crate) fn path(out: &Path, number: u64, count: u64) -> PathBuf {
    let mut name = out.file_stem().unwrap_or_default().to_owned();
    if out.extension().is_some_and(|extension| extension != "gguf") {
        name = out.file_name().unwrap_or_default().to_owned();
    }
    name.push(suffix(number, count));
    out.with_file_name(name)
}

/// Whether a file is named like one of several shards: `NAME-00002-of-00003.gguf`.
pub fn is_shard_name(path: &Path) -> bool {
    shard_of(path).is_some()
}

/// The number (from 1) and the count in a shard's name.
fn shard_of(path: &Path) -> Option<(u64, u64)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (_, number) = rest.rsplit_once('-')?;
    let five =
        |text: &str| (text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok());
    Some((five(number)??, five(count)??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shards_are_known() {
        assert_eq!(shard_of(Path::new("m/a-b-00002-of-00003.gguf")), Some((2, 3)));
        for other in ["a.gguf", "a-2-of-3.gguf", "a-00002-of-00003.bin", "00002-of-00003.gguf", "a-0000x-of-00003.gguf"]
        {
            assert!(!is_shard_name(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn shards_are_named_as_llama_cpp_names_them() {
        assert_eq!(path(Path::new("/m/flash.gguf"), 0, 12), Path::new("/m/flash-00001-of-00012.gguf"));
        assert_eq!(path(Path::new("v4.1"), 1, 2), Path::new("v4.1-00002-of-00002.gguf"));
    }

    #[test]
    fn siblings_are_found_from_any_shard() {
        let second = Path::new("m/a-00002-of-00003.gguf");
        assert_eq!(sibling(second, 1, 2, 3).unwrap(), Path::new("m/a-00003-of-00003.gguf"));
        assert_eq!(sibling(second, 0, 2, 3), None, "the name says shard 2");
        assert_eq!(sibling(Path::new("m/a.gguf"), 0, 1, 3), None);
    }
}
