#!/bin/sh
# Makes the gallery's pictures with the demo's models: docs/gallery/make.sh PYTHON VIDEO
#
# After `make demo` and the trainings of demo/conditional and demo/style (README). The image is the video's first frame,
# the mask a box in its middle.
set -eu
python=$1 video=$2 here=$(dirname "$0")
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

"$python" - "$video" "$made" <<'END'
import sys
import numpy as np
from PIL import Image
from lumiere_jax.data.video_io import decode_video
frame = decode_video(sys.argv[1], duration=0.1)[0][0]
Image.fromarray(frame).save(f"{sys.argv[2]}/first.png")
height, width = frame.shape[:2]
mask = np.zeros((height, width), np.uint8)
mask[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 255
Image.fromarray(mask).save(f"{sys.argv[2]}/mask.png")
END

prompt="a large red circle moving left"

# NAME, then what is given beside the prompt
application() {
  name=$1
  shift
  "$python" -m lumiere_jax.sample --super_resolution=demo/ssr --prompt="$prompt" --output="$made/$name" "$@"
  cp "$made/$name"/*_high_resolution_sheet.png "$here/$name.png"
  cp "$made/$name"/*_high_resolution_xt.png "$here/${name}_xt.png"
}

application text_to_video --checkpoint=demo/stunet
application image_to_video --checkpoint=demo/conditional --task=image_to_video --image="$made/first.png"
application inpaint --checkpoint=demo/conditional --task=inpaint --video="$video" --mask="$made/mask.png"
application outpaint --checkpoint=demo/conditional --task=outpaint --video="$video" --border=0,0,0.25,0.25
application cinemagraph --checkpoint=demo/conditional --task=cinemagraph --image="$made/first.png" --mask="$made/mask.png"
application stylize --checkpoint=demo/stunet --task=stylize --style=demo/style --alpha=0.5
application edit --checkpoint=demo/stunet --task=edit --video="$video" --strength=0.4
"$python" -m lumiere_jax.sample --checkpoint=demo/stunet --task=stylize --style=demo/style --alpha=0,0.25,0.5,0.75,1 \
  --prompt="$prompt" --output="$made/alphas"
cp "$made/alphas"/*_alphas.png "$here/alphas.png"
