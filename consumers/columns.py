"""The only place where column names are spelled."""

USER_ID = "user_id"
ITEM_ID = "item_id"
EVENT_TYPE = "event_type"
EVENT_TIME = "event_time"
EVENT_ID = "event_id"
LABEL = "label"
WEIGHT = "weight"

# Envelope: where a row came from. ROW counts rows inside one message, since an Arrow message holds many.
TOPIC = "_topic"
PARTITION = "_partition"
OFFSET = "_offset"
ROW = "_row"
TIMESTAMP_MS = "_timestamp_ms"
KEY = "_key"
HEADERS = "_headers"
# Only in the archive: why a row cannot be read under the schema, the bytes of such a message, "has no value".
ERROR = "_error"
VALUE = "_value"
TOMBSTONE = "_tombstone"
