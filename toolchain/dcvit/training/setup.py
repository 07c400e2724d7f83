"""What a model is trained on, and for what, by what it is for."""

from pathlib import Path

from dcvit.data import ImageSource, open_source
from dcvit.errors import InputError
from dcvit.subject import Subject
from dcvit.training.images import TrainingData, TrainingImages
from dcvit.training.recipe import TrainingRecipe
from dcvit.training.task import Classification, Task


def set_up(
    subject: Subject,
    data: str | Path | ImageSource,
    recipe: TrainingRecipe,
    *,
    labels: bool | None,
    samples: int | None,
    seed: int,
) -> tuple[TrainingData, Task]:
    """The images that a model is trained on, and its loss.

    Args:
        subject: The model.
        data: A folder of images, a tar of one, a pattern that names several, or `digits`.
        recipe: Resolved for the model's preprocessing.
        labels: Whether to use the labels; None uses them where the source has any.
        samples: Images to draw; None takes all.
        seed: Of the draw and the augmentation.

    Raises:
        InputError: If labels are asked for and the source has none, or they are not those of the model.
    """
    source = open_source(data, "train")
    classes, expected = len(source.classes), subject.architecture.num_classes
    labelled = classes >= 2 if labels is None else labels
    if labelled and classes < 2:
        raise InputError(f"--labels: the images of {source.name} have none; give one folder for each class")
    if labelled and classes != expected:
        raise InputError(
            f"--data: {source.name} has {classes} classes and the model {expected}; give the data that the model was "
            "trained for, or --no-labels to learn from the uncompressed model alone"
        )
    assert recipe.augmentation is not None
    images = TrainingImages(
        source, subject.preprocessing, recipe.augmentation, labelled=labelled, samples=samples, seed=seed
    )
    return images, Classification(recipe.distill, recipe.label_smoothing, labelled)
