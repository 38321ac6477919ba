//! Compares the results for responses in an unusual form with the results for the usual form.

use super::*;
use proptest::prelude::*;

fn parse_all(text: &str) -> Response<'static> {
    let rest = "A1 OK done\r\n";
    let bytes = format!("{text}{rest}");
    let (response, length) = parse_response(bytes.as_bytes()).unwrap().unwrap();
    assert_eq!(length, text.len(), "{text}");
    response
}

fn parsed(text: &str) -> Response<'_> {
    Response::parse(text.as_bytes()).unwrap().1
}

const USUAL: &str =
    "* 3 FETCH (UID 9 RFC822.SIZE 5 INTERNALDATE \"17-Jul-1996 02:44:25 -0700\" BODY[] {5}\r\nhello)\r\n";

#[test]
fn odd_fetch_responses_parse_like_usual_ones() {
    for odd in [
        USUAL.replace("BODY[]", "BODY[]<0.1048576>"),
        USUAL.replace("BODY[]", "BODY.PEEK[]<0>"),
        USUAL.replace("hello)", "hello\r\n)"),
        USUAL.replace("{5}", "~{5}"),
        USUAL.replace(' ', "  ").replace("17-Jul-1996  02:44:25  -0700", "17-Jul-1996 02:44:25 -0700"),
        USUAL.replace("(UID", "( UID").replace("hello)", "hello )"),
        USUAL.replace("hello)", "hello))"),
        USUAL.replace("BODY[] {5}\r\nhello", "(BODY[] {5}\r\nhello)"),
        USUAL.replace("UID 9 ", "").replace("hello)", "hello\r\n UID 9)"),
        USUAL.replace("UID 9 ", "").replace("hello)", "helloUID 9 FLAGS (\\Seen \"odd\\\"\" {1}\r\n)))"),
        USUAL.replace("BODY[] {5}\r\nhello", "BODY[] \"hello\""),
    ] {
        let Response::Fetch(3, mut items) = parse_all(&odd) else { panic!("{odd}") };
        items.sort_by_key(item_kind);
        let Response::Fetch(3, mut usual) = parsed(USUAL) else { panic!() };
        usual.sort_by_key(item_kind);
        assert_eq!(items, usual, "{odd}");
    }
    for (odd, without_value) in
        [("INTERNALDATE \"17-Jul-1996 02:44:25 -0700\"", "INTERNALDATE NIL"), ("RFC822.SIZE 5", "RFC822.SIZE -1")]
    {
        let Response::Fetch(3, items) = parse_all(&USUAL.replace(odd, without_value)) else { panic!("{odd}") };
        assert_eq!(items.len(), 3, "{without_value}");
    }
}

#[test]
fn unclear_fetch_responses_keep_their_uid() {
    let listed = parsed("* 3 FETCH (UID 9)\r\n");
    for odd in [
        USUAL.replace("hello)", "hello BODY[] {5}\r\nother)"),
        USUAL.replace("hello)", "hello"),
        USUAL.replace("hello)", "hello UID 10)"),
        USUAL.replace("BODY[] {5}\r\nhello", "BODY[] hello"),
        USUAL.replace("BODY[] {5}\r\nhello", "BODY[ hello"),
    ] {
        assert_eq!(parse_all(&odd), listed, "{odd}");
    }
    let nameless = Response::Fetch(3, Vec::new());
    for odd in [
        USUAL.replace("UID 9", "UID 9 UID 10"),
        USUAL.replace("UID 9", "UID nine"),
        USUAL.replace("UID 9 ", "X \" UID 9 "),
        USUAL.replace("UID 9 ", "((((").replace("hello)", "hello UID 9)"),
    ] {
        assert_eq!(parse_all(&odd), nameless, "{odd}");
    }
}

#[test]
fn odd_list_lines_give_a_name_or_nothing() {
    for (odd, name) in [
        (r#"* LIST (\Junk)  "/" Spam"#, "Spam"),
        (r#"* LIST (\Junk) "\" "Mail\Spam""#, r"Mail\Spam"),
        (r#"* LIST (\Junk) "\" Spam"#, "Spam"),
        (r#"* LIST (\Junk) "/" 50% off"#, "50% off"),
        (r#"* LIST (\Junk) "/" "Spam" ("OLDNAME" ("Junk"))"#, "Spam"),
        (r#"* LIST ( \Junk ) NIL  "Spam" "#, "Spam"),
    ] {
        let Response::MailboxData(MailboxDatum::List(list)) = parse_all(&format!("{odd}\r\n")) else { panic!("{odd}") };
        assert_eq!((&*list.name, list.name_attributes.len()), (name, 1), "{odd}");
    }
    for odd in [r#"* LIST () "/" "a "b" c""#, r#"* LIST () "/" a"b"#, r#"* LIST () "/""#, "* LIST", "* LIST (\\x"] {
        assert_eq!(parse_all(&format!("{odd}\r\n")), empty_response(), "{odd}");
    }
}

#[test]
fn other_odd_lines_are_parsed_or_skipped() {
    assert_eq!(parse_all("*  5  EXISTS \r\n"), parsed("* 5 EXISTS\r\n"));
    assert_eq!(parse_all("A7  OK  done\r\n"), parsed("A7 OK done\r\n"));
    let offered = [Capability::Atom("IMAP4rev2".into()), Capability::Auth("PLAIN".into())];
    assert_eq!(parse_all("* CAPABILITY IMAP4rev2 auth=PLAIN\r\n"), Response::Capabilities(offered.into()));
    for odd in ["* NOOP\r\n", "\r\n", "* \r\n", "*\r\n", "* 5 FOO (\r\n", "* CAPABILITY\u{e9}\r\n"] {
        assert_eq!(parse_all(odd), empty_response(), "{odd}");
    }
    for wrong in ["nonsense\r\n", "UID 5)\r\n", "\0\r\n"] {
        assert!(parse_response(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn incomplete_responses_are_not_parsed() {
    for odd in [USUAL.replace("hello)", "hello\r\n UID 9)"), USUAL.replace("BODY[]", "BODY[]<0.7>")] {
        for end in 0..odd.len() {
            assert_eq!(parse_response(&odd.as_bytes()[..end]).unwrap(), None, "{:?}", &odd[..end]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]
    #[test]
    fn both_parsers_agree(
        number in any::<u32>(), uid in 1..u32::MAX, size in any::<u32>(), body in "[ -~\r\n]{0,40}", n in 0..4_usize
    ) {
        let other_items = ["", " FLAGS (\\Seen)", " MODSEQ (5)", " X-GM-MSGID 7"][n];
        let text = format!("* {number} FETCH (UID {uid} RFC822.SIZE {size}{other_items} BODY[]<0> {{{}}}\r\n{body})\r\n", body.len());
        let Response::Fetch(_, usual) = parsed(&text) else { panic!() };
        let (number_in_head, rest) = split_fetch(text.as_bytes()).unwrap();
        let Response::Fetch(parsed_number, items) = parse_fetch_items(number_in_head, LenientInput(rest)).unwrap() else { panic!() };
        prop_assert_eq!(parsed_number, number);
        prop_assert_eq!(items.len(), 3);
        for item in items {
            let with_index = match item {
                AttributeValue::BodySection { section, data, .. } =>
                    AttributeValue::BodySection { section, index: Some(0), data },
                other => other,
            };
            prop_assert!(usual.contains(&with_index));
        }
    }

    #[test]
    fn no_bytes_cause_a_panic(bytes in prop::collection::vec(prop_oneof![
        prop::sample::select(b"* 1FETCH(UIDBODY[]<>{}~\"\\\r\n)".to_vec()), any::<u8>()
    ], 0..80)) {
        for bytes in [bytes.clone(), [b"* 1 FETCH (UID 2 ", &bytes[..]].concat(), [b"* LIST (", &bytes[..]].concat()] {
            if let Ok(Some((_, length))) = parse_response(&bytes) {
                prop_assert!(length > 0 && length <= bytes.len());
            }
        }
    }
}
