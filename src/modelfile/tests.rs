//! What every Modelfile must survive: reading, writing, and nonsense.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::KV_TYPES;

fn instructions(text: &str) -> Vec<Instruction> {
    parse(text).unwrap_or_else(|e| panic!("{text:?}: {e}")).modelfile.instructions
}

#[test]
fn instructions_are_read_in_any_case_and_comments_skipped() {
    let text = "\u{feff}# a comment\n\n  from  deepseek-v4-flash  \nPARAMETER temperature 0.7\nparameter STOP \"<|end|>\"\n\
                # TEMPLATE not this\nParameter num_ctx 4096\nPARAMETER use_mmap false\nSYSTEM You # are \"kind\".\r\n\
                MESSAGE user hello there\nMESSAGE assistant \"\"\"hi\n# no comment\"\"\"\nREQUIRES 0.14.0\nLICENSE MIT";
    assert_eq!(
        instructions(text),
        [
            Instruction::From("deepseek-v4-flash".into()),
            Instruction::Parameter { name: "temperature".into(), value: json!(0.7) },
            Instruction::Parameter { name: "stop".into(), value: json!("<|end|>") },
            Instruction::Parameter { name: "num_ctx".into(), value: json!(4096) },
            Instruction::Parameter { name: "use_mmap".into(), value: json!(false) },
            Instruction::System("You # are \"kind\".".into()),
            Instruction::Message { role: Role::User, content: "hello there".into() },
            Instruction::Message { role: Role::Assistant, content: "hi\n# no comment".into() },
            Instruction::Requires("0.14.0".into()),
            Instruction::License("MIT".into()),
        ]
    );
}

#[test]
fn quoted_values_are_verbatim() {
    for (value, expected) in [
        ("plain", "plain"),
        ("\"quoted\"", "quoted"),
        ("\"\"", ""),
        ("\"\"\"\"\"\"", ""),
        ("\" padded \"", " padded "),
        ("\"two\nlines\"", "two\nlines"),
        ("\"\"\"\nleading\n\n\"\"\"", "\nleading\n\n"),
        ("\"he said \"hi\" twice\"", "he said \"hi\" twice"),
        ("\"\"\"\"start\"\"\"", "\"start"),
        ("'single'", "'single'"),
        ("a\\nb", "a\\nb"),
        ("\"\"\"{{ .System }}\n\"\"\"   ", "{{ .System }}\n"),
    ] {
        let text = format!("FROM x\nSYSTEM {value}\nLICENSE after");
        assert_eq!(
            instructions(&text)[1..],
            [Instruction::System(expected.into()), Instruction::License("after".into())],
            "{value:?}"
        );
    }
}

#[test]
fn errors_point_at_the_place() {
    for (text, fault, line, column) in [
        ("", Fault::NoFrom, 0, 0),
        ("SYSTEM x", Fault::NoFrom, 0, 0),
        ("FROM x\n  FORM y", Fault::UnknownInstruction, 2, 3),
        ("FROM", Fault::NoValue("FROM"), 1, 5),
        ("FROM   \nSYSTEM x", Fault::NoValue("FROM"), 1, 5),
        ("FROM:x", Fault::UnknownInstruction, 1, 5),
        ("FROM x\r\nSYSTEM \"never\nclosed", Fault::UnexpectedEnd, 2, 8),
        ("FROM x\nSYSTEM \"", Fault::UnexpectedEnd, 2, 8),
        ("FROM x\nSYSTEM \"\"\"a\"", Fault::UnexpectedEnd, 2, 8),
        ("FROM x\nPARAMETER temprature 1", Fault::UnknownParameter("temprature".into()), 2, 11),
        ("FROM x\nPARAMETER tfs_z 1", Fault::UnknownParameter("tfs_z".into()), 2, 11),
        ("FROM x\nPARAMETER temperature hot", Fault::Float("hot".into()), 2, 23),
        ("FROM x\nPARAMETER temperature nan", Fault::Float("nan".into()), 2, 23),
        ("FROM x\nPARAMETER top_k 1.5", Fault::Integer("1.5".into()), 2, 17),
        ("FROM x\nPARAMETER use_mmap maybe", Fault::Boolean("maybe".into()), 2, 20),
        ("FROM x\nPARAMETER kv q5", Fault::Word { given: "q5".into(), words: KV_TYPES }, 2, 14),
        ("FROM x\nPARAMETER top_k", Fault::NoValue("PARAMETER"), 2, 16),
        ("FROM x\nMESSAGE tool hi", Fault::Role, 2, 9),
        ("FROM x\nREQUIRES new", Fault::Requires, 2, 10),
        ("DRAFT ./a.gguf\nFROM ./a.gguf", Fault::DraftIsFrom, 1, 7),
    ] {
        let error = parse(text).err().unwrap_or_else(|| panic!("{text:?} was read"));
        assert_eq!((error.fault, error.line, error.column), (fault, line, column), "{text:?}");
    }
    assert_eq!(parse_bytes(b"FROM \xff\n").map_err(|e| e.fault), Err(Fault::Encoding));
}

#[test]
fn an_error_shows_line_and_caret() {
    let error = parse("FROM x\n\tPARAMETER top_k many").expect_err("`many` is no number");
    assert_eq!(
        error.to_string(),
        "(line 2, column 18): invalid int value [many]\n 2 | \tPARAMETER top_k many\n   | \t                ^"
    );
}

#[test]
fn dropped_parameters_leave_a_warning() {
    let parsed = parse("FROM x\nPARAMETER low_vram true\nPARAMETER mirostat 2").expect("both are known");
    assert_eq!(parsed.warnings, ["parameter `low_vram` no longer means anything and is left out"]);
    assert_eq!(parsed.modelfile.instructions.len(), 2);
}

#[test]
fn utf16_and_byte_order_marks_are_understood() {
    let text = "FROM é\n";
    let little: Vec<u8> = [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let big: Vec<u8> = [0xfe, 0xff].into_iter().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    let marked: Vec<u8> = [0xef, 0xbb, 0xbf].into_iter().chain(text.bytes()).collect();
    for bytes in [little, big, marked, text.as_bytes().to_vec()] {
        let parsed = parse_bytes(&bytes).unwrap_or_else(|e| panic!("{bytes:?}: {e}"));
        assert_eq!(parsed.modelfile.instructions, [Instruction::From("é".into())]);
    }
}

#[test]
fn versions_are_checked() {
    for (text, valid) in [
        ("0.14.0", true),
        ("v1.2.3", true),
        ("1.0.0-rc.1+build.5", true),
        ("1.2", false),
        ("1.2.3.4", false),
        ("01.2.3", false),
        ("1.2.x", false),
        ("", false),
        ("1.2.3-", false),
    ] {
        assert_eq!(is_version(text), valid, "{text:?}");
    }
}

fn text() -> impl Strategy<Value = String> {
    // Rich in what the format is sensitive to.
    "([ a\"#\\n\\r\\t{}é]|\"\"\"){0,12}"
}

fn instruction() -> impl Strategy<Value = Instruction> {
    let parameter = prop_oneof![
        any::<i64>().prop_map(|n| ("num_ctx", json!(n))),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(|f| ("temperature", json!(f))),
        any::<bool>().prop_map(|b| ("use_mmap", json!(b))),
        text().prop_map(|s| ("stop", Value::from(s))),
    ];
    prop_oneof![
        text().prop_map(Instruction::From),
        text().prop_map(Instruction::Template),
        text().prop_map(Instruction::System),
        text().prop_map(Instruction::License),
        text().prop_map(Instruction::Adapter),
        parameter.prop_map(|(name, value)| Instruction::Parameter { name: name.into(), value }),
        (0..3usize, text()).prop_map(|(role, content)| Instruction::Message { role: Role::ALL[role], content }),
    ]
}

#[test]
fn numbers_are_written_as_go_writes_them() {
    for (value, expected) in [(json!(0.0), "0"), (json!(0.7), "0.7"), (json!(-2.0), "-2"), (json!(4096), "4096")] {
        let instructions =
            vec![Instruction::From("x".into()), Instruction::Parameter { name: "temperature".into(), value }];
        let text = write(&Modelfile { instructions }).unwrap();
        assert_eq!(text, format!("FROM x\nPARAMETER temperature {expected}\n"));
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(first in text(), rest in prop::collection::vec(instruction(), 0..6)) {
        let mut modelfile = Modelfile { instructions: vec![Instruction::From(first)] };
        modelfile.instructions.extend(rest);
        match write(&modelfile) {
            Ok(text) => match parse(&text) {
                Ok(parsed) => prop_assert_eq!(parsed.modelfile, modelfile, "{:?}", text),
                Err(error) => prop_assert!(false, "{}\n{:?}", error, text),
            },
            // Only what holds lines ending in both kinds of quotes may be refused.
            Err(_) => {
                let shown = format!("{modelfile:?}");
                prop_assert!(shown.contains(r#"\"\"\""#), "refused without need: {}", shown);
            }
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "(FROM|from|SYSTEM|PARAMETER|MESSAGE|[ -~é\\n\\r\"]){0,60}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = parse_bytes(&bytes);
    }
}
