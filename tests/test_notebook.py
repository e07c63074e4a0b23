"""docs/notebook.ipynb runs from its first cell to its last; a kernel survives an interruption."""

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HANGS, PLAY, ROOT, TINY_RUN

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def in_a_child(script: str, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Run a script that starts a kernel; its warnings do not end the tests."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=HANGS,
        env=os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(cwd / "ipython")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_the_cells_are_python_without_outputs_and_local_paths() -> None:
    code = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
    assert len(code) > 5
    for source in code:
        ast.parse(source)
        assert all(len(line) <= 100 for line in source.splitlines())
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not any(place in text for place in ("/home/", "/root/", "/tmp/", "/work/", "/Users/"))


@pytest.mark.slow
def test_the_notebook_goes_from_a_text_to_a_picture(tmp_path: Path) -> None:
    run = """
        import sys, nbclient, nbformat
        notebook = nbformat.read(sys.argv[1], as_version=4)
        nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
        nbformat.validate(notebook)
        nbformat.write(notebook, "executed.ipynb")
    """
    in_a_child(run, str(NOTEBOOK), cwd=tmp_path)
    cells = json.loads((tmp_path / "executed.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert "12 + 7 = " in printed and "\x1b" not in printed
    assert "instead: ['model.n_layer=3']" in printed
    jobs = list((tmp_path / "multirun" / "notebook").glob("*/summary.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in jobs]
    assert [one["status"] for one in found] == ["finished"] * 4
    narrow, wide = (
        [one["best_val_loss"] for one in found if one["parameters"] == size]
        for size in sorted({one["parameters"] for one in found})
    )
    assert max(wide) < min(narrow)


@pytest.mark.slow
@pytest.mark.parametrize("in_process", [True, False])
def test_the_interrupt_button_saves_a_checkpoint_and_the_kernel_lives_on(
    in_process: bool, tmp_path: Path
) -> None:
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    words = ["data=text", "data.path=play.txt", "data.tokenizer=char", *TINY_RUN, "run.name=a"]
    words = [*words, "trainer.max_steps=1000000", "trainer.eval_interval=1000000"]
    script = """
        import sys, time
        from pathlib import Path
        from jupyter_client.manager import start_new_kernel
        manager, client = start_new_kernel(kernel_name="python3")
        try:
            client.execute(sys.argv[1], stop_on_error=False)
            rows = Path("outputs/a/metrics.jsonl")
            while not rows.exists() or rows.read_text().count(chr(10)) < 4:
                assert manager.is_alive()
                time.sleep(0.05)
            manager.interrupt_kernel()
            reply = client.get_shell_msg(timeout=600)["content"]
            assert reply["ename"] == "Interrupted", reply
            assert "the checkpoint is saved" in reply["evalue"], reply
            client.execute("assert llm.load('outputs/a').checkpoint.step > 0")
            assert client.get_shell_msg(timeout=600)["content"]["status"] == "ok"
            client.execute("import time; time.sleep(600)")
            time.sleep(1)
            manager.interrupt_kernel()  # the kernel has its own handler again
            assert client.get_shell_msg(timeout=600)["content"]["ename"] == "KeyboardInterrupt"
        finally:
            manager.shutdown_kernel(now=True)
    """
    cell = f"import llm\nllm.train({words!r}, in_process={in_process})"
    in_a_child(script, cell, cwd=tmp_path)
