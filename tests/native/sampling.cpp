// Compares how whisper.cpp chooses tokens with the standard library: prints the largest errors and the draws.
#include "src/whisper.cpp"

int main() {
    const int n = 51865;
    std::mt19937 rng(1);
    std::normal_distribution<float> normal(-5.0f, 6.0f);
    std::vector<float> logits(n), logprobs(n), probs(n);
    for (int i = 0; i < n; ++i) {
        logits[i] = i % 7 == 3 ? -INFINITY : normal(rng);
    }
    logits[n - 1] = 30.0f; // so that many of the others are below what a float's exponent holds
    logits[5] = -70.0f;
    whisper_compute_logprobs(logits, n, logprobs);
    whisper_compute_probs(n, logprobs, probs);

    double sum = 0.0, worst_log = 0.0, worst = 0.0;
    for (float x : logits) {
        sum += std::exp((double) x - 30.0);
    }
    int lost = 0;
    for (int i = 0; i < n; ++i) {
        const double expected = (double) logits[i] - 30.0 - std::log(sum);
        if (std::isinf(expected) || expected < -87.0) {
            lost += probs[i] != 0.0f || (std::isinf(expected) && !std::isinf(logprobs[i]));
            continue;
        }
        worst_log = std::max(worst_log, std::fabs(logprobs[i] - expected));
        worst = std::max(worst, std::fabs(probs[i]/std::exp((double) logprobs[i]) - 1.0));
    }
    printf("%d %.3g %.3g\n", lost, worst_log, worst);
    printf("%d\n", whisper_max_of(logprobs.data(), n - 1) == *std::max_element(logprobs.begin(), logprobs.end() - 1));

    const std::vector<float> none(n, -INFINITY);
    whisper_compute_logprobs(none, n, logprobs);
    whisper_compute_probs(n, logprobs, probs);
    printf("%d %d\n", (int) std::count(logprobs.begin(), logprobs.end(), -INFINITY), (int) std::count(probs.begin(), probs.end(), 0.0f));

    for (int i = 0; i < n; ++i) {
        probs[i] = i % 3 ? 0.0f : std::exp(0.2f*normal(rng));
    }
    std::mt19937 ours(7), theirs(7);
    int different = 0;
    std::discrete_distribution<> dist(probs.begin(), probs.end());
    for (int i = 0; i < 2000; ++i) {
        for (int id : whisper_draw(probs, n, 5, ours)) {
            different += id != dist(theirs);
        }
    }
    printf("%d\n", different);
    std::fill(probs.begin(), probs.end(), 0.0f);
    probs[n - 2] = 1e-30f;
    printf("%d %d\n", whisper_draw(probs, n, 1, ours)[0] - n, whisper_draw(std::vector<float>(n), n, 1, ours)[0] - n);
}
