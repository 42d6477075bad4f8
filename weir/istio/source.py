"""Where the operator's objects come from: a directory of exported YAML."""

from collections.abc import Iterator
from pathlib import Path

from xds.istio.objects import KINDS
from xds.manifests import Manifest, ManifestError, read

SUFFIXES = (".yaml", ".yml", ".json")


def manifests(config: Path) -> Iterator[Manifest]:
    """Every object of the directory's files that says how a pool is wired. `ManifestError`."""
    files = [file for file in sorted(config.rglob("*")) if file.suffix in SUFFIXES]
    if not files:
        raise ManifestError(f"{config}: no file of Kubernetes objects ({', '.join(SUFFIXES)})")
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"{file.name}: cannot be read: {error}") from error
        yield from read(text, str(file.relative_to(config)), KINDS)
