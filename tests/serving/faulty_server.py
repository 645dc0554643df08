"""A server with workers that fail when they are told to, and short limits: faulty_server.py MODEL key=value ..."""

import sys
from pathlib import Path

from unpaired.errors import Problem
from unpaired.serve.guard import Access
from unpaired.serve.limits import Limits
from unpaired.serve.run import listen, run

limits = dict(word.split("=") for word in sys.argv[2:])
bound = listen("127.0.0.1", 0)
try:
    run(
        {"m": Path(sys.argv[1])},
        Access(),
        bound,
        f"http://127.0.0.1:{bound.getsockname()[1]}/",
        Limits(**{k: float(v) if k.endswith("seconds") else int(v) for k, v in limits.items()}),
        painter=("faulty_painter",),
        decoder=("faulty_decoder",),
    )
except Problem as problem:
    print(problem, file=sys.stderr)
    sys.exit(problem.exit_code)
