"""Which caption fits which picture? `python examples/score_pairs.py MODEL PICTURE... -- CAPTION...`"""

import sys

from PIL import Image

from vlm_core.models import pretrained

model_folder, *rest = sys.argv[1:]
pictures, captions = rest[: rest.index("--")], rest[rest.index("--") + 1 :]

model = pretrained.load(model_folder)
image_BD = model.encode_images([Image.open(path).convert("RGB") for path in pictures])
text_CD = model.encode_texts(captions)
for path, cosines in zip(pictures, (image_BD @ text_CD.T).tolist(), strict=True):
    for caption, cosine in sorted(zip(captions, cosines, strict=True), key=lambda pair: -pair[1]):
        print(f"{cosine:+.3f}  {path}  {caption}")
