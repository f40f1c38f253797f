"""Test that commands without Ray name the extra in one line, and that Ray's options require --ray."""

from __future__ import annotations

import subprocess
import sys

import pytest

from m2h_deploy.errors import missing_extra
from tests.commands import command_without, mistake

BUNDLE, DATA = "bundle", "data"


@pytest.mark.parametrize(
    "arguments",
    [("run", BUNDLE, DATA, "--ray", "local"), ("verify", BUNDLE, "--reference", "m", "--data", DATA, "--ray", "local")],
)
def test_without_the_extra_the_command_names_it_in_one_line(arguments):
    result = subprocess.run([*command_without("ray"), *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [f"error: {missing_extra('ray', 'ray', 'a job on Ray')}"]


@pytest.mark.parametrize("option", [("--ray-workers", "2"), ("--ray-gpus", "1"), ("--parquet",)])
def test_ray_options_require_ray(option):
    assert "--ray local" in mistake("run", BUNDLE, DATA, *option)


def test_the_package_is_imported_without_ray():
    code = "import sys; sys.modules['ray'] = None; import m2h_deploy.cluster; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
