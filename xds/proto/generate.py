"""Generate the messages we speak: Envoy's from the `xds-protos` wheel, ours from `weir/v1`.

`xds-protos` is a build requirement and never a dependency: installed, it claims the top-level
names `xds`, `envoy`, `google.rpc` and `opentelemetry.proto`, and each of those already has an
owner. Generated here, the same messages live under `xds.proto`, so `envoy.service.ext_proc.v3`
is imported as `xds.proto.envoy.service.ext_proc.v3`.

Runs by itself whenever the distribution is built or installed, editable installs included.
"""

import importlib
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# What flows per push or per request. Listeners, routes and clusters are authored with
# envoy-data-plane instead and travel as opaque bytes.
ROOTS = (
    "envoy.config.endpoint.v3.endpoint",
    "envoy.service.discovery.v3.ads",
    "envoy.service.ext_proc.v3.external_processor",
    "envoy.service.load_stats.v3.lrs",
    "envoy.service.status.v3.csds",
)
OURS = ("weir/v1/pool.proto",)
MOVED = re.compile(r"^(from|import) ((?:envoy|xds|udpa|validate)\b)", re.MULTILINE)


class GenerateProtos(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, _version: str, _build_data: dict[str, Any]) -> None:
        generate(Path(self.root, "xds", "proto"))


def generate(out: Path) -> None:
    # The project's own `xds` must not hide the `xds` that xds-protos brings.
    ours = out.parent.parent.resolve()
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ours]

    files: dict[str, FileDescriptorProto] = {}
    for root in ROOTS:
        _collect(importlib.import_module(f"{root}_pb2").DESCRIPTOR, files)
    names = [name for name in files if not name.startswith("google/")]

    with tempfile.NamedTemporaryFile(suffix=".binpb") as descriptors:
        descriptors.write(FileDescriptorSet(file=files.values()).SerializeToString())
        descriptors.flush()
        _protoc(out, f"--descriptor_set_in={descriptors.name}", *names)
    _protoc(out, f"--proto_path={out}", *OURS)

    for path in (*out.rglob("*_pb2.py"), *out.rglob("*_pb2.pyi")):
        path.write_text(MOVED.sub(r"\1 xds.proto.\2", path.read_text()))


def _protoc(out: Path, source: str, *names: str) -> None:
    if protoc.main(["protoc", source, f"--python_out={out}", f"--pyi_out={out}", *names]):
        raise RuntimeError(f"protoc refused {len(names)} files; its reasons are above")


def _collect(file: FileDescriptor, files: dict[str, FileDescriptorProto]) -> None:
    if file.name in files:
        return
    for dependency in file.dependencies:
        _collect(dependency, files)
    files[file.name] = FileDescriptorProto.FromString(file.serialized_pb)
