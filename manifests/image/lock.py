"""Write the image's locks anew: every package that it installs, with versions and hashes.

`build.lock` is what builds our wheel, `runtime.lock` what the wheel needs. Versions that are locked
already stay where they still fit; delete a lock to take the newest of everything.
"""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EXTRAS = ("kubernetes", "uvloop")


def main() -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise SystemExit("uv is not installed; `make lock` brings it")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    lock(uv, "runtime.lock", ["pyproject.toml", *extras])
    lock(uv, "build.lock", ["-"], "\n".join(project["build-system"]["requires"]))


def lock(uv: str, name: str, arguments: list[str], requirements: str = "") -> None:
    command = [uv, "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-header"]
    command += ["--no-annotate", "--python-version", "3.11", "--output-file", str(HERE / name)]
    subprocess.run([*command, *arguments], input=requirements, text=True, check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
