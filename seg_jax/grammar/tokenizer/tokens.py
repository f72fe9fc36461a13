"""The tokenizer: loads any Hugging Face folder, trains small ones, knows numbers by their value.

Axes here: `J` tokens that share a soft target.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from seg_jax import files, schemas
from seg_jax.grammar.tokenizer import byte_level as byte_pieces
from seg_jax.grammar.tokenizer import growth, patterns, template_sandbox, tiktoken_bpe

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
IMAGE_TOKENS = ("<|image_pad|>", "<|media_pad|>", "<|media_placeholder|>")
"""Names under which known models keep the place of an image, where their files do not say."""

TOKENS = "tokenizer.json"
CONFIG = "tokenizer_config.json"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part['type'] == 'text' -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
ROLES = "system\nuser\nassistant\n"

BRACKETS = ("[", "[[", "[[[", "]", "]]", "]]]", "].", "]].", "]]].", "], [", "]], [[")
"""What `numbers="whole"` writes as one token each."""

AFTER_Y = ("", "], [", "]], [[", "]]].")
"""What may follow the second number of a point within its token: a point is two tokens."""


class _Token(schemas.Record, frozen=True):
    content: str


_Named = str | _Token | None


class _Config(schemas.Record, frozen=True):
    """What is read of a tokenizer_config.json; names of tokens are texts or objects."""

    bos_token: _Named = None
    eos_token: _Named = None
    pad_token: _Named = None
    unk_token: _Named = None
    image_token: _Named = None
    chat_template: str | list[Any] | None = None


class Tokenizer:
    """A tokenizer with what its files say about it: special ids and chat template.

    Tokenizer files may come from anywhere: they are read as data, the chat template runs in a
    sandbox.
    """

    def __init__(self, definition: str, config: object):
        """Reads the text of a tokenizer.json and the contents of a tokenizer_config.json.

        Raises:
          ValueError: they do not describe a tokenizer.
        """
        from tokenizers import Tokenizer as Backend

        self._arguments = (definition, config)
        advice = "save the tokenizer again in Hugging Face's fast format"
        whole = files.parse_json(definition, where=f"tokenizer: {TOKENS}", advice=advice)
        try:
            growth.check(whole)
            self._most_text = patterns.check(whole)
            self._decoder = json.dumps(whole.get("decoder"))
            with _panic_as_error():
                self._backend, self._plain = (Backend.from_str(definition) for _ in range(2))
        except Exception as error:
            raise ValueError(
                f"tokenizer: expected a tokenizer.json of the tokenizers library, got {error!r}; "
                f"do: {advice}"
            ) from error
        if not isinstance(config, Mapping):
            raise ValueError(
                "tokenizer: expected an object in tokenizer_config.json, got "
                f"{type(config).__name__}; do: copy the file that belongs to the tokenizer"
            )
        where = f"tokenizer: {CONFIG}"
        schemas.check(dict(config), _Config, where=where, advice="copy the file that belongs to it")
        self._plain.encode_special_tokens = True
        for backend in (self._backend, self._plain):
            # As transformers does: a file cannot cut texts, nor fill up to a length of its own.
            backend.no_truncation()
            backend.no_padding()
            if getattr(backend.model, "dropout", None):  # Ids would be drawn by lot.
                backend.model.dropout = None
        self._config = config
        self._added = self._backend.get_added_tokens_decoder()
        self.special: dict[str, int] = {
            token.content: number for number, token in self._added.items() if token.special
        }
        """Ids of the special tokens by their text."""
        vocab = self._backend.get_vocab()
        if (longest := max(map(len, vocab), default=0)) > MOST_TOKEN:
            raise ValueError(
                f"tokenizer: expected tokens of at most {MOST_TOKEN} characters, got one of "
                f"{longest}; do: check tokenizer.json, it looks damaged"
            )
        numbers = {*vocab.values(), *self._added}
        self.vocab_size: int = max(numbers, default=-1) + 1
        """One more than the highest id; a model's table may be larger."""
        if self.vocab_size > 2 * len(numbers) + 10_000:
            raise ValueError(
                f"tokenizer: expected ids without wide gaps, got {len(numbers)} tokens with ids up "
                f"to {self.vocab_size - 1}; do: check tokenizer.json, it looks damaged"
            )
        self.pad_id: int = self._id_of_role("pad_token")
        self.eos_id: int = self._id_of_role("eos_token")

    def __reduce__(self):
        return Tokenizer, self._arguments

    @property
    def definition(self) -> str:
        """The text of its tokenizer.json."""
        return self._arguments[0]

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads tokenizer.json or tiktoken.model, tokenizer_config.json and the chat template.

        The template is that of chat_template.jinja, else of chat_template.json, else of the config.

        Raises:
          ValueError: the folder lacks them, or they do not describe a tokenizer.
        """
        folder = Path(folder)
        ranked = (folder / tiktoken_bpe.FILE).exists() and not (folder / TOKENS).exists()
        text = _read_text(folder / (tiktoken_bpe.FILE if ranked else TOKENS))
        config = files.read_json(folder / CONFIG, advice=_ADVICE)
        try:
            if isinstance(config, dict):
                config = {**config, **_template_file(folder)}
                text = tiktoken_bpe.definition(text, config) if ranked else text
            return cls(text, config)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error

    def id(self, token: str) -> int:
        """Returns the id of a token by its exact text; raises ValueError if there is none."""
        found = self._backend.token_to_id(token)
        if found is None:
            raise ValueError(
                f"tokenizer: expected the token {token!r} in the vocabulary, got none; do: use the "
                "tokenizer that belongs to the model"
            )
        return found

    @functools.cached_property
    def bos_id(self) -> int:
        """The token that begins a sentence, where a tokenizer has one."""
        return self._id_of_role("bos_token")

    @functools.cached_property
    def image_id(self) -> int:
        """The token that stands where a visual token of an image goes."""
        named = _token_text(self._config.get("image_token"))
        for name in (named,) if named else IMAGE_TOKENS:
            if self._backend.token_to_id(name) is not None:
                return self.id(name)
        return self.id(named or IMAGE_TOKENS[0])

    @functools.cached_property
    def end_id(self) -> int:
        """The token that ends an answer: what the chat template puts behind one.

        Without a template it is eos_token. That of Kimi-VL is another one, which its chats do not
        have.
        """
        answer = "answer"
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        try:
            _, found, rest = self.render(talk).rpartition(answer)
        except template_sandbox.BeyondLimits:
            raise
        except ValueError:
            return self.eos_id
        ids = self.encode(rest, special=True) if found else []
        return next((token for token in ids if token in self.special.values()), self.eos_id)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Returns the ids of a text; names of special tokens are plain text unless `special`.

        Raises:
          ValueError: it is too long for the patterns of the file, or one takes too long on it.
        """
        if (length := self._length(text)) > self._most_text:
            raise ValueError(
                f"tokenizer: expected a text of at most {self._most_text} characters, as its "
                f"patterns are, got {length}; do: shorten it, or take a published model's tokenizer"
            )
        backend = self._backend if special else self._plain
        try:
            with _panic_as_error():
                return backend.encode(_without_surrogates(text), add_special_tokens=False).ids
        except Exception as error:
            raise ValueError(
                f"tokenizer: expected to cut a text of {len(text)} characters, got "
                f"{schemas.short_repr(str(error))}; do: check the patterns of tokenizer.json"
            ) from None

    def _length(self, text: str) -> int:
        """Returns the characters of a text; where time grows faster, the bytes that are cut."""
        if self._most_text == patterns.MOST_TEXT:
            return len(text)
        text = _without_surrogates(text)
        normalizer = self._plain.normalizer
        return len((text if normalizer is None else normalizer.normalize_str(text)).encode())

    def decode(self, ids: Sequence[int] | np.ndarray, *, special: bool = False) -> str:
        """Returns the text of the ids, without special tokens unless `special`.

        Raises:
          ValueError: a pattern of the file's decoder takes too long on it.
        """
        known = [int(token) for token in ids if 0 <= token < self.vocab_size]
        try:
            with _panic_as_error():
                return self._backend.decode(known, skip_special_tokens=not special)
        except Exception as error:
            raise ValueError(
                f"tokenizer: expected to join {len(known)} tokens, got "
                f"{schemas.short_repr(str(error))}; do: check the decoder of tokenizer.json"
            ) from None

    @functools.cached_property
    def pieces(self) -> list[bytes | None]:
        """The bytes of every token by id; None for special tokens and unused ids."""
        pieces: list[bytes | None] = [None] * self.vocab_size
        byte_level = '"ByteLevel"' in self._decoder
        for token, number in self._backend.get_vocab().items():
            pieces[number] = byte_pieces.token_bytes(token, byte_level=byte_level)
        for number, token in self._added.items():
            pieces[number] = None if token.special else token.content.encode()
        return pieces

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
    ) -> str:
        """Returns a conversation as text by the folder's chat template.

        Args:
          messages: {"role", "content"}; a content is a text or a list of {"type": "image"} and
            {"type": "text", "text": ...}. A special token's name inside of a text is broken by
            a space, so that a question cannot end its own turn.
          add_generation_prompt: whether the header of the answer follows.

        Raises:
          ValueError: there is no template, it fails, or it tries what the sandbox forbids.
        """
        template = self._config.get("chat_template")
        if isinstance(template, list):
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default")
        if not isinstance(template, str):
            raise ValueError(
                "tokenizer: expected a chat template in the tokenizer's files, got none; do: copy "
                "chat_template.jinja or tokenizer_config.json of the chat model"
            )
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return template_sandbox.render(
            template,
            messages=[self._break_special_names(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **{name: _token_text(self._config.get(name)) or "" for name in names},
        )

    def _break_special_names(self, message: Mapping[str, Any]) -> dict[str, Any]:
        def clean(text: str) -> str:
            for name in self.special:
                if name and name in text:
                    text = text.replace(name, f"{name[:1]} {name[1:]}")
            return text

        content = message["content"]
        if isinstance(content, str):
            return {**message, "content": clean(content)}
        parts = [{**p, "text": clean(p["text"])} if "text" in p else {**p} for p in content]
        return {**message, "content": parts}

    def _id_of_role(self, role: str) -> int:
        name = _token_text(self._config.get(role))
        if name is None:
            raise ValueError(
                f"tokenizer: expected {role} in tokenizer_config.json, got none; do: copy the file "
                "that belongs to the tokenizer"
            )
        return self.id(name)


_ADVICE = (
    "give the folder of a Hugging Face tokenizer, with "
    f"{CONFIG} and {TOKENS} or {tiktoken_bpe.FILE}"
)


@contextlib.contextmanager
def _panic_as_error() -> Iterator[None]:
    """Raises what the library stops with (a pattern that takes too long) as an ordinary error."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from None


MOST_TOKEN = 10_000
"""Characters of a token; the longest that are known have some hundred."""
MOST_BYTES = 128 << 20
"""Size of a file of a tokenizer; the largest that are known have some 35 MB."""


def _read_text(path: Path) -> str:
    return files.read_text(path, most=MOST_BYTES, expected="a readable file", advice=_ADVICE)


def _template_file(folder: Path) -> dict[str, Any]:
    """Returns the chat template that has a file of its own, if there is one."""
    if (path := folder / "chat_template.jinja").exists():
        return {"chat_template": _read_text(path)}
    found = files.read_json(path) if (path := folder / "chat_template.json").exists() else None
    if not isinstance(found, dict) or "chat_template" not in found:
        return {}
    return {"chat_template": found["chat_template"]}


def _token_text(token: object) -> str | None:
    """Returns the text of a token as the config files write it: plain or as an object."""
    token = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(token, str):
        return None
    return token.encode("utf-8", "backslashreplace").decode()  # No vocabulary has half a character.


def _without_surrogates(text: str) -> str:
    """Replaces lone surrogates, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def train(
    corpus: Iterable[str],
    *,
    folder: str | Path,
    numbers: Literal["digits", "whole"] = "digits",
    digits: int = 3,
    vocab_size: int | None = None,
) -> Tokenizer:
    """Makes a byte-level BPE tokenizer of a corpus and saves it in Hugging Face's format.

    Args:
      corpus: questions, answers and whatever else is to be written briefly.
      folder: where tokenizer.json and tokenizer_config.json go.
      numbers: "digits" writes every digit as a token of its own, as Qwen does, and learns merges
        for the rest. "whole" is for tiny models: a number of the grammar is one token, in a
        family for "0.37" and one for ", 0.37" with each ending in `AFTER_Y`, so that a vertex is
        two tokens; so are the runs of brackets in `BRACKETS`
        and the words of the corpus with and without the space before them. Any other text
        falls apart into bytes.
      digits: decimals of the whole numbers.
      vocab_size: at most so many tokens (special ones aside); None: 1024 for "digits", every
        word for "whole".

    Raises:
      ValueError: the size leaves no room for the bytes and numbers.
    """
    corpus = [_without_surrogates(text) for text in corpus]
    if numbers == "digits":
        backend = _digits_backend(corpus, digits, 1024 if vocab_size is None else vocab_size)
    else:
        backend = _whole_backend(corpus, digits, vocab_size)
    backend.add_special_tokens(list(SPECIALS))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "image_token": "<|image_pad|>",
        "additional_special_tokens": list(SPECIALS),
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    files.write_json(folder / "tokenizer_config.json", config)
    return Tokenizer.load(folder)


def _backend(model: Any, pattern: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _check_room(vocab_size: int | None, least: int) -> None:
    if vocab_size is not None and vocab_size < least:
        raise ValueError(
            f"tokenizer: expected a vocab_size of at least {least} for bytes and numbers, got "
            f"{vocab_size}; do: raise it or lower the decimals"
        )


def _digits_backend(corpus: list[str], digits: int, vocab_size: int) -> Any:
    from tokenizers import models, pre_tokenizers, trainers

    _check_room(vocab_size, 256)
    backend = _backend(models.BPE(), r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    number = f"{0:.{digits}f}"
    point = f"[{number}, {number}]"
    grammar = f"[[{point}, {point}, {point}], [{point}, {point}, {point}]]."
    backend.train_from_iterator([*corpus, ROLES, *[grammar] * max(len(corpus), 2)], trainer)
    return backend


def _whole_backend(corpus: list[str], digits: int, vocab_size: int | None) -> Any:
    from tokenizers import models

    one = 10**digits
    written = [f"{step // one}.{step % one:0{digits}d}" for step in range(one + 1)]
    second = [f", {number}{end}" for end in AFTER_Y for number in written]
    fixed = [*written, *second, *BRACKETS]
    known = dict.fromkeys(
        [*sorted(byte_pieces.byte_of()), *(byte_pieces.to_vocabulary(text) for text in fixed)]
    )
    _check_room(vocab_size, len(known))
    number = rf"(?:0\.[0-9]{{{digits}}}|1\.0{{{digits}}})(?![0-9])"
    pattern = (
        rf", {number}(?:\]\]\]\.|\]\], \[\[|\], \[)?"
        rf"|(?<![0-9]){number}|\]\], \[\[|\], \[|\[+|\]+\.?"
        r"| ?\p{L}+|\p{N}|\s|[^\s\p{L}\p{N}]"
    )
    split = _backend(models.BPE(), pattern).pre_tokenizer.pre_tokenize_str
    counts = collections.Counter(
        piece for text in [*corpus, ROLES] for piece, _ in split(text) if piece not in known
    )
    room = None if vocab_size is None else vocab_size - len(known)
    words = [word for word, _ in counts.most_common(room) if word.lstrip("\u0120").isalpha()]
    vocab = {token: number for number, token in enumerate([*known, *words])}
    return _backend(models.BPE(vocab=vocab, merges=[], ignore_merges=True), pattern)


def number_table(tokenizer: Tokenizer) -> tuple[Float[np.ndarray, " V"], Int[np.ndarray, " V"]]:
    """Returns the value of each token that is a whole number of the grammar, and its family.

    Value: 0..1, NaN for other tokens. Family: 0 for "0.37", 1 + i for ", 0.37" with the ending
    `AFTER_Y[i]`, -1 for other tokens.
    Tokens with fewer or more decimals than most number tokens have are other tokens.
    """
    value = np.full(tokenizer.vocab_size, np.nan, np.float32)
    family = np.full(tokenizer.vocab_size, -1, np.int32)
    pattern = re.compile(rb"(, ?)?(0\.\d+|1\.0+)((?<=\d)[\], [.]*)")
    endings = {end.encode(): 1 + index for index, end in enumerate(AFTER_Y)}
    found = [pattern.fullmatch(piece or b"") for piece in tokenizer.pieces]
    lengths = collections.Counter(len(match[2]) for match in found if match)
    for token, match in enumerate(found):
        if match and len(match[2]) == lengths.most_common(1)[0][0]:
            if match[1] is not None and match[3] in endings:
                value[token], family[token] = float(match[2]), endings[match[3]]
            elif match[1] is None and not match[3]:
                value[token], family[token] = float(match[2]), 0
    return value, family


def whole_decimals(tokenizer: Tokenizer) -> int | None:
    """Returns the decimals of the numbers that are one token each; None where none are."""
    found = [re.fullmatch(rb"0\.(\d+)", piece or b"") for piece in tokenizer.pieces]
    lengths = collections.Counter(len(match[1]) for match in found if match)
    # A table of words may hold a number or two; one of numbers has all of them.
    often = [decimals for decimals, count in lengths.items() if count == 10**decimals]
    return max(often, default=None)


def neighbours(
    tokenizer: Tokenizer, sigma_bins: float, reach: int
) -> tuple[Int[np.ndarray, "V J"], Float[np.ndarray, "V J"]]:
    """Returns the tokens that share a soft target with each token, and their shares.

    A number shares with the numbers of its family up to `reach` steps away, J = 2 reach + 1, by
    a Gaussian of `sigma_bins` steps (one step: the last decimal); other tokens keep everything.
    The token itself is in column 0. Shares of a row sum to 1; unused places name the token
    itself with share 0.
    """
    if not sigma_bins > 0 or reach < 0:
        raise ValueError(
            f"tokenizer: expected sigma_bins > 0 and reach >= 0, got {sigma_bins} and {reach}; do: "
            "use reach 0 for hard targets"
        )
    value, family = number_table(tokenizer)
    ids = np.repeat(np.arange(tokenizer.vocab_size, dtype=np.int32)[:, None], 2 * reach + 1, 1)
    shares = np.zeros(ids.shape, np.float32)
    shares[:, 0] = 1.0
    offsets = [offset for distance in range(1, reach + 1) for offset in (-distance, distance)]
    for which in range(1 + len(AFTER_Y)):
        members = np.flatnonzero(family == which)
        if not len(members):
            continue
        one = 10 ** len(re.findall(rb"\.(\d+)", tokenizer.pieces[members[0]] or b"")[0])
        steps = np.rint(value[members] * one).astype(int)
        token_at = np.full(one + 1, -1)
        token_at[steps] = members
        for column, offset in enumerate(offsets, 1):
            there = steps + offset
            token = np.where((there >= 0) & (there <= one), token_at[np.clip(there, 0, one)], -1)
            ids[members, column] = np.where(token >= 0, token, members)
            shares[members, column] = (token >= 0) * np.exp(-0.5 * (offset / sigma_bins) ** 2)
    return ids, shares / shares.sum(1, keepdims=True)
