"""The C structs of whisper.h, mirrored field by field.

The layout is that of whisper.cpp 1.8.1 to 1.9.3 on a 64-bit machine. `library.check_layout` compares it with
what the loaded library was compiled with before any of them is used.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterator


class Ahead(c.Structure):
    """struct whisper_ahead."""

    _fields_ = [("n_text_layer", c.c_int), ("n_head", c.c_int)]


class Aheads(c.Structure):
    """struct whisper_aheads."""

    _fields_ = [("n_heads", c.c_size_t), ("heads", c.POINTER(Ahead))]


class ContextParams(c.Structure):
    """struct whisper_context_params."""

    _fields_ = [
        ("use_gpu", c.c_bool),
        ("flash_attn", c.c_bool),
        ("gpu_device", c.c_int),
        ("dtw_token_timestamps", c.c_bool),
        ("dtw_aheads_preset", c.c_int),
        ("dtw_n_top", c.c_int),
        ("dtw_aheads", Aheads),
        ("dtw_mem_size", c.c_size_t),
    ]


class TokenData(c.Structure):
    """struct whisper_token_data. Times are centiseconds."""

    _fields_ = [
        ("id", c.c_int32),
        ("tid", c.c_int32),
        ("p", c.c_float),
        ("plog", c.c_float),
        ("pt", c.c_float),
        ("ptsum", c.c_float),
        ("t0", c.c_int64),
        ("t1", c.c_int64),
        ("t_dtw", c.c_int64),
        ("vlen", c.c_float),
    ]


class VadParams(c.Structure):
    """struct whisper_vad_params."""

    _fields_ = [
        ("threshold", c.c_float),
        ("min_speech_duration_ms", c.c_int),
        ("min_silence_duration_ms", c.c_int),
        ("max_speech_duration_s", c.c_float),
        ("speech_pad_ms", c.c_int),
        ("samples_overlap", c.c_float),
    ]


class VadContextParams(c.Structure):
    """struct whisper_vad_context_params."""

    _fields_ = [("n_threads", c.c_int), ("use_gpu", c.c_bool), ("gpu_device", c.c_int)]


class Greedy(c.Structure):
    """The unnamed struct `greedy` in whisper_full_params."""

    _fields_ = [("best_of", c.c_int)]


class BeamSearch(c.Structure):
    """The unnamed struct `beam_search` in whisper_full_params."""

    _fields_ = [("beam_size", c.c_int), ("patience", c.c_float)]


# void (*)(struct whisper_context *, struct whisper_state *, int n_new, void *)
NewSegmentCallback = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_int, c.c_void_p)
# void (*)(struct whisper_context *, struct whisper_state *, int progress, void *)
ProgressCallback = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p, c.c_int, c.c_void_p)
# bool (*)(struct whisper_context *, struct whisper_state *, void *)
EncoderBeginCallback = c.CFUNCTYPE(c.c_bool, c.c_void_p, c.c_void_p, c.c_void_p)
# bool (*)(void *)
AbortCallback = c.CFUNCTYPE(c.c_bool, c.c_void_p)
# void (*)(enum ggml_log_level, const char *, void *)
LogCallback = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)


class FullParams(c.Structure):
    """struct whisper_full_params."""

    _fields_ = [
        ("strategy", c.c_int),
        ("n_threads", c.c_int),
        ("n_max_text_ctx", c.c_int),
        ("offset_ms", c.c_int),
        ("duration_ms", c.c_int),
        ("translate", c.c_bool),
        ("no_context", c.c_bool),
        ("no_timestamps", c.c_bool),
        ("single_segment", c.c_bool),
        ("print_special", c.c_bool),
        ("print_progress", c.c_bool),
        ("print_realtime", c.c_bool),
        ("print_timestamps", c.c_bool),
        ("token_timestamps", c.c_bool),
        ("thold_pt", c.c_float),
        ("thold_ptsum", c.c_float),
        ("max_len", c.c_int),
        ("split_on_word", c.c_bool),
        ("max_tokens", c.c_int),
        ("debug_mode", c.c_bool),
        ("audio_ctx", c.c_int),
        ("tdrz_enable", c.c_bool),
        ("suppress_regex", c.c_char_p),
        ("initial_prompt", c.c_char_p),
        ("carry_initial_prompt", c.c_bool),
        ("prompt_tokens", c.c_void_p),
        ("prompt_n_tokens", c.c_int),
        ("language", c.c_char_p),
        ("detect_language", c.c_bool),
        ("suppress_blank", c.c_bool),
        ("suppress_nst", c.c_bool),
        ("temperature", c.c_float),
        ("max_initial_ts", c.c_float),
        ("length_penalty", c.c_float),
        ("temperature_inc", c.c_float),
        ("entropy_thold", c.c_float),
        ("logprob_thold", c.c_float),
        ("no_speech_thold", c.c_float),
        ("greedy", Greedy),
        ("beam_search", BeamSearch),
        ("new_segment_callback", NewSegmentCallback),
        ("new_segment_callback_user_data", c.c_void_p),
        ("progress_callback", ProgressCallback),
        ("progress_callback_user_data", c.c_void_p),
        ("encoder_begin_callback", EncoderBeginCallback),
        ("encoder_begin_callback_user_data", c.c_void_p),
        ("abort_callback", AbortCallback),
        ("abort_callback_user_data", c.c_void_p),
        ("logits_filter_callback", c.c_void_p),
        ("logits_filter_callback_user_data", c.c_void_p),
        ("grammar_rules", c.c_void_p),
        ("n_grammar_rules", c.c_size_t),
        ("i_start_rule", c.c_size_t),
        ("grammar_penalty", c.c_float),
        ("vad", c.c_bool),
        ("vad_model_path", c.c_char_p),
        ("vad_params", VadParams),
    ]


MIRRORED: dict[str, type[c.Structure]] = {
    "whisper_ahead": Ahead,
    "whisper_aheads": Aheads,
    "whisper_context_params": ContextParams,
    "whisper_token_data": TokenData,
    "whisper_vad_params": VadParams,
    "whisper_vad_context_params": VadContextParams,
    "whisper_full_params": FullParams,
}


def layout(struct: type[c.Structure], name: str, base: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yield (dotted name, offset, size) in bytes of the struct itself and of every field, nested ones too."""
    yield name, base, c.sizeof(struct)
    for field, kind, *_ in struct._fields_:
        offset = base + getattr(struct, field).offset
        if isinstance(kind, type) and issubclass(kind, c.Structure):
            yield from layout(kind, f"{name}.{field}", offset)
        else:
            yield f"{name}.{field}", offset, c.sizeof(kind)


def mirrored_layout() -> dict[str, tuple[int, int]]:
    """Return {dotted name: (offset, size)} of everything that this module mirrors."""
    return {
        name: (offset, size)
        for struct_name, struct in MIRRORED.items()
        for name, offset, size in layout(struct, struct_name)
    }
