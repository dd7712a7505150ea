"""Another encoder in place of ggml's: OpenVINO's, made from the same model file, several times as fast on a CPU."""

from whisperlib.encoder.files import Accelerated, accelerate, find
from whisperlib.encoder.selection import Choice, choose, load

__all__ = ["Accelerated", "Choice", "accelerate", "choose", "find", "load"]
