"""The wordings of Seg-R1's stages, as data of its release.

Released checkpoints were trained on these very texts. Source: Seg-R1 (arXiv 2506.22624), the
function `create_conversation` of grpo_prerl.py, grpo.py and of the scripts that evaluate, and
`convert_example` of sft.py; Apache-2.0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from seg_jax.grammar import chat

Stage = Literal["prerl", "rl", "sft"]
"""A first reinforcement on clicks alone; reinforcement on thoughts, boxes and clicks; fine-tuning
on written answers."""


class Question(NamedTuple):
    """What a conversation begins with."""

    system: str | None
    """What the system turn says; None: there is none of the task's."""
    text: str
    """What the user asks, after the image."""


_SYSTEM = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process should enclosed within <think> </think> tags, and "
    "the bounding box, points and points labels should be enclosed within <bbox></bbox>, "
    "<points></points>, and <labels></labels>, respectively. i.e., <think> reasoning process here "
    "</think> <bbox>[x1,y1,x2,y2]</bbox>, <points>[[{first}],[{second}],...]</points>, "
    "<labels>[1,0,...]</labels>"
)
_TAUGHT = _SYSTEM.format(first="x1,y1", second="x2,y2")
_ASKED = _SYSTEM.format(first="x3,y3", second="x4,y4")
_LABELS = "Where 1 indicates a foreground (object) point, and 0 indicates a background point."
_MODERATE = (
    " Only generate a moderate number of points, enough to clearly outline the object without "
    "overloading the system."
)

SYSTEMS: dict[Stage, str | None] = {"prerl": None, "rl": _TAUGHT + _LABELS + _MODERATE}
SYSTEMS["sft"] = _TAUGHT
SYSTEM_OF_USERS = _ASKED + _LABELS
"""What evaluations and users ask with after reinforcement or fine-tuning."""

CLICKS = (
    "\nYou are given an image. Your task is to generate a sparse set of point prompts to help "
    "segment the most salient object in the image.\n\n"
    "The points should be informative: include both foreground points (on the object) and "
    "background points (off the object) to help define the object boundary.\n\n"
    "Only generate a moderate number of points, enough to clearly outline the object without "
    "overloading the system.\n\n"
    "Output the result using the exact format:\n"
    "<points>[[x1,y1],[x2,y2],...]</points> <labels>[1,0,...]</labels>\n"
    "Where 1 indicates a foreground (object) point, and 0 indicates a background point.\n\n"
)
"""What the first reinforcement asks."""
OBJECTS = (
    "\nIdentify and segment all the primary objects in the image.\n\n"
    "Output the result using the exact format:\n"
    "<think> reasoning process here </think> <bbox>[x1,y1,x2,y2]</bbox>, "
    "<points>[[x3,y3],[x4,y4],...]</points>, <labels>[1,0,...]</labels>\n"
)
"""What reinforcement and the evaluations of foregrounds ask."""
Wording = Literal["expression", "phrase", "sentence"]
"""How a user's expression is asked about: as it is; as a short phrase, or as a whole sentence, of
ReasonSeg."""
REFERRING = "Identify and segment {expression}"
"""What the evaluation of referring asks."""
WORDINGS: dict[Wording, str] = {
    "expression": REFERRING,
    "phrase": " Identify and segment {expression}.",
    "sentence": "{expression} Identify and segment it.",
}
"""What the evaluations of referring and of reasoning ask; phrases are in small letters there."""

BRIEF_CLICKS = chat.QUESTIONS[0].format(clue="{expression}", noun="point")
BRIEF = chat.QUESTIONS[0].format(clue="{expression}", noun="box and points")
"""Our own forms, for models too small to read those of the release: they have no system turn."""
SALIENT, PRIMARY = "the most salient object", "each primary object"
"""What they say of an image as a whole."""


def system(stage: Stage, *, brief: bool = False) -> str | None:
    """Returns what the system turn of a stage says; None: there is none of the task's."""
    return None if brief else SYSTEMS[stage]


def everything(stage: Stage, *, brief: bool = False) -> Question:
    """Returns the question of a stage about an image as a whole."""
    if brief:
        return referring(stage, SALIENT if stage == "prerl" else PRIMARY, brief=True)
    return Question(SYSTEMS[stage], CLICKS if stage == "prerl" else OBJECTS)


def referring(stage: Stage, expression: str, *, brief: bool = False) -> Question:
    """Returns the question of a stage for what an expression means."""
    form = (BRIEF_CLICKS if stage == "prerl" else BRIEF) if brief else REFERRING
    return Question(system(stage, brief=brief), form.format(expression=expression))


def conversation(stage: Stage, question: str, *, brief: bool = False) -> Question:
    """Returns the question of a written conversation, which comes without a system turn."""
    return Question(system(stage, brief=brief), question)


def of_user(
    stage: Stage, expression: str, wording: Wording = "expression", *, brief: bool = False
) -> Question:
    """Returns what a user asks a model of a stage.

    Args:
      stage: that the model was trained in.
      expression: of what is meant; blank, the foreground.
      wording: how it is asked about, but in our own forms.
      brief: whether it was asked in our own forms.

    Raises:
      ValueError: a model of the first stage is asked for an expression, which it never saw.
    """
    expression = expression.strip()
    if brief and expression:
        return referring(stage, expression, brief=True)
    if brief:
        return everything(stage, brief=True)
    if stage == "prerl":
        if expression:
            raise ValueError(
                f"prompted: expected no expression for stage 'prerl', which clicks on the most "
                f"salient object, got {expression[:60]!r}; do: leave it out, or take a model of a "
                "later stage"
            )
        return everything(stage)
    if not expression:
        return Question(SYSTEM_OF_USERS, OBJECTS)
    told = expression.lower() if wording == "phrase" else expression
    return Question(SYSTEM_OF_USERS, WORDINGS[wording].format(expression=told))
