"""Look for longer, and guided by what the code does, for what breaks something.

    python3 -m venv fuzzing && fuzzing/bin/pip install atheris hypothesis --editable .
    fuzzing/bin/python tests/fuzz/run.py challenge --seconds 600
    fuzzing/bin/python tests/fuzz/run.py                # each target, for a minute

A target is a module of this folder: `challenge` is test_challenge. Its tests are those of the
normal run; atheris (https://github.com/google/atheris) feeds them instead of hypothesis. What it
finds is printed, and kept by hypothesis, so that the next normal run begins with it. `--corpus`
names a folder in which what led further is kept for the next time.
"""

import argparse
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TARGETS = sorted(each.stem.removeprefix("test_") for each in HERE.glob("test_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all, unless told")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--corpus", type=Path, help="a folder, one is made in it per target")
    arguments = parser.parse_args()
    targets = arguments.targets or TARGETS
    if len(targets) == 1:
        fuzz(targets[0], arguments.seconds, arguments.corpus)  # ends the process
    own = ["--seconds", str(arguments.seconds)]
    own += ["--corpus", str(arguments.corpus)] if arguments.corpus else []
    broken = [
        each
        for each in targets
        if subprocess.run([sys.executable, __file__, each, *own], check=False).returncode
    ]
    print(f"broken: {', '.join(broken) or 'nothing'}")
    return bool(broken)


def fuzz(target: str, seconds: int, corpus: Path | None) -> None:
    atheris: Any = importlib.import_module("atheris")
    sys.path[:0] = [str(HERE.parents[1] / "operator"), str(HERE.parent)]
    with atheris.instrument_imports(include=["tagpin"]):
        module = importlib.import_module(f"fuzz.test_{target}")
    tests: list[Callable[[bytes], object]] = [
        value.hypothesis.fuzz_one_input
        for name, value in vars(module).items()
        if name.startswith("test_") and hasattr(value, "hypothesis")
    ]

    def feed(data: bytes) -> None:
        if data:
            tests[data[0] % len(tests)](data[1:])

    kept = tempfile.mkdtemp(prefix=f"fuzz-{target}-")
    options = [f"-max_total_time={seconds}", "-max_len=16384", f"-artifact_prefix={kept}/"]
    folders = []
    if corpus is not None:
        folders = [str(corpus / target)]
        (corpus / target).mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *options, *folders], feed)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
