"""What is started on a snapshot."""

from vlmdata.recipe.train import AnyTrainJob

Job = AnyTrainJob
