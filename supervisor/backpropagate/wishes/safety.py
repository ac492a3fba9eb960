"""How faults are to be met, as the user wishes it: settings to SafetySpec."""

from __future__ import annotations

from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.spec import SafetySpec


def safety_spec(settings: Settings) -> SafetySpec:
    """Raises InvalidSettingError for temperatures that are not in rising order."""
    warn, pause, kill = (settings.whole(f"safety.temperature_{level}") for level in ("warn", "pause", "kill"))
    if not warn <= pause <= kill:
        raise InvalidSettingError(f"the temperatures {warn} (warn), {pause} (pause) and {kill} (kill) °C are not in rising order")  # fmt: skip
    return SafetySpec(
        oom_recovery=settings.flag("safety.oom_recovery"),
        max_halvings=settings.whole("safety.max_halvings"),
        max_respawns=settings.whole("safety.max_respawns"),
        save_steps=settings.whole_or_none("safety.save_steps"),
        save_seconds=settings.number("safety.save_seconds"),
        keep_checkpoints=settings.whole("safety.keep_checkpoints"),
        grace=settings.number("safety.grace"),
        hang_floor=settings.number("safety.hang_floor"),
        first_step_deadline=settings.number("safety.first_step_deadline"),
        load_deadline=settings.number("safety.load_deadline"),
        temperature_warn=warn,
        temperature_pause=pause,
        temperature_kill=kill,
        wait_for_lock=settings.flag("safety.wait"),
        standby=settings.text("safety.standby"),
    )
