"""vmafx-sidecar: trains a small regression model that predicts VMAF scores from features.

The public names, for programs in Python:

    FeedbackClient   delivers pairs to a running sidecar from a background thread
    LiveModel        predicts with a sidecar's newest stable model, and takes over each new one
    VmafRegressor    the model behind scikit-learn's conventions (extra: sklearn)
    read_pairs       reads recorded pairs from files

Everything else may change. Importing this package changes nothing in the process that imports it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.client.feedback_client import FeedbackClient
    from sidecar.consumer.live_model import LiveModel
    from sidecar.pairs.recorded import read_pairs
    from sidecar.regressor import VmafRegressor

__all__ = ["FeedbackClient", "LiveModel", "VmafRegressor", "read_pairs"]
__version__ = "0.1.0"

_HOMES = {
    "FeedbackClient": "sidecar.client.feedback_client",
    "LiveModel": "sidecar.consumer.live_model",
    "VmafRegressor": "sidecar.regressor",
    "read_pairs": "sidecar.pairs.recorded",
}


def __getattr__(name: str) -> object:
    """The public names, loaded when they are first used: commands do not need all that they load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
