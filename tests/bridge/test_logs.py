"""The log on disk, and the report that includes it."""

from __future__ import annotations

import argparse
import json
import logging
import zipfile
from pathlib import Path

import pytest

from bridge import logs
from bridge.commands import report
from bridge.commands.report import redact
from bridge.logs import BACKUP_FILES, JsonLogHandler


def log_event(log: JsonLogHandler, text: str, **extra: object) -> None:
    record = logging.makeLogRecord(
        {"name": "bridge.show.show", "levelno": logging.INFO, "levelname": "INFO", "msg": text, **extra}
    )
    log.handle(record)


def test_one_line_of_json_per_event(tmp_path: Path) -> None:
    log = JsonLogHandler(tmp_path / "deep" / "show.jsonl")
    log_event(log, "engine ready")
    log_event(log, "running\nin two lines", facts={"fps": 14.5})
    try:
        raise ValueError("broken")
    except ValueError as error:
        log_event(log, "failed", exc_info=(type(error), error, error.__traceback__))
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "deep" / "show.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["engine ready", "running\nin two lines", "failed"]
    assert lines[1]["fps"] == 14.5
    assert {"time", "level", "from"} <= set(lines[0])
    assert "ValueError: broken" in lines[2]["error"]


def test_the_oldest_file_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", 2000)
    log = JsonLogHandler(tmp_path / "show.jsonl")
    for number in range(400):
        log_event(log, f"event {number}")
    log.close()
    files = list(tmp_path.iterdir())
    assert len(files) == BACKUP_FILES + 1
    assert sum(file.stat().st_size for file in files) <= 2100 * (BACKUP_FILES + 1)
    assert "event 399" in (tmp_path / "show.jsonl").read_text(encoding="utf-8")


def test_a_disk_error_loses_the_line_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = JsonLogHandler(tmp_path / "show.jsonl")
    (tmp_path / "show.jsonl").mkdir()
    log_event(log, "lost")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("http://10.0.0.2:9001/?token=AbC-123_x", "AbC-123_x"),
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
        ("HF_TOKEN hf_abcdefgh12345678", "hf_abcdefgh12345678"),
        ("https://user:pass@example.org/model", "pass"),
        (f"{Path.home()}/loras/x.safetensors", str(Path.home())),
    ],
)
def test_secrets_are_left_out(text: str, secret: str) -> None:
    assert secret not in redact(text)


def test_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("state", "log"):
        (tmp_path / folder).mkdir()
    (tmp_path / "state" / "journal-9000.json").write_text('{"values": {"/prompt": "fire"}}', encoding="utf-8")
    (tmp_path / "log" / "show-9000.jsonl").write_text(
        "\n".join(f'{{"event": "{n} token=secret"}}' for n in range(9)), encoding="utf-8"
    )
    monkeypatch.setattr(report.session, "default_path", lambda port: tmp_path / "state" / f"journal-{port}.json")
    monkeypatch.setattr(report.logs, "default_path", lambda port: tmp_path / "log" / f"show-{port}.jsonl")
    monkeypatch.setattr(report.doctor, "main", lambda: print("ok   Python"))
    assert report.main(argparse.Namespace(file=str(tmp_path / "r.zip"), log=None)) == 0
    with zipfile.ZipFile(tmp_path / "r.zip") as archive:
        parts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert set(parts) == {"about.json", "doctor.txt", "session/journal-9000.json", "log/show-9000.jsonl"}
    about = json.loads(parts["about.json"])
    assert "torch" in about["packages"]
    assert parts["doctor.txt"] == "ok   Python\n"
    assert '"8 token=…"' in parts["log/show-9000.jsonl"]
    assert "secret" not in parts["log/show-9000.jsonl"]
    assert "r.zip" in capsys.readouterr().out
