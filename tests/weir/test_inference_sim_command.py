import json
import signal
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner

from weir.inference_sim.command import inference_sim


def test_a_process_serves_until_it_is_told_to_stop():
    program = "from weir.inference_sim.command import inference_sim; inference_sim()"
    options = ["--listen", "127.0.0.1:0", "--listen", "127.0.0.2:0", "--speed", "100"]
    command = [sys.executable, "-c", program, *options, "--speed", "50", "--adapter", "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline().strip() for _ in range(2)]
        assert lines[0].startswith("listening on http://127.0.0.1:")
        assert lines[1].startswith("listening on http://127.0.0.2:")
        url = lines[1].rpartition(" ")[2]
        body = json.dumps({"model": "a", "prompt": "hello", "max_tokens": 3}).encode()
        request = urllib.request.Request(
            f"{url}/v1/completions", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--listen", "8000"], "'8000' is not ADDRESS:PORT"),
        (["--listen", "127.0.0.1:99999"], "is not ADDRESS:PORT"),
        (["--speed", "1", "--speed", "2"], "2 --speed for 1 --listen"),
        (["--speed", "0"], "0 is not in the range"),
        (["--blocks", "10", "--max-model-len", "1000"], "does not fit into the cache"),
        (["--max-num-seqs", "4000"], "at least max_num_seqs"),
        (["--adapter", "a", "--max-loras", "0"], "adapters need max_loras"),
        (["--listen", "192.0.2.1:1"], "is the address free?"),
    ],
)
def test_a_mistake_is_named_and_nothing_starts(options, words):
    command = [sys.executable, "-m", "weir", "inference-sim", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode != 0
    assert words in " ".join(ended.stderr.split())


def test_help_teaches_by_examples():
    result = CliRunner().invoke(inference_sim, ["--help"])
    assert result.exit_code == 0
    for words in ("curl 127.0.0.1:8000/v1/completions", "--speed 1 --speed 0.5", "listening on"):
        assert words in result.output
