//! Model names: what a user types, its parts, and how it is shown.
//!
//! Grammar: `[scheme://][host/][namespace/]model[:tag]`, read from the right. Parts that are not given have defaults.
//! A name is case-preserving; lookup in a store ignores case ([`Store::resolve`](super::Store::resolve)). Every part is
//! checked character by character when it is parsed, so a [`Name`] can be joined to a path without another thought.

use std::fmt;
use std::path::PathBuf;

/// Host of a name that does not say one.
pub const DEFAULT_HOST: &str = "registry.ollama.ai";
/// Namespace of a name that does not say one.
pub const DEFAULT_NAMESPACE: &str = "library";
/// Tag of a name that does not say one.
pub const DEFAULT_TAG: &str = "latest";

/// A complete, valid model name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// `host/namespace/model:tag`.
    full: String,
    /// Bytes of `full` up to the end of host, namespace and model.
    ends: [u16; 3],
}

/// Why a text is not a model name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A part is missing, too long, or holds a character that it may not hold.
    #[error("invalid model name")]
    Invalid,
    /// Two source suffixes contradict each other.
    #[error("use either :local or :cloud, not both: \"{0}\"")]
    LocalAndCloud(String),
}

#[derive(Clone, Copy)]
enum Part {
    Host,
    Namespace,
    Model,
    Tag,
}

impl Part {
    fn max_chars(self) -> usize {
        match self {
            Part::Host => 350,
            Part::Namespace | Part::Model | Part::Tag => 80,
        }
    }

    /// ASCII only; the first character must not be punctuation other than `_`, so no part can be `.`, `..` or hidden.
    fn accepts(self, text: &str) -> bool {
        let bytes = text.as_bytes();
        let Some((first, rest)) = bytes.split_first() else {
            return false;
        };
        let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        bytes.len() <= self.max_chars()
            && word(first)
            && rest.iter().all(|b| {
                word(b)
                    || *b == b'-'
                    || match self {
                        Part::Host => *b == b'.' || *b == b':',
                        Part::Namespace => false,
                        Part::Model | Part::Tag => *b == b'.',
                    }
            })
    }
}

impl Name {
    /// Reads a name as typed: white space around it is dropped, missing parts get their defaults, a last tag of
    /// `local` ("the one on this machine") is removed.
    ///
    /// ```
    /// use fathom::store::Name;
    /// let name = Name::parse("deepseek-v4-flash").unwrap();
    /// assert_eq!(name.to_string(), "deepseek-v4-flash:latest");
    /// assert_eq!(name.full(), "registry.ollama.ai/library/deepseek-v4-flash:latest");
    /// ```
    ///
    /// # Errors
    /// [`NameError`] when a part breaks the grammar.
    pub fn parse(text: &str) -> Result<Name, NameError> {
        let text = text.trim();
        let Some(base) = strip_tag(text, "local") else {
            if let Some(base) = strip_tag(text, "cloud")
                && strip_tag(base, "local").is_some()
            {
                return Err(NameError::LocalAndCloud(text.to_string()));
            }
            return Name::parse_plain(text);
        };
        if strip_tag(base, "local").is_some() || names_cloud(base) {
            return Err(NameError::LocalAndCloud(text.to_string()));
        }
        Name::parse_plain(base)
    }

    fn parse_plain(text: &str) -> Result<Name, NameError> {
        let text = text.split_once("://").map_or(text, |(_scheme, after)| after);
        let mut host = DEFAULT_HOST;
        let mut namespace = DEFAULT_NAMESPACE;
        let (path, last) = match text.rsplit_once('/') {
            Some((path, last)) => (Some(path), last),
            None => (None, text),
        };
        let (model, tag) = match last.rsplit_once(':') {
            Some((model, tag)) => (model, tag),
            None => (last, DEFAULT_TAG),
        };
        if let Some(path) = path {
            match path.rsplit_once('/') {
                Some((h, n)) => (host, namespace) = (h, n),
                None => namespace = path,
            }
        }
        Name::from_parts(host, namespace, model, tag)
    }

    /// A name from its four parts, as they stand in a manifest's path.
    ///
    /// # Errors
    /// [`NameError::Invalid`] when a part breaks the grammar.
    pub fn from_parts(host: &str, namespace: &str, model: &str, tag: &str) -> Result<Name, NameError> {
        let valid = Part::Host.accepts(host)
            && Part::Namespace.accepts(namespace)
            && Part::Model.accepts(model)
            && Part::Tag.accepts(tag);
        if !valid {
            return Err(NameError::Invalid);
        }
        let full = format!("{host}/{namespace}/{model}:{tag}");
        // The grammar bounds every part, so the ends fit.
        let host_end = host.len() as u16;
        let namespace_end = host_end + 1 + namespace.len() as u16;
        let model_end = namespace_end + 1 + model.len() as u16;
        Ok(Name { full, ends: [host_end, namespace_end, model_end] })
    }

    /// The registry's host.
    pub fn host(&self) -> &str {
        self.parts()[0]
    }

    /// The user or organisation.
    pub fn namespace(&self) -> &str {
        self.parts()[1]
    }

    /// The model without its tag.
    pub fn model(&self) -> &str {
        self.parts()[2]
    }

    /// The variant of the model.
    pub fn tag(&self) -> &str {
        self.parts()[3]
    }

    /// The four parts, always: `registry.ollama.ai/library/model:tag`.
    pub fn full(&self) -> &str {
        &self.full
    }

    /// Whether the tag asks for a model that runs in somebody else's cloud.
    pub fn is_cloud(&self) -> bool {
        is_cloud_tag(self.tag())
    }

    /// Where the manifest lies, below the folder of manifests.
    pub(super) fn path(&self) -> PathBuf {
        self.parts().iter().collect()
    }

    /// Host, namespace, model, tag.
    pub(super) fn parts(&self) -> [&str; 4] {
        let [host, namespace, model] = self.ends.map(usize::from);
        [&self.full[..host], &self.full[host + 1..namespace], &self.full[namespace + 1..model], &self.full[model + 1..]]
    }
}

/// The short form: host and namespace only where they are not the defaults, the tag always.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [host, namespace, model, tag] = self.parts();
        if !host.eq_ignore_ascii_case(DEFAULT_HOST) {
            write!(f, "{host}/{namespace}/")?;
        } else if !namespace.eq_ignore_ascii_case(DEFAULT_NAMESPACE) {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{model}:{tag}")
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.full)
    }
}

/// `text` without its last `:tag`, if that is `tag` in any case.
fn strip_tag<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let (base, last) = text.rsplit_once(':')?;
    last.eq_ignore_ascii_case(tag).then_some(base)
}

fn names_cloud(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(_, tag)| is_cloud_tag(tag))
}

fn is_cloud_tag(tag: &str) -> bool {
    let tag = tag.to_ascii_lowercase();
    tag == "cloud" || tag.ends_with("-cloud")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_the_right_and_shown_short() {
        for (typed, full, short) in [
            ("llama3", "registry.ollama.ai/library/llama3:latest", "llama3:latest"),
            ("  llama3 \n", "registry.ollama.ai/library/llama3:latest", "llama3:latest"),
            ("llama3:8b", "registry.ollama.ai/library/llama3:8b", "llama3:8b"),
            ("me/mymodel:v1", "registry.ollama.ai/me/mymodel:v1", "me/mymodel:v1"),
            ("library/x", "registry.ollama.ai/library/x:latest", "x:latest"),
            ("hf.co/org/repo:Q4_K_M", "hf.co/org/repo:Q4_K_M", "hf.co/org/repo:Q4_K_M"),
            ("https://hf.co/org/repo", "hf.co/org/repo:latest", "hf.co/org/repo:latest"),
            ("127.0.0.1:5000/library/x:t", "127.0.0.1:5000/library/x:t", "127.0.0.1:5000/library/x:t"),
            ("registry.ollama.ai/library/x", "registry.ollama.ai/library/x:latest", "x:latest"),
            ("_x", "registry.ollama.ai/library/_x:latest", "_x:latest"),
            ("Foo.Bar-1", "registry.ollama.ai/library/Foo.Bar-1:latest", "Foo.Bar-1:latest"),
        ] {
            let name = Name::parse(typed).unwrap_or_else(|e| panic!("{typed:?}: {e}"));
            assert_eq!(name.full(), full, "{typed:?}");
            assert_eq!(name.to_string(), short, "{typed:?}");
            assert_eq!(Name::parse(&name.to_string()), Ok(name.clone()), "{typed:?}");
            assert_eq!(Name::parse(name.full()), Ok(name), "{typed:?}");
        }
    }

    #[test]
    fn hostile_and_incomplete_names_are_refused() {
        let long = "a".repeat(81);
        let long_host = format!("{}/n/m", "h".repeat(351));
        for typed in [
            "",
            " ",
            ":",
            ":tag",
            "model:",
            "/model",
            "model/",
            "a//b",
            "a/b/c/d",
            "..",
            ".",
            "../x",
            "x/..",
            "x/../y",
            "../../etc/passwd",
            "a/../../b",
            "x:..",
            "x:../y",
            ".hidden",
            "x:.t",
            "-x",
            "x:-t",
            "a.b/x",
            "é",
            "x:é",
            "x y",
            "x\0y",
            "x\\y",
            "x@sha256:00",
            "x%2f",
            "~/x",
            "/etc/passwd",
            "http://",
            "a:b:c",
            &long,
            &format!("x:{long}"),
            &long_host,
        ] {
            assert_eq!(Name::parse(typed), Err(NameError::Invalid), "{typed:?}");
        }
    }

    #[test]
    fn a_last_tag_of_local_is_dropped() {
        for (typed, short) in [
            ("qwen3:8b:local", "qwen3:8b"),
            ("x:local", "x:latest"),
            ("x:LOCAL", "x:latest"),
            ("me/x:local", "me/x:latest"),
        ] {
            assert_eq!(Name::parse(typed).map(|n| n.to_string()), Ok(short.into()), "{typed:?}");
        }
        for typed in ["x:cloud:local", "x:local:cloud", "x:8b-cloud:local"] {
            assert_eq!(Name::parse(typed), Err(NameError::LocalAndCloud(typed.into())), "{typed:?}");
        }
    }

    #[test]
    fn cloud_tags_are_recognised() {
        assert!(Name::parse("x:cloud").is_ok_and(|n| n.is_cloud()));
        assert!(Name::parse("x:671b-cloud").is_ok_and(|n| n.is_cloud()));
        assert!(Name::parse("x:cloudy").is_ok_and(|n| !n.is_cloud()));
        assert!(Name::parse("cloud").is_ok_and(|n| !n.is_cloud()));
    }

    proptest::proptest! {
        #[test]
        fn whatever_parses_stays_below_the_folder(text in "[a-zA-Z0-9_./:\\\\ -]{0,24}") {
            if let Ok(name) = Name::parse(&text) {
                let path = name.path();
                proptest::prop_assert_eq!(path.components().count(), 4);
                proptest::prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
            }
        }
    }
}
