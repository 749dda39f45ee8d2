"""What a wheel holds, and where: everything below the one name ``labelmill``. All else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

ROOMS = ("operators", "pipelines", "conf")

packages = ["labelmill"]
for room in ROOMS:
    packages += [
        f"labelmill.{name}" for name in (room, *(f"{room}.{below}" for below in find_namespace_packages(room)))
    ]
setup(
    packages=packages,
    package_dir={"labelmill": "labelmill", **{f"labelmill.{room}": room for room in ROOMS}},
    package_data={"": ["*", "*.*"]},
    exclude_package_data={"": ["*.pyc"]},
)
