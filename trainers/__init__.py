"""The HSNN model and the online trainer that never stops. No Kafka, no MLflow."""
