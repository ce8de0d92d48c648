"""Every error the project raises on purpose.

HsnnError
├── ConfigError            a setting is wrong; the message names it
├── DataError              input that cannot be used; names the field, the file or topic, and the offset
│   ├── SchemaError        a column is missing or has another type
│   └── TooManyRejects     the share of bad input passed the configured limit
├── StateError             saved state that cannot be used
│   ├── CheckpointError    a checkpoint is incomplete, corrupt or of another format
│   ├── OffsetGapError     the broker no longer holds the offsets that the state asks for
│   └── FencedError        another daemon writes the same state; this one must stop
├── BrokerError            Kafka cannot be reached or refused us; names the address and the remedy
└── RegistryError          MLflow cannot be reached, or a version in it is not whole
"""


class HsnnError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(HsnnError):
    """A setting is wrong; the message names it."""


class DataError(HsnnError):
    """Input that cannot be used."""


class SchemaError(DataError):
    """A column is missing or has another type."""


class TooManyRejects(DataError):
    """The share of bad input passed the configured limit."""


class StateError(HsnnError):
    """Saved state that cannot be used."""


class CheckpointError(StateError):
    """A checkpoint is incomplete, corrupt or of another format."""


class OffsetGapError(StateError):
    """The broker no longer holds the offsets that the state asks for."""


class FencedError(StateError):
    """Another daemon writes the same state."""


class BrokerError(HsnnError):
    """Kafka cannot be reached or refused us."""


class RegistryError(HsnnError):
    """MLflow cannot be reached, or a version in it is not whole."""
