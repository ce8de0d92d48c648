"""From checkpoint to served version: MLflow publishing, aliases, the pyfunc model, the retriever."""
