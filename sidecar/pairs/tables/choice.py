"""Which columns of a table are the features, the score, the group and the job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sidecar.features.encoder_block import EncoderBlock
from sidecar.features.names import NamesError, canonical, in_order, is_feature, repeated
from sidecar.pairs.errors import RecordedPairsError
from sidecar.pairs.tables.table import Table, Wanted, listed

TARGETS = ("true_score", "vmaf", "vmaf_score", "observed_vmaf")
_ARCHIVE_TARGETS = ("true_score", "scores")
GROUPS = (
    ("group",),
    ("source", "dis_basename"),
    ("key",),
    ("clip",),
    ("clip_name",),
    ("src", "encoder", "cq"),
    ("src",),
    ("source",),
)
"""What names a clip or an encode in the tables of this field; the first that a table has."""
_JOB = "job_id"
_TARGET_NAMES = ("target", "vmaf_model")
"""Columns that say which model the score is of."""
_ENCODE = ("encoder", "preset", "crf")
_CODECS = ("codec", "encoder")


@dataclass(frozen=True)
class Columns:
    """What the caller asked for.

    features: names in order, empty for the default; target, group, job: columns, None for the default; label: a further column
    to group by; window: frames of a log that become one row, 0 for all of them, None for a row each. any_target: scores of
    different models are taken together. block: how features with its names are made from the columns encoder, preset and crf.
    codec: the codec is wanted too, where it is known.

    Raises RecordedPairsError if a feature is named twice, in whatever spelling.
    """

    features: tuple[str, ...] = ()
    target: str | None = None
    group: str | None = None
    job: str | None = None
    label: str | None = None
    window: int | None = None
    any_target: bool = False
    block: EncoderBlock | None = None
    codec: bool = False

    def __post_init__(self) -> None:
        if twice := repeated([canonical(name) for name in self.features]):
            raise RecordedPairsError(f"--features {','.join(self.features)}: {twice} is there more than once")

    def of_model(self, names: Sequence[str], block: EncoderBlock | None) -> Columns:
        """With the features of a model, in its order; empty names are not known.

        Raises RecordedPairsError if other features were asked for.
        """
        if not names:
            return self
        try:
            places = in_order([canonical(name) for name in self.features], names) if self.features else ()
        except NamesError as error:
            raise RecordedPairsError(f"--features does not name the model's features: {error}") from None
        return replace(self, features=tuple(self.features[place] for place in places) or tuple(names), block=block)


@dataclass(frozen=True)
class Choice:
    """Columns of a table.

    features: columns in order, empty for the table's array; names: of all features, in the program's spelling, empty if they
    are not known; encode: where columns encoder, preset and crf make the features of the block; by_default: nobody named the
    features, so those without any value are left out. group: columns, empty if there are none; label: likewise, to group by.
    codec: the column that names the codec, empty if there is none or it is not wanted.
    """

    features: tuple[str, ...]
    names: tuple[str, ...]
    target: str
    group: tuple[str, ...] = ()
    job: str = ""
    label: tuple[str, ...] = ()
    model: str = ""
    encode: tuple[str, ...] = ()
    by_default: bool = False
    codec: str = ""

    def wanted(self) -> Wanted:
        needed = dict.fromkeys((*self.group, *self.label, self.job, self.model, *self.encode))
        texts = tuple(text for text in (needed | {self.codec: None}) if text)
        return Wanted(self.features, self.target, texts, frozenset({self.codec} - needed.keys()))

    def as_json(self) -> dict[str, Any]:
        """For the JSON beside a checkpoint: the columns by what they are taken as."""
        about: dict[str, Any] = {"features": [*self.features, *self.encode] or "array", "true_score": self.target}
        return about | {key: value for key, value in (("group", "/".join(self.group)), ("job_id", self.job)) if value}


def choose(table: Table, asked: Columns) -> Choice:
    """The columns that are wanted, or that a table of its form is known by.

    Raises RecordedPairsError if there is none for the features or the score, or more than one; it lists the columns.
    """
    columns = {*table.columns}
    lacking: list[str] = []
    features, names, encode, by_default = _features(table, asked)
    if table.width is None and not names:
        lacking.append("no features: no column is named like a feature of libvmaf; --features A,B,… names them")
    target = _one(table, asked.target, "the score", "--target")
    known = _ARCHIVE_TARGETS if table.unit == "row" and not table.requests and "scores" in columns else TARGETS
    if target is None:
        target = next((each for each in known if each in columns), "")
    if not target:
        mos = next((each for each in table.columns if each == "mos" or each.startswith("mos_")), None)
        hint = f"a {mos} has another range: --target {mos} --score-min A --score-max B" if mos else "--target names it"
        lacking.append(f"no score: no column {', '.join(known)}; {hint}")
    if lacking:
        raise RecordedPairsError(f"{table.name}: {'; '.join(lacking)}; columns: {listed(table.columns)}")
    if target in features:
        raise RecordedPairsError(f"{table.name}: {target} is the score; it cannot be a feature too")
    named_group = _one(table, asked.group, "the group", "--group")
    known_groups = GROUPS[:1] if table.requests else GROUPS
    group = (named_group,) if named_group else next((each for each in known_groups if {*each} <= columns), ())
    job = _one(table, asked.job, "the job", "--job") or (_JOB if _JOB in columns else "")
    model = next((each for each in _TARGET_NAMES if each in columns), "") if target in TARGETS else ""
    codec = next((each for each in _CODECS if asked.codec and each in columns), "")
    return Choice(features, names, target, group, job, _label(table, asked, group, job), model, encode, by_default, codec)


def _features(table: Table, asked: Columns) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], bool]:
    """Columns, names, columns of the encode, whether by default."""
    if table.width is not None:
        if asked.features and len(asked.features) != table.width:
            raise RecordedPairsError(
                f"{table.name}: features: expected {len(asked.features)} ({listed(asked.features, 6)}), got {table.width}"
            )
        return (), tuple(map(canonical, asked.features)), (), False
    if not asked.features:
        found = table.features or tuple(column for column in table.columns if is_feature(column))
        names = tuple(map(canonical, found))
        if twice := [column for column in found if names.count(canonical(column)) > 1]:
            raise RecordedPairsError(
                f"{table.name}: one feature in several columns: {listed(twice)}; --features A,B,… names those to take; "
                f"columns: {listed(table.columns)}"
            )
        return found, names, (), True
    spelled: dict[str, list[str]] = {}
    for column in table.columns:
        spelled.setdefault(canonical(column), []).append(column)
    block = asked.block.names if asked.block else ()
    made = tuple(name for name in asked.features if name in block and name not in table.columns)
    encode = tuple(each for each in _ENCODE if each in table.columns) if made else ()
    features: list[str] = []
    missing: list[str] = []
    for name in asked.features:
        if name in made and "encoder" in encode:
            continue
        candidates = [name] if name in table.columns else spelled.get(canonical(name), [])
        if not candidates:
            missing.append(name)
        elif len(candidates) > 1:
            raise RecordedPairsError(f"{table.name}: {name} is in several columns: {listed(candidates)}; name the one to take")
        else:
            features.append(candidates[0])
    if missing:
        raise RecordedPairsError(f"{table.name}: no column for {listed(missing)}; columns: {listed(table.columns)}")
    return tuple(features), tuple(map(canonical, asked.features)), encode, False


def _one(table: Table, column: str | None, what: str, option: str) -> str | None:
    if column is not None and column not in table.columns:
        raise RecordedPairsError(f"{table.name}: no column {column!r} for {what} ({option}); columns: {listed(table.columns)}")
    return column


def _label(table: Table, asked: Columns, group: Sequence[str], job: str) -> tuple[str, ...]:
    label = asked.label
    if label is None or label in table.columns:
        return (label,) if label else ()
    if label == "group" and (group or job or table.group):  # the job stands for it
        return tuple(group) or ((job,) if job else ())
    raise RecordedPairsError(f"{table.name}: no column {label!r} to group by; columns: {listed(table.columns)}")
