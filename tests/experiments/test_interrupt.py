"""Ctrl-C in a real process: a message that says how to go on, exit code 130, and nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path: Path) -> None:
    words = [
        sys.executable, "-m", "fastercache.experiments.cli", "tune", "latte-digits", "--budget", "psnr>=20", "--steps",
        "12", "--count", "2", "--study", str(tmp_path / "study"), "--out", str(tmp_path / "tuned.json"), "--json",
        "--trials",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [*words, "500"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A parent that ignores the signal (nohup, a shell's background job) would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    journal = tmp_path / "study" / "study.journal"
    deadline = time.monotonic() + 240
    while not (journal.exists() and journal.read_text().count('"values"') >= 2):
        assert child.poll() is None and time.monotonic() < deadline, "the search did not get going"
        time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, "")
    assert "interrupted" in err and "run the same command again" in err and "Traceback" not in err

    done = subprocess.run([*words, "3"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["trials"] >= 3 and (tmp_path / "tuned.json").is_file()
