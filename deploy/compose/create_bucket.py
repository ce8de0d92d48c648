"""Makes the bucket BUCKET where it does not exist yet. Runs in the MLflow image."""

import os

import boto3
from botocore.exceptions import ClientError

store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
try:
    store.create_bucket(Bucket=os.environ["BUCKET"])
except ClientError as error:
    if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
        raise
