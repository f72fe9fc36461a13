"""All formats that the fuzzer knows, by name (helper)."""

import sys
from pathlib import Path

# Small valid files are made by the helpers of other tests.
sys.path += [str(Path(__file__).parents[1])]

import data_formats
import label_formats
import model_formats
import run_formats
import work_formats

FORMATS = (
    data_formats.FORMATS
    | label_formats.FORMATS
    | model_formats.FORMATS
    | run_formats.FORMATS
    | work_formats.FORMATS
)
