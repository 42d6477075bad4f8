import subprocess
import sys
from pathlib import Path


def test_the_venv_brings_a_real_envoy():
    envoy = Path(sys.executable).with_name("envoy")
    version = subprocess.run([envoy, "--version"], check=True, capture_output=True, text=True)
    assert "/1.40." in version.stdout
