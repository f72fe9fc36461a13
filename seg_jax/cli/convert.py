"""Brings a model of the hub into a folder of ours, or one of ours into a folder for the hub."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from msgspec import Meta

from seg_jax import checksums, files, locks, schemas
from seg_jax.grammar.tokenizer.tokens import Tokenizer
from seg_jax.inference import bundle as bundles
from seg_jax.inference import whole_numbers
from seg_jax.models import families
from seg_jax.models.adapters import peft_folder
from seg_jax.models.io import orbax_params, safetensors, torch_archive, weights
from seg_jax.models.nn.compute import Compute
from seg_jax.runs import console

JOURNAL = ".convert.jsonl"
"""In the unfinished folder: what is being done, then each file that is whole."""
NEEDED = (
    "model*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "*.txt",
    "*.py",
    "LICENSE*",
)
"""Files of a model on the hub that are fetched; those in folders are not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Copies a model into another folder: checked, in another dtype or another format."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Folder of a model, its name on the hub, as Qwen/Qwen2.5-VL-7B-Instruct, or a .pt of its
    authors, read as data: Meta's of a SAM 2, OpenAI's or open_clip's of a CLIP."""
    dest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")]
    """Folder to make; what an interrupted convert has done is kept beside it until the next."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Dtype of the weights; None: as they are."""
    to: Literal["hf", "orbax"] = "hf"
    """Format: Hugging Face's safetensors, or an Orbax checkpoint."""
    merge: Path | None = None
    """Folder of an adapter (LoRA, peft's format) to add to the weights of SOURCE, its base."""
    activation: Literal["gelu", "quick_gelu"] | None = None
    """What a CLIP in a .pt was taught with, which no tensor says: OpenAI's have quick_gelu, most
    others of open_clip gelu."""
    whole_numbers: int | None = None
    """Give a small model of ours, which writes decimals, a token for each whole number to this one,
    up to 99, and for the tags of clicks; a number begins as the decimal that it means."""

    def __post_init__(self):
        if self.merge is not None and self.to == "orbax":
            raise ValueError(
                "merge: expected --to hf beside it, got orbax; do: merge first, then convert DEST"
            )
        if self.whole_numbers is not None and (self.merge is not None or self.to == "orbax"):
            raise ValueError(
                "whole_numbers: expected no --merge and --to hf beside it, got one; do: convert "
                "twice"
            )


def main(config: Config) -> int:
    """Converts, and prints what has been made."""
    _check_free(config.dest)
    source = _place(config.source, config.dest)
    if config.dest.resolve() == source.resolve():
        raise ValueError(
            f"{source}: expected another folder to write, got the source; do: choose another DEST"
        )
    if config.whole_numbers is not None:
        return _with_whole_numbers(source, config)
    model = _open(source, config)
    if source.is_dir():
        checksums.check_folder(source, lambda name: True)
    for warning in departures(source, model.config):
        console.say(f"warning: {warning}")
    with _Partial(config, source) as partial:
        _check_space(config.dest, model.nbytes + _sizes(source) - partial.whole_bytes())
        write = _write_orbax if config.to == "orbax" else _write_hf
        write(model, partial)
        dtype = model.exact.param_dtype if config.to == "orbax" else model.dtype
        _finish(source, model.config, partial.folder, dtype=dtype)
        if config.merge is not None and (config.merge / bundles.MANIFEST).exists():
            shutil.copyfile(config.merge / bundles.MANIFEST, partial.folder / bundles.MANIFEST)
        partial.publish()
    _tell(config, model, dtype=dtype)
    return 0


def _with_whole_numbers(source: Path, config: Config) -> int:
    """Writes a small model with more tokens, and prints what has been made."""
    assert config.whole_numbers is not None
    _check_free(config.dest)
    opened = _open(source, config)
    dtype = config.dtype or opened.dtype
    exact = Compute(param_dtype="bfloat16" if dtype == "bfloat16" else "float32")
    whole_numbers.save(bundles.load(source, compute=exact), config.dest, frame=config.whole_numbers)
    made = _open(config.dest, Config(source=str(config.dest), dest=config.dest))
    _tell(config, made, dtype=made.dtype)
    return 0


def _tell(config: Config, model: _Model, *, dtype: str) -> None:
    family = families.family_of(model.config).model_type
    made = {"checkpoint": str(config.dest), "model_type": family, "tensors": len(model.entries)}
    console.tell_json(made | {"bytes": model.nbytes, "dtype": dtype, "format": config.to})


def departures(source: Path, config: Any) -> list[str]:
    """Returns what is unusual about a model's files, a sentence each.

    The released SimpleSeg-Qwen2.5-VL is said to come with OpenCUA's tokenizer, which is
    Moonshot's; rotary positions of one axis are refused where the config is read.
    """
    family = families.family_of(config)
    if family.vlm is None:
        names, hub = [], {}
        if source.is_file():
            names = torch_archive.Archive(source).names()
        else:
            hub = files.read_json_object(source / "config.json")
        return [f"{source}: {remark}" for remark in family.remarks(hub, names)]
    complaints = []
    if family.vlm.tokenizer == "qwen" and _is_moonshots(source):
        complaints.append(
            f"{source}: expected Qwen's tokenizer beside {family.model_type}, got Moonshot's (as "
            "OpenCUA has it, and the released SimpleSeg-Qwen2.5-VL); it is kept; do: try a "
            "prediction"
        )
    try:
        tokenizer = Tokenizer.load(source)
        image, table = tokenizer.image_id, config.text.vocab_size
        if image != config.image_token_id:
            complaints.append(
                f"{source}: expected the tokenizer's image token to be {config.image_token_id} "
                f"as in config.json, got {image}; do: set image_token_id, or predict will refuse"
            )
        if tokenizer.vocab_size > table:
            complaints.append(
                f"{source}: expected at most {table} tokens, for which there are weights, got "
                f"{tokenizer.vocab_size}: predict will refuse; do: copy the tokenizer of the model"
            )
    except ValueError as error:
        complaints.append(f"{' '.join(str(error).split())}: predict will refuse")
    if not (source / bundles.MANIFEST).exists() and not families.preprocessor(source):
        complaints.append(
            f"{source}: expected preprocessor_config.json, got none: predict will refuse; do: copy "
            "the one of these weights"
        )
    return complaints


def _is_moonshots(source: Path) -> bool:
    """Returns whether a folder's tokenizer is Moonshot's."""
    if (source / "tiktoken.model").exists():
        return True
    path = source / "tokenizer_config.json"
    text = files.read_bytes(path).decode("utf-8", "replace") if path.exists() else ""
    return "TikToken" in text or "<|media_" in text


# Where a model comes from.


def _place(source: str, dest: Path) -> Path:
    """Returns the folder of a model, fetched if it is a name on the hub, or its only file."""
    path = Path(source)
    if path.is_dir() or (weights.is_archive(path) and path.is_file()):
        return path
    if path.exists():
        raise ValueError(
            f"{source}: expected a folder or a name on the hub, got a file; do: give its folder"
        )
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source):
        raise ValueError(
            f"{source}: expected a folder or a name on the hub as org/name, got nothing there"
            "; do: check the path"
        )
    return _fetched(source, dest)


def _fetched(name: str, dest: Path) -> Path:
    import huggingface_hub
    from huggingface_hub import constants, utils

    what: dict[str, Any] = {"allow_patterns": list(NEEDED), "ignore_patterns": ["*/*"]}
    if not console.TERMINAL.is_terminal:
        utils.disable_progress_bars()
    try:
        if not constants.HF_HUB_OFFLINE:
            files = huggingface_hub.snapshot_download(name, dry_run=True, **what)
            missing = sum(file.file_size or 0 for file in files if file.will_download)
            _check_space(Path(constants.HF_HUB_CACHE), missing)
        return Path(huggingface_hub.snapshot_download(name, **what))
    except _NoSpace:
        raise
    except Exception as error:  # Hubs and networks fail in any way they can.
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{name}: expected a folder or a model that the hub hands out, got "
            f"{type(error).__name__} ({reason}); do: fetch it where there is a network with "
            f"`hf download {name} --local-dir FOLDER`, then seg-jax convert FOLDER {dest}"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Model:
    """A model that is to be written."""

    config: Any
    dtype: str
    """Dtype of most of its tensors, as they are to be written."""
    exact: Compute
    """Keeps every weight as it is."""
    entries: list[safetensors.Entry]
    pieces: Callable[[str], Iterator[np.ndarray]]
    """Yields a tensor in pieces, in the dtype of its entry."""
    whole: Callable[[], Any]
    """Returns the model with its parameters."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries)


def _open(source: Path, config: Config) -> _Model:
    """Returns the model in a folder, its names and shapes checked."""
    if source.is_file():
        ours, tensors = weights.open_archive(source)
        ours = _with_activation(ours, config)
    else:
        ours, tensors = families.read(source), None
        if config.activation is not None:
            raise ValueError(
                f"activation: expected none beside {source}, whose config.json says it, got "
                f"{config.activation}; do: leave --activation out"
            )
    added = None
    if config.merge is not None:
        added = peft_folder.Folder(config.merge, ours)
        added.check()
    wide = {slot.name for slot in weights.tensor_parts(ours) if slot.dtype == np.float32}
    if (source / orbax_params.FOLDER).is_dir():
        return _loaded_whole(source, ours, added, dtype=config.dtype or _noted_dtype(source))
    if tensors is not None and _has_own_names(ours):
        return _loaded_whole(source, ours, added, dtype=config.dtype or "float32")
    theirs = weights.HubTensors(ours, tensors or safetensors.open_folder(source))
    entries = {}
    for name, entry in theirs.entries.items():
        kept = config.dtype is None or name in wide
        entries[name] = entry if kept else entry._replace(dtype=_dtype(config.dtype))
    kinds = [entry.dtype.name for name, entry in entries.items() if name not in wide]
    dtype = max(sorted(set(kinds)), key=kinds.count)
    exact = Compute(param_dtype="bfloat16" if set(kinds) == {"bfloat16"} else "float32")

    def pieces(name: str) -> Iterator[np.ndarray]:
        yield from _with_adapter(added, name, theirs.blocks(name), dtype=entries[name].dtype)

    def whole() -> Any:
        return weights.load(source, compute=exact)

    return _Model(ours, dtype, exact, list(entries.values()), pieces, whole)


def _with_adapter(
    added: peft_folder.Folder | None,
    name: str,
    blocks: Iterator[tuple[int, np.ndarray]],
    *,
    dtype: np.dtype,
) -> Iterator[np.ndarray]:
    """Yields rows of a tensor with an adapter added to it, if there is one."""
    for _, block in blocks if added is None else added.add_to(name, blocks):
        yield block.astype(dtype, copy=False)


def _with_activation(ours: Any, config: Config) -> Any:
    """Returns the config of a file with the activation that it cannot say itself.

    Raises:
      ValueError: none was given where one is needed, or one where there is no choice.
    """
    known = families.family_of(ours).published
    if known is None or known.choices is None:
        if config.activation is not None:
            raise ValueError(
                f"activation: expected none beside {config.source}, which has only one, got "
                f"{config.activation}; do: leave --activation out"
            )
        return ours
    if config.activation is None:
        raise ValueError(
            f"{config.source}: expected --activation beside it, as no tensor tells it, got none; "
            "do: give --activation quick_gelu for OpenAI's weights, gelu for most of open_clip's"
        )
    return known.choices(ours, config.activation)


def _has_own_names(ours: Any) -> bool:
    known = families.family_of(ours).published
    return known is not None and known.names is not None


def _loaded_whole(
    source: Path,
    ours: Any,
    added: peft_folder.Folder | None,
    *,
    dtype: Literal["bfloat16", "float32"],
) -> _Model:
    """Returns the model of a source whose tensors are not those of the hub, one by one."""
    exact = Compute(param_dtype=dtype)
    loaded = weights.load(source, config=ours, compute=exact)
    reader = weights.ModelTensors(ours, nnx.state(loaded))

    def piece(name: str) -> Iterator[np.ndarray]:
        whole = reader.read(name)
        yield from _with_adapter(added, name, iter([(0, whole)]), dtype=whole.dtype)

    return _Model(ours, dtype, exact, reader.entries(), piece, lambda: loaded)


def _dtype(name: Any) -> np.dtype:
    return np.dtype(jnp.dtype(name))


def _noted_dtype(source: Path) -> Literal["bfloat16", "float32"]:
    """Returns the dtype that the maker of an Orbax checkpoint wrote beside it."""
    dtype = files.read_json_object(source / orbax_params.NOTE).get("dtype")
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(
            f"{source / orbax_params.NOTE}: expected a dtype, got {dtype!r}; do: give --dtype"
        )
    return dtype


# Writing.


class _NoSpace(ValueError):
    """A disk has less room than is needed."""


def _check_free(dest: Path) -> None:
    """Raises if there is something where a folder is to be made."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        kind = "a folder with files in it" if dest.is_dir() else "a file"
        raise ValueError(
            f"{dest}: expected a new or an empty folder, got {kind}; do: choose another or remove "
            "it"
        )


def _check_space(folder: Path, need: int) -> None:
    """Raises unless a disk has room for so many bytes."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < need:
        raise _NoSpace(
            f"{folder}: expected {need} bytes of free space ({need / 1e9:.1f} GB), got {free} "
            f"({free / 1e9:.1f} GB); do: free some or choose another disk"
        )


def _sizes(source: Path) -> int:
    companions = families.companions(source) if source.is_dir() else []
    return sum(path.stat().st_size for path in companions)


class _Partial:
    """The folder that is being written: DEST.partial, with a journal of the files that are whole.

    What a killed convert of the same source in the same way has left is kept.
    """

    def __init__(self, config: Config, source: Path):
        self.dest = config.dest
        self.folder = config.dest.absolute().with_name(config.dest.absolute().name + ".partial")
        self._fingerprint = _fingerprint(config, source)
        self._whole: dict[str, safetensors.Written] = {}

    def __enter__(self) -> _Partial:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            # Beside the folder, which will be renamed.
            lock = self.folder.with_name(f".{self.folder.name}{locks.NAME}")
            stack.enter_context(locks.hold(lock, place=self.dest))
            _check_free(self.dest)  # Perhaps another convert has just made it.
            self.folder.mkdir(exist_ok=True)
            path = self.folder / JOURNAL
            if not path.exists() and any(self.folder.iterdir()):
                raise ValueError(
                    f"{self.folder}: expected what an interrupted convert has left, got other "
                    "files; do: remove the folder or choose another DEST"
                )
            self._file = stack.enter_context(path.open("a+", encoding="utf-8", errors="replace"))
            self._file.seek(0)
            texts = self._file.read(files.MOST_TEXT_BYTES).split("\n")  # Ours are far shorter.
            self._resume([line for text in texts if (line := _parse_line(text)) is not None])
            self._open = stack.pop_all()
        return self

    def _resume(self, lines: list[Any]) -> None:
        if lines[:1] == [self._fingerprint]:
            for line in lines[1:]:
                try:
                    told = schemas.check(line, _Whole, where=JOURNAL)
                except ValueError:  # No line of ours.
                    continue
                one = checksums.Sum(bytes=told.nbytes, xxh3=told.xxh3)
                if checksums.find_damage(self.folder, {told.name: one}) is None:
                    written = safetensors.Written(told.name, told.nbytes, told.xxh3)
                    self._whole[told.name] = written
            if self._whole:
                console.say(f"{self.folder}: {len(self._whole)} whole files are kept")
            self._file.write("\n")  # A line that was cut off ends here.
            return
        for path in self.folder.iterdir():
            if path.name != JOURNAL:
                files.remove(path)
        self._file.truncate(0)
        self._note(self._fingerprint)

    def _note(self, value: Any) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def whole_bytes(self) -> int:
        """Returns how many bytes need not be written again."""
        return sum(written.nbytes for written in self._whole.values())

    def has(self, name: str) -> bool:
        """Returns whether a file is whole."""
        return name in self._whole

    def add(self, written: safetensors.Written) -> None:
        """Notes that a file is whole."""
        self._whole[written.name] = written
        self._note(written._asdict())

    def publish(self) -> None:
        """Makes the folder DEST, with checksums of its files."""
        known = {
            one.name: checksums.Sum(bytes=one.nbytes, xxh3=one.xxh3) for one in self._whole.values()
        }
        rest = {*checksums.files_of(self.folder)} - known.keys()
        sums = known | checksums.of_files(self.folder, rest)
        checksums.write(self.folder / checksums.FILE, sums)
        self.folder.replace(self.dest)
        (self.dest / JOURNAL).unlink()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and not self._whole:  # Nothing that is worth to be kept.
            with contextlib.suppress(OSError):
                files.remove(self.folder)
        self._open.close()


class _Whole(schemas.Record, frozen=True):
    """A line of the journal about a file that is whole."""

    name: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_-][0-9A-Za-z._-]{0,200}\Z")]
    nbytes: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    xxh3: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]


def _parse_line(line: str) -> Any:
    """Returns what a line of the journal holds; None if it was cut off, or is none of ours."""
    with contextlib.suppress(ValueError):
        return files.parse_json(line, where=JOURNAL)
    return None


def _fingerprint(config: Config, source: Path) -> dict[str, Any]:
    """Returns what tells one conversion from another."""
    files = [source]
    if source.is_dir():
        files = [
            *source.glob("*.safetensors"),
            *families.companions(source),
            source / "config.json",
        ]
    if config.merge is not None:
        files += [config.merge / peft_folder.CONFIG, config.merge / peft_folder.WEIGHTS]
    stats = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    options = {"source": str(source.resolve()), "dtype": config.dtype, "to": config.to}
    options["merge"] = None if config.merge is None else str(config.merge.resolve())
    options |= {"activation": config.activation}
    return options | {"shard": safetensors.SHARD_BYTES, "files": [list(stat) for stat in stats]}


def _write_hf(model: _Model, partial: _Partial) -> None:
    """Writes safetensors files that are not there yet."""
    files = safetensors.plan(model.entries)
    with _bar("converted (MB)", model.nbytes) as move:
        for file in files:
            if partial.has(file.name):
                move(file.nbytes)
                continue

            def pieces(name: str) -> Iterator[np.ndarray]:
                for piece in model.pieces(name):
                    yield piece
                    move(piece.nbytes)

            partial.add(safetensors.write(file, partial.folder, pieces))
    safetensors.write_index(files, partial.folder)


def _write_orbax(model: _Model, partial: _Partial) -> None:
    """Writes an Orbax checkpoint, if it is not there yet, and the dtype it is kept in."""
    # Orbax names its folder when all in it is whole.
    if not (partial.folder / orbax_params.FOLDER).exists():
        with _bar("converted (MB)", model.nbytes) as move:
            orbax_params.write(nnx.state(model.whole()), partial.folder)
            move(model.nbytes)
    files.write_json(partial.folder / orbax_params.NOTE, {"dtype": model.exact.param_dtype})


@contextlib.contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function of bytes that moves a bar, where there is a terminal to see it."""
    if not console.TERMINAL.is_terminal:
        yield lambda nbytes: None
        return
    done = 0
    with console.progress(title, total // 10**6) as show:

        def move(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            show(done // 10**6, total // 10**6, "")

        yield move


def _finish(source: Path, config: Any, folder: Path, *, dtype: str) -> None:
    """Copies what travels with the weights; what makes a folder look whole comes last."""
    if source.is_file():
        known = families.family_of(config).published
        assert known is not None
        files.write_json(folder / "preprocessor_config.json", known.preprocessor(config))
        hub = config.to_hf() | {"dtype": dtype}
    else:
        for path in families.companions(source):
            if path.name != orbax_params.NOTE:
                shutil.copyfile(path, folder / path.name)
        hub = families.with_dtype(families.copied_config(source, config), dtype)
    files.write_json(folder / "config.json", hub)
