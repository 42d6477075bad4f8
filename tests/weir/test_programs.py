import subprocess
import sys

import pytest

POOL = """
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: llama}
spec:
  selector: {matchLabels: {app: llama}}
  targetPorts: [{number: 8000}]
"""


def weir(*arguments):
    command = [sys.executable, "-m", "weir", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spec: [", "Error: pool.yaml: not YAML"),
        (
            POOL.replace("targetPorts", "targetPort"),
            "spec.targetPort: unknown field; is",
        ),
        ("", "no InferencePool"),
    ],
)
def test_a_mistake_in_the_manifests_stops_the_start_and_names_itself(tmp_path, text, words):
    (tmp_path / "pool.yaml").write_text(text)
    ended = weir("serve", "--plaintext", "--config", str(tmp_path))
    assert ended.returncode == 1
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_that_is_taken_stops_the_start_and_names_itself(tmp_path):
    (tmp_path / "pool.yaml").write_text(POOL)
    ended = weir("serve", "--plaintext", "--config", str(tmp_path), "--listen", "192.0.2.1:1")
    assert ended.returncode == 1
    assert "cannot listen on 192.0.2.1:1" in ended.stderr
    ended = weir("picker", "--xds", "127.0.0.1:1", "--listen", "192.0.2.1:1")
    assert ended.returncode == 1
    assert "cannot listen on 192.0.2.1:1" in ended.stderr


@pytest.mark.parametrize(
    "command", ["serve", "picker", "demo", "bench", "inference-sim", "envoy-bootstrap"]
)
def test_every_command_explains_itself(command):
    ended = weir(command, "--help")
    assert ended.returncode == 0
    assert "Usage: " in ended.stdout
    assert command in weir("--help").stdout


def test_the_picker_never_loads_envoys_whole_api():
    program = "import sys, weir.picker; sys.exit('envoy_data_plane' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
