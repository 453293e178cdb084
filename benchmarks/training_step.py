"""One training step: ours against its peers in PyTorch.

    pip install '.[peers]'
    python -m benchmarks.training_step --output=DIR [--config=small --frames=16 --size=32] [--quick]
    python -m benchmarks.training_step --output=DIR --device=gpu --config=if_m --clips=1

Forward and backward pass of the image U-Net, all parameters, against diffusers' `UNet2DConditionModel` with the same
weights: output, loss and norm of the gradient are compared first, and a difference beyond rounding is an error. The
whole training step of the STUNet (temporal parameters alone, AdamW) against lumiere-pytorch around that U-Net, and
diffusers' `UNetMotionModel` and `UNet3DConditionModel` at the same widths. The rest as in `benchmarks/sampling.py`.
"""

if __name__ == "__main__":
    # Not at the top: the processes that are measured import this file, too, and shall have their own library alone.
    from benchmarks import peer_report

    peer_report.run("training_step", {"image": "gradient", "video": "training_step"})
