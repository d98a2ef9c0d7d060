"""Which packages are installed: memtok_jax, and the folder configs as memtok_jax/configs. All else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["memtok_jax*"]), "memtok_jax.configs"], package_dir={"memtok_jax.configs": "configs"})
