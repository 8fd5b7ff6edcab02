"""A job as the operator's users have it: the script of their docs, on the native runner or on Ray.

Called with the addresses of pictures as arguments; prints address and caption of each as JSON on its last line. On Ray
Daft gives rows back as they are finished, so that an address says which caption is whose.
"""

import json
import logging
import os
import sys

import daft
from daft import col

from qwenvl_kit.daft import QwenVLImageUnderstanding, las_udf

URLS = sys.argv[1:]
MODELS, NAME = "/opt/las/models", os.environ.get("MODEL_NAME", "demo")


def configure_logging() -> None:
    logging.basicConfig(level=logging.WARNING)


if __name__ == "__main__":
    if os.getenv("DAFT_RUNNER", "native") == "ray":
        import ray

        ray.init(
            dashboard_host="127.0.0.1",
            include_dashboard=False,
            num_cpus=2,
            runtime_env={"worker_process_setup_hook": configure_logging},
        )
        daft.set_runner_ray()
        daft.set_execution_config(actor_udf_ready_timeout=600)
    daft.set_execution_config(min_cpu_per_task=0)

    ds = daft.from_pydict({"image_path": URLS, "prompt": ["请给出这张图片的详细描述。"] * len(URLS)})
    ds = ds.with_column(
        "caption",
        las_udf(
            QwenVLImageUnderstanding,
            construct_args={
                "image_src_type": "image_url",
                "model_path": MODELS,
                "model_name": NAME,
                "dtype": "float32",
                "use_flash_attention_2": True,
                "prompt": None,
                "max_caption_length": 256,
                "resized_height": None,
                "resized_width": None,
                "batch_size": 2,
                "rank": None,
            },
            num_gpus=0,
            batch_size=2,
            concurrency=1,
        )(col("image_path"), col("prompt")),
    )
    found = ds.to_pydict()
    print(
        "\n" + json.dumps(list(zip(found["image_path"], found["caption"], strict=True)), ensure_ascii=False), flush=True
    )
