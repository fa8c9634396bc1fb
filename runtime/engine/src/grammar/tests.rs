//! Grammars from end to end: which texts they take, byte by byte.

use super::{
    GrammarCompiler, GrammarError, StructuredOutputs,
    matcher::{Mask, Matcher},
};
use crate::tokenizer::{Tokenizer, fakes::byte_level};
use serde_json::{Value, json};
use std::sync::Arc;

const EOS: u32 = 257;

fn compiler() -> (Arc<Tokenizer>, GrammarCompiler) {
    let tokenizer = Arc::new(byte_level());
    let compiler = GrammarCompiler::new(Some(tokenizer.clone()), Arc::from([EOS]), 259);
    (tokenizer, compiler)
}

fn refusal(form: StructuredOutputs) -> GrammarError {
    compiler().1.compile(&form).unwrap_err()
}

/// Whether a form takes a whole text. Nothing else is allowed where the mask says so.
fn takes(form: &StructuredOutputs, text: &str) -> bool {
    let (tokenizer, compiler) = compiler();
    let mut matcher = Matcher::new(compiler.compile(form).unwrap(), Arc::from([]));
    let tokens = tokenizer.encode(text, false).unwrap();
    for (i, token) in tokens.iter().enumerate() {
        match matcher.mask().unwrap() {
            Some(mask) if mask.allows(*token) => drop(matcher.advance(*token, &tokens[..=i])),
            _ => return false,
        }
    }
    matcher.has_ended() || matcher.mask().unwrap().is_some_and(|m| m.is_accepting() && m.allows(EOS))
}

fn check(form: &StructuredOutputs, taken: &[&str], refused: &[&str]) {
    taken.iter().for_each(|text| assert!(takes(form, text), "{text:?} is of {form:?}"));
    refused.iter().for_each(|text| assert!(!takes(form, text), "{text:?} is not of {form:?}"));
}

fn schema(schema: Value) -> StructuredOutputs {
    StructuredOutputs::json_schema(schema)
}

fn ebnf(grammar: &str) -> StructuredOutputs {
    StructuredOutputs::lark(grammar.to_string())
}

#[test]
fn schemas_take_what_fulfils_them() {
    let point = schema(json!({"properties": {"x": {"type": "integer"}, "y": {"const": "é\""}}, "required": ["x"]}));
    let object = StructuredOutputs { disable_additional_properties: true, ..point.clone() };
    check(&object, &["{\"x\": 1}", "{\"x\":-12,\n \"y\":\"é\\\"\"}"], &["{}", "{\"x\":1.5}", "{\"x\":1,\"z\":2}"]);
    check(&point, &["{\"x\":1,\"z\":2}"], &["{\"x\":1,"]);
    let tight = StructuredOutputs { disable_any_whitespace: true, ..object.clone() };
    check(&tight, &["{\"x\":1}"], &["{\"x\": 1}"]);
    let tabs = StructuredOutputs { whitespace_pattern: Some("\t?".into()), ..object };
    check(&tabs, &["{\"x\":\t1}"], &["{\"x\": 1}"]);
    check(&schema(json!("{\"type\": \"null\"}")), &["null"], &["0"]);
    let any = StructuredOutputs { json_object: Some(true), ..StructuredOutputs::default() };
    check(&any, &["{}", "{\"a\": [1, {\"b\": null}]}"], &["[]", "{\"a\"}"]);
}

#[test]
fn endless_whitespace_is_not_taken() {
    let object = schema(json!({"type": "object"}));
    check(&object, &[&format!("{{{}}}", " ".repeat(40))], &[&format!("{{{}}}", " ".repeat(41))]);
}

#[test]
fn what_options_have_in_common_is_refused_by_its_place() {
    let overlap = json!({"properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}});
    let message = refusal(schema(overlap)).to_string();
    assert!(
        message.starts_with("the JSON schema's keyword oneOf at /properties/a/oneOf cannot be honoured"),
        "{message}"
    );
    let apart = json!({"oneOf": [{"type": "integer"}, {"type": "string"}]});
    check(&schema(apart), &["1", "\"1\""], &["null"]);
}

#[test]
fn choices_are_texts_as_they_are() {
    let choice = ["a", "ab", "", "\"\\", "π\n", "\u{1}\u{7f}\u{85}"].map(String::from).to_vec();
    let form = StructuredOutputs { choice: Some(choice), ..StructuredOutputs::default() };
    check(&form, &["a", "ab", "", "\"\\", "π\n", "\u{1}\u{7f}\u{85}"], &["b", "aba", " a"]);
    let none = StructuredOutputs { choice: Some(vec![]), ..StructuredOutputs::default() };
    assert_eq!(refusal(none).to_string(), "the choice cannot be followed: the list is empty");
}

#[test]
fn lark_is_taken_as_it_is() {
    let form = ebnf("start: item (\",\" item)*\nitem: /[0-9]+/ | \"(\" start \")\"");
    check(&form, &["1", "12,(3,4)"], &["", "1,", "(1"]);
    assert!(matches!(refusal(ebnf("start: nothing")), GrammarError::Invalid { kind: "grammar", .. }));
}

#[test]
fn ebnf_is_translated() {
    let arithmetic = r##"
        # sums
        root  ::= expr
        expr  ::= term (("+" | "-") term)*
        term  ::= num | "(" ws expr ws ")"
        num   ::= [0-9]{1,3} ("." [0-9]+)?
        ws    ::= [ \t\n]*
    "##;
    check(&ebnf(arithmetic), &["1", "12+3", "( 1.5-(2+3) )", "999"], &["", "1+", "1000", "(1", "1.", "( )", "(1 -2)"]);
    let text = "root ::= \"say \" [^\\x41-\\x43\\n]+ (\"!\" | \"\\u00e9\")? | A-1\nA-1 ::= \"A\"\na_1 ::= \"b\" | a_1";
    check(&ebnf(text), &["say x]", "say é", "say hi!", "A"], &["say A", "say ", "b", "say \n"]);
    check(&ebnf("root ::= . . \"\""), &["ab", "\n]"], &["a"]);
}

#[test]
fn what_is_not_ebnf_is_refused_with_its_place() {
    for (grammar, problem) in [
        ("root ::= a", "there is no rule a"),
        ("a ::= \"x\"", "there is no rule root to begin with"),
        ("root ::= \"x", "line 1: a text in quotes does not end"),
        ("root ::= \"x\"\n  | (= \"y\")", "line 2: look-ahead `(= …)` cannot be followed"),
        ("root ::= (\"x\"", "a bracket is not closed"),
        ("root ::= \"x\")", "the rule root has a bracket too many"),
        ("root ::= *", "there is nothing to repeat"),
        ("root ::= \"x\"\nroot ::= \"y\"", "the rule root is defined twice"),
        ("root ::= \"x\"{3,2}", "line 1: a repetition is written {2}, {2,} or {2,5}"),
        ("root ::= [a-", "line 1: a class of characters does not end"),
        ("root ::= TagDispatch(\"a\")", "there is no rule TagDispatch"),
    ] {
        assert_eq!(refusal(ebnf(grammar)).to_string(), format!("the grammar cannot be followed: {problem}"));
    }
    let deep = format!("root ::= {}\"x\"{}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(refusal(ebnf(&deep)).to_string().contains("nested deeper"));
    let deep = format!("start: {}\"x\"{}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(refusal(ebnf(&deep)).to_string().contains("nested deeper"));
}

#[test]
fn structural_tags_hold_where_a_trigger_was_written() {
    let older = json!({"type": "structural_tag", "triggers": ["<f="], "structures": [
        {"begin": "<f=one>", "schema": {"type": "integer"}, "end": "</f>"},
        {"begin": "<f=two>", "schema": {"enum": ["x"]}, "end": "</f>"}]});
    let form = StructuredOutputs { structural_tag: Some(older.to_string()), ..StructuredOutputs::default() };
    let taken = ["", "free < text", "a<f=one>12</f> b <f=two>\"x\"</f>"];
    check(&form, &taken, &["<f=three>", "<f=one>x", "a <f=two>\"x\"", "<f="]);
    let newer = json!({"type": "structural_tag", "format": {"type": "sequence", "elements": [
        {"type": "const_string", "value": "begin "},
        {"type": "tag", "begin": "<t>", "content": {"type": "any_text"}, "end": "</t>"},
        {"type": "or", "elements": [{"type": "regex", "pattern": "[0-9]/"},
            {"type": "json_schema", "json_schema": {"type": "boolean"}}]}]}});
    let form = StructuredOutputs { structural_tag: Some(newer.to_string()), ..StructuredOutputs::default() };
    check(&form, &["begin <t>a < b</t>1/", "begin <t></t>true"], &["begin <t>a</t>", "begin <t>1/", "<t></t>true"]);
    let separated = json!({"type": "structural_tag", "format": {"type": "tags_with_separator", "separator": ", ",
        "at_least_one": true, "tags": [{"begin": "[", "content": {"type": "json_schema", "json_schema": {"enum": [1]}}, "end": "]"}]}});
    let form = StructuredOutputs { structural_tag: Some(separated.to_string()), ..StructuredOutputs::default() };
    check(&form, &["[1]", "[1], [1]"], &["", "[1],", "[1][1]"]);
    let other = json!({"type": "structural_tag", "format": {"type": "qwen_xml_parameter"}});
    let form = StructuredOutputs { structural_tag: Some(other.to_string()), ..StructuredOutputs::default() };
    assert!(refusal(form).to_string().contains("formats of type \"qwen_xml_parameter\" are not taken"));
}

#[test]
fn grammars_are_kept_and_the_oldest_go() {
    let (_, compiler) = compiler();
    let of = |n: usize| StructuredOutputs { regex: Some(format!("a{{{n}}}")), ..StructuredOutputs::default() };
    let first = compiler.compile(&of(1)).unwrap();
    assert!(Arc::ptr_eq(&first, &compiler.compile(&of(1)).unwrap()));
    let other = StructuredOutputs { param: Some("guided_regex"), ..of(1) };
    assert!(Arc::ptr_eq(&first, &compiler.find(&other).unwrap()));
    for n in 2..=300 {
        compiler.compile(&of(n)).unwrap();
        compiler.find(&of(1)).unwrap();
    }
    assert_eq!(compiler.num_kept(), 256);
    assert!(compiler.find(&of(2)).is_none() && compiler.find(&of(300)).is_some());
    let order = |text: &str| StructuredOutputs::json_schema(serde_json::from_str(text).unwrap());
    let (ab, ba) = (order("{\"properties\":{\"a\":{},\"b\":{}}}"), order("{\"properties\":{\"b\":{},\"a\":{}}}"));
    assert!(!Arc::ptr_eq(&compiler.compile(&ab).unwrap(), &compiler.compile(&ba).unwrap()));
}

#[test]
fn a_fork_goes_on_by_itself() {
    let (_, compiler) = compiler();
    let form = StructuredOutputs { regex: Some("(ab|ac)d".into()), ..StructuredOutputs::default() };
    let letter = |c: char| byte_level().encode(&c.to_string(), false).unwrap()[0];
    let mut one = Matcher::new(compiler.compile(&form).unwrap(), Arc::from([]));
    let job = one.advance(letter('a'), &[]);
    assert!(job.is_some());
    let mut other = one.clone();
    let tokens = |m: &mut Matcher| m.mask().unwrap().map(|m| m.tokens().collect::<Vec<_>>());
    assert_eq!(tokens(&mut one), tokens(&mut other));
    one.advance(letter('b'), &[]);
    assert_eq!(tokens(&mut one), Some(vec![letter('d')]));
    assert_eq!(tokens(&mut other).map(|t| t.len()), Some(2));
    other.advance(letter('c'), &[]);
    assert!(other.advance(letter('d'), &[]).is_none() && other.has_ended() && !one.has_ended());
}

#[test]
fn an_answer_whose_grammar_outgrows_its_bounds_ends_alone() {
    let (_, compiler) = compiler();
    // what the last 24 letters were decides what may follow: a lexer has a state for each such text that it has seen
    let form = StructuredOutputs { regex: Some("[ab]*a[ab]{24}c".into()), ..StructuredOutputs::default() };
    let letter = |c: &str| byte_level().encode(c, false).unwrap()[0];
    let (letters, end) = ([letter("a"), letter("b")], letter("c"));
    let mut matcher = Matcher::new(compiler.compile(&form).unwrap(), Arc::from([]));
    let mut state = 1u32;
    let error = (0..200_000).find_map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        matcher.advance(letters[(state >> 31) as usize], &[]);
        matcher.mask().err()
    });
    let told = error.expect("the grammar has bounds").to_string();
    assert!(told.starts_with("the answer cannot go on: "), "{told}");
    assert!(matcher.advance(letters[0], &[]).is_none() && matcher.mask().is_err());
    let mut other = Matcher::new(compiler.compile(&form).unwrap(), Arc::from([]));
    for token in [letters[0]].into_iter().chain([letters[1]; 24]) {
        assert!(other.mask().unwrap().is_some_and(|mask| mask.allows(token) && !mask.allows(end)));
        other.advance(token, &[]);
    }
    assert!(other.mask().unwrap().is_some_and(|mask| mask.allows(end)));
}

#[test]
fn masks_keep_the_logits_of_their_tokens() {
    let (_, compiler) = compiler();
    let form = StructuredOutputs { regex: Some("[^a-m]".into()), ..StructuredOutputs::default() };
    let mask: Arc<Mask> = compiler.compile(&form).unwrap().first.clone();
    let logits: Vec<f32> = (0..259).map(|i| i as f32).collect();
    let mut kept = vec![];
    mask.keep(&logits, &mut kept);
    for (id, (logit, kept)) in logits.iter().zip(&kept).enumerate() {
        assert_eq!(*kept, if mask.allows(id as u32) { *logit } else { f32::NEG_INFINITY });
    }
    assert_eq!(kept.len(), 259);
}

/// A vocabulary of 8192 tokens, most of them of several bytes.
fn demo() -> Arc<Tokenizer> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo/tokenizer.json");
    Arc::new(Tokenizer::from_bytes(&std::fs::read(path).unwrap()).unwrap())
}

/// Whether a grammar over bytes, from where `matcher` is, takes a text.
fn follows(matcher: &Matcher, bytes: &[u8]) -> bool {
    let tokenizer = byte_level();
    let ids = tokenizer.encode(std::str::from_utf8(bytes).unwrap_or_default(), false).unwrap();
    let mut matcher = matcher.clone();
    !ids.is_empty()
        && ids.iter().all(|id| {
            let allowed = matcher.mask().unwrap().is_some_and(|m| m.allows(*id));
            drop(matcher.advance(*id, &[]));
            allowed
        })
}

#[test]
fn a_token_is_allowed_where_all_its_bytes_are() {
    let (demo, (_, bytes)) = (demo(), compiler());
    let tokens = GrammarCompiler::new(Some(demo.clone()), Arc::from([8177]), 8192);
    let object = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}, "n": {"type": "integer"}},
        "required": ["name", "n"], "additionalProperties": false});
    let forms = [
        schema(object),
        StructuredOutputs { regex: Some("(the |a )?(cat|dog|\\w+)s?\\.".into()), ..StructuredOutputs::default() },
        ebnf("root ::= word (\" \" root)?\nword ::= [a-zé]+ | \"(\" root \")\""),
    ];
    for (form, seed) in forms.iter().zip(0u64..) {
        let mut whole = Matcher::new(tokens.compile(form).unwrap(), Arc::from([]));
        let mut single = Matcher::new(bytes.compile(form).unwrap(), Arc::from([]));
        for position in 0..8u64 {
            let Some(mask) = whole.mask().unwrap() else { break };
            for sample in 0..150u64 {
                let id = (crate::random::word(seed, position, sample) % 8176) as u32;
                let text = demo.decode(&[id], false).unwrap();
                // Parts of characters are no text of their own.
                if !text.contains('\u{fffd}') {
                    assert_eq!(mask.allows(id), follows(&single, text.as_bytes()), "{text:?} in {form:?}");
                }
            }
            let allowed: Vec<u32> = mask.tokens().filter(|id| *id < 8176).collect();
            let printable = |id: &&u32| demo.decode(&[**id], false).is_ok_and(|t| !t.contains('\u{fffd}'));
            let allowed: Vec<&u32> = allowed.iter().filter(printable).collect();
            let Some(chosen) = allowed.get(position as usize * 31 % allowed.len().max(1)) else { break };
            for id in byte_level().encode(&demo.decode(&[**chosen], false).unwrap(), false).unwrap() {
                single.mask().unwrap();
                drop(single.advance(id, &[]));
            }
            drop(whole.advance(**chosen, &[]));
        }
    }
}

proptest::proptest! {
    #[test]
    fn choices_take_their_texts_and_no_other(
        choice in proptest::collection::vec("[ab\"\\\\é\u{7f}\u{1}]{0,3}", 1..6), text in "[ab\"\\\\é\u{7f}\u{1}]{0,4}",
    ) {
        let form = StructuredOutputs { choice: Some(choice.clone()), ..StructuredOutputs::default() };
        proptest::prop_assert_eq!(takes(&form, &text), choice.contains(&text));
    }
}
