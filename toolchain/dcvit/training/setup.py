"""What a model is trained on, and for what, by what it is for."""

from dcvit.data import ImageSource, check_order, fits
from dcvit.data.masks import with_masks
from dcvit.data.protocols import MaskSource
from dcvit.errors import InputError
from dcvit.subject import Subject
from dcvit.training.images import TrainingData, TrainingImages
from dcvit.training.recipe import TrainingRecipe
from dcvit.training.segmentation import Segmentation, TrainingPairs
from dcvit.training.task import Classification, Objective


def set_up(
    subject: Subject,
    source: ImageSource,
    recipe: TrainingRecipe,
    *,
    labels: bool | None,
    samples: int | None,
    seed: int,
) -> tuple[TrainingData, Objective]:
    """The images that a model is trained on, and its loss.

    Args:
        subject: The model.
        source: Images; for segmentation with masks.
        recipe: Resolved for the model's preprocessing.
        labels: Whether to use the labels; None uses them where the source has any.
        samples: Images to draw; None takes all.
        seed: Of the draw and the augmentation.

    Raises:
        InputError: If labels are asked for and the source has none, or they are not those of the model.
    """
    if subject.plan.head is not None:
        return _set_up_segmentation(subject, with_masks(source), recipe, labels=labels, samples=samples, seed=seed)
    classes, expected = len(source.classes), subject.architecture.num_classes
    labelled = classes >= 2 if labels is None else labels
    if labelled and classes < 2:
        raise InputError(f"--labels: the images of {source.name} have none; give one folder for each class")
    if labelled and not fits(source, expected):
        raise InputError(
            f"--data: {source.name} has {classes} classes and the model {expected}; give the data that the model was "
            "trained for, --class-map FILE if it lacks some of the classes, or --no-labels to learn from the "
            "uncompressed model alone"
        )
    if labelled:
        check_order(subject.classes, source, "MODEL")
    assert recipe.augmentation is not None
    images = TrainingImages(
        source, subject.preprocessing, recipe.augmentation, labelled=labelled, samples=samples, seed=seed
    )
    return images, Classification(recipe.distill, labelled, recipe.label_smoothing)


def _set_up_segmentation(
    subject: Subject, source: MaskSource, recipe: TrainingRecipe, *, labels: bool | None, samples: int | None, seed: int
) -> tuple[TrainingData, Objective]:
    assert subject.plan.head is not None
    assert recipe.augmentation is not None
    if recipe.mixup or recipe.cutmix:
        raise InputError("--mixup and --cutmix mix labels of whole images, and segmentation has a mask for each")
    classes = subject.plan.head.num_classes
    pairs = TrainingPairs(source, subject.preprocessing, classes, recipe.augmentation, seed, samples)
    if subject.fresh_head and labels is False:
        raise InputError("--no-labels: the head is new, so the uncompressed model has nothing to teach; give masks")
    return pairs, Segmentation(0.0 if subject.fresh_head else recipe.distill, labelled=labels is not False)
