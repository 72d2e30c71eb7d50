use super::*;
use crate::chat::Piece;
use crate::chat::{Tool, ToolCall};

const CHATML: &str = "{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
";

fn user(content: &str) -> Request {
    Request { messages: vec![Message::new(Role::User, content)], ..Request::default() }
}

fn render(source: &str, request: &Request) -> Result<Prompt, Error> {
    Template::new(source, "<s>", "</s>")?.render(request)
}

#[test]
fn a_conversation_is_rendered_and_its_stable_part_known() {
    let prompt = render(CHATML, &user("héllo")).unwrap();
    assert_eq!(prompt.text, "<|im_start|>user\nhéllo<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(&prompt.text[..prompt.stable_bytes], "<|im_start|>user\nhéllo<|im_end|>\n");
    assert!(!prompt.starts_in_thinking);
}

#[test]
fn a_last_assistant_message_is_continued() {
    let mut request = user("1+1?");
    request.messages.push(Message::new(Role::Assistant, "It is"));
    let prompt = render(CHATML, &request).unwrap();
    assert_eq!(prompt.text, "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\nIt is");
}

#[test]
fn python_methods_and_filters_are_there() {
    let tool = r#"{"name":"f","parameters":{"z":1.0,"a":"<&é>"}}"#;
    let request =
        Request { tools: vec![Tool::from_function(RawJson::parse(tool).unwrap()).unwrap()], ..user("  Hi  ") };
    for (source, text) in [
        ("{{ messages[0].content.strip().upper() }}", "HI"),
        ("{{ messages[0]['content'].split('i')[-1] | length }}", "2"),
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        (
            "{{ tools[0] | tojson }}",
            r#"{"type": "function", "function": {"name": "f", "parameters": {"z": 1.0, "a": "<&é>"}}}"#,
        ),
        ("{{ tools[0].function.parameters | tojson(indent=2) }}", "{\n  \"z\": 1.0,\n  \"a\": \"<&é>\"\n}"),
        ("{% for k, v in tools[0].function.items() %}{{ k }};{% endfor %}", "name;parameters;"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{% if tools is defined and tools is not none %}yes{% endif %}", "yes"),
        ("{% if missing is defined %}x{% else %}undefined{% endif %}", "undefined"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% if true %}\n  a\n  {% endif %}\n", "  a\n"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% endfor %}-", "-"),
    ] {
        assert_eq!(render(source, &request).unwrap().text, text, "{source}");
    }
}

#[test]
fn calls_and_results_are_shown_in_openai_form() {
    let source = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}:{{ c.function.arguments.city }};{{ c.id }}{% endfor %}{% if m.role == 'tool' %}[{{ m.tool_call_id }} {{ m.name }} {{ m.content }}]{% endif %}{% endfor %}";
    let mut request = user("?");
    request.messages.push(Message {
        tool_calls: vec![ToolCall {
            id: Some("c1".into()),
            name: "f".into(),
            arguments: Arguments::parse(r#"{"city":"Bern"}"#),
        }],
        ..Message::new(Role::Assistant, "")
    });
    request.messages.push(Message {
        tool_call_id: Some("c1".into()),
        tool_name: Some("f".into()),
        ..Message::new(Role::Tool, "21")
    });
    assert_eq!(render(source, &request).unwrap().text, "f:Bern;c1[c1 f 21]");
}

#[test]
fn thinking_is_passed_on_and_told_apart() {
    let source = "{{ enable_thinking }}/{{ reasoning_effort }}{% if enable_thinking %}<think>\n{% else %}<think>\n\n</think>{% endif %}";
    let template = Template::new(source, "", "").unwrap();
    let ask = |think| Request { think, ..user("?") };
    for (think, text, inside) in [
        (Think::Default, "True/<think>\n", true),
        (Think::High, "True/high<think>\n", true),
        (Think::Off, "False/<think>\n\n</think>", false),
    ] {
        let prompt = template.render(&ask(think)).unwrap();
        assert_eq!((prompt.text.as_str(), prompt.starts_in_thinking), (text, inside), "{think:?}");
    }
    let request = ask(Think::On);
    let prompt = template.render(&request).unwrap();
    let mut parser = template.parser(&request, &prompt);
    let mut out = Vec::new();
    for part in ["hm", "</thi", "nk>\n\nye", "s"] {
        parser.push(part, &mut out);
    }
    parser.finish(&mut out);
    assert_eq!(out, vec![Piece::Thinking("hm".into()), Piece::Content("yes".into())]);
}

#[test]
fn a_prefill_inside_reasoning_goes_on_there() {
    let source = "{{ '<think>' if add_generation_prompt }}{# </think> #}";
    let mut request = user("?");
    request.messages.push(Message { thinking: Some("first".into()), ..Message::new(Role::Assistant, "") });
    let prompt = render(source, &request).unwrap();
    assert_eq!((prompt.text.as_str(), prompt.starts_in_thinking), ("<think>first", true));
    request.messages[1].content = "So".into();
    let prompt = render(source, &request).unwrap();
    assert_eq!((prompt.text.as_str(), prompt.starts_in_thinking), ("<think>first</think>\n\nSo", false));
}

#[test]
fn reasoning_and_calls_in_one_answer() {
    let template = Template::new("<think></think><tool_call>", "", "").unwrap();
    let tool = Tool::from_function(RawJson::parse(r#"{"name":"f"}"#).unwrap()).unwrap();
    let request = Request { tools: vec![tool], ..user("?") };
    let prompt = Prompt { text: String::new(), starts_in_thinking: false, stable_bytes: 0 };
    let answer = "<think>hm</think>Look. <tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";
    let expected = vec![
        Piece::Thinking("hm".into()),
        Piece::Content("Look.".into()),
        Piece::ToolCall(ToolCall { id: None, name: "f".into(), arguments: Arguments::parse("{\"a\": 1}") }),
    ];
    for (at, _) in answer.char_indices() {
        let mut parser = template.parser(&request, &prompt);
        let mut out = Vec::new();
        parser.push(&answer[..at], &mut out);
        parser.push(&answer[at..], &mut out);
        parser.finish(&mut out);
        assert_eq!(out, expected, "cut at {at}");
    }
}

#[test]
fn errors_say_what_and_where() {
    for (source, message) in [
        ("{% if %}", "the model's chat template failed: syntax error"),
        ("a\nb\n{{ 1 + 'x' }}", "(line 3)"),
        (
            "{{ raise_exception('Only user and assistant roles!') }}",
            "refuses this conversation: Only user and assistant roles!",
        ),
        ("{{ nonsense() }}", "unknown function"),
        ("{{ strftime_now('%') }}", "chat template failed"),
        ("{{ messages | tojson(what=1) }}", "chat template failed"),
    ] {
        let error = render(source, &user("?")).unwrap_err().to_string();
        assert!(error.contains(message), "{source}: {error}");
    }
    assert!(matches!(render(CHATML, &Request::default()), Err(Error::NoMessages)));
}

/// In a thread as small as those that render.
#[test]
fn hostile_templates_end() {
    let hostile = || {
        for source in [
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% set ns = namespace(s='x') %}{% for a in range(100000) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
            "{{ 'x' * 10000000000 }}",
            "{{ range(10000000000) | list }}",
            "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
            "{{ messages | tojson(indent=100000000000) * 1000000000 }}",
            "{% include 'chat_template' %}",
        ] {
            let error = render(source, &user("?")).unwrap_err();
            assert!(matches!(error, Error::Template(_)), "{source}: {error:?}");
        }
        let deep = "(".repeat(100_000) + &")".repeat(100_000);
        assert!(render(&format!("{{{{ {deep} }}}}"), &user("?")).is_err());
        let nested = "{% if true %}".repeat(20_000) + &"{% endif %}".repeat(20_000);
        assert!(render(&nested, &user("?")).is_err());
    };
    std::thread::Builder::new().stack_size(2 << 20).spawn(hostile).unwrap().join().unwrap();
}
