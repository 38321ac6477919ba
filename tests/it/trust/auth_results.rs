//! Authentication-Results of the receiving server: genuine, forged, in several fields, and without a server's name.

use super::*;

/// The authenticity of a mail with these header fields at the top, by the results of the receiving server `id`.
async fn with_fields(id: &str, fields: &str, mail: &[u8]) -> Authenticity {
    let mail = [fields.as_bytes(), mail].concat();
    authenticate_with(&mail, &trusting(id), Timestamp::now(), &[address()]).await
}

#[tokio::test]
async fn forged_results_prove_nothing() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sample-mails/forged");
    for by in ["mail-from", "helo"] {
        let read = |name: String| std::fs::read(folder.join(name)).unwrap();
        let unsigned = read(format!("verdict-by-{by}.eml"));
        let made_up = read(format!("verdict-by-{by}-with-a-made-up-signature.eml"));
        assert_untrusted(&with_fields("mx.shop.example", "", &unsigned).await, by);
        assert_untrusted(&with_fields("mx.shop.example", "", &made_up).await, by);
        // Without a signature, a forged result cannot be distinguished from the server's.
        let removed = TrustSettings { signatures_removed: true, ..trusting("mx.shop.example") };
        let authenticity = authenticate_with(&unsigned, &removed, Timestamp::now(), &[address()]).await;
        assert!(matches!(authenticity, Authenticity::Trusted(_)), "{by}: {authenticity:?}");
        assert_untrusted(&authenticate_with(&made_up, &removed, Timestamp::now(), &[address()]).await, by);
    }
}

#[tokio::test]
async fn servers_result_counts_for_the_body() {
    let genuine = signed(SigningOptions::default());
    for mail in [genuine.clone(), replaced(&genuine, "Token: DAI", "Token: <https://safelinks.example/?url=DAI>")] {
        let authenticity = with_fields("mx.shop.example", PASS, &mail).await;
        let Authenticity::Trusted(proof) = &authenticity else { panic!("{authenticity:?}") };
        assert_eq!(proof.trust, Trust::AuthenticationResults);
        assert_eq!((proof.domain.as_deref(), proof.selector.as_deref()), (Some("resmic.com"), Some("s1")));
        assert!(
            proof.signed_headers.contains("subject")
                && proof.signed_headers.contains("date")
                && !proof.signed_headers.contains("content-type")
        );
    }
    let failed = PASS.replace("dkim=pass", "dkim=fail");
    assert_untrusted(&with_fields("mx.shop.example", &failed, &genuine).await, "the server's result is fail");
    assert_untrusted(&with_fields("mx.shop.example", "", &genuine).await, "the server has no result");
    let other = PASS.replace("header.d=resmic.com", "header.d=mail.resmic.com");
    assert_untrusted(&with_fields("mx.shop.example", &other, &genuine).await, "the result is about another signature");
}

#[tokio::test]
async fn two_signatures_may_have_different_bodies() {
    let other =
        sign(&replaced(MAIL.as_bytes(), "Token: DAI", "Token: DAI \r\nx"), &KEYS.rsa, &SigningOptions::default());
    let other = String::from_utf8(other).unwrap();
    let (signature, _) = other.split_once("From: ").unwrap();
    let simple = signed(SigningOptions { canonicalization: Canonicalization::Simple, ..SigningOptions::default() });
    let mail = [signature.as_bytes(), &simple].concat();
    let authenticity = with_fields("mx.shop.example", PASS, &mail).await;
    assert!(matches!(authenticity, Authenticity::Trusted(_)), "{authenticity:?}");
    assert!(matches!(authenticate_now(&mail).await, Authenticity::Trusted(_)));
}

#[tokio::test]
async fn servers_result_needs_a_verified_header() {
    let good = signed(SigningOptions::default());
    let headers =
        |names: &'static [&'static str]| signed(SigningOptions { headers: names, ..SigningOptions::default() });
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("unsigned", MAIL.as_bytes().to_vec()),
        ("the subject was changed", replaced(&good, "Paymet received", "[EXTERNAL] Paymet received")),
        ("the To was changed", replaced(&good, "To: payments@shop", "To: Payments+x@shop")),
        ("the body hash was changed", replaced(&good, "bh=", "bh=AAAA")),
        ("by another key", signed(SigningOptions { selector: "other", ..SigningOptions::default() })),
        ("a key that is not there", signed(SigningOptions { selector: "none", ..SigningOptions::default() })),
        ("a revoked key", signed(SigningOptions { selector: "revoked", ..SigningOptions::default() })),
        ("a key in test mode", signed(SigningOptions { selector: "testing", ..SigningOptions::default() })),
        ("a part of the body only", signed(SigningOptions { body_length: true, ..SigningOptions::default() })),
        ("nothing of the body", replaced(&good, "; bh=", "; l=0; bh=")),
        ("To is not signed", headers(&["From", "Subject", "Date"])),
        ("a second To on top", [b"To: payments@shop.example\r\n".as_slice(), &good].concat()),
        ("expired", signed(SigningOptions { expires_in: Some(3600), ahead: -7200, ..SigningOptions::default() })),
        ("of another organisation", signed(SigningOptions { domain: "evil.tld", ..SigningOptions::default() })),
    ];
    for (case, mail) in cases {
        assert_untrusted(&with_fields("mx.shop.example", PASS, &mail).await, case);
    }
    let weak = sign(MAIL.as_bytes(), &KEYS.weak, &SigningOptions { selector: "weak", ..SigningOptions::default() });
    assert_untrusted(&with_fields("mx.shop.example", PASS, &weak).await, "a short key");
}

#[tokio::test]
async fn removed_signatures_need_permission() {
    let removed = TrustSettings { signatures_removed: true, ..trusting("mx.shop.example") };
    let authenticate_now = async |mail: &[u8]| authenticate_with(mail, &removed, Timestamp::now(), &[address()]).await;
    let authenticity = authenticate_now(format!("{PASS}{MAIL}").as_bytes()).await;
    let Authenticity::Trusted(proof) = &authenticity else { panic!("{authenticity:?}") };
    assert_eq!(proof.signed_headers, SignedHeaders::Only(vec!["from".into(), "to".into()]));
    for name in ["DKIM-Signature", "dkim-signature ", "DKIM-Sig nature"] {
        for value in ["v=1; a=rsa-sha256; d=esp.example; s=s1; h=from; bh=YQ==; b=YQ==", "broken", ""] {
            assert_untrusted(&authenticate_now(format!("{PASS}{name}: {value}\r\n{MAIL}").as_bytes()).await, name);
        }
    }
    for to in ["To: x@evil.tld\r\n", "To : x@evil.tld\r\n"] {
        assert_untrusted(&authenticate_now(format!("{PASS}{to}{MAIL}").as_bytes()).await, to);
    }
}

#[tokio::test]
async fn servers_result_waits_for_dns() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let servers = [silent.local_addr().unwrap().to_string()];
    let mail = [PASS.as_bytes(), &signed(SigningOptions::default())].concat();
    let authenticity = authenticate_with(&mail, &trusting("mx.shop.example"), Timestamp::now(), &servers).await;
    assert!(
        matches!(&authenticity, Authenticity::TempError(reason) if reason.code == ReasonCode::Dns),
        "{authenticity:?}"
    );
}

#[tokio::test]
async fn several_fields_of_one_server_count_as_one() {
    let genuine = signed(SigningOptions::default());
    let dmarc = "Authentication-Results: mx.shop.example; dmarc=pass (p=reject dis=none) header.from=resmic.com\r\n";
    let spf = "Authentication-Results: mx.shop.example; spf=pass (sender SPF authorized) smtp.mailfrom=resmic.com (client-ip=192.0.2.25; helo=a.resmic.com; envelope-from=x@resmic.com; receiver=shop.example)\r\n";
    let received =
        "Received: from a.resmic.com by mx.shop.example (Postfix) with ESMTPS id 0C5B13F980\r\nX-Spam: no\r\n";
    for fields in [format!("{dmarc}{spf}{PASS}"), format!("{spf}{received}{dmarc}{received}{PASS}{received}")] {
        let authenticity = with_fields("mx.shop.example", &fields, &genuine).await;
        assert!(matches!(authenticity, Authenticity::Trusted(_)), "{fields}: {authenticity:?}");
    }
    let other = "Authentication-Results: mx.evil.tld; spf=pass\r\n";
    assert_untrusted(
        &with_fields("mx.shop.example", &format!("{dmarc}{other}{PASS}"), &genuine).await,
        "another server's field ends the search",
    );
    let broken = "Authentication-Results: mx.shop.example; spf=fail smtp.mailfrom=\"a\r\n";
    for fields in [format!("{broken}{PASS}"), format!("{dmarc}{PASS}{broken}")] {
        assert_untrusted(&with_fields("mx.shop.example", &fields, &genuine).await, "a broken field");
    }
}

#[tokio::test]
async fn server_names_match_patterns_and_job_ids() {
    let genuine = signed(SigningOptions::default());
    for (id, server, known) in [
        ("mx.shop.example", "mx.shop.example/0C5B13F980", true),
        ("*.fastmail.com", "mx1.phl.fastmail.com", true),
        ("*.fastmail.com", "mx1.fastmail.com/7", true),
        ("*.fastmail.com", "fastmail.com", false),
        ("*.fastmail.com", "mx1.evilfastmail.com", false),
        ("mx.shop.example", "mx.shop.example.evil.tld/0C5B13F980", false),
    ] {
        let authenticity = with_fields(id, &PASS.replace("mx.shop.example", server), &genuine).await;
        assert_eq!(matches!(authenticity, Authenticity::Trusted(_)), known, "{id} {server}: {authenticity:?}");
    }
}

#[tokio::test]
async fn microsofts_field_counts_with_a_verified_header() {
    let genuine = signed(SigningOptions::default());
    let rewritten =
        replaced(&genuine, "Token: DAI", "Token: DAI https://eur01.safelinks.protection.outlook.com/?url=x");
    let received =
        |by: &str| format!("Received: from a.example (192.0.2.1)\r\n by {by}; Wed, 5 Mar 2025 03:36:41 +0000\r\n");
    let (last, first) = (
        received("PH7PR11MB6428.namprd11.prod.outlook.com with HTTPS"),
        received("DB5EUR01FT008.mail.protection.outlook.com (10.152.4.1) with Microsoft SMTP Server"),
    );
    let field = "Authentication-Results: spf=pass (sender IP is 192.0.2.25) smtp.mailfrom=resmic.com; dkim=pass (signature was verified) header.d=resmic.com;dmarc=pass action=none header.from=resmic.com;compauth=pass reason=100\r\n";
    for fields in [format!("{last}{field}{first}"), format!("{field}{first}")] {
        for mail in [&genuine, &rewritten] {
            let authenticity = with_fields("microsoft-365", &fields, mail).await;
            let Authenticity::Trusted(proof) = &authenticity else { panic!("{fields}: {authenticity:?}") };
            assert_eq!(proof.trust, Trust::AuthenticationResults);
        }
        assert_untrusted(&with_fields("microsoft-365", &fields, MAIL.as_bytes()).await, "unsigned");
        assert_untrusted(&with_fields("mx.shop.example", &fields, &genuine).await, "not configured");
        let tagged = replaced(&rewritten, "Paymet received", "[EXTERNAL] Paymet received");
        assert_untrusted(&with_fields("microsoft-365", &fields, &tagged).await, "a changed Subject");
    }
    let postfix = received("mx.shop.example (Postfix) with ESMTPS");
    for fields in [format!("{postfix}{field}{first}"), field.to_owned(), format!("{last}{PASS}{field}")] {
        assert_untrusted(&with_fields("microsoft-365", &fields, &rewritten).await, &fields);
    }
}
