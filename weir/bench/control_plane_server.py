"""`weir serve`, which says on SIGUSR1 what its parts have used.

    python -m weir.bench.control_plane_server FIGURES OPTION...

The options are `weir serve`'s. FIGURES is a file that is replaced at every signal: seconds of CPU
so far by part, as JSON.
"""

import json
import signal
import sys
from pathlib import Path

from weir.bench.sampling import Sampler
from weir.serve import command


def main(figures: Path, options: list[str]) -> None:
    sampler = Sampler()

    def tell(*_: object) -> None:
        draft = figures.with_suffix(".draft")
        draft.write_text(json.dumps(sampler.seconds()))
        draft.replace(figures)

    signal.signal(signal.SIGUSR1, tell)
    with sampler:
        command(options)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
