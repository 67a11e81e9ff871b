"""Two packages from one tree: `tinyvae`, and `tinyvae_kernels`, which lives in `kernels/`."""

from setuptools import find_packages, setup

cli = ["typer>=0.12", "rich>=13", "matplotlib>=3.8", "pillow>=10"]
evaluation = ["scikit-learn>=1.4"]
# what compiles the CUDA kernels without a GPU; pinned, for the tests hold a table of its registers
compilers = ["nvidia-cuda-nvrtc==13.5.37", "nvidia-cuda-nvdisasm==13.5.37"]

setup(
    packages=find_packages(include=["tinyvae", "tinyvae.*"])
    + find_packages("kernels", include=["tinyvae_kernels", "tinyvae_kernels.*"]),
    package_dir={"tinyvae_kernels": "kernels/tinyvae_kernels"},
    package_data={"tinyvae_kernels": ["**/*.cu", "py.typed"], "tinyvae": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=["numpy>=2.0", "numba>=0.60", "threadpoolctl>=3.5", "safetensors>=0.4.3"],
    extras_require={
        "cli": cli,
        "eval": evaluation,
        "all": cli + evaluation,
        # CuPy, the compiler that it calls, the runtime with its headers, and matrix products
        "cuda12": [
            "cupy-cuda12x>=13.4",
            "nvidia-cuda-nvrtc-cu12",
            "nvidia-cuda-runtime-cu12",
            "nvidia-cublas-cu12",
        ],
        "cuda13": [
            "cupy-cuda13x>=13.6",
            "nvidia-cuda-nvrtc",
            "nvidia-cuda-runtime",
            "nvidia-cublas",
        ],
        "test": cli
        + evaluation
        + compilers
        + ["pytest>=8", "hypothesis>=6.100", "scipy>=1.11", "ml_dtypes", "ruff>=0.8", "mypy>=1.11"],
    },
    entry_points={"console_scripts": ["tinyvae = tinyvae.cli:main"]},
)
