"""A family that somebody registers."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import fastercache as fc
from fastercache.model.families import family_of, known_families

pytestmark = pytest.mark.usefixtures("own_registry")


class Theirs(nn.Module):
    """A denoiser that is listed nowhere."""


class Extended(Theirs):
    """One that derives from it."""


def test_it_is_known_for_the_class_and_those_that_derive_from_it() -> None:
    assert family_of(Theirs()) is None
    family = fc.register_family(Theirs, fc.Family("separate", order=("cond", "uncond")))
    assert family_of(Extended()) is family is known_families()["Theirs"] and family_of("Theirs") is family
    assert fc.register_family("Theirs", fc.Family("separate", order=("cond", "uncond"))) == family  # a module run again
    with pytest.raises(fc.InvalidFamily, match="Theirs has another family already"):
        fc.register_family(Theirs, fc.Family("batched"))
    with pytest.raises(fc.InvalidFamily, match="WanTransformer3DModel has another family already"):
        fc.register_family("WanTransformer3DModel", family if family.guidance == "batched" else fc.Family("batched"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance": "bached"}, "guidance cannot be 'bached'; did you mean 'batched'"),
        ({"guidance": "batched", "order": ("uncond",)}, "names each branch once, 'cond' among them"),
        ({"guidance": "batched", "order": "cond"}, "names each branch once"),
        ({"guidance": "batched", "order": ("cond", "cond")}, "names each branch once"),
        ({"guidance": "separate", "order": ("cond",)}, "guidance that is separate has two branches or more"),
        ({"guidance": "batched", "layouts": {"blocks": "frame"}}, "did you mean 'frames'"),
        ({"guidance": "batched", "roles": {"blocks.*.attn": "temporl"}}, "did you mean 'temporal'"),
        ({"guidance": "batched", "tokens": "frames"}, "tokens cannot be 'frames'"),
    ],
)
def test_a_description_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(fc.InvalidFamily, match=message):
        fc.Family(**fields)


@pytest.mark.parametrize("denoiser", [Theirs(), "", "my.Transformer", 3])
def test_a_family_belongs_to_a_class(denoiser: Any) -> None:
    with pytest.raises(fc.InvalidFamily, match="belongs to a denoiser's class or the class's name"):
        fc.register_family(denoiser, fc.Family("batched"))
    with pytest.raises(fc.InvalidFamily, match=r"expected a fastercache\.Family"):
        fc.register_family(Theirs, "batched")  # type: ignore[arg-type]
