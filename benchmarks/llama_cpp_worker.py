"""One measurement of llama.cpp through its Python binding; `peers.py` runs this in an environment of its own.

llama_cpp_worker.py MODEL PROMPT_TOKENS NEW_TOKENS THREADS CONTEXT    prints one line of JSON
llama_cpp_worker.py quantize SOURCE TARGET Q8_0|Q4_0                 makes a file of that type
"""

import json
import os
import resource
import sys
import time


def main() -> None:
    """Dispatch."""
    import llama_cpp

    if sys.argv[1] == "quantize":
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype, parameters.allow_requantize = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{sys.argv[4]}"), True
        part = sys.argv[3] + ".part"
        if llama_cpp.llama_model_quantize(sys.argv[2].encode(), part.encode(), parameters) != 0:
            sys.exit("llama.cpp could not quantize the checkpoint")
        os.rename(part, sys.argv[3])
        return
    path, (prompt_tokens, new_tokens, threads, context) = sys.argv[1], map(int, sys.argv[2:])
    started_s = time.perf_counter()
    model = llama_cpp.Llama(path, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)
    loaded_s = time.perf_counter()
    prompt = [i * 37 % (model.n_vocab() - 1) + 1 for i in range(prompt_tokens)]
    before_s = time.perf_counter()
    model.eval(prompt)
    token = greedy(model)
    first_s = time.perf_counter()
    since_start_s = time.clock_gettime(time.CLOCK_BOOTTIME) - process_start_s()
    for _ in range(new_tokens - 1):
        model.eval([token])
        token = greedy(model)
    end_s = time.perf_counter()
    print(
        json.dumps(
            {
                "load_ms": (loaded_s - started_s) * 1e3,
                "prefill_tokens_per_s": prompt_tokens / (first_s - before_s),
                "ttft_ms": since_start_s * 1e3,
                "decode_tokens_per_s": (new_tokens - 1) / (end_s - first_s),
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
            }
        )
    )


def greedy(model) -> int:  # type: ignore[no-untyped-def]
    """The likeliest token, straight from llama.cpp's own buffer."""
    import numpy as np

    logits = model._ctx.get_logits()
    return int(np.ctypeslib.as_array(logits, shape=(model.n_vocab(),)).argmax())


def process_start_s() -> float:
    """When this process began, in seconds since boot (proc(5), field 22 of stat)."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
