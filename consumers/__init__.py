"""Where events come from: schema, codecs, Kafka and Parquet sources, dead letters. No torch, no MLflow."""
