"""Publishing tenants' heads, each in a directory of its own beside the shared checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx_builder.network import Array, NetworkError
from sidecar.checkpoints.directory import LATEST, CheckpointError, linked, share_stable, tenant_directory
from sidecar.checkpoints.judging.gate import Evidence, Gate
from sidecar.checkpoints.judging.references import PublishedModel, stable_model
from sidecar.checkpoints.publishing import Published, Terms, publish_network
from sidecar.learning.metrics import rmse
from sidecar.learning.tenants.comparison import LEAST_PAIRS
from sidecar.learning.tenants.tenants import Model
from sidecar.log import event
from sidecar.models.description import DescriptionError, read_description

_log = logging.getLogger(__name__)


def changed_heads(models: Sequence[Model], directory: Path) -> list[Model]:
    """The heads of tenants that have sent pairs since their last one was published in a checkpoint directory."""
    return [each for each in models if _published_pairs(tenant_directory(directory, each.name)) != each.pairs]


def publish_heads(
    models: Sequence[Model], terms: Terms, shared: Gate, parity_features: Array, description: dict[str, Any]
) -> list[Published | None]:
    """Publish tenants' heads. Returns what became of each, None for one that could not be published, which is logged.

    terms, shared, parity_features, description: those of the shared model that they stand on, which is published, and its
    verdict. A tenant's `stable.onnx` is its own, or the shared one while that is as good.
    """
    results = list[Published | None]()
    try:
        stable = stable_model(terms.directory) if models else None
    except OSError as error:
        _log.warning("heads are not published now: %s: %s", terms.directory, error.strerror or error)
        return [None] * len(models)
    for model in models:
        no_held_out = Evidence("held-out pairs", parity_features[:0], parity_features[:0, 0])
        directory, compared = tenant_directory(terms.directory, model.name), model.compared
        about = {
            "name": model.name, "pairs": model.pairs, "compared": compared.pairs, "rmse": compared.rmse,
            "rmse_of_shared_weights": compared.rmse_of_shared,
        }  # fmt: skip
        try:
            gate = shared if shared.verdict == "incompatible" else judge_head(model, stable)
            if gate.verdict != "stable":
                share_stable(directory, terms.lock_s)  # before there is a checkpoint that is not published again
            published = publish_network(
                model.network(), replace(terms, directory=directory, on_trial=False), [no_held_out], parity_features,
                {**description, "tenant": about}, gate,
            )  # fmt: skip
        except (CheckpointError, NetworkError, OSError) as error:
            event(_log, "head not published", logging.ERROR, tenant=model.name, error=str(error) or type(error).__name__)
            results.append(None)
            continue
        results.append(published)
    return results


def judge_head(model: Model, stable: PublishedModel | None) -> Gate:
    """The verdict on a head, from pairs that it and the shared weights predicted before they trained on them.

    stable: the shared stable model, which it must not be behind either. Raises NetworkError if that cannot be used.
    """
    compared, rows = model.compared, model.rows
    if compared.pairs < LEAST_PAIRS:
        return Gate("unverified", f"{compared.pairs} pairs of the tenant were predicted, fewer than {LEAST_PAIRS}")
    others = {"the shared weights": compared.rmse_of_shared}
    if stable is not None:
        others[f"the shared {stable.name}"] = rmse(stable.predict(rows[:, :-1]), rows[:, -1])
    figures = " and ".join(f"{error:.3f} of {name}" for name, error in others.items())
    is_better = compared.used and compared.rmse < min(others.values())
    reason = f"RMSE {compared.rmse:.3f} on the tenant's newest pairs, beside {figures}"
    return Gate("stable" if is_better else "unstable", reason)


def _published_pairs(directory: Path) -> int | None:
    """How many pairs the tenant's newest checkpoint has seen; None if there is none, or it does not say so now."""
    try:
        newest = linked(directory, LATEST)
        about = (read_description(newest.model) or {}).get("tenant") if newest else None
    except (OSError, DescriptionError):
        return None
    return about.get("pairs") if isinstance(about, dict) else None
