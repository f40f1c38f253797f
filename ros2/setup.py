"""The ament_python package m2h_perception, for colcon."""

from setuptools import setup

NAME = "m2h_perception"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", [f"launch/{NAME}.launch.py"]),
        (f"share/{NAME}/config", [f"config/{NAME}.yaml"]),
    ],
    # m2h-deploy itself is not listed: colcon would not install it, and a workspace may provide it by path.
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="m2h-deploy",
    maintainer_email="m2h-deploy@users.noreply.github.com",
    description="Depth, class labels and point clouds of a camera's images, by a verified M2H bundle.",
    license="MIT",
    entry_points={
        "console_scripts": [
            "perception_node = m2h_perception.node:main",
            "perception_lifecycle_node = m2h_perception.lifecycle:main",
        ]
    },
)
