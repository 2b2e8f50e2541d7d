"""`make audit` fails where a package has a known hole, and where nobody could say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit.py"
SOUND = {"name": "a", "version": "1", "vulns": []}
HOLED = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (1)"}
OURS = {"name": "nestvec", "skip_reason": "distribution marked as editable"}


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("answers", "status", "said"),
    [
        ([[SOUND, OURS]], 0, "1 packages audited, 0 known holes"),
        ([[SOUND, HOLED]], 1, "b 2: PYSEC-1"),
        ([[SOUND, SKIPPED], []], 1, "1 packages could not be audited, so nothing is known of them: c"),
        ([[SOUND, SKIPPED], [{"name": "c", "version": "1", "vulns": []}]], 0, "2 packages audited, 0 known holes"),
        ([[], []], 1, "0 packages audited"),
    ],
)
def test_only_what_was_audited_passes(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: list[list[dict[str, Any]]],
    status: int,
    said: str,
) -> None:
    """By what the services answer, in their own form: in the first case the second is not asked."""
    replies = iter(answers)
    monkeypatch.setattr(audit, "ask", lambda service: next(replies))
    assert audit.main() == status
    assert said in capsys.readouterr().out
    assert next(replies, None) is None
