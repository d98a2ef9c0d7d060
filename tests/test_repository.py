"""Habits of the repository: configs load, links of documents resolve, the licence is there, nothing names one machine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from memtok_jax import config

ROOT = Path(__file__).resolve().parent.parent


def presets() -> list[str]:
    """Every experiment as `--config` names it."""
    found = []
    for name in config.config_names():
        text = (config.CONFIG_FOLDER / f"{name}.py").read_text()
        names: dict = {"__name__": f"configs.{name}"}
        exec(compile(text, f"configs/{name}.py", "exec"), names)
        found += [f"{name}:{preset}" for preset in names["PRESETS"]]
    return found


def test_every_preset_loads_and_survives_json():
    found = presets()
    assert len(found) > len(config.config_names()) > 5
    for name in found:
        experiment = config.load(name)
        assert config.from_json(config.to_json(experiment)) == experiment, name


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", "docs/develop.md", "docs/glossary.md",
                                      "docs/use_as_functions.md", "docs/virtual_context.md"], ids=lambda name: Path(name).stem)
def test_links_resolve(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


def test_the_licence_is_the_one_that_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0" and project["license-files"] == ["LICENSE"]
    assert "Apache License" in (ROOT / "LICENSE").read_text() and (ROOT / "memtok_jax" / "py.typed").exists()


def test_requirements_hold_what_the_project_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = (ROOT / "requirements.txt").read_text().splitlines()
    assert set(project["dependencies"]) <= set(required)


def test_no_file_names_a_folder_of_one_machine():
    try:
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    texts = [name for name in files if name.endswith((".py", ".md", ".toml", ".txt")) or name == ".ci/run"]
    words = re.compile("|".join(("/" + "home/", "/" + "work/", r"\.\./" + "shared")))
    named = [name for name in texts if (ROOT / name).exists() and words.search((ROOT / name).read_text())]
    assert not named
