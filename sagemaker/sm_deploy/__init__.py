"""Create, update, invoke and delete a SageMaker endpoint that runs the serving image.

Runs on the deploying person's machine or in CI, never in the container. Needs boto3, click and
rich, and imports nothing of `serving`. The Python API is what its modules define; start with
`deployment.deploy`, `options.EndpointOptions` and `clients.Clients`. Next: `cli.py`.
"""
