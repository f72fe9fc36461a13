"""Questions, answers and turns of a conversation about one image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

from seg_jax.grammar import outline
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.records import Kind

Clue = str | Float[np.ndarray, " 2"] | Float[np.ndarray, " 4"]
"""What refers to the object: an expression, a point (x, y) or a box (x0, y0, x1, y1), unit."""

NOUNS = {Kind.POINT: "point", Kind.BOX: "box", Kind.MASK: "polygon"}

QUESTIONS = (
    '"{clue}"\'s {noun}',
    "What is the {noun} of {clue} in the image?",
    "Output the {noun} coordinates of {clue} in the image.",
    "Tell me the {noun} coordinates of {clue} in the image.",
    "Give me the {noun} coordinates of {clue} in the image.",
    "Help me locate the {noun} of {clue}.",
    "Locate the {noun} of {clue}.",
)
"""The seven released forms, rebuilt from their rules. Source: SimpleSeg's data script."""

PARAPHRASES = {
    Kind.POINT: ("Point at {clue}.", "Where is {clue}? Answer with one point."),
    Kind.BOX: ("Draw a box around {clue}.", "Where is {clue}? Answer with a box."),
    Kind.MASK: ("Outline {clue}.", "Segment {clue} in the image.", "Trace the contour of {clue}."),
}
"""Our own further forms."""

ANSWERS = (
    "{text}.",
    "{text}.",
    "Sure, you can find it at {text}.",
    "The {noun} is found at {text}.",
    "It is at {text}.",
)
"""The five released forms; the bare list counts twice. Source: SimpleSeg's data script."""

DENIALS = (
    "{text}.",
    "{text}.",
    "There is no such object: {text}.",
    "Nothing in the image fits: {text}.",
)
"""Our own forms of the answer that there is nothing; the release has none."""

NAMING = ("Name {clue}.", "What is {clue}?", "Say what {clue} is.")
"""Questions for the name of an object, the inverse of referring."""


def question(
    kind: Kind,
    clue: Clue,
    *,
    rng: np.random.Generator | None = None,
    index: int = 0,
    digits: int = 3,
    paraphrases: bool = False,
) -> str:
    """Returns a question for the point, box or polygon of an object.

    Args:
      kind: the kind of answer that is requested.
      clue: an expression, a point or a box; the latter two become "the object at point [x, y]"
        and "the object in box [x0, y0, x1, y1]".
      rng: draws the form uniformly; None: the form `index`, by default the one fixed form of
        evaluation and tiny models.
      index: number of the form when nothing is drawn; runs through `QUESTIONS`, then
        `PARAPHRASES` of the kind.
      digits: decimals of the clue.
      paraphrases: whether our own forms are drawn as well.
    """
    kind = Kind(kind)
    forms = QUESTIONS + PARAPHRASES[kind]
    if rng is not None:
        index = int(rng.integers(len(forms) if paraphrases else len(QUESTIONS)))
    elif not 0 <= index < len(forms):
        raise ValueError(
            f"chat.question: expected a question from 0 to {len(forms) - 1}, got {index}; do: "
            "choose another"
        )
    form = forms[index]
    if not isinstance(clue, str):
        clue = _place(np.asarray(clue), digits)
        form = "{noun} of {clue}" if index == 0 else form
    return form.format(clue=clue, noun=NOUNS[kind])


def naming_question(
    clue: Float[np.ndarray, " 2"] | Float[np.ndarray, " 4"],
    *,
    rng: np.random.Generator | None = None,
    index: int = 0,
    digits: int = 3,
) -> str:
    """Returns a question for the name of the object at a point or in a box.

    Args:
      clue: the point or box.
      rng: draws the form uniformly; None: the form `index`.
      index: number of the form when nothing is drawn.
      digits: decimals of the clue.
    """
    form = NAMING[index if rng is None else int(rng.integers(len(NAMING)))]
    return form.format(clue=_place(clue, digits))


def _place(clue: np.ndarray, digits: int) -> str:
    if clue.shape == (2,):
        return f"the object at point {outline.write_point(clue, digits=digits)}"
    if clue.shape == (4,):
        return f"the object in box {outline.write_box(clue, digits=digits)}"
    raise ValueError(
        "chat: expected an expression, a point of 2 or a box of 4 numbers, got shape "
        f"{clue.shape}; do: pass one object at a time"
    )


def answer(
    text: str,
    kind: Kind,
    *,
    rng: np.random.Generator | None = None,
    index: int = 0,
) -> str:
    """Returns an answer around the list that `outline` wrote.

    Args:
      text: the list.
      kind: the kind of answer that was requested.
      rng: draws the form uniformly, two in five are the bare list; None: the form `index`, by
        default the bare list with a full stop.
      index: number of the form in `ANSWERS` when nothing is drawn.
    """
    if rng is not None:
        index = int(rng.integers(len(ANSWERS)))
    elif not 0 <= index < len(ANSWERS):
        raise ValueError(
            f"chat.answer: expected an answer from 0 to {len(ANSWERS) - 1}, got {index}; do: "
            "choose another"
        )
    return ANSWERS[index].format(text=text, noun=NOUNS[Kind(kind)])


def denial(*, rng: np.random.Generator | None = None, index: int = 0) -> str:
    """Returns the answer that there is no such object, for every kind of question.

    Args:
      rng: draws the form uniformly, half are the bare list; None: the form `index`, by default the
        bare list with a full stop.
      index: number of the form in `DENIALS` when nothing is drawn.
    """
    form = DENIALS[index if rng is None else int(rng.integers(len(DENIALS)))]
    return form.format(text=outline.NOTHING_THERE)


def sentences(expressions: Iterable[str], *, denials: bool = False) -> Iterator[str]:
    """Yields every form with every expression: the words that a tokenizer should know.

    Args:
      expressions: what questions may call an object.
      denials: whether answers may say that there is nothing.
    """
    for index in range(len(DENIALS) if denials else 0):
        yield denial(index=index)
    for kind in Kind:
        for index in range(len(QUESTIONS) + len(PARAPHRASES[kind])):
            yield question(kind, "it", index=index)
            yield question(kind, np.zeros(2), index=index)
            yield question(kind, np.array([0.0, 0.0, 1.0, 1.0]), index=index)
        for index in range(len(ANSWERS)):
            yield answer("", kind, index=index)
    for index in range(len(NAMING)):
        yield naming_question(np.zeros(2), index=index)
    for expression in expressions:
        yield question(Kind.MASK, expression)
        yield question(Kind.MASK, expression, index=1)


def turn(
    tokenizer: Tokenizer,
    question: str,
    *,
    visual_tokens: int,
    answer: str | None = None,
    system: str | None = None,
) -> tuple[list[int], list[int]]:
    """Returns the ids of a prompt about one image and those of its answer.

    Args:
      tokenizer: its chat template lays out the turns.
      question: what the user asks, after the image.
      visual_tokens: language tokens of the image, 0 for no image.
      answer: what the assistant says; None leaves the second list empty.
      system: what the system turn says, if there is to be one.

    The prompt ends where the answer begins; the answer ends with the end token.

    Raises:
      ValueError: the template fails, or does not place one image.
    """
    parts = [{"type": "image"}] * (visual_tokens > 0) + [{"type": "text", "text": question}]
    messages = [{"role": "system", "content": system}] * (system is not None)
    messages = [*messages, {"role": "user", "content": parts}]
    ids = tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True), special=True)
    if visual_tokens > 0:
        if ids.count(tokenizer.image_id) != 1:
            raise ValueError(
                "chat.turn: expected a chat template that places one image token, got "
                f"{ids.count(tokenizer.image_id)}; do: use the template of a vision-language model"
            )
        place = ids.index(tokenizer.image_id)
        ids[place : place + 1] = [tokenizer.image_id] * visual_tokens
    if answer is None:
        return ids, []
    return ids, answer_ids(tokenizer, answer)


def answer_ids(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Returns the ids of what the assistant says, up to the end token."""
    return [*tokenizer.encode(answer), tokenizer.end_id]
