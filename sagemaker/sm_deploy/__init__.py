"""Create, update, invoke and delete a SageMaker endpoint that runs the serving image.

Runs on the deploying person's machine or in CI, never in the container. Needs boto3 and the
standard library, and imports nothing of `serving`.
"""
