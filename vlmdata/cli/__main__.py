"""`python -m vlmdata.cli`: as `vlmdata`, where that is not on the path."""

from vlmdata.cli import main

main()
