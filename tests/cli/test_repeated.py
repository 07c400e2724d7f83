"""No option silently keeps the last of several values."""

import importlib

import click
import pytest
from click.testing import CliRunner

from dcvit.cli.main import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_of_one_value_that_is_repeated_is_refused(name: str) -> None:
    """Every option of every command, whatever else is missing: this is found first."""
    command = importlib.import_module(f"dcvit.cli.{name}").command
    single = [each for each in command.params if isinstance(each, click.Option) and not each.multiple]
    assert single
    for option in single:
        value = _value_of(option)
        given = [option.opts[0], *value] * 2
        ended = CliRunner().invoke(command, given, standalone_mode=False)
        assert isinstance(ended.exception, click.UsageError), option.opts[0]
        assert f"{option.opts[0]} is given 2 times, and takes one value" in ended.exception.format_message()


def test_a_switch_and_its_opposite_are_refused_together() -> None:
    command = importlib.import_module("dcvit.cli.bench").command
    ended = CliRunner().invoke(command, ["model", "--memory", "--no-memory"], standalone_mode=False)
    assert "--memory is given 2 times" in ended.exception.format_message()


def test_a_repeatable_option_is_taken_as_often_as_given() -> None:
    command = importlib.import_module("dcvit.cli.export").command
    ended = CliRunner().invoke(command, ["nowhere", "--batch", "1", "--batch", "dynamic"], standalone_mode=False)
    assert "nowhere is not a model folder" in str(ended.exception)


@pytest.mark.parametrize("word", ["big", "1.5", "-1"])
def test_a_batch_is_a_number_or_dynamic(word: str) -> None:
    command = importlib.import_module("dcvit.cli.export").command
    ended = CliRunner().invoke(command, ["nowhere", "--batch", word], standalone_mode=False)
    assert f"--batch {word}: give a number of images, or 'dynamic'" in str(ended.exception)


def _value_of(option: click.Option) -> list[str]:
    return [] if option.is_flag else ["1"]
