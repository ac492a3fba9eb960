"""Settings: which source wins, what is said about a wrong value, and what is never passed over in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate.wishes.build_spec import hypothetical_spec
from backpropagate.wishes.options import OPTIONS, NotAccepted, parse
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import InvalidSettingError, UserInputError


def settings(
    tmp_path: Path,
    *,
    toml: str = "",
    dotenv: str = "",
    environ: dict[str, str] | None = None,
    **arguments: object,
) -> Settings:
    if toml:
        (tmp_path / "backpropagate.toml").write_text(toml)
    if dotenv:
        (tmp_path / ".env").write_text(dotenv)
    return Settings(arguments, environ=environ or {}, folder=tmp_path)


def test_the_stronger_source_wins_and_is_named(tmp_path: Path) -> None:
    toml = "[training]\nlearning_rate = 1e-5\n"
    dotenv = "BACKPROPAGATE_TRAINING__LEARNING_RATE=2e-5\n"
    environ = {"BACKPROPAGATE_TRAINING__LEARNING_RATE": "3e-5"}
    key = "training.learning_rate"

    found = [
        settings(tmp_path)[key],
        settings(tmp_path, preset="quality")[key],
        settings(tmp_path, toml=toml, preset="quality")[key],
        settings(tmp_path, dotenv=dotenv)[key],
        settings(tmp_path, environ=environ)[key],
        settings(tmp_path, environ=environ, learning_rate=4e-5)[key],
    ]

    assert [setting.value for setting in found] == [2e-4, 1e-4, 1e-5, 2e-5, 3e-5, 4e-5]
    assert [setting.source for setting in found] == [
        "default",
        "preset quality",
        "backpropagate.toml: training.learning_rate",
        ".env: BACKPROPAGATE_TRAINING__LEARNING_RATE",
        "environment BACKPROPAGATE_TRAINING__LEARNING_RATE",
        "argument learning_rate",
    ]


def test_a_wrong_value_names_its_place_and_what_is_accepted(tmp_path: Path) -> None:
    broken = settings(tmp_path, environ={"BACKPROPAGATE_TRAINING__BACKEND": "tpu"})

    with pytest.raises(InvalidSettingError) as caught:
        _ = broken["training.backend"]
    assert caught.value.message == "BACKPROPAGATE_TRAINING__BACKEND: 'tpu' is not one of auto, cuda, cpu, mlx"


def test_a_wrong_value_does_not_disturb_the_other_settings(tmp_path: Path) -> None:
    broken = settings(tmp_path, dotenv="BACKPROPAGATE_TRAINING__LEARNING_RATE=fast\n")

    assert broken.text("training.output_dir") == "./output"


def test_an_unknown_variable_of_ours_is_a_warning_with_a_suggestion(tmp_path: Path) -> None:
    found = settings(tmp_path, environ={"BACKPROPAGATE_TRAINING__LERNING_RATE": "1", "HOME": "/"})

    assert found.warnings == [
        "BACKPROPAGATE_TRAINING__LERNING_RATE is not a setting; did you mean BACKPROPAGATE_TRAINING__LEARNING_RATE?"
    ]


def test_what_all_names_begin_with_makes_nothing_alike(tmp_path: Path) -> None:
    found = settings(tmp_path, environ={"BACKPROPAGATE_FOO": "1"}, toml="[training]\nbogus = 1\n")

    assert found.warnings == [
        "BACKPROPAGATE_FOO is not a setting",
        "backpropagate.toml: training.bogus is not a setting",
    ]


def test_a_variable_of_other_versions_is_told_of_with_what_there_is_instead(tmp_path: Path) -> None:
    (said,) = settings(tmp_path, environ={"BACKPROPAGATE_LOG_JSON": "1"}).warnings
    assert said.startswith("BACKPROPAGATE_LOG_JSON has no effect: --json prints JSON")


def test_an_unknown_key_in_the_toml_file_keeps_trainings_from_beginning_and_nothing_else(tmp_path: Path) -> None:
    found = settings(tmp_path, toml="[lora]\nrr = 8\n")

    assert found.text("training.output_dir") == "./output"
    with pytest.raises(InvalidSettingError, match=r"lora\.rr is not a setting; did you mean lora\.r\?"):
        found.check_known()
    with pytest.raises(InvalidSettingError, match=r"lora\.rr"):
        hypothetical_spec(found)


def test_a_file_that_is_not_toml_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match=r"backpropagate\.toml is not TOML"):
        settings(tmp_path, toml="[lora\n")


def test_another_toml_file_can_be_named_and_must_then_exist(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[lora]\nr = 4\n")

    assert settings(tmp_path, environ={"BACKPROPAGATE_CONFIG": "mine.toml"}).whole("lora.r") == 4
    with pytest.raises(InvalidSettingError, match="does not exist"):
        settings(tmp_path, environ={"BACKPROPAGATE_CONFIG": "nobodys.toml"})


def test_dotenv_understands_quotes_exports_and_comments(tmp_path: Path) -> None:
    text = "# a comment\nexport BACKPROPAGATE_LORA__R='32'\nBACKPROPAGATE_MODEL__NAME=tiny # the small one\nOTHER=x\n"
    found = settings(tmp_path, dotenv=text)

    assert found.whole("lora.r") == 32
    assert found.text("model.name") == "tiny"
    assert found.warnings == []


def test_older_names_of_a_variable_are_understood_and_the_own_name_wins(tmp_path: Path) -> None:
    old = {"BACKPROPAGATE_TRAINING__PER_DEVICE_TRAIN_BATCH_SIZE": "4"}

    assert settings(tmp_path, environ=old).whole("training.batch_size") == 4
    assert (
        settings(tmp_path, environ={**old, "BACKPROPAGATE_TRAINING__BATCH_SIZE": "2"}).whole("training.batch_size") == 2
    )


def test_an_adapter_preset_that_was_asked_for_wins_over_a_training_preset(tmp_path: Path) -> None:
    assert settings(tmp_path, preset="balanced").whole("lora.r") == 16
    assert settings(tmp_path, preset="balanced", lora_preset="quality").whole("lora.r") == 256
    assert settings(tmp_path, model="qwen2.5-3b").whole("lora.r") == 128
    assert settings(tmp_path, model="qwen2.5-3b", preset="fast").whole("lora.r") == 8


def test_what_a_later_release_brings_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="'pissa' is not part of this release yet"):
        _ = settings(tmp_path, init_lora_weights="pissa")["lora.init_lora_weights"]


def test_an_argument_that_does_not_exist_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"there is no argument 'lora_rr'; did you mean lora_r\?"):
        settings(tmp_path, lora_rr=8)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_every_default_is_accepted_by_its_own_option(option: object) -> None:
    from backpropagate.wishes.options import Option

    assert isinstance(option, Option)
    assert parse(option, option.default) == option.default


@pytest.mark.parametrize("raw", ["nan", "inf", "-1", "0", "", "1e-4x", True, [1e-4]])
def test_a_learning_rate_is_a_number_above_zero(raw: object) -> None:
    option = next(option for option in OPTIONS if option.key == "training.learning_rate")

    with pytest.raises(NotAccepted, match="is not a number above 0"):
        parse(option, raw)


def test_no_two_options_share_a_name() -> None:
    names = [name for option in OPTIONS for name in (*option.all_variables, option.argument)]
    flags = [
        flag for option in OPTIONS for declared in (*option.flags, *option.aliases) for flag in declared.split("/")
    ]

    assert len(set(names)) == len(names)
    assert len(set(flags)) == len(flags)
