"""From a picture and a question to an answer that is read: what all dialects ask for."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from seg_jax.data import buckets
from seg_jax.data.encode import Encoder
from seg_jax.data.image_files import RgbImage
from seg_jax.grammar import automaton, chat
from seg_jax.inference import predictor
from seg_jax.inference.bundle import Bundle
from seg_jax.models.vlm.running_batch import FREE, RunningBatch, Sizes, Wanted
from seg_jax.records import Automaton, Images, Prompts, Tokens
from seg_jax.serving import faults, pictures
from seg_jax.serving.engine import Engine, Piece, Question
from seg_jax.serving.limits import Limits
from seg_jax.tasks.task import Example, Prediction, Unfit

Result = TypeVar("Result")

HOST_THREADS = 2
"""Pictures that are decoded, cut and drawn at once, beside the device."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manner:
    """How answers are drawn."""

    answers: int = 1
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int | None = None
    """None: as many as the server allows."""


class Written(NamedTuple):
    """One answer as the model wrote it."""

    number: int
    text: str
    prompt: int
    """Tokens of the question, those of the picture included."""
    tokens: int
    """Tokens of the answer, its end included."""
    score: float
    """Geometric mean of the probabilities of its tokens, 0..1; 0 where they are no numbers."""
    finish: str
    """"stop" where it ended by itself, "length" where it was cut."""


class Answered(NamedTuple):
    """One answer as it is read."""

    written: Written
    prediction: Prediction


class Growth(NamedTuple):
    """What an answer on its way has grown by."""

    number: int
    text: str
    over: Written | None
    """The whole answer, once it is over."""


class Answering:
    """A model, ready to be asked by many at once."""

    def __init__(self, bundle: Bundle, *, sizes: Sizes, limits: Limits, grammar: bool, name: str):
        """Takes a model; `warm_up` compiles it, `start` sets it going.

        Args:
          bundle: the model.
          sizes: of the running batch.
          limits: of requests.
          grammar: whether answers to `segment` are held to the grammar of the task.
          name: that clients know the model by.

        Raises:
          ValueError: the grammar's shortest answer is longer than answers may be.
        """
        self.bundle, self.limits, self.name = bundle, limits, name
        self.max_tokens = min(bundle.layout.max_answer, limits.tokens or bundle.layout.max_answer)
        self.grammar = _grammar(bundle, self.max_tokens) if grammar else None
        batch = RunningBatch(
            bundle.graph,
            bundle.params,
            max_tokens=self.max_tokens,
            end_ids=bundle.end_ids,
            words=bundle.layout.max_question,
            sizes=sizes,
            pad_id=bundle.tokenizer.pad_id,
            grammar=self.grammar,
        )
        self.engine = Engine(batch, most_waiting=limits.waiting)
        self._encoder, self._ends = bundle.encoder, set(bundle.end_ids)
        self._pool = ThreadPoolExecutor(HOST_THREADS, thread_name_prefix="pictures")

    def warm_up(self) -> Any:
        """Compiles everything; yields the name of each program once it is ready."""
        return self.engine.warm_up(_blank_rows(self._encoder))

    def start(self) -> None:
        """Begins to answer."""
        self.engine.start()

    def stop(self) -> None:
        """Ends once the answers on the way are there, or their time is over."""
        self.engine.stop(self.limits.stop_seconds)
        self._pool.shutdown(cancel_futures=True)

    async def on_host(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Returns what a function returns that takes a while, run beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def picture(self, data: bytes, *, where: str) -> RgbImage:
        """Returns the pixels of a picture, see `pictures.read`."""
        limits = self.limits

        def read() -> RgbImage:
            return pictures.read(data, most_pixels=limits.pixels, where=where)

        return await self.on_host(read)

    async def ask(
        self, image: RgbImage, clue: chat.Clue, *, kind: int | None, manner: Manner
    ) -> list[Answered]:
        """Returns the answers to a question about what a clue refers to.

        Args:
          image: that is asked about.
          clue: an expression, a point or a box.
          kind: number of the kind of answer; None: the task's usual one.
          manner: how answers are drawn.

        Raises:
          Fault: the question is refused, or there is no room.
        """
        task = self.bundle.task
        example, row = await self.on_host(self._row_of_clue, image, clue, kind)
        held = FREE
        if self.grammar is not None:
            truth = task.truth(example, canvas=self.bundle.layout.canvas)
            batched = jax.tree.map(lambda leaf: np.asarray(leaf)[None], truth)
            held = int(np.asarray(task.grammar_start(batched))[0])
        found = [growth.over async for growth in self._grow(row, manner, held) if growth.over]
        found.sort(key=lambda written: written.number)
        # The image itself is not needed any more, only its size.
        flat = dataclasses.replace(example, image=np.broadcast_to(np.uint8(0), image.shape))
        return [Answered(one, await self.on_host(task.predict, flat, one.text)) for one in found]

    async def write(
        self, image: RgbImage, text: str, *, system: str | None, manner: Manner
    ) -> AsyncIterator[Growth]:
        """Yields answers to a question in a user's own words as they grow.

        Args:
          image: that is asked about.
          text: the question.
          system: what the system turn says; None: what the chat template has.
          manner: how answers are drawn.

        Raises:
          Fault: the question is refused, or there is no room.
        """
        row = await self.on_host(self._row, image, text, system)
        async for growth in self._grow(row, manner, FREE):
            yield growth

    def _row_of_clue(
        self, image: RgbImage, clue: chat.Clue, kind: int | None
    ) -> tuple[Example, tuple[Tokens, Images]]:
        try:
            example = self.bundle.task.ask(image, clue, kind)
        except ValueError as error:
            raise faults.Refused(str(error)) from None
        return example, self._row(image, example.question, example.system)

    def _row(self, image: RgbImage, text: str, system: str | None) -> tuple[Tokens, Images]:
        """Returns a prompt in the bucket that holds it."""
        try:
            tokens, images = self._encoder.question(image, text, system=system)
        except Unfit as error:
            fault = str(error).partition("; do: ")[0]
            raise faults.Refused(
                f"question: {fault}; do: ask in fewer words, or about a picture of another shape"
            ) from None
        except ValueError as error:
            raise faults.Refused(str(error)) from None
        row = buckets.batch_of_rows([Prompts(tokens, images, None)], self._encoder.layout)
        return row.tokens, row.images

    async def _grow(
        self, row: tuple[Tokens, Images], manner: Manner, kind: int
    ) -> AsyncIterator[Growth]:
        """Yields answers piece by piece; whoever stops listening gives them up."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | Exception]()

        def listen(piece: Piece | Exception) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        most = min(manner.max_tokens or self.max_tokens, self.max_tokens)
        one = Wanted(most, manner.temperature, manner.seed, kind=kind)
        wanted = tuple(one._replace(number=number) for number in range(manner.answers))
        question = Question(*row, wanted=wanted, listen=listen)
        self.engine.submit(question)
        prompt = int(np.count_nonzero(row[0].segments))
        drafts, left = [_Draft(self, prompt) for _ in wanted], len(wanted)
        try:
            while left:
                piece = await pieces.get()
                if isinstance(piece, faults.Fault):
                    raise piece
                if isinstance(piece, Exception):
                    raise faults.Broken("server: expected an answer, got an error; do: ask again")
                growth = drafts[piece.number].grown(piece)
                left -= piece.over
                yield growth
        finally:
            question.given_up.set()

    def finish_of(self, ids: Sequence[int]) -> str:
        """Returns how an answer ended."""
        return "stop" if ids and ids[-1] in self._ends else "length"


class _Draft:
    """An answer on its way, with as much of its text as nothing can change any more."""

    def __init__(self, answering: Answering, prompt: int):
        self._answering, self._prompt = answering, prompt
        self._ids: list[int] = []
        self._logp = 0.0
        self._told = ""

    def grown(self, piece: Piece) -> Growth:
        self._ids += piece.ids
        self._logp += sum(piece.logp)
        text = self._answering.bundle.tokenizer.decode(self._ids)
        whole = text if piece.over else text.rstrip("\N{REPLACEMENT CHARACTER}")
        new = whole[len(self._told) :] if whole.startswith(self._told) else ""
        self._told += new
        over = None
        if piece.over:
            score = predictor.mean_probability(self._logp, len(self._ids))
            finish = self._answering.finish_of(self._ids)
            over = Written(piece.number, text, self._prompt, len(self._ids), score, finish)
        return Growth(piece.number, new, over)


def _blank_rows(encoder: Encoder) -> list[tuple[Tokens, Images]]:
    """Returns a prompt of each shape that prompts may have, the longest last."""
    layout = encoder.layout
    side = layout.patch * layout.merge
    row = encoder.question(np.zeros((side, side, 3), np.uint8), "a")
    tokens, images = jax.tree.map(lambda leaf: np.asarray(leaf)[None], row)
    return [
        (
            Tokens(*(leaf[..., leaf.shape[-1] - columns :] for leaf in tokens)),
            Images(*(leaf[:, :patches] for leaf in images)),
        )
        for columns, patches in buckets.lengths(layout)
    ]


def _grammar(bundle: Bundle, max_tokens: int) -> Automaton:
    task = bundle.task
    found = task.grammar(bundle.tokenizer.pieces, bundle.end_ids)
    automaton.check_max_tokens(found, max_tokens, list(task.kinds), names=task.kind_names)
    return found
