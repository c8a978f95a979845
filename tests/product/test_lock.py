"""The lock holds what pyproject.toml asks for, each file by its digest, and names no place to fetch it from."""

import re
import tomllib

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


LOCK = (ROOT / "requirements.lock").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}


def locked() -> dict[str, list[str]]:
    """The versions of each package: several where they depend on Python's."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", LOCK, re.MULTILINE):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


def test_extras_are_bounded_above() -> None:
    for name, requirements in EXTRAS.items():
        for one in requirements:
            own = canonicalize_name(one.name) == "llamafactory-ext"
            bounded = any(part.operator in ("==", "<", "<=", "~=") for part in one.specifier)
            assert own or bounded, f"{name}: {one} takes whatever comes"


def test_what_is_asked_for_is_locked() -> None:
    """Fails after a change of pyproject.toml until `make lock` is run."""
    found = locked()
    asked = [Requirement(text) for text in PROJECT["dependencies"]]
    apart = ("vllm", "ray")  # environments of their own
    for one in [*asked, *(one for name, found_ in EXTRAS.items() if name not in apart for one in found_)]:
        if canonicalize_name(one.name) != "llamafactory-ext":
            versions = found.get(canonicalize_name(one.name), [])
            assert versions and all(map(one.specifier.contains, versions)), f"{one}: locked is {versions}; make lock"


def test_every_package_has_digests_and_no_address() -> None:
    entries = re.split(r"\n(?=\S)", LOCK.strip())
    assert len(entries) > 100
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)
    assert "://" not in LOCK and not re.search(r"^-", LOCK, re.MULTILINE)


def test_licences_are_listed() -> None:
    listed = (ROOT / "docs" / "licences.md").read_text("utf-8")
    for one in EXTRAS["train"]:
        name = canonicalize_name(one.name)
        assert name == "llamafactory-ext" or f"| {name} |" in listed
