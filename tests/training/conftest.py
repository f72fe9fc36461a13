"""What several files of tests begin at."""

import pytest
import small_run

from seg_jax.inference import bundle as bundles


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Returns a checkpoint to begin at: no life has to make a tokenizer first."""
    folder = tmp_path_factory.mktemp("start") / "start"
    bundles.save(small_run.bundle(), folder)
    return folder
