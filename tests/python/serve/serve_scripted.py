"""`scant serve` as a program of its own, over a scripted engine that obeys lines on stdin.

``allow N`` lets the engine make N steps more; it begins with none.
"""

from __future__ import annotations

import sys
import threading

from scripted_engine import ScriptedEngine, ScriptedModel

from scant.serve import serve_cli


def obey(engine: ScriptedEngine) -> None:
    for line in sys.stdin:
        engine.allow(int(line.split()[1]))


def main() -> int:
    engine = ScriptedEngine("Hello, wörld", model=ScriptedModel(name="scripted"), queue=5000)
    engine.gate = 0
    threading.Thread(target=obey, args=(engine,), daemon=True).start()
    status = serve_cli.main(["model.scp", "--port", "0", *sys.argv[1:]], lambda _: engine)
    print(f"closed: {engine.closed}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
