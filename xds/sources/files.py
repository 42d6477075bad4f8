"""A directory of ordinary Kubernetes manifests as the source of pools.

Read once at the start, where any mistake stops the program; then again whenever something in it
changes, where a mistake does not: the last good objects of that file stand, until it is mended or
removed. A file that has become empty counts as a mistake too, since some editors truncate first and
write later, and nobody empties a pool that way on purpose.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import structlog
import watchfiles

from xds import registry
from xds.latest import Latest
from xds.manifests import Manifest, ManifestError, read
from xds.problems import Problem
from xds.sources.source import Holding, Pools, describe
from xds.tuning import unmet

SUFFIXES = (".yaml", ".yml", ".json")
DEBOUNCE_MILLISECONDS = 50
NOT_IN_EFFECT = ("InferenceModel", "InferenceModelRewrite")  # read, and nothing follows

log = structlog.get_logger()
Files: TypeAlias = Mapping[Path, list[Manifest]]


class Directory:
    """What a directory of manifests says, file by file."""

    def __init__(self, path: Path, istio_domain: str = "") -> None:
        """Read it all. Raises `ManifestError`."""
        self.path = path
        self._domain = istio_domain
        self.problems: tuple[str, ...] = ()  # as of the last `reload`
        if not path.is_dir():
            raise ManifestError(f"{path}: not a directory of Kubernetes manifests")
        self._files: Files = {file: read(_text(file), file.name) for file in _files(path)}
        self.pools: Pools = registry.pools(_all(self._files), self._domain)
        if not self.pools:
            raise ManifestError(
                f"{path}: no InferencePool in {len(self._files)} files ({', '.join(SUFFIXES)})"
            )

    def kinds(self) -> Counter[str]:
        """How many objects there are of each kind."""
        return Counter(manifest.key[0] for manifest in _all(self._files))

    def named(self, kinds: Collection[str]) -> list[str]:
        """The objects of these kinds, and where each is."""
        return [each.where for each in _all(self._files) if each.key[0] in kinds]

    def reload(self) -> None:
        """Read again; what is wrong is in `problems`, and leaves what it concerns as it was."""
        problems: list[str] = []
        files = {}
        for file in _files(self.path):
            manifests = self._reread(file, problems)
            if manifests is not None:
                files[file] = manifests
        self._files = self._agreeing(files, problems)
        self.pools = registry.pools(_all(self._files), self._domain)
        self.problems = tuple(problems)

    def _reread(self, file: Path, problems: list[str]) -> list[Manifest] | None:
        before = self._files.get(file)
        try:
            text = _text(file)
            if text.strip() or not before:
                return read(text, file.name)
            problems.append(f"{file.name}: empty; remove the file to remove what was in it")
        except ManifestError as error:
            problems.append(str(error))
        return before

    def _agreeing(self, files: Files, problems: list[str]) -> Files:
        """The files; of those that do not fit together, as they were before."""
        try:
            registry.pools(_all(files), self._domain)
        except ManifestError:
            agreed = {file: self._files[file] for file in files if file in self._files}
            for file in files:
                trial = agreed | {file: files[file]}
                try:
                    registry.pools(_all(trial), self._domain)
                except ManifestError as error:
                    problems.append(str(error))
                else:
                    agreed = trial
            return agreed
        return files


class FileSource:
    """A directory as a source. Raises `ManifestError` where it is wrong at the start."""

    def __init__(self, path: Path, istio_domain: str = "") -> None:
        self.directory = Directory(path, istio_domain)
        self.pools: Latest[Pools] = Latest(self.directory.pools)
        self._reads = 1

    @property
    def problems(self) -> tuple[str, ...]:
        return self.directory.problems

    @property
    def faults(self) -> Sequence[Problem]:
        """Knobs that need a cluster. All else that is wrong has its file refused as a whole."""
        found = []
        for pool, each in sorted(self.pools.value.items()):
            namespace, _, name = pool.partition("/")
            for fault in unmet(each.policy):
                where = ("InferencePool", namespace, name)
                found.append(Problem(*where, fault.reason, fault.right, fault.knob, fault.value))
        return found

    async def complete(self) -> None:
        """It was read as a whole already."""

    async def run(self) -> None:
        await watch(self.directory, self.pools, self._on_reload)

    def status(self, now: float) -> dict[str, Any]:  # noqa: ARG002 - files do not age
        kinds = self.directory.kinds()
        return describe(
            str(self.directory.path),
            [
                Holding(kind, count, lists=self._reads, in_effect=kind not in NOT_IN_EFFECT)
                for kind, count in sorted(kinds.items())
            ],
            complete=True,
            not_in_effect=self.directory.named(NOT_IN_EFFECT),
        )

    def _on_reload(self, problems: tuple[str, ...]) -> None:
        self._reads += 1
        for problem in problems:
            log.error("manifest refused; what was good stands", problem=problem)
        log.info("manifests read", pools=sorted(self.directory.pools), problems=len(problems))


async def watch(
    directory: Directory, pools: Latest[Pools], on_reload: Callable[[tuple[str, ...]], None]
) -> None:
    """Publish the pools whenever the directory changes; runs until cancelled.

    `on_reload` gets what is wrong with the directory, or nothing.
    """
    async for _ in _changes(directory.path):
        directory.reload()
        pools.publish(directory.pools)
        on_reload(directory.problems)


def _all(files: Files) -> list[Manifest]:
    return [manifest for file in sorted(files) for manifest in files[file]]


def _changes(path: Path) -> AsyncIterator[object]:
    return watchfiles.awatch(
        path, debounce=DEBOUNCE_MILLISECONDS, step=10, watch_filter=None, recursive=False
    )


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{file.name}: cannot be read: {error}") from error
