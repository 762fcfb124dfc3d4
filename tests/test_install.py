"""The package as it is installed."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["rrcluster", "pipelines.cluster"])
def test_folders_named_like_the_packages_where_a_job_starts_do_not_hide_them(
    module, tmp_path
) -> None:
    for name in ("rrcluster", "pipelines"):  # as in the folder that a checkout was cloned into
        (tmp_path / name).mkdir()
    words = f"import {module}; print({module}.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert str(tmp_path) not in found.stdout
    assert found.stdout.strip().endswith(".py")
