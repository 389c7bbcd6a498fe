"""Every op's gradient, where kernels compute it: against finite differences in float64, as on the CPU."""

import pytest

from minunet import functional, gradcheck
from minunet.study.cases import CASES


@pytest.mark.parametrize("name", CASES)
def test_gradient(device, name):
    case = CASES[name]
    gradcheck(case.on(device), case.inputs(device), elementwise=True)


def test_every_op_has_a_case():
    """Each public function of `functional` but those that make functions."""
    public = {name for name, f in vars(functional).items() if callable(f) and f.__module__ == functional.__name__
              and not name.startswith("_") and not isinstance(f, type)} - {"loss_function", "lift"}
    text = " ".join(CASES)
    methods = {"resample": "bilinear"}
    assert [name for name in sorted(public) if methods.get(name, name) not in text] == []
