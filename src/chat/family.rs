//! Which prompt format a model speaks, and what that format can express.
//!
//! The choice needs only words from the model's metadata, no files: [`for_model`]. First match wins:
//! 1. an override by the user (`v4_april`, `v4_0731`, `v41`, `template`, `plain`);
//! 2. a RENDERER of the Modelfile that is in [`TABLE`]: the native one;
//! 3. a Go template of the Modelfile (TEMPLATE), unless the GGUF's Jinja template can say more;
//! 4. the architecture is in [`TABLE`]: the native renderer, its generation taken from the release key;
//! 5. the GGUF's Jinja template;
//! 6. nothing: the contents of the messages as they are, like Ollama's `{{ .Prompt }}`.

use super::deepseek_v4::{self, Generation};
use super::template::{go, jinja};
use super::{Error, Parser, Prompt, Request};

/// What the choice is made from. All of it is text of the model's metadata.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// `general.architecture`, or a renderer name from a Modelfile (`RENDERER`).
    pub architecture: &'a str,
    /// It is the latter.
    pub is_renderer: bool,
    /// `fathom.source.release`.
    pub release: Option<&'a str>,
    /// `tokenizer.chat_template` (Jinja).
    pub jinja: Option<&'a str>,
    /// A `TEMPLATE` layer (Go).
    pub go: Option<&'a str>,
    /// Text of the tokens that templates call `bos_token` and `eos_token`.
    pub bos: &'a str,
    pub eos: &'a str,
    /// A family or generation asked for by name; wins over everything else.
    pub chosen: Option<&'a str>,
}

/// What a family can express.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub completion: bool,
    pub tools: bool,
    pub thinking: bool,
    /// Filling in the middle: [`Family::render_insert`].
    pub insert: bool,
}

/// Sampling that the model's authors advise; `None` = nothing said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampling {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<usize>,
}

/// Architectures and renderer names with a native renderer, and the generation to assume when the file names no release.
/// Files that do not say come mostly from the April checkpoints, whose prompts are also what the later ones give
/// when no effort is asked for.
pub const TABLE: &[(&str, Generation)] = &[
    ("deepseek4", Generation::V4April),
    ("deepseek_v4", Generation::V4April),
    ("deepseek-v4", Generation::V4April),
    ("deepseek41", Generation::V41),
    ("deepseek_v41", Generation::V41),
    ("deepseek-v4.1", Generation::V41),
];

/// How one kind of model writes conversations. Cheap to share, immutable.
#[derive(Debug)]
pub struct Family {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    DeepSeekV4(Generation),
    Go(Box<go::Template>),
    Jinja(Box<jinja::Template>),
    Plain,
}

/// Finds the family of a model.
///
/// # Errors
/// [`Error::Generation`] when a release or an override is not known; [`Error::Template`] when the template that was chosen does not
/// compile.
pub fn for_model(facts: &Facts<'_>) -> Result<Family, Error> {
    let native = TABLE.iter().find(|(name, _)| *name == facts.architecture).map(|(_, generation)| *generation);
    let kind = match (facts.chosen, native) {
        (Some("plain"), _) => Kind::Plain,
        (None, Some(_)) if facts.go.is_some() && !facts.is_renderer => template(facts)?.unwrap_or(Kind::Plain),
        (Some("template"), _) => template(facts)?.ok_or(Error::NoTemplate)?,
        (Some(name), _) => Kind::DeepSeekV4(Generation::parse(name)?),
        (None, Some(default)) => Kind::DeepSeekV4(match facts.release {
            Some(release) => Generation::of_release(release)?,
            None => default,
        }),
        (None, None) => template(facts)?.unwrap_or(Kind::Plain),
    };
    Ok(Family { kind })
}

/// The template to go by. The Modelfile's own counts, unless the other one can say more and does not lose the results of tools.
fn template(facts: &Facts<'_>) -> Result<Option<Kind>, Error> {
    let jinja = || facts.jinja.map(|source| jinja::Template::new(source, facts.bos, facts.eos)).transpose();
    let Some(go) = facts.go.map(go::Template::new).transpose()? else {
        return Ok(jinja()?.map(|template| Kind::Jinja(Box::new(template))));
    };
    // A broken one that nobody needs is no reason to refuse the model.
    let jinja = jinja().ok().flatten().filter(|jinja| {
        let count = |tools, thinking| usize::from(tools) + usize::from(thinking);
        let more = count(jinja.knows_tools(), jinja.knows_thinking()) > count(go.knows_tools(), go.knows_thinking());
        more && (!go.knows_tool_results() || jinja.knows_tools())
    });
    Ok(Some(match jinja {
        Some(jinja) => Kind::Jinja(Box::new(jinja)),
        None => Kind::Go(Box::new(go)),
    }))
}

impl Family {
    /// The family of a model that is asked with this Go template, whatever its own format is.
    ///
    /// # Errors
    /// [`Error::Template`] with the line.
    pub fn of_go_template(source: &str) -> Result<Family, Error> {
        Ok(Family { kind: Kind::Go(Box::new(go::Template::new(source)?)) })
    }

    /// For logs and `show`: `deepseek_v4/v4_0731`, `go_template`, `template`, `plain`.
    pub fn name(&self) -> String {
        match &self.kind {
            Kind::DeepSeekV4(generation) => format!("deepseek_v4/{}", generation.name()),
            Kind::Go(_) => "go_template".to_owned(),
            Kind::Jinja(_) => "template".to_owned(),
            Kind::Plain => "plain".to_owned(),
        }
    }

    pub fn capabilities(&self) -> Capabilities {
        match &self.kind {
            Kind::DeepSeekV4(_) => Capabilities { completion: true, tools: true, thinking: true, insert: true },
            Kind::Go(template) => Capabilities {
                completion: true,
                tools: template.knows_tools(),
                thinking: template.knows_thinking(),
                insert: template.knows_suffix(),
            },
            Kind::Jinja(template) => Capabilities {
                completion: true,
                tools: template.knows_tools(),
                thinking: template.knows_thinking(),
                insert: false,
            },
            Kind::Plain => Capabilities { completion: true, ..Capabilities::default() },
        }
    }

    pub fn sampling(&self) -> Sampling {
        match &self.kind {
            // Model card: temperature 1.0, top_p 1.0, nothing cut.
            Kind::DeepSeekV4(_) => Sampling { temperature: Some(1.0), top_p: Some(1.0), top_k: Some(0) },
            Kind::Go(_) | Kind::Jinja(_) | Kind::Plain => Sampling::default(),
        }
    }

    /// Writes the conversation up to where the model goes on.
    ///
    /// # Errors
    /// [`Error::NoMessages`], [`Error::Role`], [`Error::Task`], [`Error::Effort`], or what the template says.
    pub fn render(&self, request: &Request) -> Result<Prompt, Error> {
        match &self.kind {
            Kind::DeepSeekV4(generation) => deepseek_v4::render(*generation, request),
            Kind::Go(template) => template.render(request),
            Kind::Jinja(template) => template.render(request),
            Kind::Plain => plain(request),
        }
    }

    /// Writes the prompt for the text between `prefix` and `suffix`.
    ///
    /// # Errors
    /// [`Error::NoInsert`] when the family has no such form.
    pub fn render_insert(&self, prefix: &str, suffix: &str) -> Result<Prompt, Error> {
        match &self.kind {
            Kind::DeepSeekV4(_) => Ok(deepseek_v4::render_insert(prefix, suffix)),
            Kind::Go(template) => template.render_insert(prefix, suffix),
            Kind::Jinja(_) | Kind::Plain => Err(Error::NoInsert),
        }
    }

    /// What ends the reasoning of an answer, where there is reasoning.
    pub fn thinking_end(&self) -> Option<&str> {
        match &self.kind {
            Kind::DeepSeekV4(_) => Some(deepseek_v4::END_THINK),
            Kind::Go(template) => template.thinking_end(),
            Kind::Jinja(template) => template.thinking_end(),
            Kind::Plain => None,
        }
    }

    /// Makes the reader of the answer to `prompt`, which was rendered from `request`.
    pub fn parser(&self, request: &Request, prompt: &Prompt) -> Box<dyn Parser> {
        match &self.kind {
            Kind::DeepSeekV4(_) => Box::new(deepseek_v4::Parser::new(request, prompt)),
            Kind::Go(template) => template.parser(request, prompt),
            Kind::Jinja(template) => template.parser(request, prompt),
            Kind::Plain => Box::new(Verbatim),
        }
    }
}

/// The contents of the messages, joined by a blank line.
fn plain(request: &Request) -> Result<Prompt, Error> {
    if request.messages.is_empty() {
        return Err(Error::NoMessages);
    }
    let contents: Vec<&str> = request.messages.iter().map(|m| m.content.as_str()).filter(|c| !c.is_empty()).collect();
    let text = contents.join("\n\n");
    Ok(Prompt { stable_bytes: text.len(), starts_in_thinking: false, text })
}

/// Gives the answer on as it comes.
struct Verbatim;

impl Parser for Verbatim {
    fn push(&mut self, text: &str, out: &mut Vec<super::Piece>) {
        if !text.is_empty() {
            out.push(super::Piece::Content(text.to_owned()));
        }
    }

    fn finish(&mut self, _out: &mut Vec<super::Piece>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Message, Piece, Role};

    const V4: Facts<'static> = Facts {
        architecture: "deepseek4",
        is_renderer: false,
        release: None,
        jinja: None,
        go: None,
        bos: "",
        eos: "",
        chosen: None,
    };

    #[test]
    fn the_release_decides_the_generation_and_an_override_wins() {
        let name = |facts: Facts<'_>| for_model(&facts).map(|family| family.name()).map_err(|e| e.to_string());
        for (release, generation) in [
            (None, "v4_april"),
            (Some("v4_april"), "v4_april"),
            (Some("v4_base"), "v4_april"),
            (Some("v4_0731"), "v4_0731"),
            (Some("v4_0813"), "v4_0731"),
            (Some("v4_1102"), "v4_0731"),
            (Some("v4_0424"), "v4_april"),
            (Some("v41_flash"), "v41"),
        ] {
            assert_eq!(name(Facts { release, ..V4 }), Ok(format!("deepseek_v4/{generation}")), "{release:?}");
            let chosen = Facts { release, chosen: Some("v41"), ..V4 };
            assert_eq!(name(chosen), Ok("deepseek_v4/v41".to_owned()), "{release:?}");
        }
        for release in ["v5", "v4_", "v4_summer", "0731"] {
            let error = name(Facts { release: Some(release), ..V4 }).unwrap_err();
            assert!(error.contains(release), "{error}");
        }
        assert_eq!(name(Facts { architecture: "deepseek41", ..V4 }), Ok("deepseek_v4/v41".to_owned()));
    }

    #[test]
    fn a_native_renderer_goes_before_a_template_and_that_before_nothing() {
        let other = Facts { architecture: "qwen3", ..V4 };
        let kind = |facts: Facts<'_>| for_model(&facts).map(|family| family.name());
        assert_eq!(kind(Facts { jinja: Some("x"), ..V4 }).unwrap(), "deepseek_v4/v4_april");
        assert_eq!(kind(Facts { jinja: Some("x"), go: Some("y"), ..other }).unwrap(), "go_template");
        let tools = Some("{% if tools %}<tool_call>{% endif %}");
        assert_eq!(kind(Facts { jinja: tools, go: Some("y"), ..other }).unwrap(), "template");
        assert_eq!(kind(Facts { jinja: tools, go: Some("{{ .Tools }}"), ..other }).unwrap(), "go_template");
        assert_eq!(kind(Facts { jinja: Some("{% if %}"), go: Some("y"), ..other }).unwrap(), "go_template");
        assert_eq!(kind(Facts { go: Some("y"), ..V4 }).unwrap(), "go_template");
        assert_eq!(kind(Facts { go: Some("y"), is_renderer: true, ..V4 }).unwrap(), "deepseek_v4/v4_april");
        assert_eq!(kind(Facts { chosen: Some("template"), jinja: Some("x"), ..V4 }).unwrap(), "template");
        assert!(matches!(kind(Facts { chosen: Some("template"), ..V4 }), Err(Error::NoTemplate)));
        assert_eq!(kind(Facts { go: Some("y"), ..other }).unwrap(), "go_template");
        assert!(matches!(kind(Facts { go: Some("{{ if }}"), ..other }), Err(Error::Template(_))));
        assert_eq!(kind(other).unwrap(), "plain");
        assert_eq!(kind(Facts { chosen: Some("plain"), ..V4 }).unwrap(), "plain");
        let unknown = kind(Facts { chosen: Some("gemma"), ..other }).unwrap_err();
        assert!(unknown.to_string().contains("`gemma`"), "{unknown}");
    }

    #[test]
    fn capabilities_are_those_of_the_format() {
        let capabilities = |facts: Facts<'_>| for_model(&facts).unwrap().capabilities();
        let all = Capabilities { completion: true, tools: true, thinking: true, insert: true };
        assert_eq!(capabilities(V4), all);
        let other = Facts { architecture: "qwen3", ..V4 };
        let tools_and_thinking = "{% if tools %}<tool_call>{% endif %}<think></think>";
        assert_eq!(
            capabilities(Facts { jinja: Some(tools_and_thinking), ..other }),
            Capabilities { insert: false, ..all }
        );
        let only = Capabilities { completion: true, ..Capabilities::default() };
        assert_eq!(capabilities(Facts { jinja: Some("{{ messages }}"), ..other }), only);
        assert_eq!(capabilities(other), only);
    }

    #[test]
    fn without_a_format_messages_are_shown_as_they_are() {
        let family = for_model(&Facts { architecture: "gpt2", ..V4 }).unwrap();
        let messages = vec![Message::new(Role::System, "Be brief."), Message::new(Role::User, "Hi")];
        let request = Request { messages, ..Request::default() };
        let prompt = family.render(&request).unwrap();
        assert_eq!(prompt.text, "Be brief.\n\nHi");
        let mut out = Vec::new();
        let mut parser = family.parser(&request, &prompt);
        parser.push("<think>", &mut out);
        parser.finish(&mut out);
        assert_eq!(out, vec![Piece::Content("<think>".into())]);
        assert!(matches!(family.render(&Request::default()), Err(Error::NoMessages)));
        assert!(matches!(family.render_insert("a", "b"), Err(Error::NoInsert)));
    }
}
