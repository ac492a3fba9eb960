"""What scores a training by itself and chooses its result: said of a campaign, which has its own ways, it is refused."""

from __future__ import annotations

from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import InvalidSettingError

# By key: what a campaign has instead.
OF_ONE_TRAINING = {
    "data.eval_split": "Say --holdout N: every N-th row of each run's data is held out.",
    "training.eval_steps": "Leave it out: the merged adapter is scored after each run.",
    "training.early_stopping": "Say --early-stop N, which counts runs.",
    "training.keep_best": "Leave it out, or say --merge auto, which keeps the merge that scores best.",
}


def check_of_campaign(settings: Settings) -> None:
    """Raises InvalidSettingError for the first of them that was said."""
    for key, instead in OF_ONE_TRAINING.items():
        setting = settings[key]
        if setting.given and setting.value:
            raise InvalidSettingError(
                f"{setting.option.flag} would have no effect: the runs of a campaign are scored by the campaign",
                suggestion=instead,
            )
