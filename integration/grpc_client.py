"""gRPC's own xDS client as a program: sends RPCs to an xds:/// target, prints who answered.

    GRPC_XDS_BOOTSTRAP=FILE python -m integration.grpc_client TARGET

Obeys lines on stdin: a number of RPCs to send, each answered with one line of JSON, the counts by
backend and of failures.
"""

import json
import sys
from collections import Counter

import grpc

METHOD = "/weir.test.Echo/Who"


def main(target):
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(METHOD)
        for line in sys.stdin:
            answers = Counter()
            for _ in range(int(line)):
                try:
                    answers[call(b"", timeout=10, wait_for_ready=True).decode()] += 1
                except grpc.RpcError as error:
                    answers[f"failed: {error.code().name}: {error.details()}"] += 1
            print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
