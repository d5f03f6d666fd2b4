"""Runs generated JavaScript for tests: by node where it is installed, else in the headless browser."""

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def javascript(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """`javascript(source, name=float32 array)` runs the body of a function and gives what it returns (JSON-able).

    Arrays reach it as Float32Arrays; skipped with the browser fixture's message where there is neither.
    """
    node = shutil.which("node")
    browser = None if node else request.getfixturevalue("browser")

    def run(source: str, **arrays: np.ndarray) -> Any:
        given = {
            k: base64.b64encode(np.ascontiguousarray(v, dtype="<f4").tobytes()).decode() for k, v in arrays.items()
        }
        decode = "text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer)"
        names = "".join(f"const {k} = ({decode})(given.{k});\n" for k in given)
        body = f"const given = {json.dumps(given)};\n{names}{source}"
        if browser is not None:
            page = tmp_path / "empty.html"
            page.write_text("<!doctype html><title>empty</title>")
            browser.open(page)
            return browser.run(body)
        file = tmp_path / "script.js"
        file.write_text(f"console.log(JSON.stringify((() => {{\n{body}\n}})()));")
        done = subprocess.run([node, str(file)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
