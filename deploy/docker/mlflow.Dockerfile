# An MLflow server of the very version that the daemon was tested with, and the drivers for PostgreSQL and for
# object stores.
FROM python:3.11-slim

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

RUN useradd --system --uid 10002 --user-group --create-home --home-dir /var/lib/mlflow mlflow

COPY constraints.txt /tmp/constraints.txt
RUN pip install --constraint /tmp/constraints.txt mlflow boto3 psycopg2-binary

USER 10002:10002
WORKDIR /var/lib/mlflow
EXPOSE 5000
ENTRYPOINT ["mlflow"]
CMD ["server", "--host=0.0.0.0"]
