"""Groups of pairs whose stored pictures are the same, pixel by pixel."""

import cv2
import numpy as np
from made_dataset import pair, picture, publish


def test_other_bytes_of_the_same_pixels_are_one_group(tmp_path):
    jpeg = picture(0)
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    again = jpeg[:2] + b"\xff\xfe\x00\x07hello" + jpeg[2:]  # a comment behind the JPEG's first marker
    assert np.array_equal(cv2.imdecode(np.frombuffer(again, np.uint8), cv2.IMREAD_COLOR), pixels)
    other = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 50])[1].tobytes()
    made = [pair("a", jpeg), pair("b", again), pair("c", other), pair("d", picture(1))]
    changes = {"signals": ["image"], "dedup": ["exact", "pixels"], "select": {"rules": {}}, "shards": {}, "jobs": []}
    _, manifest = publish(tmp_path, made, changes)
    rejected = {step["reason"]: step["rejected"] for step in manifest["funnel"]}
    assert (rejected["duplicate: exact"], rejected["duplicate: pixels"]) == (0, 1)
