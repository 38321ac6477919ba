//! Finds quoted and forwarded text by the lines that mail programs put above it, in several languages.
//!
//! A field in quoted or forwarded text is not a field of this mail.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use super::view::{View, ViewLine};

/// The longest line, in bytes, that can mark the beginning of quoted text. Longer lines are not compared with the expressions.
const MAX_LINE: usize = 300;

/// The most lines of a forwarded mail's header, from From to Subject.
const MAX_HEADER_LINES: usize = 8;

static FORWARDED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?ix)^ [\s\-_=*>]* (
            original\ (message|appointment) | (begin\ )? forwarded\ (message|by|mail) | forwarded\ message\ from
          | (anfang\ der\ )? weitergeleitete[n]?\ (nachricht|e-?mail) | urspr(ü|ue)ngliche\ (nachricht|e-?mail)
          | (début\ du\ )? message\ (transféré|réexpédié|d['’]origine)
          | mensaje\ (reenviado|original) | mensagem\ (encaminhada|original)
          | messaggio\ (inoltrato|originale) | (inizio\ )? messaggio\ inoltrato
          | (begin\ )? doorgestuurd\ bericht | oorspronkelijk\ bericht
          | wiadomość\ (przekazana|oryginalna) | (vidarebefordrat|ursprungligt)\ meddelande
          | пересылаемое\ сообщение | исходное\ сообщение | 转发的?邮件 | 原始邮件 | 転送されたメッセージ | 元のメッセージ
        ) [\s\-_=*:：]* (.* [-_=:：])? $",
    )
    .ok()
});
static WROTE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?ix) \b( wrote | schrieb(\ .+)? | a\ écrit | escribió | escreveu | ha\ scritto | schreef(\ .+)?
          | napisał(\(a\)|a)? | skrev(\ .+)? | написал(\(а\)|а)? ) \s? [:：] $ | 写道\s?[:：] $ | 書きました\s?[:：] $",
    )
    .ok()
});
static FROM: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)^[\s*>|]*(from|von|de|da|van|från|fra|od|от|expéditeur|发件人|差出人)[\s*]*[:：]").ok()
});
static SUBJECT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)^[\s*>|]*(subject|betreff|objet|asunto|assunto|oggetto|onderwerp|ämne|emne|temat|тема|主题|件名)[\s*]*[:：]").ok()
});

/// Whether a text may contain a colon, `:` or `：`. Most lines contain none, so they need no regular expression.
fn may_have_colon(text: &str) -> bool {
    const FIRST_BYTE_OF_WIDE: u8 = 0xef;
    memchr::memchr2(b':', FIRST_BYTE_OF_WIDE, text.as_bytes()).is_some()
}

fn matches(pattern: &LazyLock<Option<Regex>>, text: &str) -> bool {
    text.len() <= MAX_LINE && pattern.as_ref().is_some_and(|p| p.is_match(text))
}

/// Finds the first line that begins quoted text, and marks this line and all lines below as quoted. A line such as `A wrote:`
/// begins no quoted text if the next line is already marked, for example by its `>`.
pub(crate) fn mark_quoted(view: &mut View) {
    let texts: Vec<Cow<'_, str>> = view.lines.iter().map(ViewLine::joined).collect();
    let begins_quote = |n: usize| {
        let text = texts.get(n).map(|text| &**text).unwrap_or_default();
        let next_is_marked = view.lines.get(n + 1).is_some_and(|line| line.quoted);
        let wrote = || text.ends_with([':', '：']) && matches(&WROTE, text);
        matches(&FORWARDED, text) || (wrote() && !next_is_marked) || is_header(&texts, n)
    };
    let first = (0..texts.len()).find(|n| begins_quote(*n)).unwrap_or(texts.len());
    for line in view.lines.iter_mut().skip(first) {
        line.quoted = true;
    }
}

/// Whether a forwarded mail's header starts at line `n`: a From, and a Subject a few lines below.
fn is_header(texts: &[Cow<'_, str>], n: usize) -> bool {
    let line_matches =
        |pattern, n: usize| texts.get(n).is_some_and(|text| may_have_colon(text) && matches(pattern, text));
    line_matches(&FROM, n) && (n + 1..n + MAX_HEADER_LINES).any(|below| line_matches(&SUBJECT, below))
}

#[cfg(test)]
mod tests {
    use super::super::plain_text::plain_text_view;

    fn own(text: &str) -> Vec<String> {
        plain_text_view(text, None).lines.iter().filter(|l| !l.quoted).map(|l| l.to_text()).collect()
    }

    #[test]
    fn text_below_a_reply_line_is_quoted() {
        for above in [
            "-----Original Message-----",
            "---------- Forwarded message ---------",
            "Begin forwarded message:",
            "-------- Weitergeleitete Nachricht --------",
            "Am 05.03.2025 um 03:36 schrieb Resmic <billing@resmic.com>:",
            "On Wed, Mar 5, 2025 at 3:36 AM Resmic <billing@resmic.com> wrote:",
            "<billing@resmic.com> wrote:",
            "Le mer. 5 mars 2025 à 03:36, Resmic a écrit :",
            "From: Resmic <billing@resmic.com>\nSent: Wednesday\nTo: me\nSubject: Payment received\n",
            "*Von:* Resmic\n*Gesendet:* Mittwoch\n*An:* ich\n*Betreff:* Payment received\n",
        ] {
            assert_eq!(own(&format!("mine\n{above}\ntheirs\n")), ["mine"], "{above}");
        }
    }

    #[test]
    fn similar_lines_begin_no_quote() {
        let mail =
            "Payment received\nFrom: 0xab\nDate: today\nSee the original message.\nWe wrote: nothing\nToken: DAI";
        assert_eq!(own(mail).len(), 6);
        assert_eq!(own("On Monday, A wrote:\n> theirs\nmine").last().map(String::as_str), Some("mine"));
    }
}
