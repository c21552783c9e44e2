"""The repository's own papers: changelog, security policy, workflow, issue templates, hooks of pre-commit."""

from __future__ import annotations

import datetime
import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.cli import build_parser
from tests.house.sources import ROOT


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def read_yaml(name: str) -> Any:
    return yaml.safe_load(read(name))


def test_the_changelog_opens_with_the_version_of_the_package() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", read("CHANGELOG.md"), re.MULTILINE)
    assert releases[0][0] == version
    dates = [datetime.date.fromisoformat(day) for _, day in releases]
    assert dates == sorted(dates, reverse=True)


def test_modules_that_the_changelog_sends_to_exist() -> None:
    rows = re.findall(r"^  \| `.+?\| (.+?) \|$", read("CHANGELOG.md"), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(?:python -m )?((?:engine|bridge)[\w.]*)`", row)]
    assert len(names) >= 15
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    assert not missing


def test_every_path_in_the_security_policy_exists() -> None:
    paths = re.findall(r"`((?:bridge|engine|tests)/[\w./]+)`", read("SECURITY.md"))
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_workflow_has_its_jobs_and_says_that_it_was_never_run() -> None:
    workflow = read_yaml(".github/workflows/test.yml")
    assert set(workflow["jobs"]) == {"lint", "test", "wheel"}
    systems = {name.split("-")[0] for name in workflow["jobs"]["test"]["strategy"]["matrix"]["os"]}
    assert systems == {"ubuntu", "windows", "macos"}
    commands = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert any(command.startswith("python -m bridge.bootstrap test") for command in commands)
    assert "Never run by us" in read(".github/workflows/test.yml")


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.name)
def test_issue_templates_ask_for_the_report(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    assert "phosphene report" in path.read_text(encoding="utf-8")
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    assert all(part["attributes"] for part in form["body"])


def test_hooks_of_pre_commit_need_no_network() -> None:
    repositories = read_yaml(".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = {hook["id"]: hook for hook in repositories[0]["hooks"]}
    assert set(hooks) == {"ruff", "ruff-format", "mypy"}
    assert all(hook["language"] == "system" for hook in hooks.values())


def test_old_spellings_in_the_changelog_are_still_accepted() -> None:
    table = re.search(r"\| 0\.1\.0, still valid \|.*?\n\n", read("CHANGELOG.md"), re.DOTALL)
    assert table
    old = [row.split("|")[1] for row in table[0].splitlines()[2:] if row]
    options = [option for cell in old for option in re.findall(r"run (--[\w-]+)", cell)]
    commands = re.findall(r"`(?:phosphene )?(\w+)`", next(cell for cell in old if "phosphene" in cell))
    assert options
    assert commands == ["faults", "floods", "soak"]
    for option in options:
        build_parser().parse_args(["run", option, *(["none"] if option == "--journal" else [])])
    for command in commands:
        build_parser().parse_args([command])
    for module in re.findall(r"`python -m ([\w.]+)`", "\n".join(old)):
        assert importlib.util.find_spec(module)
