"""What pyproject.toml cannot say: YAML files from the top of the project are installed inside the package."""

from setuptools import find_namespace_packages, setup

SHIPPED = {"toolkit.recipes.configs": "recipes/configs", "toolkit.deepspeed_configs": "deepspeed_configs"}

setup(
    packages=[*find_namespace_packages(include=["toolkit*"]), *SHIPPED],
    package_dir=SHIPPED,
)
