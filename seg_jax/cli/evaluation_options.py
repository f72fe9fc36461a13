"""The options of an evaluation, and which of them go together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from seg_jax.cli import scene_options
from seg_jax.cli.model_options import ModelOptions
from seg_jax.cli.scene_options import SceneOptions
from seg_jax.data.sources import Scenes
from seg_jax.evaluation.foreground import protocols as foreground_protocols
from seg_jax.evaluation.referring import protocols
from seg_jax.grammar import chat
from seg_jax.records import check_least
from seg_jax.tasks.referring import Mixture
from seg_jax.training import steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ModelOptions, SceneOptions):
    """An evaluation."""

    protocol: Literal[protocols.Name, foreground_protocols.Name] | None = None
    """All questions of a benchmark instead of one random question about each image, judged at the
    images' own resolution: res, rec, gres, reasonseg, point_mask or box_mask; text4seg is res
    and rec with the defects of the released evaluators; cod and sod judge maps of camouflaged and
    salient objects by S, E, F and MAE."""
    maps: Path | None = None
    """Folder of grey maps that cod or sod judges, named as the images, in place of a model; those
    of several data sets in folders of their names."""
    released: bool = False
    """Whether cod and sod count as Seg-R1's code does: maps of another size are scaled by the
    nearest pixel, S is 0 where a quarter of the image is empty, and the reward has 1 - area in the
    place of S. A model of boxes and clicks is shown its images, read and drawn as there, by the
    other protocols and without one too."""
    data: tuple[Path, ...] = ()
    """Data sets that `seg-jax build` made, one after the other, all of a split, instead of scenes:
    of each the folder with dataset_info.json in it."""
    split: str = "val"
    """Split of the data sets."""
    mixture: Mixture = Mixture()
    """Questions that are asked without a protocol."""
    samples: int = 0
    """Answers drawn for each question beside the greedy one, at least 2; their mean and their best
    by truth indicate what reinforcement can win, by kind of thing too. 0: none."""
    temperature: float = 1.0
    """Temperature at which they are drawn."""
    form: int = 0
    """Number of the form of all questions of a protocol: 0 to 6 are the released ones."""
    answers: Path | None = None
    """File of answers to judge, as a protocol writes it; a checkpoint is asked for those that are
    not in it."""
    out: Path | None = None
    """Folder for answers.jsonl, summary.json, table.md and gallery.html of a protocol."""
    gallery: int = 4
    """Most images in each part of the gallery."""
    name: str = ""
    """Name of the model in tables; left out: where its checkpoint or its answers lie."""
    set_name: str = ""
    """Name of the scenes or data in tables; left out: as refcoco-val, refcoco+-testA,
    refcocog-test, which stand in the paper's."""
    beside: tuple[Path, ...] = ()
    """Folders (--out) of other evaluations, whose numbers stand in the same tables."""
    batch: int = 64
    rows: int = 0
    """Answers of a batch decoded at once, on all devices together; one that ends leaves its row
    to the next. 0: all of them. With a batch of many times more the longest keep few waiting."""
    mesh: steps.Mesh = steps.Mesh()
    json: Path | None = None
    """File for the numbers."""

    def __post_init__(self):
        self.mixture.check_judged()
        check_least(self, "evaluate", scenes=1, batch=1, seed=0, rows=0, absent=0)
        if self.data and self.world is not None:
            raise ValueError(
                f"data: expected data or a world, got both {self.data[0]} and {self.world}"
                "; do: leave out --data or --world"
            )
        if self.samples < 0 or self.samples == 1:
            raise ValueError(
                f"samples: expected 0 or at least 2, got {self.samples}; do: --samples 8"
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature: expected > 0, got {self.temperature}; do: give one above 0, as 1.0"
            )
        self._check_form()
        self._check_read()

    def _check_read(self) -> None:
        """Raises ValueError for an option that this kind of evaluation does not read."""
        of_protocols = ("answers", "out", "beside", "name", "form", "gallery")
        of_models = ("adapter", "grammar", "dtype", "visual_tokens", "task")
        of_models += ("batch", "rows", "mesh")
        self._check_segmenter()
        of_scenes = ("scenes", "source", "world", *scene_options.CHANGES)
        if self._is_foreground:
            self._check_foreground()
        else:
            got = self.protocol or "none"
            self._refuse(("maps",), "--protocol cod or sod", got=got, advice="leave it out")
            if self.segmenter is None:
                needed = "--segmenter or --protocol cod or sod"
                self._refuse(("released",), needed, got=got, advice="leave it out")
        if self.protocol is None:
            self._refuse(of_protocols, "--protocol", got="none", advice="name a protocol")
            if self.data:
                self._refuse(("seed",), "--protocol", got="--data alone", advice="leave it out")
        else:
            asked = ("mixture", "samples")
            self._refuse(asked, "no --protocol", got=self.protocol, advice="leave one out")
            points = self.rules and any(given == "point" for given, _ in self.rules.asks)
            if self.data and not points:
                self._refuse(
                    ("seed",),
                    "--protocol point_mask",
                    got=f"{self.protocol} on data",
                    advice="leave it out",
                )
        if not self.samples:
            self._refuse(("temperature",), "--samples", got="none", advice="leave it out")
        if self.out is None:
            self._refuse(("beside", "gallery"), "--out", got="none", advice="give a folder")
        if self.data:
            self._refuse(of_scenes, "no --data", got=self.data[0], advice="leave one out")
        else:
            self._refuse(("split",), "--data", got="none", advice="give data sets")
        if self.world is not None:
            self._refuse(("source",), "no --world", got=self.world, advice="leave one out")
        if not self._asks_by_text:
            advice = "leave it out, or ask about what text tells of"
            got = self.protocol or "no share of text_mask, text_box or text_point"
            self._refuse(scene_options.CHANGES, "questions with text", got=got, advice=advice)
        if self.protocol is None and not self.mixture.absent:
            self._refuse(
                ("absent",), "--mixture.absent or --protocol", got="neither", advice="give one"
            )
        if self.answers_alone:
            self._refuse(of_models, "--checkpoint", got="--answers alone", advice="leave it out")
        for name, instead in (("seed", "seed"), ("count", "scenes")):
            if getattr(self.source, name) != getattr(Scenes(), name):
                raise ValueError(
                    f"source.{name}: expected --{instead} in its place, got "
                    f"{getattr(self.source, name)}; do: give --{instead}"
                )

    def _check_segmenter(self) -> None:
        """Raises ValueError for an option that has no meaning where a model draws, or without."""
        if self.segmenter is None:
            self._refuse(("frame",), "--segmenter", got="none", advice="leave it out")
            return
        self._refuse(("form",), "no --segmenter", got=self.segmenter, advice="leave one out")
        if self.rules is not None and not self.rules.pointed:
            known = [name for name, one in protocols.PROTOCOLS.items() if one.pointed]
            known += list(foreground_protocols.PROTOCOLS)
            raise ValueError(
                f"--segmenter: expected one of the protocols {', '.join(known)} beside it, which "
                f"boxes and clicks answer, got {self.protocol}; do: name one, or none"
            )

    @property
    def usual_frame(self) -> int:
        """Side of the frame that the release has for these questions."""
        return 768 if self.rules is None else 1024

    @property
    def answers_alone(self) -> bool:
        """Whether answers of a file are judged without any model that answers."""
        return self.answers is not None and self.checkpoint is None

    @property
    def _asks_by_text(self) -> bool:
        """Whether any question has an expression."""
        if self.rules is not None:
            return not self.rules.singly
        if self.protocol is not None:
            return True
        return any(self.mixture.text_shares)

    @property
    def rules(self) -> protocols.Protocol | None:
        """The protocol of questions, None without one and where maps are judged."""
        every = (one for one in protocols.PROTOCOLS.values() if one.name == self.protocol)
        return next(every, None)

    @property
    def _is_foreground(self) -> bool:
        return self.protocol in foreground_protocols.PROTOCOLS

    def _check_foreground(self) -> None:
        """Raises ValueError for an option that has no meaning where maps are judged."""
        if not self.data:
            raise ValueError(
                f"protocol {self.protocol}: expected data sets of masks as --data, got none; do: "
                "give what seg-jax build cod10k, camo, duts, .. made"
            )
        here = ("gallery", "set_name")
        self._refuse(here, "another protocol", got=self.protocol, advice="leave it out")
        if self.maps is not None:
            of_models = ("checkpoint", "adapter", "answers", "form", "grammar", "dtype")
            more = ("visual_tokens", "task", "batch", "rows", "mesh", "segmenter", "frame")
            self._refuse((*of_models, *more), "no --maps", got=self.maps, advice="leave one out")

    def _refuse(self, names: Sequence[str], required: str, *, got: object, advice: str) -> None:
        """Raises ValueError if one of the options has another value than its default."""
        fields = {field.name: field for field in dataclasses.fields(self)}
        for name in names:
            field = fields[name]
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            if getattr(self, name) != default:
                option = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{option}: expected {required} beside it, got {got}; do: {advice}"
                )

    def _check_form(self) -> None:
        """Raises ValueError for a number of a form, or a size of the gallery, out of range."""
        forms = len(chat.QUESTIONS)
        if not 0 <= self.form < forms or self.gallery < 0:
            raise ValueError(
                f"evaluate: expected a form from 0 to {forms - 1} and a gallery >= 0, got form "
                f"{self.form}, gallery {self.gallery}"
                "; do: give a --form and a --gallery in these ranges"
            )
