// What the Python binding needs to know about the library it was built beside.
// Compiled against the same headers, so the layout below is the compiler's, not a guess.

#include "whisper.h"

#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct {
    const char * name;
    uint64_t     offset;
    uint64_t     size;
} whisperlib_layout_row;

#define WHOLE(T)    { #T, 0, sizeof(struct T) },
#define FIELD(T, f) { #T "." #f, offsetof(struct T, f), sizeof(((struct T *) 0)->f) },

static const whisperlib_layout_row rows[] = {
    WHOLE(whisper_full_params)
    FIELD(whisper_full_params, strategy)
    FIELD(whisper_full_params, n_threads)
    FIELD(whisper_full_params, n_max_text_ctx)
    FIELD(whisper_full_params, offset_ms)
    FIELD(whisper_full_params, duration_ms)
    FIELD(whisper_full_params, translate)
    FIELD(whisper_full_params, no_context)
    FIELD(whisper_full_params, no_timestamps)
    FIELD(whisper_full_params, single_segment)
    FIELD(whisper_full_params, print_special)
    FIELD(whisper_full_params, print_progress)
    FIELD(whisper_full_params, print_realtime)
    FIELD(whisper_full_params, print_timestamps)
    FIELD(whisper_full_params, token_timestamps)
    FIELD(whisper_full_params, thold_pt)
    FIELD(whisper_full_params, thold_ptsum)
    FIELD(whisper_full_params, max_len)
    FIELD(whisper_full_params, split_on_word)
    FIELD(whisper_full_params, max_tokens)
    FIELD(whisper_full_params, debug_mode)
    FIELD(whisper_full_params, audio_ctx)
    FIELD(whisper_full_params, tdrz_enable)
    FIELD(whisper_full_params, suppress_regex)
    FIELD(whisper_full_params, initial_prompt)
    FIELD(whisper_full_params, carry_initial_prompt)
    FIELD(whisper_full_params, prompt_tokens)
    FIELD(whisper_full_params, prompt_n_tokens)
    FIELD(whisper_full_params, language)
    FIELD(whisper_full_params, detect_language)
    FIELD(whisper_full_params, suppress_blank)
    FIELD(whisper_full_params, suppress_nst)
    FIELD(whisper_full_params, temperature)
    FIELD(whisper_full_params, max_initial_ts)
    FIELD(whisper_full_params, length_penalty)
    FIELD(whisper_full_params, temperature_inc)
    FIELD(whisper_full_params, entropy_thold)
    FIELD(whisper_full_params, logprob_thold)
    FIELD(whisper_full_params, no_speech_thold)
    FIELD(whisper_full_params, greedy)
    FIELD(whisper_full_params, greedy.best_of)
    FIELD(whisper_full_params, beam_search)
    FIELD(whisper_full_params, beam_search.beam_size)
    FIELD(whisper_full_params, beam_search.patience)
    FIELD(whisper_full_params, new_segment_callback)
    FIELD(whisper_full_params, new_segment_callback_user_data)
    FIELD(whisper_full_params, progress_callback)
    FIELD(whisper_full_params, progress_callback_user_data)
    FIELD(whisper_full_params, encoder_begin_callback)
    FIELD(whisper_full_params, encoder_begin_callback_user_data)
    FIELD(whisper_full_params, abort_callback)
    FIELD(whisper_full_params, abort_callback_user_data)
    FIELD(whisper_full_params, logits_filter_callback)
    FIELD(whisper_full_params, logits_filter_callback_user_data)
    FIELD(whisper_full_params, grammar_rules)
    FIELD(whisper_full_params, n_grammar_rules)
    FIELD(whisper_full_params, i_start_rule)
    FIELD(whisper_full_params, grammar_penalty)
    FIELD(whisper_full_params, vad)
    FIELD(whisper_full_params, vad_model_path)
    FIELD(whisper_full_params, vad_params)
    FIELD(whisper_full_params, vad_params.threshold)
    FIELD(whisper_full_params, vad_params.min_speech_duration_ms)
    FIELD(whisper_full_params, vad_params.min_silence_duration_ms)
    FIELD(whisper_full_params, vad_params.max_speech_duration_s)
    FIELD(whisper_full_params, vad_params.speech_pad_ms)
    FIELD(whisper_full_params, vad_params.samples_overlap)

    WHOLE(whisper_context_params)
    FIELD(whisper_context_params, use_gpu)
    FIELD(whisper_context_params, flash_attn)
    FIELD(whisper_context_params, gpu_device)
    FIELD(whisper_context_params, dtw_token_timestamps)
    FIELD(whisper_context_params, dtw_aheads_preset)
    FIELD(whisper_context_params, dtw_n_top)
    FIELD(whisper_context_params, dtw_aheads)
    FIELD(whisper_context_params, dtw_aheads.n_heads)
    FIELD(whisper_context_params, dtw_aheads.heads)
    FIELD(whisper_context_params, dtw_mem_size)

    WHOLE(whisper_ahead)
    FIELD(whisper_ahead, n_text_layer)
    FIELD(whisper_ahead, n_head)

    WHOLE(whisper_aheads)
    FIELD(whisper_aheads, n_heads)
    FIELD(whisper_aheads, heads)

    WHOLE(whisper_token_data)
    FIELD(whisper_token_data, id)
    FIELD(whisper_token_data, tid)
    FIELD(whisper_token_data, p)
    FIELD(whisper_token_data, plog)
    FIELD(whisper_token_data, pt)
    FIELD(whisper_token_data, ptsum)
    FIELD(whisper_token_data, t0)
    FIELD(whisper_token_data, t1)
    FIELD(whisper_token_data, t_dtw)
    FIELD(whisper_token_data, vlen)

    WHOLE(whisper_vad_params)
    FIELD(whisper_vad_params, threshold)
    FIELD(whisper_vad_params, min_speech_duration_ms)
    FIELD(whisper_vad_params, min_silence_duration_ms)
    FIELD(whisper_vad_params, max_speech_duration_s)
    FIELD(whisper_vad_params, speech_pad_ms)
    FIELD(whisper_vad_params, samples_overlap)

    WHOLE(whisper_vad_context_params)
    FIELD(whisper_vad_context_params, n_threads)
    FIELD(whisper_vad_context_params, use_gpu)
    FIELD(whisper_vad_context_params, gpu_device)

    WHOLE(whisper_timings)
    FIELD(whisper_timings, sample_ms)
    FIELD(whisper_timings, encode_ms)
    FIELD(whisper_timings, decode_ms)
    FIELD(whisper_timings, batchd_ms)
    FIELD(whisper_timings, prompt_ms)
};

// Changes when a signature of the shim changes.
EXPORT uint32_t whisperlib_shim_abi(void) {
    return 2;
}

// The version of the headers above; whisper_version() is that of the library loaded.
EXPORT const char * whisperlib_shim_whisper_version(void) {
    return WHISPER_VERSION;
}

EXPORT const whisperlib_layout_row * whisperlib_layout(size_t * count) {
    *count = sizeof(rows) / sizeof(rows[0]);
    return rows;
}

// A log callback that outlives the Python interpreter: installed at exit, when a Python one could no longer be called.
EXPORT void whisperlib_log_discard(enum ggml_log_level level, const char * text, void * user_data) {
    (void) level;
    (void) text;
    (void) user_data;
}
