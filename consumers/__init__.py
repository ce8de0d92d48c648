"""Where events come from: schema, codecs, Kafka and Parquet sources, the dead-letter sink. No torch, no MLflow."""
