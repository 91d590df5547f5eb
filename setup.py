"""For pip; everything is said in setup.cfg. colcon builds with CMakeLists.txt, which adds the interfaces."""

from setuptools import setup

setup()
