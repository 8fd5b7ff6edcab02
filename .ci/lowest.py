"""Print a pip constraint to the lowest version that pyproject.toml allows of each package that users install.

Test tools are left out, and so is flash-attn, which needs a GPU.
"""

import re
import sys
import tomllib

EXTRAS = ("onnx", "daft", "tos", "s3", "parquet", "heif")

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
listed = project["dependencies"] + [line for name in EXTRAS for line in project["optional-dependencies"][name]]
found = (re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", line) for line in listed)
lowest = dict(match.groups() for match in found if match)
sys.stdout.writelines(f"{name}=={version}\n" for name, version in sorted(lowest.items()))
