#!/bin/sh
# Creates the topics where they do not exist yet, as `hsnn produce` would. Runs in the Kafka image.
set -eu

create() {
    name=$1
    partitions=$2
    shift 2
    /opt/kafka/bin/kafka-topics.sh --bootstrap-server "$BOOTSTRAP_SERVERS" --create --if-not-exists \
        --topic "$name" --partitions "$partitions" --replication-factor 1 "$@"
}

# 8 MiB a message: an Arrow message holds many events. A dead letter is the message and why.
message=max.message.bytes=8388608
letter=max.message.bytes=16777216

create "$EVENT_TOPIC" "$EVENT_PARTITIONS" --config retention.ms=-1 --config "$message"
create "$ITEM_TOPIC" 1 --config cleanup.policy=compact --config "$message"
create "$USER_TOPIC" 1 --config cleanup.policy=compact --config "$message"
# A week of deltas: a server can begin with any version that is not older.
create "$DELTA_TOPIC" 1 --config cleanup.policy=compact,delete --config retention.ms=604800000
for topic in "$EVENT_TOPIC" "$ITEM_TOPIC" "$USER_TOPIC"; do
    create "$topic.dlq" 1 --config retention.ms=-1 --config "$letter"
done
