"""The operator on Daft and Ray: `QwenVLImageUnderstanding` and `las_udf`.

A job that ran ``from daft.las.functions.udf import las_udf`` keeps its script: the imports change, and Daft's own
``daft.context.set_runner_ray()`` is now ``daft.set_runner_ray()``.
"""

from qwenvl_kit.executors.las_udf import las_udf
from qwenvl_kit.operator import QwenVLImageUnderstanding

__all__ = ["QwenVLImageUnderstanding", "las_udf"]
