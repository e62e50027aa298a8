"""`VmafRegressor`: the offline recipe and the online trainer behind scikit-learn's conventions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("VmafRegressor needs scikit-learn 1.6 or later: pip install 'vmafx-sidecar[sklearn]'") from error

from onnx_builder.network import ActivationName, Network
from onnx_builder.read import read
from sidecar.features.names import NamesError, canonical, in_order
from sidecar.learning.head import Head
from sidecar.learning.recipe import Recipe, fit
from sidecar.learning.training_settings import TrainingSettings
from sidecar.models.base_model import BaseModel, load
from sidecar.models.description import read_description
from sidecar.models.inputs import feature_names
from sidecar.models.pytorch.state_dict import Choices
from sidecar.pairs.holdout import holdout_position, is_held_out

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from sidecar.learning.online.trainer import Trainer

_PARITY_ROWS = 4096


class VmafRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A small network that predicts scores from features, with the methods of a scikit-learn regressor.

    It is what `vmafx-sidecar train-offline` trains: `fit` is the same recipe, and its parameters are the command's options.
    `partial_fit` trains on like a running sidecar. A value of None means the recipe's own: epochs and learning rate by the
    number of rows, and predictions that are not clipped to a range.

    score_min, score_max: the range of scores, both or neither. holdout: share of rows, by whole groups, that `fit` keeps out of
    training and `save` judges the model on. base_model: path of an ONNX model or PyTorch state-dict to fine-tune.

    Fitted attributes: `n_features_in_`; `feature_names_in_` (libvmaf's spellings made one) if X was a data frame; `network_`.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 6))
    >>> y = 60 + 5 * X.sum(axis=1)
    >>> regressor = VmafRegressor(epochs=200).fit(X[:150], y[:150])
    >>> bool(regressor.score(X[150:], y[150:]) > 0.99)
    True
    """

    n_features_in_: int
    feature_names_in_: NDArray[np.object_]
    network_: Network
    _trainer: Trainer | None
    _trainer_steps: int
    _rows: int
    _steps: int
    _newest: NDArray[np.float32]

    def __init__(
        self,
        *,
        hidden: int = 64,
        activation: ActivationName = "relu",
        epochs: int | None = None,
        batch_size: int = 32,
        learning_rate: float | None = None,
        optimizer: Literal["sgd", "adam"] = "sgd",
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        group_lasso: float | None = None,
        max_grad_norm: float = 1.0,
        warmup_steps: int = 100,
        ema_decay: float = 0.999,
        score_min: float | None = None,
        score_max: float | None = None,
        holdout: float = 0.0,
        base_model: str | Path | None = None,
        random_state: Any = 0,
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.group_lasso = group_lasso
        self.max_grad_norm = max_grad_norm
        self.warmup_steps = warmup_steps
        self.ema_decay = ema_decay
        self.score_min = score_min
        self.score_max = score_max
        self.holdout = holdout
        self.base_model = base_model
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Train on rows X (n, n_features), raw, and scores y (n,), from a new model or the base model.

        groups: (n,), what encode each row is of, so that a hold-out does not divide one. Raises ValueError for rows or
        parameters that cannot be used.
        """
        features, scores = self._checked(X, y, reset=True)
        if groups is not None and len(np.asarray(groups)) != len(scores):
            raise ValueError(f"groups: expected {len(scores)} values, one for each row, got {len(np.asarray(groups))}")
        held_out = self._held_out(features, groups)
        rows = np.flatnonzero(~held_out)
        if not len(rows):
            raise ValueError(f"holdout={self.holdout} leaves none of {len(scores)} rows to train on")
        recipe, base = self._recipe(), self._base()
        if base and self.score_min is None:  # the units that it is trained in come from the range
            low, high = _range_of(scores)
            recipe = dataclasses.replace(recipe, score_min=low, score_max=high)
        fitted = fit(features, scores, rows, recipe, base=base.network if base else None)
        self._is_fitted(fitted.ema.network(), base, features[rows], scores[rows], fitted.steps)
        self._evidence = features[held_out], scores[held_out]
        return self

    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on more rows, in order, as a running sidecar does: in batches, with a replay buffer and averaged weights.

        The first call on a regressor that was not fitted is `fit`. Rows that do not complete a batch wait for the next call.
        """
        if not hasattr(self, "network_"):
            return self.fit(X, y)
        features, scores = self._checked(X, y, reset=False)
        trainer = self._online_trainer()
        trainer.add(features, scores)
        self._rows += len(scores)
        self._newest = np.concatenate([self._newest, features])[-_PARITY_ROWS:]
        assert trainer.ema is not None
        self.network_ = trainer.network(trainer.ema)
        self._steps += trainer.step - self._trainer_steps
        self._trainer_steps = trainer.step
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float32]:
        """Scores (n,) of rows X (n, n_features). Columns of a data frame may have any order and spelling."""
        check_is_fitted(self, "network_")
        features = validate_data(self, self._in_order(X), reset=False, dtype=np.float32)
        return Head(self.network_).predict(features)

    def save(self, directory: str | Path) -> Path:
        """Publish the model as the next checkpoint in a directory: an ONNX file that onnxruntime confirms, its digest and JSON.

        Returns the path of the ONNX file. Raises CheckpointError if it cannot be written.
        """
        from sidecar.checkpoints.judging.gate import Evidence
        from sidecar.checkpoints.publishing import Terms, publish_network

        check_is_fitted(self, "network_")
        low, high = self._range
        named = {"feature_order": [*self.feature_names_in_]} if hasattr(self, "feature_names_in_") else {}
        description = {
            "step": self._steps,
            "pairs_seen": self._rows,
            "settings": {**dataclasses.asdict(self._recipe()), "score_min": low, "score_max": high, "holdout": self.holdout},
            "journal": None,
            **named,
        }
        published = publish_network(
            self.network_, Terms(Path(directory), high - low, self._base_used), [Evidence("held-out pairs", *self._evidence)],
            self._newest, description,
        )  # fmt: skip
        return published.checkpoint.model

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A regressor that predicts as the ONNX model at `path` does, and that `partial_fit` trains on.

        Features have the names that the JSON beside it gives them. Raises NetworkError if it is no model that can be read.
        """
        network = read(Path(path)).canonical()
        about = read_description(Path(path)) or {}
        settings = about.get("settings")
        known = {each.name for each in dataclasses.fields(Recipe)} & {*cls._get_param_names()} - {"epochs"}
        given = {name: value for name, value in settings.items() if name in known} if isinstance(settings, dict) else {}
        regressor = cls(**given)
        regressor.n_features_in_ = network.n_features
        if len(names := feature_names(about)) == network.n_features:
            regressor.feature_names_in_ = np.array(names, dtype=object)
        nothing = np.zeros((0, network.n_features), dtype=np.float32)
        regressor._evidence = nothing, nothing[:, 0]
        regressor._is_fitted(network, None, nothing, nothing[:, 0], int(about.get("step", 0)))
        return regressor

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def _recipe(self) -> Recipe:
        if (self.score_min is None) != (self.score_max is None):
            raise ValueError(f"score_min={self.score_min}, score_max={self.score_max}: expected both or neither")
        seed = self.random_state
        if not isinstance(seed, int):
            seed = int(check_random_state(seed).randint(2**31))
        names = {each.name for each in dataclasses.fields(Recipe)} & {*self._get_param_names()} - {"score_min", "score_max"}
        low, high = (-np.inf, np.inf) if self.score_min is None else (float(self.score_min), float(self.score_max or 0))
        return Recipe(**{name: getattr(self, name) for name in names}, score_min=low, score_max=high, seed=seed)

    def _base(self) -> BaseModel | None:
        return None if self.base_model is None else load(Path(self.base_model), choices=Choices(otherwise=self.activation))

    def _checked(self, X: ArrayLike, y: ArrayLike, *, reset: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        features, scores = validate_data(
            self, self._renamed(X) if reset else self._in_order(X), y, reset=reset, dtype=np.float32, y_numeric=True
        )
        return features, np.asarray(scores, dtype=np.float32)

    def _renamed(self, X: ArrayLike) -> ArrayLike:
        """A data frame with one spelling of libvmaf's names; anything else as it is."""
        columns = getattr(X, "columns", None)
        if columns is None or not all(isinstance(name, str) for name in columns):
            return X
        return X.rename(columns=canonical) if hasattr(X, "rename") else X

    def _in_order(self, X: ArrayLike) -> ArrayLike:
        X = self._renamed(X)
        columns, names = getattr(X, "columns", None), getattr(self, "feature_names_in_", None)
        if columns is None or names is None:
            return X
        try:
            in_order([*columns], [*names])
        except NamesError:
            return X  # which scikit-learn refuses in its own words
        return X[[*names]]  # type: ignore[index]

    def _held_out(self, features: NDArray[np.float32], groups: ArrayLike | None) -> NDArray[np.bool_]:
        names = [""] * len(features) if groups is None else [str(group) for group in np.asarray(groups)]
        positions = (holdout_position(name, "", row.tobytes()) for name, row in zip(names, features, strict=True))
        return np.array([is_held_out(position, self.holdout) for position in positions], dtype=bool)

    def _is_fitted(
        self, network: Network, base: BaseModel | None, features: NDArray[np.float32], scores: NDArray[np.float32], steps: int
    ) -> None:
        self.network_, self._base_used = network, base
        self._trainer, self._trainer_steps = None, 0
        self._rows, self._steps, self._newest = len(scores), steps, features[-_PARITY_ROWS:]
        self._first = features, scores  # what the replay buffer of `partial_fit` begins with
        given = self.score_min is not None and self.score_max is not None
        self._range = (float(self.score_min), float(self.score_max)) if given else _range_of(scores)  # type: ignore[arg-type]

    def _online_trainer(self) -> Trainer:
        from sidecar.learning.online.trainer import Trainer

        if self._trainer is None:
            low, high = self._range
            settings = TrainingSettings(score_min=low, score_max=high, seed=self._recipe().seed)
            self._trainer = Trainer(self.network_.n_features, settings, self.network_)
            self._trainer.remember(*self._first)
        return self._trainer


def _range_of(scores: NDArray[np.float32]) -> tuple[float, float]:
    """The range of scores where none is given: that of the rows, which is not empty."""
    low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 100.0)
    return low, high if low < high else low + 1.0
