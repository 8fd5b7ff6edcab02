"""Cut images into normalised patches, on the device that encodes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_CPU = torch.device("cpu")


class PatchCutter:
    """Normalise an image and cut it into patches, with the image processor's numbers.

    The processor's own call waits for a GPU once per image, since torchvision checks the deviations for zero:
    https://github.com/pytorch/vision/blob/v0.24.0/torchvision/transforms/v2/functional/_misc.py#L69. On one CPU thread
    it took 0.7 ms instead of 0.05 ms for 84 × 84 pixels, and 22 ms instead of 18 ms for a megapixel.

    Parameters
    ----------
    processor : transformers.Qwen2VLImageProcessor
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._patch, self._merge = int(processor.patch_size), int(processor.merge_size)
        self._frames = int(processor.temporal_patch_size)
        self._is_plain = bool(processor.do_rescale and processor.do_normalize)
        self._moments: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def cut(self, pixels: NDArray[Any], device: torch.device = _CPU) -> Tensor:
        """Return the patches of an image, float32 (P, C·T·p·p), on a device.

        The image travels as uint8: an eighth of the bytes of its patches.

        Parameters
        ----------
        pixels : uint8 array (H, W, 3)
            Sides are multiples of a merged patch.
        device : torch.device
            Where to compute.
        """
        image = upload(torch.tensor(pixels), device).permute(2, 0, 1)  # (3, H, W); copied, since `pixels` is shared
        if not self._is_plain:
            return self._processed(image)
        mean, deviation = self._moments_on(device)
        scaled = image.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(deviation)
        return self._arrange(scaled)

    def _arrange(self, image: Tensor) -> Tensor:
        """Order an image (C, H, W) by merged patches; each patch has the same frame T times."""
        channels, height, width = image.shape
        patch, merge = self._patch, self._merge
        rows, columns = height // patch, width // patch
        parts = image.reshape(channels, rows // merge, merge, patch, columns // merge, merge, patch)
        parts = parts.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)  # (rows, columns, m, m, C, 1, p, p)
        repeated = parts.expand(-1, -1, -1, -1, -1, self._frames, -1, -1)
        return repeated.reshape(rows * columns, -1)

    def _moments_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of pixel values from 0 to 255, (C, 1, 1) each."""
        if device not in self._moments:
            unit = 1.0 / self._processor.rescale_factor
            mean, deviation = (
                (torch.tensor(values) * unit).reshape(-1, 1, 1).to(device)
                for values in (self._processor.image_mean, self._processor.image_std)
            )
            self._moments[device] = mean, deviation
        return self._moments[device]

    def _processed(self, image: Tensor) -> Tensor:
        """Return the patches of a processor that does not rescale, or not normalise."""
        # do_resize=False: the image has its size already, and twice resized is not once resized.
        processed = self._processor(
            images=[image],
            do_resize=False,
            input_data_format="channels_first",
            return_tensors="pt",
            device=image.device,
        )
        patches: Tensor = processed["pixel_values"]
        return patches


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, to a GPU from pinned memory, so that the CPU goes on meanwhile."""
    if tensor.device == device or device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
