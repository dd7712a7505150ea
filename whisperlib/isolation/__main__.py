"""`python -m whisperlib.isolation DESCRIPTOR`: the engine's process; the descriptor is its end of the channel."""

from __future__ import annotations

import sys

from whisperlib.isolation import host

if __name__ == "__main__":
    host.run(int(sys.argv[1]))
