"""What scikit-learn expects of any estimator, without importing scikit-learn."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from ._text import unknown

E = TypeVar("E", bound="Parameters")


class NotFittedError(ValueError, AttributeError):
    """The model has no network yet: call fit, or load a saved one."""


class Parameters:
    """Hyperparameters are the arguments of __init__, kept unchanged as attributes."""

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return {p.name: p.default for p in parameters}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The hyperparameters, by name."""
        return {name: getattr(self, name) for name in self._defaults()}

    def set_params(self: E, **parameters: Any) -> E:
        """Change hyperparameters; ValueError names an unknown one."""
        for name, value in parameters.items():
            if name not in self._defaults():
                raise unknown("parameter", name, self._defaults())
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        default = self._defaults()
        shown = (f"{k}={v!r}" for k, v in self.get_params().items() if v != default[k])
        return f"{type(self).__name__}({', '.join(shown)})"

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's pipelines and searches want to know."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        dtypes = ["float32", "float64"]
        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=dtypes),
            input_tags=InputTags(two_d_array=True, three_d_array=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            name = type(self).__name__
            raise NotFittedError(f"this {name} is not fitted yet: call fit(X), or load a saved one")
