"""The plan: what a compressed model is, as data.

A plan names a timm model and says what is different about it: which blocks lose their attention or go altogether,
how wide each MLP and each attention head is, where and along which axis tokens merge, and whether a segmentation head
stands in for the classifier. A method finds a plan; nothing else knows which method it was. `dcvit.model.build` turns
a plan into a module.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dcvit.errors import InputError
from dcvit.model_arguments import check_arguments, check_name

Axis = Literal["horizontal", "vertical"]
MergeOperator = Literal["mean", "linear"]
HeadKind = Literal["linear", "multi-level"]
Unmerge = Literal["repeat", "bilinear", "residual"]
Task = Literal["classification", "segmentation"]
MacsConvention = Literal["full", "dcvit"]
"""How MACs are counted: every one, or as the DC-ViT paper does (see `dcvit.cost`)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BlockPlan(_Frozen):
    """What differs in one block; a field left at None is as in the original model.

    Attributes:
        index: The block, counted from 0.
        removed: `attention` leaves `x + mlp(norm2(x))`; `block` leaves the identity.
        mlp_hidden: Hidden width of the MLP.
        head_dim: Channels of every attention head.
    """

    index: int = Field(ge=0)
    removed: Literal["attention", "block"] | None = None
    mlp_hidden: int | None = Field(default=None, ge=1)
    head_dim: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _widths_need_their_layer(self) -> Self:
        if self.removed == "block" and (self.mlp_hidden or self.head_dim):
            raise ValueError(f"block {self.index} is removed, so it has no widths")
        if self.removed == "attention" and self.head_dim:
            raise ValueError(f"block {self.index} has no attention, so it has no head_dim")
        return self


class Merge(_Frozen):
    """Neighbouring tokens merge in pairs along `axis`, once `after` blocks have run (1 … depth − 1)."""

    after: int = Field(ge=1)
    axis: Axis


class HeadPlan(_Frozen):
    """A head that gives every pixel a class, in place of the classifier.

    Attributes:
        kind: `linear` reads the last block; `multi-level` projects the maps of several blocks and sums them.
        num_classes: Classes of a pixel, the background among them; 255 stands for "ignore" in a mask.
        levels: Blocks that a multi-level head reads, the last one included; by default four, spread evenly.
        width: Channels that a multi-level head projects each map to.
        unmerge: How merged tokens become a full map again: `repeat` gives every patch its token, `bilinear`
            interpolates between their centres, and `residual` adds what the token has gained since its merge to what
            the patch was before it. New heads have `residual`; plans that do not say so are older.
    """

    kind: HeadKind = "linear"
    num_classes: int = Field(ge=2, le=255)
    levels: tuple[int, ...] | None = None
    width: int = Field(default=128, ge=1)
    unmerge: Unmerge = "repeat"

    @model_validator(mode="after")
    def _levels_ascend(self) -> Self:
        if self.levels is not None and self.kind == "linear":
            raise ValueError("a linear head reads the last block alone; levels are for a multi-level one")
        if self.levels is not None and (not self.levels or list(self.levels) != sorted(set(self.levels))):
            raise ValueError("levels must be listed once each, in ascending order")
        return self


class CompressionPlan(_Frozen):
    """A timm model and everything that compression changed about it.

    One whose model or arguments could do more than shape a model raises InputError, whichever way it is made.

    Attributes:
        model: timm name.
        model_kwargs: Keyword arguments of `timm.create_model`, of those that shape a model (`dcvit.model_arguments`).
        blocks: Blocks that differ, by ascending index.
        merges: Token merges, by ascending position; several may stand at one position.
        merge_operator: `mean` of each pair, or a trained `linear` map of it (methods: CAIT, ATME).
        size_aware_attention: Add log(s) to the attention logits of a token that stands for s tokens.
        trims_last_block: The last block works on the prefix tokens alone; a head that reads only these gives the same
            logits.
        head: What a segmentation model has in place of the classifier; None keeps the classifier.
    """

    schema_version: Literal[1] = 1
    model: str
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    blocks: tuple[BlockPlan, ...] = ()
    merges: tuple[Merge, ...] = ()
    merge_operator: MergeOperator = "mean"
    size_aware_attention: bool = False
    trims_last_block: bool = False
    head: HeadPlan | None = None

    @model_validator(mode="after")
    def _shapes_alone(self) -> Self:
        check_name(self.model)
        check_arguments(self.model_kwargs)
        return self

    @model_validator(mode="after")
    def _canonical(self) -> Self:
        indices = [block.index for block in self.blocks]
        if indices != sorted(set(indices)):
            raise ValueError("blocks must be listed once each, by ascending index")
        positions = [merge.after for merge in self.merges]
        if positions != sorted(positions):
            raise ValueError("merges must be listed by ascending position")
        if self.trims_last_block and self.head is not None:
            raise ValueError("a segmentation head reads every token, so the last block cannot be trimmed")
        return self

    @property
    def task(self) -> Task:
        """What the model is for."""
        return "classification" if self.head is None else "segmentation"

    @property
    def is_identity(self) -> bool:
        """Whether the plan changes nothing."""
        return not self.blocks and not self.merges and not self.trims_last_block

    @property
    def digest(self) -> str:
        """sha256 of the plan's canonical JSON: two plans with the same digest build the same model."""
        later = ("head", "trims_last_block")  # digests from before there were these still hold where they say nothing
        fields = self.model_dump(mode="json", exclude={name for name in later if not getattr(self, name)})
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def block(self, index: int) -> BlockPlan:
        """The block's entry, or one that changes nothing."""
        return next((block for block in self.blocks if block.index == index), BlockPlan(index=index))

    def with_blocks(self, *blocks: BlockPlan) -> "CompressionPlan":
        """A copy in which the given entries replace those of the same index."""
        entries = {block.index: block for block in (*self.blocks, *blocks)}
        return self.replace(blocks=tuple(entries[index] for index in sorted(entries)))

    def replace(self, **changes: Any) -> "CompressionPlan":
        """A validated copy with some fields changed."""
        return CompressionPlan.model_validate(dict(self) | changes)

    def original(self) -> "CompressionPlan":
        """The plan of the same model, its head included, with nothing cut."""
        return CompressionPlan(model=self.model, model_kwargs=self.model_kwargs, head=self.head)

    def to_json(self) -> str:
        """The plan as indented JSON; fields that say nothing are left out, so that two plans diff well."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps({"schema_version": self.schema_version} | fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "plan") -> "CompressionPlan":
        """Reads a plan, and says in one line which field is wrong.

        Raises:
            InputError: If the text is no JSON, has an unknown field, or a value that cannot be.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "plan"
            raise InputError(f"{where}: {field}: {first['msg']}") from error
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    @classmethod
    def read(cls, path: Path) -> "CompressionPlan":
        """Reads a plan file. Raises InputError if it cannot be read or is not a plan."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the plan {path}: {error}") from error
        return cls.from_json(text, where=str(path))


def parse_merges(text: str) -> tuple[tuple[Merge, ...], MergeOperator]:
    """Reads a merge schedule such as `horizontal@4,vertical@8` or `horizontal@4,vertical@8,linear`.

    Returns:
        The merges by position, and the operator (`mean` where the text names none).

    Raises:
        InputError: If an item is neither `AXIS@BLOCK` nor an operator.
    """
    merges: list[Merge] = []
    operator: MergeOperator = "mean"
    for item in filter(None, (part.strip() for part in text.split(","))):
        if item in get_args(MergeOperator):
            operator = cast(MergeOperator, item)
        elif match := re.fullmatch(r"(horizontal|vertical)@([1-9]\d*)", item):
            merges.append(Merge.model_validate({"axis": match[1], "after": int(match[2])}))
        else:
            raise InputError(
                f"--merge: '{item}' is not a merge; write AXIS@BLOCK with the axis horizontal or vertical and the "
                "number of blocks that run before it, such as horizontal@4,vertical@8 (and mean or linear for the "
                "operator)"
            )
    return tuple(sorted(merges, key=lambda merge: merge.after)), operator


def merges_text(merges: Iterable[Merge]) -> str:
    """A schedule as `parse_merges` reads it: `horizontal@4,vertical@8`."""
    return ",".join(f"{merge.axis}@{merge.after}" for merge in merges)
