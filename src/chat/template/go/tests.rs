use super::*;
use crate::chat::message::{Arguments, Think, Tool, ToolCall};
use crate::chat::{Piece, RawJson};

/// The output of a template over plain data, or its error.
fn run(source: &str, data: serde_json::Value) -> Result<String, String> {
    let told = |fault: Fault| Error::from(fault).to_string().replace("the model's chat template failed: ", "");
    let tree = parse::parse(source).map_err(told)?;
    eval::run(&tree, Value::of_json(&data), 10_000).map_err(told)
}

fn data() -> serde_json::Value {
    serde_json::json!({
        "Text": "héllo", "Empty": "", "N": 3, "F": 2.5, "Yes": true, "No": false, "Nil": null,
        "List": ["a", "b", "c"], "None": [], "Map": {"y": 1, "x": [true, "<"]},
        "Rows": [{"Name": "one", "In": {"V": 1}}, {"Name": "two", "In": {"V": 2}}]
    })
}

#[test]
fn actions_print_and_trim() {
    for (source, expected) in [
        ("plain } text {", "plain } text {"),
        ("a {{ .Text }} b", "a héllo b"),
        ("a \n {{- .N -}} \t b", "a3b"),
        ("{{- 3 }}", "3"),
        ("{{-3}}", "-3"),
        ("{{ .N -}}\n\n{{- .N }}", "33"),
        ("a{{/* a comment */}}b {{- /* and }} one */ -}} c", "abc"),
        ("{{ \"a\\tb\\u00e9\\\"\" }}{{ `raw\\n` }}{{ 'x' }}", "a\tbé\"raw\\n120"),
        ("{{ 0x10 }} {{ 1_000 }} {{ 1.50 }} {{ 1e3 }} {{ 1e21 }} {{ -2 }}", "16 1000 1.5 1000 1e+21 -2"),
        ("{{ .Yes }} {{ .F }} {{ .Nil }} {{ .Missing }}", "true 2.5 <no value> <no value>"),
        ("{{ .List }} {{ .Map }} {{ .None }}", "[a b c] map[x:[true <] y:1] []"),
        ("{{ json .Map }} {{ json .Text }} {{ json .Nil }}", "{\"x\":[true,\"\\u003c\"],\"y\":1} \"héllo\" null"),
        ("{{ .Map.y }}{{ (index .Rows 1).Name }}{{ (index .Rows 0).In.V }}", "1two1"),
        ("{{ .Text\n  | len }}", "6"),
    ] {
        assert_eq!(run(source, data()).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn blocks_and_variables() {
    for (source, expected) in [
        ("{{ if .Yes }}a{{ else }}b{{ end }}{{ if .Empty }}c{{ end }}", "a"),
        ("{{ if .No }}a{{ else if .Nil }}b{{ else if .N }}c{{ else }}d{{ end }}", "c"),
        ("{{ if and .Yes .Text (not .None) }}{{ or .Empty .Text }}{{ end }}", "héllo"),
        ("{{ if or .Missing .None }}a{{ end }}{{ and .Yes 0 \"never\" }}", "0"),
        // What stands behind the deciding argument is not evaluated.
        ("{{ if and .None (index .None 5) }}a{{ end }}b", "b"),
        ("{{ range .List }}<{{ . }}>{{ else }}none{{ end }}", "<a><b><c>"),
        ("{{ range .None }}x{{ else }}none{{ end }}", "none"),
        ("{{ range $i, $e := .List }}{{ if $i }}, {{ end }}{{ $i }}{{ $e }}{{ end }}", "0a, 1b, 2c"),
        ("{{ range $k, $v := .Map }}{{ $k }}={{ $v }};{{ end }}", "x=[true <];y=1;"),
        ("{{ range 3 }}{{ . }}{{ end }}", "012"),
        ("{{ range .List }}{{ if eq . \"b\" }}{{ continue }}{{ end }}{{ . }}{{ end }}", "ac"),
        ("{{ range .List }}{{ if eq . \"b\" }}{{ break }}{{ end }}{{ . }}{{ end }}", "a"),
        ("{{ with .Text }}{{ . }}{{ $.N }}{{ end }}{{ with .Nil }}a{{ else }}b{{ end }}", "héllo3b"),
        ("{{ $x := 1 }}{{ if .Yes }}{{ $x = 2 }}{{ $y := 3 }}{{ end }}{{ $x }}", "2"),
        ("{{ $x := 1 }}{{ if .Yes }}{{ $x := 2 }}{{ end }}{{ $x }}", "1"),
        ("{{ $last := \"\" }}{{ range .List }}{{ $last = . }}{{ end }}{{ $last }}", "c"),
        ("{{ range .Rows }}{{ .Name }}{{ .In.V }} {{ end }}", "one1 two2 "),
        ("{{ range $i, $_ := .List }}{{ if eq (len (slice $.List $i)) 1 }}last{{ end }}{{ end }}", "last"),
        ("{{ define \"t\" }}[{{ . }}]{{ end }}{{ template \"t\" .N }}{{ template \"t\" }}", "[3][<no value>]"),
        ("{{ block \"b\" .Text }}<{{ . }}>{{ end }}", "<héllo>"),
        ("{{ .Text | len | printf \"%03d|%s\" }}", "006|%!s(MISSING)"),
    ] {
        assert_eq!(run(source, data()).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn functions_are_gos() {
    for (source, expected) in [
        (
            "{{ eq .N 3 }} {{ eq .N 1 2 3 }} {{ ne .Text \"x\" }} {{ eq .Missing nil }} {{ eq .Nil \"x\" }}",
            "true true true true false",
        ),
        ("{{ lt 1 2 }}{{ le 2 2 }}{{ gt \"b\" \"a\" }}{{ ge 1 2 }}{{ lt 1 1.5 }}", "truetruetruefalsetrue"),
        ("{{ len .Text }} {{ len .List }} {{ len .Map }}", "6 3 2"),
        ("{{ index .List 1 }} {{ index .Map \"y\" }} {{ index .Map \"x\" 1 }} {{ index .Text 0 }}", "b 1 < 104"),
        ("{{ slice .Text 0 1 }} {{ slice .List 1 }} {{ slice .List 0 2 }}", "h [b c] [a b]"),
        ("{{ print 1 2 \"a\" 3 }}|{{ println \"a\" 1 }}", "1 2a3|a 1\n"),
        ("{{ printf \"%s-%d-%v-%q-%t\" \"a\" 7 .List \"x\" true }}", "a-7-[a b c]-\"x\"-true"),
        ("{{ printf \"%5d|%-5d|%05d|%x|%+d\" 42 42 42 255 1 }}", "   42|42   |00042|ff|+1"),
        ("{{ printf \"%.2f %6.1f %e %%\" 3.14159 2.5 1200.0 }}", "3.14    2.5 1.200000e+03 %"),
        ("{{ printf \"%d\" \"x\" }} {{ printf \"a\" 1 }}", "%!d(string=x) a%!(EXTRA int=1)"),
        (
            "{{ html \"<a href='x'>\" }} {{ urlquery \"a b&c\" }} {{ js \"it's\" }}",
            "&lt;a href=&#39;x&#39;&gt; a+b%26c it\\'s",
        ),
        ("{{ \"a\" | printf \"%s%s\" \"b\" }}", "ba"),
        ("{{ not .None }} {{ len (currentDate \"2006\") }} {{ eq currentDate yesterdayDate }}", "true 10 false"),
        ("{{ toTypeScriptType (index .Rows 0) }}", "any"),
    ] {
        assert_eq!(run(source, data()).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn what_go_refuses_is_refused_with_its_line() {
    for (source, expected) in [
        ("a\n{{ .X", "an action is not closed (line 2)"),
        ("{{ }}", "an action is empty"),
        ("{{ if .Yes }}a", "`if` has no `end` (line 1)"),
        ("{{ end }}", "`end` without a block (line 1)"),
        ("{{ else }}", "`else` without `if` (line 1)"),
        ("{{ if .Yes }}{{ else }}{{ else }}{{ end }}", "a second `else` (line 1)"),
        ("{{ .\nText }}", "function `Text` is not defined (line 2)"),
        ("\n\n{{ nothing .X }}", "function `nothing` is not defined (line 3)"),
        ("{{ $x }}", "undefined variable `$x` (line 1)"),
        ("{{ if .Yes }}{{ $x := 1 }}{{ end }}{{ $x }}", "undefined variable `$x` (line 1)"),
        ("{{ $x = 1 }}", "undefined variable `$x` (line 1)"),
        ("{{ break }}", "`break` outside of `range` (line 1)"),
        ("{{ \"a }}", "a string is not closed (line 1)"),
        ("{{ (.Text }}", "a parenthesis is not closed (line 1)"),
        ("{{ .Text) }}", "unexpected words in an action (line 1)"),
        ("{{ \"a\"\"b\" }}", "operands must be separated by spaces (line 1)"),
        ("{{ .Text | 3 }}", "something that is no function stands behind `|` (line 1)"),
        ("{{ | len }}", "a command is missing (line 1)"),
        ("{{/* a", "a comment is not closed (line 1)"),
        ("{{ template name }}", "a template's name must be a string (line 1)"),
        ("{{ template \"x\" }}", "template `x` is not defined (line 1)"),
        ("{{ .Text.X }}", "`.X` of a value of type string (line 1)"),
        ("{{ .Nil.X }}", "`.X` of nil (line 1)"),
        ("{{ .Text 1 }}", "something that is no function was given arguments (line 1)"),
        ("{{ eq .Text 1 }}", "eq: incompatible types for comparison: string and int (line 1)"),
        ("{{ index .List 3 }}", "index: index 3 is out of range: there are 3 (line 1)"),
        ("{{ slice .List 2 1 }}", "slice: slice 2:1 is out of range: there are 3 (line 1)"),
        ("{{ len 3 }}", "len: len of type int (line 1)"),
        ("{{ range .Text }}{{ end }}", "range cannot iterate over type string (line 1)"),
        (
            "{{ define \"a\" }}{{ template \"a\" }}{{ end }}{{ template \"a\" }}",
            "more than 50 templates call each other (line 1)",
        ),
        ("{{ printf \"%99999d\" 1 }}", "printf: a width of 99999 is too large (line 1)"),
        ("{{ range 100000 }}{{ end }}", "takes too many steps"),
        ("{{ range 100 }}{{ range 100 }}x{{ end }}{{ end }}", "takes too many steps"),
        ("{{ . @ }}", "unexpected '@' in an action (line 1)"),
        ("{{ 12ab }}", "`12ab` is not a number (line 1)"),
    ] {
        assert_eq!(run(source, data()), Err(expected.to_owned()), "{source}");
    }
    let deep = format!("{}{}", "{{ if true }}".repeat(200), "{{ end }}".repeat(200));
    assert_eq!(run(&deep, data()), Err("more than 100 levels (line 1)".into()));
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(200), ")".repeat(200));
    assert_eq!(run(&deep, data()), Err("more than 100 levels (line 1)".into()));
}

/// Whatever stands between two braces, there is an answer or an error.
#[test]
fn mangled_templates_do_no_harm() {
    let mut seed = 1u64;
    let mut random = move |n: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % n
    };
    for source in [CHATML, LEGACY, TOOLS, REASONING] {
        for _ in 0..500 {
            let mut bytes = source.as_bytes().to_vec();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes.truncate(at.max(1)),
                    1 => drop(bytes.drain(at..(at + random(8)).min(bytes.len()))),
                    2 => bytes[at] = b"{}()|.$:=\"`-/* \n"[random(16)],
                    _ => bytes.insert(at, b"{}()|.$:=\"`-/* \n"[random(16)]),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            if let Ok(template) = Template::new(&String::from_utf8_lossy(&bytes)) {
                let _ = template.render(&conversation(&[
                    ("system", "s"),
                    ("user", "u"),
                    ("assistant", "a"),
                    ("user", "v"),
                ]));
            }
        }
    }
}

const CHATML: &str = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}<|im_start|>user\n\
                      {{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response }}<|im_end|>\n";

const LEGACY: &str = "[INST] {{ if .System }}<<SYS>>{{ .System }}<</SYS>> {{ end }}{{ .Prompt }} [/INST]";

const TOOLS: &str = r#"{{- if or .System .Tools }}<|system|>{{ .System }}
{{- if .Tools }}
# Tools
{{- range .Tools }}
{{ . }}
{{- end }}{{ end }}
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|user|>{{ .Content }}
{{ else if eq .Role "assistant" }}<|assistant|>{{ if .Content }}{{ .Content }}{{ end }}
{{- if .ToolCalls }}<tool_call>
{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
{{ end }}</tool_call>{{ end }}{{ if not $last }}<|end|>
{{ end }}
{{- else if eq .Role "tool" }}<|tool|>{{ .Content }}
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|assistant|>{{ end }}
{{- end }}"#;

const REASONING: &str = r#"{{- range $i, $_ := .Messages }}
{{- if eq .Role "user" }}<U>{{ .Content }}{{ if and $.IsThinkSet (not $.Think) }} /no_think{{ end }}
{{- else if eq .Role "assistant" }}<A>{{ if .Thinking }}[R]{{ .Thinking }}[/R]{{ end }}{{ .Content }}
{{- end }}
{{- end }}<A>{{ if and $.IsThinkSet $.Think }}[R]{{ end }}"#;

fn conversation(turns: &[(&str, &str)]) -> Request {
    let messages = turns.iter().map(|(role, text)| Message::new(Role::parse(role), *text)).collect();
    Request { messages, ..Request::default() }
}

fn rendered(source: &str, request: &Request) -> String {
    Template::new(source).unwrap().render(request).unwrap().text
}

#[test]
fn older_templates_run_turn_by_turn_and_stop_where_the_answer_begins() {
    let talk = conversation(&[("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C")]);
    assert_eq!(
        rendered(CHATML, &talk),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n\
         <|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n"
    );
    // An answer that is to be continued stands open at the end.
    let begun = conversation(&[("user", "A"), ("assistant", "B")]);
    assert_eq!(rendered(CHATML, &begun), "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB");
    // No place for an answer: it comes behind each turn.
    assert_eq!(rendered(LEGACY, &talk), "[INST] <<SYS>>S<</SYS>> A [/INST]B[INST] C [/INST]");
    let merged = conversation(&[("user", "A"), ("user", "B")]);
    assert_eq!(rendered(LEGACY, &merged), "[INST] A\n\nB [/INST]");
    // The cut reaches out of the block in which the answer is printed.
    let source = "{{ .Prompt }}:{{ if true }}{{ .Response }}<end>{{ else }}x{{ end }}<tail>";
    assert_eq!(rendered(source, &conversation(&[("user", "A")])), "A:");
    assert!(matches!(Template::new(CHATML).unwrap().render(&Request::default()), Err(Error::NoMessages)));
}

fn weather() -> Tool {
    let function = r#"{"name": "get_weather", "description": "Weather <now>", "parameters": {"required": ["city"], "type": "object",
        "properties": {"unit": {"enum": ["C", "F"], "type": "string"}, "city": {"description": "A city", "type": "string"}}}}"#;
    Tool::from_function(RawJson::parse(function).unwrap()).unwrap()
}

#[test]
fn tools_calls_and_results() {
    let mut talk = conversation(&[("system", "S"), ("user", "A"), ("assistant", ""), ("tool", "sunny")]);
    talk.tools = vec![weather()];
    let arguments = Arguments::parse(r#"{"unit": "C", "city": "Paris", "n": 12345678901234567}"#);
    talk.messages[2].tool_calls.push(ToolCall { id: None, name: "get_weather".into(), arguments });
    assert_eq!(
        rendered(TOOLS, &talk),
        "<|system|>S\n# Tools\n{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"description\":\"Weather \\u003cnow\\u003e\",\
         \"parameters\":{\"type\":\"object\",\"required\":[\"city\"],\"properties\":{\"city\":{\"type\":\"string\",\"description\":\
         \"A city\"},\"unit\":{\"type\":\"string\",\"enum\":[\"C\",\"F\"]}}}}}\n<|user|>A\n<|assistant|><tool_call>\n\
         {\"name\": \"get_weather\", \"arguments\": {\"unit\":\"C\",\"city\":\"Paris\",\"n\":12345678901234567}}\n</tool_call><|end|>\n\
         <|tool|>sunny\n<|assistant|>"
    );
    let template = Template::new(TOOLS).unwrap();
    assert!(
        template.knows_tools()
            && template.knows_tool_results()
            && !template.knows_thinking()
            && !template.knows_suffix()
    );
    assert_eq!(template.tags.tool.as_deref(), Some("<tool_call>"));
    let prompt = template.render(&talk).unwrap();
    let mut parser = template.parser(&talk, &prompt);
    let mut out = Vec::new();
    parser.push(
        "Let me see. <tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>",
        &mut out,
    );
    parser.finish(&mut out);
    assert!(matches!(&out[..], [Piece::Content(_), Piece::ToolCall(call)] if call.name == "get_weather"), "{out:?}");
    // What both turns share ends behind the opening of the answer.
    assert_eq!(&prompt.text[..prompt.stable_bytes], prompt.text);
}

#[test]
fn reasoning_is_told_apart_by_the_templates_own_tags() {
    let template = Template::new(REASONING).unwrap();
    assert!(template.knows_thinking());
    let mut talk = conversation(&[("user", "A"), ("assistant", "B"), ("user", "C")]);
    talk.messages[1].thinking = Some("T".into());
    for (think, expected) in [
        (Think::Default, "<U>A<A>[R]T[/R]B<U>C<A>[R]"),
        (Think::High, "<U>A<A>[R]T[/R]B<U>C<A>[R]"),
        (Think::Off, "<U>A /no_think<A>[R]T[/R]B<U>C /no_think<A>"),
    ] {
        talk.think = think;
        let prompt = template.render(&talk).unwrap();
        assert_eq!(prompt.text, expected, "{think:?}");
        assert_eq!(prompt.starts_in_thinking, think != Think::Off);
    }
    talk.think = Think::On;
    let prompt = template.render(&talk).unwrap();
    let mut parser = template.parser(&talk, &prompt);
    let mut out = Vec::new();
    for part in ["so", " it is[/", "R] yes"] {
        parser.push(part, &mut out);
    }
    parser.finish(&mut out);
    let text: Vec<String> = out.iter().map(|piece| format!("{piece:?}")).collect();
    assert_eq!(text.join(" "), r#"Thinking("so it is") Content("yes")"#);
}

#[test]
fn filling_in_the_middle_has_prefix_and_suffix() {
    let template =
        Template::new("{{- if .Suffix }}<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>{{ else }}{{ .Prompt }}{{ end }}")
            .unwrap();
    assert_eq!(template.render_insert("a", "b").unwrap().text, "<PRE>a<SUF>b<MID>");
    assert_eq!(template.render(&conversation(&[("user", "A")])).unwrap().text, "A");
    assert!(matches!(Template::new(CHATML).unwrap().render_insert("a", "b"), Err(Error::NoInsert)));
}

#[test]
fn types_in_typescript() {
    let source = "{{ range .Tools }}{{ range $k, $p := .Function.Parameters.Properties }}{{ $k }}: {{ toTypeScriptType $p }};{{ end }}{{ end }}{{ range .Messages }}{{ end }}";
    let mut talk = conversation(&[("user", "A")]);
    let function = r#"{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}, "b": {"type": ["string", "null"]}, "c": {"type": "array"},
        "d": {"anyOf": [{"type": "boolean"}, {"type": "object"}]}, "e": {}}}}"#;
    talk.tools = vec![Tool::from_function(RawJson::parse(function).unwrap()).unwrap()];
    assert_eq!(rendered(source, &talk), "a: number;b: string | null;c: any[];d: boolean | Record<string, any>;e: any;");
}
