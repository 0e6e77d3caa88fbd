"""Define records that commands write to disk and read again: typed, and checked when they are read."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from logodata.common.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Int32 = Annotated[int, "int32"]
"""A whole number that takes 32 bits in parquet; an ``int`` takes 64."""

ABSENT: Any = Field(default=None, exclude_if=lambda value: value is None)
"""The default of a field that is left out of what is written where it is None."""


class Record(BaseModel):
    """Base of what is written. Fields stand in the order in which they are declared. Those of base classes come first,
    and of several bases those of the last one."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, serialize_by_alias=True)

    @classmethod
    def from_json(cls, value: object, *, where: str, mend: str) -> Self:
        """Return the record that a JSON object, which stands at ``where``, holds.

        Raises:
            UserError: A field is missing, unknown or of another type. ``mend`` says what to do about it.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise UserError(f"damaged: {_describe(error)}", where=where, mend=mend) from error

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that is written."""
        return self.model_dump(mode="json")


def _describe(error: ValidationError) -> str:
    """Return the first fault of a record, in words."""
    fault = error.errors()[0]
    field = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"lacks {field!r}"
    if fault["type"] == "extra_forbidden":
        return f"has an unknown {field!r}"
    said = "not a JSON object" if fault["type"] == "model_type" else fault["msg"].removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]
    return f"{field!r}: {said}" if field else said


def arrow_schema(record: type[Record]) -> pa.Schema:
    """Return the parquet schema of a record: a column for each field, a struct for a record, a list for a list. A field
    that may be None has the type of what else it may be, since every column of parquet may hold nulls."""
    import pyarrow as pa

    return pa.schema(_arrow_fields(record))


def _arrow_fields(record: type[BaseModel]) -> list[tuple[str, pa.DataType]]:
    return [(name, _arrow_type(field.rebuild_annotation())) for name, field in record.model_fields.items()]


def _arrow_type(kind: Any) -> pa.DataType:
    import pyarrow as pa

    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return pa.int32() if "int32" in arguments[1:] else _arrow_type(arguments[0])
    if origin in (Union, UnionType):
        [present] = (argument for argument in arguments if argument is not NoneType)
        return _arrow_type(present)
    if origin is Literal:
        return pa.string()
    if origin is list:
        return pa.list_(_arrow_type(arguments[0]))
    if issubclass(kind, BaseModel):
        return pa.struct(_arrow_fields(kind))
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[kind]
