"""Commits of the models that recipes name, where public code names one."""

PINNED_MODELS = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        "fe8a4ea1ffedaf415f4da2f062534de366a451e6"
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (
        "ad9f0ae0864d7fbcd1cd905e3c6c5b069cc8b562"
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": (
        "916b56a44061fd5cd7d6a8fb632557ed4f724f60"
    ),
    "meta-llama/Llama-3.2-1B": "4e20de362430cd3b72f300e6b0f18e50e7166e08",
    "meta-llama/Llama-3.2-1B-Instruct": (
        "9213176726f574b556790deb65791e0c5aa438b6"
    ),
}
