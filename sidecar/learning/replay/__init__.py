"""Past pairs, trained on again so that new ones do not make the head forget them: one policy per file."""

from sidecar.learning.replay.balanced import BalancedReplayBuffer
from sidecar.learning.replay.ring import ReplayBuffer
from sidecar.learning.training_settings import TrainingSettings


def replay_buffer(settings: TrainingSettings, width: int) -> ReplayBuffer:
    """The buffer of the policy that is set, for rows of `width` numbers, the last of which is the score."""
    if settings.replay_policy == "ring":
        return ReplayBuffer(settings.replay_capacity, width)
    return BalancedReplayBuffer(settings.replay_capacity, width, settings.score_min, settings.score_max)
