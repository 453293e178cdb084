"""One evaluation of the network, which is what sampling is made of: ours against its peers in PyTorch.

    pip install '.[peers]'
    python -m benchmarks.sampling --output=DIR [--config=small --frames=16 --size=32] [--quick]
    python -m benchmarks.sampling --output=DIR --device=gpu --config=if_m --clips=1

The image U-Net against diffusers' `UNet2DConditionModel` with the same weights; their outputs are compared first, and a
difference beyond rounding is an error. The STUNet against lumiere-pytorch around that U-Net, and diffusers'
`UNetMotionModel` and `UNet3DConditionModel` at the same widths. What counts are the ratios, taken in turns
(`peer_networks.py`). Writes `sampling.json`, `.md` and `.png`, and prints the table. A peer that is not installed is
listed as missing, one that does not run the case with its error.
"""

if __name__ == "__main__":
    # Not at the top: the processes that are measured import this file, too, and shall have their own library alone.
    from benchmarks import peer_report

    peer_report.run("sampling", {"image": "forward", "video": "forward"})
