"""The settings of a study."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SerializeAsAny, model_validator
from pydantic_core import PydanticCustomError

from cones.common.files import content_hash
from cones.common.settings import Count, Name, Strict, Words
from cones.methods.searched import Method
from cones.tasks.classification.settings import ClassificationConcept
from cones.tasks.settings import Template

MOST_VALIDATED = 4
"""Validation pictures a class, if nothing else is said: as many as shots and at most these (Zhou et al. 2022)."""
TRANSFERS = ("cross_dataset", "domain_generalisation")
"""Protocols that test on other data sets; their studies stand in the table `transfers`."""
OTHER_CLASSES = ("base_to_new", "cross_dataset")
"""Protocols that test on classes which no search has seen."""


def _each_once(shots: list[int]) -> list[int]:
    if len(set(shots)) < len(shots):
        raise PydanticCustomError("each_once", "must name each number of shots once")
    return shots


def _each_target_once(targets: list[str]) -> list[str]:
    if len(set(targets)) < len(targets):
        raise PydanticCustomError("each_once", "must name each data set once")
    return targets


class Draws(Strict):
    """Which pictures the cells of a study see, and which they are tested on: the same for all methods."""

    protocol: Literal["few_shot", "base_to_new", "realistic", "cross_dataset", "domain_generalisation"] = "few_shot"
    """`few_shot`: some pictures of each class to search on, all classes tested (Zhou et al. 2022, section 4.1).
    `base_to_new`: the first half of the classes is searched for, both halves are tested, each among its own (Zhou et
    al. 2022b, section 4.1). `realistic`: as many pictures, drawn from all without balance, at least one a class, and
    none to validate on, so that the last step is kept (Silva-Rodriguez et al. 2025).
    `cross_dataset`: the targets have classes of their own (Zhou et al. 2022b, section 4.2). `domain_generalisation`:
    the targets show classes of the data set in other pictures, and each is tested among its own (section 4.3)."""
    data: Name
    targets: Annotated[list[Name], AfterValidator(_each_target_once)] = []
    """Data sets that are tested on besides."""
    backbone: Name
    shots: Annotated[list[Count], Field(min_length=1, max_length=32), AfterValidator(_each_once)]
    seeds: int = Field(3, ge=1, le=100)
    """How many draws of pictures there are; their seeds are 1, 2, ..."""
    val_shots: Count | None = None
    """Validation pictures a class; None: as many as shots, at most 4, as in CoOp."""
    views: int = Field(8, ge=1, le=256)
    """Views of each training picture that are encoded once."""
    min_crop: float = Field(0.5, gt=0, le=1)
    """Smallest share of a picture's area that a random view keeps."""
    templates: Annotated[list[Template], Field(min_length=1)] | None = None
    """Sentences a class name is put into; None: the data set's own, or "a photo of a {}."."""
    names: dict[Words, Words] = {}
    """What to call a class in a sentence."""

    @model_validator(mode="after")
    def _of_the_protocol(self) -> "Draws":
        if self.targets and self.protocol not in TRANSFERS:
            raise PydanticCustomError(
                "targets", "`targets` is for the protocols {those}; leave it out", {"those": " and ".join(TRANSFERS)}
            )
        if not self.targets and self.protocol in TRANSFERS:
            raise PydanticCustomError("targets", "needs `targets`, the data sets to test on besides")
        if self.data in self.targets:
            raise PydanticCustomError("targets", "is tested on its own `data` anyway; leave it out of `targets`")
        if self.protocol == "realistic" and self.val_shots is not None:
            raise PydanticCustomError("unvalidated", "has no validation pictures; leave `val_shots` out")
        return self

    @property
    def validates(self) -> bool:
        """Whether there are validation pictures, which choose the best step."""
        return self.protocol != "realistic"

    @property
    def measured(self) -> tuple[str, ...]:
        """The columns of what a cell is worth beside what it is on the classes that it was searched on."""
        if self.protocol == "base_to_new":
            return "new_accuracy", "harmonic_mean"
        return (*(f"accuracy/{name}" for name in self.targets), *(["target_accuracy"] if self.targets else []))

    def address(self, name: str) -> str:
        """The stage of DVC that runs the study of that name."""
        return f"studies/dvc.yaml:{'transfer' if self.protocol in TRANSFERS else 'study'}@{name}"

    def concept(self, shots: int, seed: int) -> ClassificationConcept:
        """The concept of one cell's pictures."""
        return ClassificationConcept(
            task="classification", backbone=self.backbone, data=self.data, shots=shots, seed=seed, views=self.views,
            val_shots=self.val_shots or min(shots, MOST_VALIDATED), min_crop=self.min_crop, templates=self.templates,
            names=self.names,
        )  # fmt: skip


class Study(Draws):
    """Methods on one data set, over numbers of shots and seeds: each of them is a cell."""

    methods: dict[Name, SerializeAsAny[Method]] = Field(min_length=1)
    """The settings of each by a name of yours; or a list of names, each as published."""

    @model_validator(mode="after")
    def _methods_of_the_protocol(self) -> "Study":
        for label, method in self.methods.items():
            if self.protocol in OTHER_CLASSES and not method.names_any_class:
                raise PydanticCustomError(
                    "tied",
                    "`{label}` searches what belongs to the classes it sees, and {protocol} tests on others; leave it "
                    "out, or take another protocol",
                    {"label": label, "protocol": self.protocol},
                )
            if not self.validates and method.needs_validation:
                raise PydanticCustomError(
                    "unvalidated",
                    "`{label}` needs validation pictures, and {protocol} has none: {why}",
                    {"label": label, "protocol": self.protocol, "why": method.needs_validation},
                )
        return self

    @property
    def draws(self) -> Draws:
        return Draws(**{name: getattr(self, name) for name in Draws.model_fields})

    @property
    def by_shots(self) -> dict[str, dict[str, Method]]:
        """Each method as it is at each number of shots."""
        return {label: {str(k): of.at_shots(k) for k in self.shots} for label, of in self.methods.items()}


def settings_hash(draws: Draws, by_shots: Mapping[str, Mapping[str, Method]]) -> str:
    """SHA-256 of what a study draws and of its methods at each number of shots, which is all that it says."""
    methods = {label: {k: of.model_dump(mode="json") for k, of in by.items()} for label, by in by_shots.items()}
    return content_hash([draws.model_dump(mode="json"), methods])
