"""Servers that tests run for real, built from their Go modules at pinned versions.

    python -m integration.servers apiserver FOLDER     kube-apiserver, etcd
    python -m integration.servers istiod FOLDER        pilot-discovery, and in crds/ what it watches

Nothing else is needed from then on, no cache of modules either; what is there at its version is not
built again. Where there is no Go, or a build fails, FOLDER has a file that says so, the status is
1, and tests skip with what it says. Tests find the folders by KUBEBUILDER_ASSETS, as setup-envtest
lays one out, and ISTIOD_ASSETS.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

STAGED = "./staging/"
LAST_LINES = 3


class BuildError(RuntimeError):
    """What Go said, or that there is none."""


@dataclass(frozen=True, slots=True)
class Program:
    """A main package of a module; `data` are files of the module, copied beside it.

    `staged` is the version by which a module's repositories under staging/ are published: Go heeds
    no `replace` of a dependency, so ours says the same with versions.
    """

    name: str
    package: str
    module: str
    version: str
    staged: str = ""
    data: tuple[str, ...] = ()


PROGRAMS = {
    "apiserver": (
        Program("etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3", "v3.6.5"),
        Program(
            "kube-apiserver",
            "k8s.io/kubernetes/cmd/kube-apiserver",
            "k8s.io/kubernetes",
            "v1.35.4",
            staged="v0.35.4",
        ),
    ),
    "istiod": (
        Program(
            "pilot-discovery",
            "istio.io/istio/pilot/cmd/pilot-discovery",
            "istio.io/istio",
            "v0.0.0-20260827124520-eed52ebb66ad",  # 1.32-dev
            data=(
                "manifests/charts/base/files/crd-all.gen.yaml",
                "tests/integration/pilot/testdata/gateway-api-crd.yaml",
                "tests/integration/pilot/testdata/gateway-api-inference-extension-crd.yaml",
            ),
        ),
    ),
}
VARIABLES = {"apiserver": "KUBEBUILDER_ASSETS", "istiod": "ISTIOD_ASSETS"}


def assets(which: str) -> Path | None:
    """The folder that has all of it; None where `why_not` says why there is none."""
    folder = _folder(which)
    return folder if folder is not None and _has_all(which, folder) else None


def why_not(which: str) -> str:
    """Why there is no such folder, for who skips."""
    folder = _folder(which)
    reason = f"; `make {which}` builds it"
    if folder is not None and (said := _said(which, folder)).exists():
        reason = f": {said.read_text().strip()}"
    names = " and ".join(each.name for each in PROGRAMS[which])
    return f"{VARIABLES[which]} names no folder with {names}{reason}"


def build(which: str, folder: Path) -> None:
    """Raises `BuildError`."""
    if shutil.which("go") is None:
        raise BuildError("there is no Go to build it with")
    for program in PROGRAMS[which]:
        _build(program, folder)


def main(which: str, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    said, built = _said(which, folder), folder / f"{which}.built"
    wanted = "".join(f"{each.module} {each.version}\n" for each in PROGRAMS[which])
    if _has_all(which, folder) and built.exists() and built.read_text() == wanted:
        return 0
    said.unlink(missing_ok=True)
    try:
        build(which, folder)
    except BuildError as error:
        said.write_text(f"{error}\n")
        print(f"{which} was not built, and tests that need it will skip: {error}", file=sys.stderr)
        return 1
    built.write_text(wanted)
    return 0


def _folder(which: str) -> Path | None:
    named = os.environ.get(VARIABLES[which], "")
    return Path(named) if named else None


def _has_all(which: str, folder: Path) -> bool:
    return all((folder / each.name).is_file() for each in PROGRAMS[which])


def _said(which: str, folder: Path) -> Path:
    return folder / f"{which}.not-built"


def _build(program: Program, folder: Path) -> None:
    wanted = f"{program.module}@{program.version}"
    found = json.loads(_go("mod", "download", "-json", wanted))
    module = json.loads(_go("mod", "edit", "-json", found["GoMod"]))
    for name in program.data:
        into = folder / "crds" / Path(name).name
        into.parent.mkdir(exist_ok=True)
        shutil.copyfile(Path(found["Dir"]) / name, into)
    with TemporaryDirectory() as directory:
        (Path(directory) / "go.mod").write_text(requiring(program, module))
        _go(
            *("build", "-mod=mod", "-trimpath", "-ldflags=-s -w"),
            *("-o", str(folder.absolute() / program.name), program.package),
            inside=directory,
        )


def requiring(program: Program, module: dict) -> str:
    """A go.mod; `module` is that of the program's module, as `go mod edit -json` has it."""
    staged = [
        each["Old"]["Path"]
        for each in module["Replace"] or ()
        if each["New"]["Path"].startswith(STAGED)
    ]
    lines = [
        "module servers",
        f"go {module['Go']}",
        f"require {program.module} {program.version}",
        *(f"replace {path} => {path} {program.staged}" for path in staged),
    ]
    return "\n".join(lines) + "\n"


def _go(*arguments: str, inside: str | None = None) -> str:
    command: Sequence[str] = ("go", *arguments)
    done = subprocess.run(command, cwd=inside, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-LAST_LINES:]
        raise BuildError(f"`{' '.join(command[:2])}` failed: {' / '.join(last)}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
