"""Texts from outside, as a terminal shows them."""

import json
import time
import unicodedata

from seg_jax import escapes

EVIL = "\x1b]0;OWNED\x07\x9b31m\x7f\u202egpj\u2066\ud800\ufeff\U000e0041"


def test_what_steers_a_terminal_is_written_out():
    """esc-1: the body of a refusal set the title of the window."""
    assert escapes.line(EVIL) == (
        r"\x1b]0;OWNED\x07\x9b31m\x7f\u202egpj\u2066\ud800\ufeff\U000e0041"
    )
    assert escapes.line("a\r\n  b\rc\n\n\td\n") == "a b c d "
    assert escapes.lines("a\n\tb\r\x1b") == "a\n\tb\\r\\x1b"


def test_what_is_written_out_stays_and_what_people_write_stays():
    for text in (
        "rote Tasse, 漢字 é ñ",
        "\u0633\u0644\u200c\u0647",
        "👩\u200d🚀",
        "a\tb",
        "[red]:cup:[/]",
    ):
        assert escapes.lines(text) == text
        assert escapes.lines(escapes.lines(EVIL)) == escapes.lines(EVIL)


def test_no_control_character_of_unicode_is_left():
    every = "".join(map(chr, range(0x110000)))
    left = {c for c in escapes.line(every) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    assert left <= {"\t"}
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert turning & {unicodedata.bidirectional(c) for c in escapes.line(every)} == set()


def test_json_is_printable_and_the_same_value():
    value = {EVIL: [EVIL, 1.5, None]}
    assert json.loads(escapes.to_json(value, indent=2)) == value
    assert escapes.to_json(value).isprintable()
    assert escapes.to_json(value).isascii()


def test_long_texts_cost_what_their_length_does():
    """A million blanks were looked through from each of them."""
    begin = time.process_time()
    for text in (" " * 1_000_000, "\n " * 500_000, "\x1b" * 1_000_000, "a" * 1_000_000):
        assert escapes.line(text).isprintable()
    assert time.process_time() - begin < 10
