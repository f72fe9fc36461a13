"""Lets a test call functions as users do, without the type checker of the test run."""

import jaxtyping
import pytest


@pytest.fixture
def untyped():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
