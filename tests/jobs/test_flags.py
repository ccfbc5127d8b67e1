"""Flags, their help and the YAML file: all come from the settings model, and say the same."""

import re

import click
import pytest
import typer

from dgn.errors import DgnError
from dgn.jobs.cli import build_app
from dgn.jobs.common.flags import load_settings
from dgn.runs.config import RunConfig


def options_of(command):
    """A command's options by the setting that each is named after."""
    group = typer.main.get_command(build_app(command))
    found = group.get_command(click.Context(group), command)
    return {parameter.name: parameter for parameter in found.params if parameter.param_type_name == "option"}


def test_every_setting_is_a_flag_of_render_with_its_description():
    options = options_of("render")
    for name, field in RunConfig.model_fields.items():
        option = options.pop(name)
        assert option.opts == [f"--{name.replace('_', '-')}"]
        assert option.help.startswith(field.description)
        assert option.default is None  # left out, it does not override the YAML file
    assert set(options) == {"config", "dry_run", "extend"}


def test_the_help_of_a_flag_says_what_is_meant_without_it():
    options = options_of("render")
    assert options["preset"].help.endswith("(default: standard)")
    assert options["targets"].help.endswith("(default: all)")
    assert options["seeds"].metavar == "INT"
    assert options["precision"].metavar == "auto|float32|bfloat16"
    for name, field in RunConfig.model_fields.items():
        if field.default is None and name != "decoder":  # without which there are no pretrained pictures
            assert "Default: " in options[name].help
        elif field.default is not None:
            assert options[name].help.endswith(")")


@pytest.mark.parametrize("command", ["resume", "doctor", "tune"])
def test_other_commands_take_the_same_flags(command):
    options = options_of(command)
    shared = options.keys() & RunConfig.model_fields.keys()
    assert shared
    for name in shared:
        assert options[name].help.startswith(RunConfig.model_fields[name].description)


def test_the_help_on_the_screen_has_every_flag(dgn):
    code, out, _ = dgn("render", "--help")
    assert code == 0
    shown = re.sub(r"[│╭╰─╮╯\s]+", " ", out)
    for name in RunConfig.model_fields:
        assert f"--{name.replace('_', '-')} " in shown
    assert "untrained,pretrained" in shown


def settings(tmp_path, text, **given):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_settings(RunConfig, path, given)


@pytest.mark.parametrize(
    "text",
    ["modes: untrained,pretrained\ntargets: all\n", "modes: [untrained, pretrained]\ntargets: [all]\n"],
)
def test_modes_and_targets_mean_the_same_in_yaml_and_as_flags(text, tmp_path):
    config = settings(tmp_path, text)
    assert config == load_settings(RunConfig, None, {"modes": "untrained,pretrained", "targets": ["all"]})
    assert (config.modes, config.targets) == (("untrained", "pretrained"), ("all",))


def test_flags_win_over_the_file(tmp_path):
    config = settings(tmp_path, "targets: classes:polka dots\npreset: draft\nseed: 3\n", seed="5")
    assert (config.targets, config.preset, config.seed) == (("classes:polka dots",), "draft", 5)


def test_a_file_of_every_setting_is_read_back(tmp_path):
    import yaml

    config = RunConfig(targets=("classes:1", "filters"), modes=("untrained",), workers="2-4", updates=7, batch_size=3)
    assert settings(tmp_path, yaml.safe_dump(config.model_dump(mode="json"))) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "is not YAML"),
        ("- 1", "holds a list: expected settings such as 'preset: draft'"),
        ("targetz: all", "unknown setting 'targetz': expected one of targets, modes, "),
        ("\x00", "is not YAML"),
    ],
)
def test_a_file_of_other_things_is_an_error(text, says, tmp_path, dgn):
    with pytest.raises(DgnError, match=re.escape(says)):
        settings(tmp_path, text)
    code, out, err = dgn("render", tmp_path / "run", "--config", tmp_path / "c.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
