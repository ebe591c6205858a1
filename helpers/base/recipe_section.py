"""What every section of a recipe is."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
)


class Section(BaseModel):
    """A recipe section: unknown keys are errors.

    Fields named in ``only_when_set`` are left out of a dump while they are
    None. So one can be added without changing the hash of settings that do
    not use it, and with it every recorded run.
    """

    model_config = ConfigDict(extra="forbid")
    only_when_set: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _leave_out_unset(
        self, dump: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        return {
            key: value
            for key, value in dump(self).items()
            if value is not None or key not in self.only_when_set
        }
