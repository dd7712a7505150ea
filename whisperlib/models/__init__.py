"""Models by name: where their files lie, whether they are sound, and how missing ones are fetched or made."""

from whisperlib.models.catalogue import CATALOGUE, Artifact, Catalogue, Model
from whisperlib.models.disk import Progress
from whisperlib.models.header import WEIGHT_TYPES, Header, VadHeader, check_header, check_vad_header, locate_tensors
from whisperlib.models.quantizer import find_quantizer, quantize
from whisperlib.models.store import ModelFile, Shelf, Verified, fetch, list_models, resolve, verify

__all__ = [
    "CATALOGUE",
    "WEIGHT_TYPES",
    "Artifact",
    "Catalogue",
    "Header",
    "Model",
    "ModelFile",
    "Progress",
    "Shelf",
    "VadHeader",
    "Verified",
    "check_header",
    "check_vad_header",
    "fetch",
    "find_quantizer",
    "list_models",
    "locate_tensors",
    "quantize",
    "resolve",
    "verify",
]
