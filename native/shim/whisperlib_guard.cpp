// whisper.cpp's functions that may throw, each under `guarded_` and its name: an exception that reached Python's C
// frames would end the process. Caught, it is logged, and the function fails as it fails otherwise, or with a status
// of its own. Out of reach: what is thrown in a thread of whisper.cpp's own or in an OpenMP region, and ggml's aborts.

#include "whisper.h"

#include <exception>
#include <new>
#include <string>

#define EXPORT extern "C" __attribute__((visibility("default")))

static const int OUT_OF_MEMORY = -100;
static const int THROWN        = -101;

static ggml_log_callback log_callback = nullptr;

// Where caught exceptions are told: on the thread of the call, as errors. NULL: nowhere.
EXPORT void whisperlib_guard_log_set(ggml_log_callback callback) {
    log_callback = callback;
}

static void tell(const char * function, const char * what) noexcept try {
    if (log_callback) {
        log_callback(GGML_LOG_LEVEL_ERROR, (std::string(function) + ": " + what + "\n").c_str(), nullptr);
    }
} catch (...) {
    // No memory for the message: the status has to do.
}

template <typename Result, typename Call>
static Result guarded(const char * function, Result out_of_memory, Result thrown, Call call) noexcept {
    try {
        return call();
    } catch (const std::bad_alloc & error) {
        tell(function, error.what());
        return out_of_memory;
    } catch (const std::exception & error) {
        tell(function, error.what());
    } catch (...) {
        tell(function, "an unknown exception");
    }
    return thrown;
}

template <typename Call> static int guarded_status(const char * function, Call call) noexcept {
    return guarded<int>(function, OUT_OF_MEMORY, THROWN, call);
}

template <typename T, typename Call> static T * guarded_pointer(const char * function, Call call) noexcept {
    return guarded<T *>(function, nullptr, nullptr, call);
}

EXPORT whisper_context * guarded_whisper_init_from_file_with_params_no_state(
        const char * path, whisper_context_params params) {
    return guarded_pointer<whisper_context>(
        "whisper_init", [&] { return whisper_init_from_file_with_params_no_state(path, params); });
}

EXPORT whisper_state * guarded_whisper_init_state(whisper_context * ctx) {
    return guarded_pointer<whisper_state>("whisper_init_state", [&] { return whisper_init_state(ctx); });
}

EXPORT whisper_state * guarded_whisper_init_state_with_encoder(
        whisper_context * ctx, bool flash_attn_decode, whisper_encoder_callback encoder, void * user_data) {
    return guarded_pointer<whisper_state>("whisper_init_state", [&] {
        return whisper_init_state_with_encoder(ctx, flash_attn_decode, encoder, user_data);
    });
}

EXPORT int guarded_whisper_full_with_state(
        whisper_context * ctx, whisper_state * state, whisper_full_params params, const float * samples, int n) {
    return guarded_status("whisper_full", [&] { return whisper_full_with_state(ctx, state, params, samples, n); });
}

EXPORT int guarded_whisper_pcm_to_mel_with_state(
        whisper_context * ctx, whisper_state * state, const float * samples, int n, int n_threads) {
    return guarded_status(
        "whisper_pcm_to_mel", [&] { return whisper_pcm_to_mel_with_state(ctx, state, samples, n, n_threads); });
}

EXPORT int guarded_whisper_encode_with_state(whisper_context * ctx, whisper_state * state, int offset, int n_threads) {
    return guarded_status("whisper_encode", [&] { return whisper_encode_with_state(ctx, state, offset, n_threads); });
}

EXPORT int guarded_whisper_lang_auto_detect_with_state(
        whisper_context * ctx, whisper_state * state, int offset_ms, int n_threads, float * lang_probs) {
    return guarded_status("whisper_lang_auto_detect", [&] {
        return whisper_lang_auto_detect_with_state(ctx, state, offset_ms, n_threads, lang_probs);
    });
}

EXPORT int guarded_whisper_token_count(whisper_context * ctx, const char * text) {
    return guarded_status("whisper_token_count", [&] { return whisper_token_count(ctx, text); });
}

EXPORT whisper_vad_context * guarded_whisper_vad_init_from_file_with_params(
        const char * path, whisper_vad_context_params params) {
    return guarded_pointer<whisper_vad_context>(
        "whisper_vad_init", [&] { return whisper_vad_init_from_file_with_params(path, params); });
}

EXPORT bool guarded_whisper_vad_detect_speech(whisper_vad_context * ctx, const float * samples, int n) {
    return guarded<bool>(
        "whisper_vad_detect_speech", false, false, [&] { return whisper_vad_detect_speech(ctx, samples, n); });
}
