"""What every table of the server's configuration is made of: immutable, unknown keys refused, sizes with their unit."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

Profile = Literal["production", "demo"]
Port = Annotated[int, Field(ge=0, le=65535)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
