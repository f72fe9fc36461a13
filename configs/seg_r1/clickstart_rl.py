"""Reinforcement of a model that can write a click, by the mask that SAM 2 draws of it.

No answer is shown to it: of sixteen clicks that it tries, those are made likelier whose masks cover
what was asked for. Some seven minutes on two cores.
seg-jax reinforce configs/seg_r1/clickstart_rl.py --checkpoint runs/clickstart_sft/checkpoint
"""

from pathlib import Path

from seg_jax.data.pipeline import Feed
from seg_jax.runs import experiments, reinforcement
from seg_jax.training import loop, optimizers, policy, steps

SFT = experiments.sibling(__file__, "clickstart_sft.py")
WEIGHTS = {"iou": 0.7, "structure": 0.3, "format": 0.1}
"""Seg-R1's, but for the format, which the model knows already."""


def config(*, seed: int = 0) -> reinforcement.Config:
    """Returns the run.

    Args:
      seed: of the scenes, their order and the sampled answers.
    """
    taught = SFT.config(seed=seed)
    return reinforcement.Config(
        out=Path("runs/clickstart_rl"),
        seed=seed,
        model=taught.model,
        compute=taught.compute,
        source=SFT.scenes(seed=5000 + seed),
        task=SFT.TASK,
        layout=SFT.LAYOUT,
        segmenter=experiments.TOY_SAM2,
        feed=Feed(batch=16, seed=seed),
        sampling=steps.Sampling(answers=16, max_tokens=SFT.LAYOUT.max_answer),
        # As Seg-R1's release: one update a batch, nothing to clip. Twice its KL, and less of groups
        # that differ little: without these all clicks soon go to one place.
        policy=policy.Policy(
            ratio="token", anchor="self", spread="sample", spread_floor=0.1, kl=0.08, minibatches=1
        ),
        weights=dict(WEIGHTS),
        optimizer=optimizers.AdamW(
            lr=7e-4, schedule=optimizers.Schedule(warmup=0.1, final=0.1), weight_decay=0.0
        ),
        loop=loop.Loop(steps=400, log_every=2),
    )
