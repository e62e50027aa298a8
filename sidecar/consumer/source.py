"""Where a model is followed to, and what is taken from there: the model, its digest and its JSON, as bytes, of one version."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, Protocol

Policy = Literal["latest-stable", "latest", "pinned"]
"""Which model is followed: the newest stable one, the newest one, or one version."""

MOST_DIGEST_BYTES = 4096
CHECKPOINT = re.compile(r"model_v(\d{6,18})")


class SourceError(Exception):
    """Nothing could be taken from a source this time; the message names it and says why. Later it may go well."""


@dataclass(frozen=True)
class Fetched:
    """A checkpoint as it came, unchecked.

    place: where it came from, for messages. version: as its file's name says. seal: what identifies these files, to be given
    to `fetch`.
    """

    place: str
    version: int
    model: bytes
    digest: bytes
    description: bytes
    seal: Hashable

    @property
    def name(self) -> str:
        return f"model_v{self.version:06d}"


class Source(Protocol):
    """A place with checkpoints."""

    def fetch(self, seen: Hashable, in_use: bool) -> Fetched | None:
        """What there is; None if that is what was seen.

        seen: the seal of what was fetched last, None at first. in_use: whether that was found good. If it was, the model is
        looked at alone, else also what lies beside it. Raises SourceError.
        """
        ...


def choose(policy: str, version: int | None) -> str:
    """The name, without its ending, of what a policy follows in a checkpoint directory.

    version: with `pinned`, the version that is meant. Raises ValueError that names the value and what is allowed.
    """
    if policy == "pinned":
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ValueError(f"version={version!r}: expected the number of a version, from 1, with the policy 'pinned'")
        return f"model_v{version:06d}"
    links = {"latest-stable": "stable", "latest": "latest"}
    if policy not in links:
        raise ValueError(f"policy={policy!r}: expected one of 'latest-stable', 'latest', 'pinned'")
    if version is not None:
        raise ValueError(f"version={version!r}: only with the policy 'pinned'")
    return links[policy]
