"""The C functions that the binding calls, each under its prototype."""

from __future__ import annotations

import ctypes as c
from typing import Any

from whisperlib.binding import status
from whisperlib.binding.external import EncoderCallback
from whisperlib.binding.structs import ContextParams, FullParams, TokenData, VadContextParams
from whisperlib.errors import AbiMismatchError, ModelFileError, OutOfMemoryError

Functions = dict[str, tuple[Any, list[Any]]]  # name: (result type, argument types)

_P, _I, _F, _Z, _S = c.c_void_p, c.c_int, c.c_float, c.c_size_t, c.c_char_p
_SAMPLES = c.POINTER(c.c_float)

WHISPER: Functions = {
    # const char * whisper_version(void);
    "whisper_version": (_S, []),
    # const char * whisper_print_system_info(void);
    "whisper_print_system_info": (_S, []),
    # whisper_context_params whisper_context_default_params(void);
    "whisper_context_default_params": (ContextParams, []),
    # whisper_full_params whisper_full_default_params(whisper_sampling_strategy);
    "whisper_full_default_params": (FullParams, [_I]),
    # whisper_full_params * whisper_full_default_params_by_ref(whisper_sampling_strategy);
    "whisper_full_default_params_by_ref": (_P, [_I]),
    # void whisper_free_params(whisper_full_params *);
    "whisper_free_params": (None, [_P]),
    # whisper_context * whisper_init_from_file_with_params_no_state(const char * path, whisper_context_params);
    "whisper_init_from_file_with_params_no_state": (_P, [_S, ContextParams]),
    # void whisper_free(whisper_context *);
    "whisper_free": (None, [_P]),
    # whisper_state * whisper_init_state(whisper_context *);
    "whisper_init_state": (_P, [_P]),
    # void whisper_free_state(whisper_state *);
    "whisper_free_state": (None, [_P]),
    # int whisper_full_with_state(whisper_context *, whisper_state *, whisper_full_params, const float *, int n);
    "whisper_full_with_state": (_I, [_P, _P, FullParams, _SAMPLES, _I]),
    # int whisper_pcm_to_mel_with_state(whisper_context *, whisper_state *, const float *, int n, int n_threads);
    "whisper_pcm_to_mel_with_state": (_I, [_P, _P, _SAMPLES, _I, _I]),
    # int whisper_encode_with_state(whisper_context *, whisper_state *, int offset, int n_threads);
    "whisper_encode_with_state": (_I, [_P, _P, _I, _I]),
    # int whisper_lang_auto_detect_with_state(whisper_context *, whisper_state *, int offset_ms, int n_threads,
    #                                         float * lang_probs);
    "whisper_lang_auto_detect_with_state": (_I, [_P, _P, _I, _I, _SAMPLES]),
    # int whisper_lang_max_id(void);
    "whisper_lang_max_id": (_I, []),
    # const char * whisper_lang_str(int id);
    "whisper_lang_str": (_S, [_I]),
    # int whisper_token_count(whisper_context *, const char * text);
    "whisper_token_count": (_I, [_P, _S]),
    # whisper_token whisper_token_eot(whisper_context *);
    "whisper_token_eot": (_I, [_P]),
    # const char * whisper_token_to_str(whisper_context *, whisper_token);
    "whisper_token_to_str": (_S, [_P, _I]),
    # int whisper_is_multilingual(whisper_context *);
    "whisper_is_multilingual": (_I, [_P]),
    # int whisper_model_…(whisper_context *);
    "whisper_model_n_vocab": (_I, [_P]),
    "whisper_model_n_audio_ctx": (_I, [_P]),
    "whisper_model_n_audio_state": (_I, [_P]),
    "whisper_model_n_audio_layer": (_I, [_P]),
    "whisper_model_n_text_ctx": (_I, [_P]),
    "whisper_model_n_text_state": (_I, [_P]),
    "whisper_model_n_text_layer": (_I, [_P]),
    "whisper_model_n_mels": (_I, [_P]),
    "whisper_model_ftype": (_I, [_P]),
    # int whisper_full_lang_id_from_state(whisper_state *);
    "whisper_full_lang_id_from_state": (_I, [_P]),
    # int whisper_full_n_segments_from_state(whisper_state *);
    "whisper_full_n_segments_from_state": (_I, [_P]),
    # int64_t whisper_full_get_segment_t0_from_state(whisper_state *, int i_segment);
    "whisper_full_get_segment_t0_from_state": (c.c_int64, [_P, _I]),
    "whisper_full_get_segment_t1_from_state": (c.c_int64, [_P, _I]),
    # const char * whisper_full_get_segment_text_from_state(whisper_state *, int i_segment);
    "whisper_full_get_segment_text_from_state": (_S, [_P, _I]),
    # float whisper_full_get_segment_no_speech_prob_from_state(whisper_state *, int i_segment);
    "whisper_full_get_segment_no_speech_prob_from_state": (_F, [_P, _I]),
    # int whisper_full_n_tokens_from_state(whisper_state *, int i_segment);
    "whisper_full_n_tokens_from_state": (_I, [_P, _I]),
    # whisper_token_data whisper_full_get_token_data_from_state(whisper_state *, int i_segment, int i_token);
    "whisper_full_get_token_data_from_state": (TokenData, [_P, _I, _I]),
    # whisper_vad_context * whisper_vad_init_from_file_with_params(const char *, whisper_vad_context_params);
    "whisper_vad_init_from_file_with_params": (_P, [_S, VadContextParams]),
    # whisper_vad_context_params whisper_vad_default_context_params(void);
    "whisper_vad_default_context_params": (VadContextParams, []),
    # bool whisper_vad_detect_speech(whisper_vad_context *, const float *, int n_samples);
    "whisper_vad_detect_speech": (c.c_bool, [_P, _SAMPLES, _I]),
    # int whisper_vad_n_probs(whisper_vad_context *);
    "whisper_vad_n_probs": (_I, [_P]),
    # float * whisper_vad_probs(whisper_vad_context *);
    "whisper_vad_probs": (_SAMPLES, [_P]),
    # void whisper_vad_free(whisper_vad_context *);
    "whisper_vad_free": (None, [_P]),
}

ERRCHECK = {
    "whisper_init_from_file_with_params_no_state": status.pointer("the model could not be loaded", ModelFileError),
    "whisper_init_state": status.pointer("no state could be allocated", OutOfMemoryError),
    "whisper_init_state_with_encoder": status.pointer("no state could be allocated", OutOfMemoryError),
    "whisper_get_cross_kv_from_state": status.truth("this state's keys and values cannot be read"),
    "whisper_full_with_state": status.status("whisper_full"),
    "whisper_pcm_to_mel_with_state": status.status("whisper_pcm_to_mel", {-1: status.MEANINGS[-2]}),
    "whisper_token_count": status.status("whisper_token_count", {}),
    "whisper_encode_with_state": status.status("whisper_encode", {-1: status.MEANINGS[-6]}),
    "whisper_lang_auto_detect_with_state": status.status(
        "whisper_lang_auto_detect",
        {-1: "offset before the start", -2: "offset past the end", -6: "the encoder failed", -7: "the decoder failed"},
    ),
    "whisper_vad_init_from_file_with_params": status.pointer("the VAD model could not be loaded", ModelFileError),
    "whisper_vad_detect_speech": status.truth("speech detection failed"),
    "whisper_vad_detect_speech_no_reset": status.truth("speech detection failed"),
}

# Exported by our patched build only, or not by every version.
WHISPER_OPTIONAL: Functions = {
    # bool whisper_vad_detect_speech_no_reset(whisper_vad_context *, const float *, int n_samples);
    "whisper_vad_detect_speech_no_reset": (c.c_bool, [_P, _SAMPLES, _I]),
    # float whisper_full_get_segment_temperature_from_state(whisper_state *, int i_segment);
    "whisper_full_get_segment_temperature_from_state": (_F, [_P, _I]),
    # whisper_state * whisper_init_state_with_encoder(whisper_context *, bool flash_attn_decode,
    #                                                 whisper_encoder_callback, void * user_data);
    "whisper_init_state_with_encoder": (_P, [_P, c.c_bool, EncoderCallback, _P]),
    # bool whisper_get_cross_kv_from_state(whisper_state *, const void ** k, const void ** v);
    "whisper_get_cross_kv_from_state": (c.c_bool, [_P, c.POINTER(_P), c.POINTER(_P)]),
}

GGML: Functions = {
    # void ggml_backend_load_all_from_path(const char * dir_path);
    "ggml_backend_load_all_from_path": (None, [_S]),
    # size_t ggml_backend_dev_count(void);
    "ggml_backend_dev_count": (_Z, []),
    # ggml_backend_dev_t ggml_backend_dev_get(size_t index);
    "ggml_backend_dev_get": (_P, [_Z]),
}

GGML_BASE: Functions = {
    # const char * ggml_backend_dev_name(ggml_backend_dev_t);
    "ggml_backend_dev_name": (_S, [_P]),
    # const char * ggml_backend_dev_description(ggml_backend_dev_t);
    "ggml_backend_dev_description": (_S, [_P]),
    # enum ggml_backend_dev_type ggml_backend_dev_type(ggml_backend_dev_t);
    "ggml_backend_dev_type": (_I, [_P]),
}


class LayoutRow(c.Structure):
    """whisperlib_layout_row of our shim: name, offset and size in bytes."""

    _fields_ = [("name", c.c_char_p), ("offset", c.c_uint64), ("size", c.c_uint64)]


SHIM: Functions = {
    # uint32_t whisperlib_shim_abi(void);
    "whisperlib_shim_abi": (c.c_uint32, []),
    # const char * whisperlib_shim_whisper_version(void);
    "whisperlib_shim_whisper_version": (_S, []),
    # const whisperlib_layout_row * whisperlib_layout(size_t * count);
    "whisperlib_layout": (c.POINTER(LayoutRow), [c.POINTER(_Z)]),
}

# Those that may throw: the shim has each of them under `guarded_` and its name, with the same prototype.
GUARDED = (
    "whisper_init_from_file_with_params_no_state",
    "whisper_init_state",
    "whisper_init_state_with_encoder",
    "whisper_full_with_state",
    "whisper_pcm_to_mel_with_state",
    "whisper_encode_with_state",
    "whisper_lang_auto_detect_with_state",
    "whisper_token_count",
    "whisper_vad_init_from_file_with_params",
    "whisper_vad_detect_speech",
)


def guard(whisper: c.CDLL, shim: c.CDLL) -> None:
    """Have calls of the functions that may throw go through the shim, which catches what they throw."""
    functions = WHISPER | WHISPER_OPTIONAL
    declare(shim, {f"guarded_{name}": functions[name] for name in GUARDED})
    for name in GUARDED:
        setattr(whisper, name, getattr(shim, f"guarded_{name}"))


def declare(library: c.CDLL, functions: Functions, *, optional: bool = False) -> None:
    """Give each function its types. Raises AbiMismatchError where a required one is not exported."""
    for name, (restype, argtypes) in functions.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            if optional:
                continue
            raise AbiMismatchError(
                f"{library._name} does not export {name}: whisperlib needs whisper.cpp 1.8.1 to 1.9.3; "
                "run `make native`"
            ) from None
        function.restype = restype
        function.argtypes = argtypes
        if check := ERRCHECK.get(name.removeprefix("guarded_")):
            function.errcheck = check
