#!/bin/sh
# Creates the event, dead-letter and item topics where they do not exist yet. Runs in the Kafka image.
set -eu

create() {
    name=$1
    partitions=$2
    shift 2
    /opt/kafka/bin/kafka-topics.sh --bootstrap-server "$BOOTSTRAP_SERVERS" --create --if-not-exists \
        --topic "$name" --partitions "$partitions" --replication-factor 1 "$@"
}

create "$EVENT_TOPIC" "$EVENT_PARTITIONS" --config retention.ms=-1
create "$EVENT_TOPIC.dlq" 1 --config retention.ms=-1
create "$ITEM_TOPIC" 1 --config cleanup.policy=compact
